package synthetic

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/matching"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/record"
)

func testConfig(seed, events uint64) Config {
	return Config{
		Seed: seed, Events: events, Start: 1e18, Rate: 10_000, Accounts: 300,
		Instruments: []Instrument{
			{Reference: 19500, Lower: 17550, Upper: 21450, MaxOrderVolume: 20, Activity: 3},
			{Reference: 29000, Lower: 26100, Upper: 31900, MaxOrderVolume: 20, Activity: 1},
		},
	}
}

// floor is a bare market: books without accounts, which tells the generator
// what becomes of its orders.
type floor struct {
	t     *testing.T
	g     *Generator
	books []*matching.Book
	live  map[uint64]*order.Order
	held  map[holder]int64 // lots of each account and side, as they really are
	kinds map[string]int
	fills []matching.Fill
}

func newFloor(t *testing.T, g *Generator) *floor {
	f := &floor{t: t, g: g, live: map[uint64]*order.Order{}, held: map[holder]int64{}, kinds: map[string]int{}}
	for range g.markets {
		f.books = append(f.books, matching.New())
	}
	return f
}

func (f *floor) apply(e *orderflow.Event) {
	book := f.books[e.Instrument]
	switch e.Kind {
	case orderflow.Submit:
		f.submit(e, book)
	case orderflow.Cancel:
		o := f.live[e.Order]
		if o == nil {
			f.t.Fatalf("cancel of order %d, which does not rest", e.Order)
		}
		book.Remove(o)
		f.done(book, o)
	case orderflow.Amend:
		o := f.live[e.Order]
		if o == nil {
			f.t.Fatalf("amend of order %d, which does not rest", e.Order)
		}
		book.Remove(o)
		o.Price = e.Price
		if e.Volume != 0 {
			o.Remaining = e.Volume
		}
		delete(f.live, o.ID)
		f.g.Rests(o.ID, o.Remaining)
		f.run(book, o, e.Instrument)
	}
	bid, _, _ := book.Best(record.Buy)
	ask, _, _ := book.Best(record.Sell)
	f.g.Top(e.Instrument, bid, ask)
	f.kinds[kindOf(e)]++
}

func kindOf(e *orderflow.Event) string {
	if e.Kind != orderflow.Submit {
		return e.Kind.String()
	}
	return fmt.Sprintf("%v %v", e.OrderKind, e.TimeInForce)
}

func (f *floor) submit(e *orderflow.Event, book *matching.Book) {
	m := f.g.markets[e.Instrument]
	if e.Price < m.Lower || e.Price > m.Upper || e.Volume < 1 || e.Volume > m.MaxOrderVolume || e.Account < 1 || e.Account > uint64(f.g.config.Accounts) {
		f.t.Fatalf("out of range: %v, account %d", e, e.Account)
	}
	o := book.Acquire()
	o.ID, o.Account, o.Side, o.Offset, o.Kind, o.TimeInForce = e.Order, e.Account, e.Side, e.Offset, e.OrderKind, e.TimeInForce
	o.Price, o.Volume, o.Remaining = e.Price, e.Volume, e.Volume
	f.run(book, o, e.Instrument)
}

func (f *floor) run(book *matching.Book, o *order.Order, market int32) {
	f.fills = book.Match(o, f.fills[:0])
	for _, fill := range f.fills {
		f.trade(fill.Maker, fill.Volume, market)
		f.trade(o, fill.Volume, market)
		if fill.MakerDone {
			delete(f.live, fill.Maker.ID)
			book.Release(fill.Maker)
		}
	}
	switch {
	case o.Remaining == 0:
		book.Release(o)
	case o.TimeInForce == record.GFD:
		book.Rest(o)
		f.live[o.ID] = o
		f.g.Rests(o.ID, o.Remaining)
	default:
		f.g.Gone(o.ID)
		book.Release(o)
	}
}

func (f *floor) trade(o *order.Order, lots int64, market int32) {
	key := holder{o.Account, market}
	if o.Offset == record.Open {
		f.held[key.side(o.Side)] += lots
	} else if key = key.side(o.Side.Opposite()); f.held[key] < lots {
		f.t.Fatalf("order %d closes %d lots of account %d, which holds %d", o.ID, lots, o.Account, f.held[key])
	} else {
		f.held[key] -= lots
	}
	f.g.Filled(o.ID, lots)
}

// side returns the key of an account's long (Buy) or short (Sell) lots.
func (h holder) side(s record.Side) holder {
	h.market = h.market*2 + int32(s-1)
	return h
}

func (f *floor) done(book *matching.Book, o *order.Order) {
	delete(f.live, o.ID)
	f.g.Gone(o.ID)
	book.Release(o)
}

func play(t *testing.T, c Config, each func(*orderflow.Event)) *floor {
	t.Helper()
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	f := newFloor(t, g)
	var e orderflow.Event
	for {
		more, err := g.Next(&e)
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return f
		}
		each(&e)
		f.apply(&e)
	}
}

func TestSameSeedSameFlow(t *testing.T) {
	var flows [3][]string
	for i, seed := range []uint64{7, 7, 8} {
		play(t, testConfig(seed, 5000), func(e *orderflow.Event) { flows[i] = append(flows[i], fmt.Sprint(*e)) })
	}
	if !slices.Equal(flows[0], flows[1]) {
		t.Error("the same seed gave two flows")
	}
	if slices.Equal(flows[0], flows[2]) {
		t.Error("two seeds gave the same flow")
	}
}

// The generator's picture stays true: it names live orders only, nobody closes
// more than they hold, and every order stays within the instrument's terms. All
// of this the floor checks; here are the shape's own properties.
func TestShape(t *testing.T) {
	const events = 100_000
	perBin := map[int64]float64{}
	var last int64
	f := play(t, testConfig(1, events), func(e *orderflow.Event) {
		if e.Time < last {
			t.Fatal("time went back")
		}
		last = e.Time
		perBin[(e.Time-1e18)/200_000_000]++
	})
	seconds := float64(last-1e18) / 1e9
	if rate := events / seconds; rate < 7000 || rate > 14000 {
		t.Errorf("%.0f events a second, asked for 10000", rate)
	}
	if d := dispersion(perBin, int64(seconds/0.2)); d < 2 {
		t.Errorf("index of dispersion %.2f: arrivals do not cluster (a Poisson process has 1)", d)
	}
	for kind, least := range map[string]int{"cancel": 25, "amend": 4, "limit GFD": 35, "limit IOC": 2, "market IOC": 2, "limit FOK": 0} {
		if f.kinds[kind] <= least*events/100 {
			t.Errorf("%d events are %q, fewer than %d %%: %v", f.kinds[kind], kind, least, f.kinds)
		}
	}
	for i, book := range f.books {
		if n := book.Orders(record.Buy) + book.Orders(record.Sell); n < liveOrdersLow/2 || n > liveOrdersMax+1 || n != f.g.Live(int32(i)) {
			t.Errorf("instrument %d: %d orders rest, the generator believes %d", i, n, f.g.Live(int32(i)))
		}
		bid, _, okBid := book.Best(record.Buy)
		ask, _, okAsk := book.Best(record.Sell)
		if !okBid || !okAsk || ask-bid > 40 {
			t.Errorf("instrument %d: the book is %d to %d", i, bid, ask)
		}
	}
}

// dispersion returns variance over mean of the counts per bin.
func dispersion(bins map[int64]float64, n int64) float64 {
	var sum, squares float64
	for i := range n {
		sum += bins[i]
		squares += bins[i] * bins[i]
	}
	mean := sum / float64(n)
	return (squares/float64(n) - mean*mean) / mean
}

func TestManySeeds(t *testing.T) {
	for seed := range uint64(20) {
		play(t, testConfig(seed, 5000), func(*orderflow.Event) {})
	}
}

func TestConfigIsChecked(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"0 instruments": func(c *Config) { c.Instruments = nil },
		"1 accounts":    func(c *Config) { c.Accounts = 1 },
		"rate NaN":      func(c *Config) { c.Rate = math.NaN() },
		"rate 0":        func(c *Config) { c.Rate = 0 },
		"before 1970":   func(c *Config) { c.Start = -1 },
		"instrument 1":  func(c *Config) { c.Instruments[1].Upper = 1 },
	} {
		c := testConfig(1, 1)
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	c := testConfig(1, math.MaxUint64)
	g, err := New(c)
	if err != nil {
		b.Fatal(err)
	}
	var e orderflow.Event
	for b.Loop() {
		if _, err := g.Next(&e); err != nil {
			b.Fatal(err)
		}
		// An exchange in which orders rest and the older half is cancelled.
		switch e.Kind {
		case orderflow.Submit:
			g.Rests(e.Order, e.Volume)
		case orderflow.Cancel:
			g.Gone(e.Order)
		}
	}
}
