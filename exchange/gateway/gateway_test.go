package gateway

import (
	"testing"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

var symbol = record.MustSymbol("X")

func someOrder(id uint64) *order.Order {
	return &order.Order{ID: id, Account: 5, Side: record.Buy, Offset: record.Open, Kind: record.Limit, TimeInForce: record.GFD, Price: 10, Volume: 3, Remaining: 2}
}

// dirty is a sink whose slots hold what was in them before.
type dirty struct{ *Memory }

func (d dirty) Next() *record.Record {
	r := d.Memory.Next()
	global := r.Global
	for i := range r.Bytes() {
		r.Bytes()[i] = 0xEE
	}
	r.Global = global
	return r
}

func TestTransaction(t *testing.T) {
	sink := NewMemory(10, 41)
	g := New(dirty{sink}, Options{HeadroomRecords: -1})
	s := &Stream{Symbol: symbol, Seq: 6}
	if !g.Begin(3, Orders) {
		t.Fatal("no room")
	}
	g.Inserted(s, 99, someOrder(1))
	g.Canceled(s, 99, someOrder(1), record.CancelIOC)
	if n := len(sink.Records()); n != 0 {
		t.Fatalf("%d records are visible before the end", n)
	}
	if global := g.End(); global != 43 || s.Seq != 8 {
		t.Fatalf("global %d, seq %d; want 43, 8", global, s.Seq)
	}
	for i := range sink.Records() {
		r := &sink.Records()[i]
		if err := r.Check(); err != nil {
			t.Error(err)
		}
		if r.Seq != uint64(7+i) || r.Global != uint64(42+i) || r.Time != 99 || (r.Flags == record.FlagLast) != (i == 1) {
			t.Errorf("record %s flags %d", r, r.Flags)
		}
	}
	b := sink.Records()[0].OrderInsert()
	want := record.OrderInsert{
		Header: b.Header, OrderID: 1, Account: 5, Price: 10, Volume: 3,
		Side: record.Buy, Offset: record.Open, Kind: record.Limit, TimeInForce: record.GFD,
	}
	if *b != want {
		t.Errorf("got %+v, want %+v, with all else zero", *b, want)
	}
	for _, x := range sink.Records()[0].Body[60:] {
		if x != 0 {
			t.Fatal("what was in the slot before shows through")
		}
	}
}

// Orders leave the headroom to what is urgent.
func TestHeadroom(t *testing.T) {
	g := New(NewMemory(10, 0), Options{HeadroomRecords: 4})
	for _, c := range []struct {
		worst int
		class Class
		want  bool
	}{{6, Orders, true}, {7, Orders, false}, {10, Urgent, true}, {11, Urgent, false}} {
		if got := g.HasRoom(c.worst, c.class); got != c.want {
			t.Errorf("room for %d of class %d: %t", c.worst, c.class, got)
		}
		if got := g.Begin(c.worst, c.class); got != c.want {
			t.Errorf("%d of class %d: %t", c.worst, c.class, got)
		}
	}
	if s := g.Stats(); s.Refused != 2 {
		t.Errorf("%+v, want 2 refused", s)
	}
}

// Under the policy Drop a transaction that does not fit gets no numbers, and is
// lost as a whole.
func TestDrop(t *testing.T) {
	sink := NewMemory(3, 0)
	g := New(sink, Options{Policy: Drop, HeadroomRecords: -1})
	s := &Stream{Symbol: symbol}
	transact := func(n int) uint64 {
		if !g.Begin(n, Orders) {
			t.Fatal("refused under the policy Drop")
		}
		for i := range n {
			g.Inserted(s, 1, someOrder(uint64(i+1)))
		}
		return g.End()
	}
	if transact(2) != 2 || transact(2) != 0 || transact(1) != 3 || transact(1) != 0 {
		t.Fatal("wrong numbers")
	}
	if want := (Stats{Records: 3, Transactions: 2, Dropped: 3}); g.Stats() != want || s.Seq != 3 {
		t.Errorf("%+v, seq %d; want %+v", g.Stats(), s.Seq, want)
	}
}

func TestMemoryDiscard(t *testing.T) {
	m := NewMemory(2, 0)
	for want := uint64(1); want < 6; want++ {
		if !m.Reserve(1) {
			m.Discard()
		}
		m.Next()
		m.Commit()
		if m.Published() != want || len(m.Records()) > 2 {
			t.Fatalf("published %d, want %d; %d kept", m.Published(), want, len(m.Records()))
		}
	}
}

func TestParsePolicy(t *testing.T) {
	for _, p := range []Policy{Reject, Drop} {
		if got, err := ParsePolicy(p.String()); err != nil || got != p {
			t.Errorf("%s: %v, %v", p, got, err)
		}
	}
	if _, err := ParsePolicy("block"); err == nil {
		t.Error("an unknown policy was taken")
	}
}
