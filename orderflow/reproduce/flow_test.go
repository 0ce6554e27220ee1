package reproduce

import (
	"os"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/exchange/matching"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/orderflow/l3"
	"github.com/countinghouse/countinghouse/orderflow/lobster"
	"github.com/countinghouse/countinghouse/record"
)

// market is a bare book that a recorded flow is played to.
type market struct {
	book *matching.Book
	live map[uint64]*order.Order
	made []orderflow.Trade
	// follow takes off the book what a recorded fill left less of.
	follow bool
}

func (m *market) play(t *testing.T, s orderflow.Source) {
	t.Helper()
	m.book, m.live = matching.New(), map[uint64]*order.Order{}
	var e orderflow.Event
	for {
		ok, err := s.Next(&e)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return
		}
		m.apply(&e)
	}
}

func (m *market) apply(e *orderflow.Event) {
	o := m.live[e.Order]
	switch {
	case e.Kind == orderflow.Submit:
		o = m.book.Acquire()
		o.ID, o.Side, o.Kind, o.TimeInForce = e.Order, e.Side, e.OrderKind, e.TimeInForce
		o.Price, o.Volume, o.Remaining = e.Price, e.Volume, e.Volume
		m.enter(o, e.Time)
	case o == nil: // filled, or older than the record
	case e.Kind == orderflow.Cancel:
		m.drop(o)
	case e.Kind == orderflow.Reduce:
		m.resize(o, o.Remaining-e.Volume)
	case e.Kind == orderflow.Observe && m.follow:
		m.resize(o, min(o.Remaining, e.Volume))
	case e.Kind == orderflow.Amend:
		m.book.Remove(o)
		o.Price = e.Price
		m.enter(o, e.Time)
	}
}

func (m *market) resize(o *order.Order, remaining int64) {
	if remaining <= 0 {
		m.drop(o)
		return
	}
	m.book.Amend(o, o.Price, remaining)
}

func (m *market) drop(o *order.Order) {
	m.book.Remove(o)
	delete(m.live, o.ID)
	m.book.Release(o)
}

func (m *market) enter(o *order.Order, at int64) {
	for _, f := range m.book.Match(o, nil) {
		m.made = append(m.made, orderflow.Trade{Time: at, Price: f.Price, Volume: f.Volume})
		if f.MakerDone {
			delete(m.live, f.Maker.ID)
			m.book.Release(f.Maker)
		}
	}
	if o.Remaining == 0 || o.TimeInForce != record.GFD {
		delete(m.live, o.ID)
		m.book.Release(o)
		return
	}
	m.book.Rest(o)
	m.live[o.ID] = o
}

func open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// The capture holds a sweep of three trades by a market order that is shown as a
// repriced limit order, a fill by an order that the capture does not have, a
// trade that has its right size only if the book follows that fill, and a trade
// that nothing in the capture explains.
func TestL3(t *testing.T) {
	for follow, want := range map[bool]int{false: 3, true: 4} {
		source, err := l3.NewSource(open(t, "l3.csv"), l3.Options{PriceDecimals: 2})
		if err != nil {
			t.Fatal(err)
		}
		m := market{follow: follow}
		m.play(t, source)
		expected, err := l3.ReadTrades(open(t, "l3.trades"), l3.TradeOptions{PriceDecimals: 2, VolumeDecimals: 8})
		if err != nil {
			t.Fatal(err)
		}
		if got := Compare(expected, m.made, time.Second); got.Reproduced != want || got.Expected != 6 {
			t.Errorf("following %v: %d reproduced, expected %d; made %v, missing %v", follow, got.Reproduced, want, m.made, got.Missing)
		}
	}
}

// With the opening book the engine makes all trades but the one that two older
// orders, which the book shows as one, made with one incoming order.
func TestLOBSTER(t *testing.T) {
	for _, c := range []struct {
		book string
		want int
	}{{"lobster.book", 5}, {"", 3}} {
		var expected []orderflow.Trade
		opts := lobster.Options{Trade: func(trade orderflow.Trade) { expected = append(expected, trade) }}
		if c.book != "" {
			opts.Book = open(t, c.book)
		}
		source, err := lobster.NewSource(open(t, "lobster.csv"), opts)
		if err != nil {
			t.Fatal(err)
		}
		var m market
		m.play(t, source)
		if got := Compare(expected, m.made, 0); got.Reproduced != c.want || got.Expected != 7 {
			t.Errorf("book %q: %d reproduced, expected %d; made %v, missing %v", c.book, got.Reproduced, c.want, m.made, got.Missing)
		}
	}
}
