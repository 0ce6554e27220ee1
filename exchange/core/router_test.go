package core

import (
	"errors"
	"sync"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

func TestRouterWithoutExchange(t *testing.T) {
	r := NewRouter(nil)
	x := symbol(t, "X")
	if res := r.Submit(&NewOrder{ClientOrderID: 4}); res.Reason != risk.Unavailable || res.ClientOrderID != 4 {
		t.Errorf("%+v", res)
	}
	if r.Cancel(&CancelOrder{}).Reason != risk.Unavailable || r.Amend(&AmendOrder{}).Reason != risk.Unavailable ||
		r.Deposit(1, 1, 0).Reason != risk.Unavailable || r.Settle(20250101, nil).Reason != risk.Unavailable {
		t.Error("a request was answered")
	}
	var refusal *risk.Error
	if _, err := r.ListInstrument(testTerms(t, "X")); !errors.As(err, &refusal) || refusal.Reason != risk.Unavailable {
		t.Errorf("error %v", err)
	}
	if _, ok := r.Book(x, 1); ok || r.Instruments() != nil || r.Fanout() != nil {
		t.Error("a query was answered")
	}
	if r.Refused(risk.Unavailable) != 3 {
		t.Errorf("%d refusals counted, want 3 on the trading path", r.Refused(risk.Unavailable))
	}
}

// Many callers at once: everything is carried out once, in some order, and the
// records tell the same story.
func TestRouterConcurrently(t *testing.T) {
	sink := gateway.NewMemory(1<<16, 0)
	ex := New(gateway.New(sink, gateway.Options{}))
	clock := int64(0)
	r := NewRouter(func() int64 { clock++; return clock % 50 }) // a clock that jumps back
	r.Start(ex)
	if _, err := r.ListInstrument(testTerms(t, "X")); err != nil {
		t.Fatal(err)
	}
	x := symbol(t, "X")
	const callers, orders = 8, 300
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[uint64]bool)
	for c := range uint64(callers) {
		wg.Go(func() {
			r.OpenAccount(c + 1)
			r.Deposit(c+1, 1_000_000, 0)
			for i := range orders {
				n := NewOrder{Instrument: x, Account: c + 1, Side: record.Side(1 + c%2), Offset: record.Open, Price: 1000, Volume: 1}
				res := r.Submit(&n)
				if i%3 == 0 {
					r.Cancel(&CancelOrder{Instrument: x, Account: c + 1, OrderID: res.OrderID})
				}
				if i%50 == 0 {
					r.Account(c + 1)
					r.Book(x, 5)
					r.Totals()
				}
				mu.Lock()
				if res.OrderID != 0 && seen[res.OrderID] {
					t.Errorf("order id %d was given twice", res.OrderID)
				}
				seen[res.OrderID] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if r.Close() != ex || r.Submit(&NewOrder{}).Reason != risk.Unavailable {
		t.Error("closed, but not shut")
	}
	last := int64(0)
	p := NewReplayer()
	for i := range sink.Records() {
		rec := &sink.Records()[i]
		if rec.Time < last {
			t.Fatalf("record %s goes back in time", rec)
		}
		last = rec.Time
		if err := p.Apply(rec); err != nil {
			t.Fatal(err)
		}
	}
	rebuilt, err := p.Finish(ex.Gateway())
	if err != nil {
		t.Fatal(err)
	}
	if diff := ex.State().Diff(rebuilt.State()); diff != nil {
		t.Fatalf("%v", diff)
	}
}

// Under the policy Drop orders go on without numbers when the sink is full, and
// the answer shows it.
func TestDropPolicy(t *testing.T) {
	sink := &narrowSink{Memory: gateway.NewMemory(1000, 0), room: 1000}
	ex := New(gateway.New(sink, gateway.Options{Policy: gateway.Drop, HeadroomRecords: -1}))
	if _, err := ex.ListInstrument(1, testTerms(t, "X")); err != nil {
		t.Fatal(err)
	}
	ex.OpenAccount(1, 1)
	ex.Deposit(1, 1, 1_000_000, 0)
	sink.room = 0
	copies := ex.Gateway().Fanout().Subscribe(gateway.Executions, 8)
	n := NewOrder{Instrument: symbol(t, "X"), Account: 1, Side: record.Buy, Offset: record.Open, Price: 1000, Volume: 1}
	res := ex.Submit(1, &n)
	if res.Status != Resting || res.Global != 0 || res.Seq != 1 || ex.Gateway().Stats().Dropped != 1 {
		t.Errorf("%+v, %+v", res, ex.Gateway().Stats())
	}
	var e gateway.Event
	if !copies.TryNext(&e) || e.Record.OrderInsert().OrderID != res.OrderID {
		t.Errorf("the drop copy lacks the order: %+v", e)
	}
	sink.room = 1000
	if res := ex.Submit(1, &n); res.Global != 4 || res.Seq != 2 {
		t.Errorf("%+v, want the next numbers", res)
	}
}

// The drop copy hears of refusals too.
func TestRefusalsReachTheDropCopy(t *testing.T) {
	ex := New(gateway.New(gateway.NewMemory(1000, 0), gateway.Options{HeadroomRecords: -1}))
	copies := ex.Gateway().Fanout().Subscribe(gateway.Executions, 8)
	ex.Submit(7, &NewOrder{Instrument: symbol(t, "X"), Account: 3, ClientOrderID: 9, Side: record.Buy, Offset: record.Open})
	ex.Cancel(8, &CancelOrder{Instrument: symbol(t, "X"), Account: 3, OrderID: 5})
	for _, want := range []gateway.Rejected{
		{Instrument: symbol(t, "X"), Account: 3, ClientOrderID: 9, Reason: uint8(risk.UnknownInstrument), Time: 7},
		{Instrument: symbol(t, "X"), Account: 3, OrderID: 5, Reason: uint8(risk.UnknownInstrument), Time: 8},
	} {
		var e gateway.Event
		if !copies.TryNext(&e) || e.Reject != want {
			t.Errorf("%+v, want %+v", e.Reject, want)
		}
	}
}

// A state's difference names what differs.
func TestStateDiff(t *testing.T) {
	a := State{Lines: []string{"exchange global=1", "account 1 balance=5", "account 3 balance=1", "order X buy 0 id=1"}}
	b := State{Lines: []string{"exchange global=1", "account 1 balance=6", "account 2 balance=1", "order X buy 0 id=1"}}
	got := a.Diff(b)
	want := []string{"- account 1 balance=5", "+ account 1 balance=6", "- account 3 balance=1", "+ account 2 balance=1"}
	if len(got) != len(want) {
		t.Fatalf("%q", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("line %d: %q, want %q", i, got[i], want[i])
		}
	}
	if a.Diff(a) != nil || a.Hash() == b.Hash() {
		t.Error("equal states differ or different ones are equal")
	}
}
