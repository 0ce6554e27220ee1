package core

import (
	"testing"

	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// crowd is an exchange where each account has a position and an order.
func crowd(t testing.TB, accounts uint64) *Exchange {
	t.Helper()
	e := New(gateway.New(gateway.NewMemory(1<<20, 0), gateway.Options{HeadroomRecords: -1}))
	if _, err := e.ListInstrument(1, testTerms(t, "X")); err != nil {
		t.Fatal(err)
	}
	n := NewOrder{Instrument: symbol(t, "X"), Offset: record.Open, Price: 1000, Volume: 1}
	for id := uint64(1); id <= accounts; id++ {
		e.OpenAccount(1, id)
		e.Deposit(1, id, 1_000_000, 0)
		n.Account, n.Side, n.Price = id, record.Side(1+id%2), 1000
		e.Submit(1, &n)
		n.Side, n.Price = record.Buy, 900
		if r := e.Submit(1, &n); r.Reason != risk.OK {
			t.Fatal(r.Reason)
		}
	}
	return e
}

// What is copied while callers wait is a few pieces of memory, however many
// accounts and orders there are, and what happens afterwards is not in it.
func TestStateIsCopiedAndThenWritten(t *testing.T) {
	e := crowd(t, 2000)
	if n := testing.AllocsPerRun(5, func() { e.snapshot(1) }); n > 10 {
		t.Errorf("%v allocations for a copy", n)
	}
	before := e.State()
	s := e.snapshot(before.Global)
	e.Cancel(2, &CancelOrder{Instrument: symbol(t, "X"), Account: 1, OrderID: 2})
	e.Deposit(2, 7, 5, 0)
	e.Settle(2, 20250102, []SettlementPrice{{symbol(t, "X"), 1010}})
	if diff := before.Diff(s.state()); diff != nil {
		t.Errorf("the copy changed: %q", diff)
	}
	if before.Diff(e.State()) == nil {
		t.Error("nothing changed")
	}
}

// BenchmarkState tells how long callers wait for a state, and how long it takes.
func BenchmarkState(b *testing.B) {
	e := crowd(b, 50_000)
	b.Run("copy", func(b *testing.B) {
		for b.Loop() {
			e.snapshot(1)
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			e.State()
		}
	})
}
