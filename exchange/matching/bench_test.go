package matching

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// flow is a prepared sequence of calls, so that a benchmark times the book and
// not the making of orders.
type flow struct {
	book  *Book
	calls []call
	slots []*order.Order // by slot: the order that rests, or nil
	next  int
	fills []Fill
}

// call submits an order that is remembered in slot, after cancelling the one
// that is still there.
type call struct {
	side          record.Side
	tif           record.TimeInForce
	price, volume int64
	slot          int32
}

// newFlow prepares n calls around a wandering price: most orders a few ticks
// from it, their number falling with the distance, one in fifteen aggressive.
// About live orders rest at any time.
func newFlow(seed uint64, n, live int, spread float64) *flow {
	r := rand.New(rand.NewPCG(seed, 1))
	f := &flow{book: New(), calls: make([]call, n), slots: make([]*order.Order, live)}
	mid := int64(20_000)
	for i := range f.calls {
		if r.IntN(20) == 0 {
			mid += r.Int64N(3) - 1
		}
		side := record.Side(1 + r.IntN(2))
		distance := int64(spread * (math.Pow(r.Float64(), -0.7) - 1))
		c := call{side: side, tif: record.GFD, volume: 1 + r.Int64N(20), slot: int32(r.IntN(live))}
		if r.IntN(15) == 0 {
			c.tif, distance = record.IOC, -2-r.Int64N(8)
		}
		if distance = min(distance, 1_000_000); side == record.Buy {
			distance = -1 - distance
		}
		c.price = mid + distance
		f.calls[i] = c
	}
	for range f.calls {
		f.step()
	}
	return f
}

func (f *flow) step() {
	c := &f.calls[f.next]
	if f.next++; f.next == len(f.calls) {
		f.next = 0
	}
	b := f.book
	if old := f.slots[c.slot]; old != nil {
		b.Remove(old)
		b.Release(old)
		f.slots[c.slot] = nil
	}
	o := b.Acquire()
	o.AccountIndex, o.Side, o.Kind, o.TimeInForce = uint32(c.slot), c.side, record.Limit, c.tif
	o.Price, o.Volume, o.Remaining = c.price, c.volume, c.volume
	f.fills = b.Match(o, f.fills[:0])
	for i := range f.fills {
		if m := f.fills[i].Maker; f.fills[i].MakerDone {
			f.slots[m.AccountIndex] = nil
			b.Release(m)
		}
	}
	if o.Remaining == 0 || o.TimeInForce != record.GFD {
		b.Release(o)
		return
	}
	b.Rest(o)
	f.slots[c.slot] = o
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	f := newFlow(1, 50_000, 2_000, 4)
	if got := testing.AllocsPerRun(100_000, f.step); got != 0 {
		t.Errorf("%v allocations per order", got)
	}
	if err := f.book.check(); err != nil {
		t.Error(err)
	}
	depth := make([]Level, 0, 20)
	if got := testing.AllocsPerRun(100, func() {
		depth = f.book.Depth(record.Buy, 20, depth[:0])
		f.book.Each(record.Sell, func(*order.Order) bool { return true })
	}); got != 0 {
		t.Errorf("%v allocations per look at the book", got)
	}
}

// BenchmarkFlow is the cost of one order: cancel an older one, match, rest.
func BenchmarkFlow(b *testing.B) {
	for _, c := range []struct {
		name   string
		live   int
		spread float64
	}{
		{"touch/1k", 1_000, 2}, {"wide/10k", 10_000, 40}, {"sparse/10k", 10_000, 5000}, {"deep/1M", 1_000_000, 40},
	} {
		b.Run(c.name, func(b *testing.B) {
			f := newFlow(1, 4*max(c.live, 50_000), c.live, c.spread)
			b.ReportAllocs()
			for b.Loop() {
				f.step()
			}
		})
	}
}

// BenchmarkAnyPrice rests and removes orders at random prices of all int64 among
// a million others: each makes and drops a level, and nothing is near.
func BenchmarkAnyPrice(b *testing.B) {
	book := New()
	r := rand.New(rand.NewPCG(1, 1))
	prices := make([]int64, 1<<20)
	for i := range prices {
		prices[i] = int64(r.Uint64())
		rest(book, prices[i])
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		o := rest(book, prices[i&(len(prices)-1)]^1)
		book.Remove(o)
		book.Release(o)
	}
}

func rest(book *Book, price int64) *order.Order {
	o := book.Acquire()
	o.Side, o.Kind, o.TimeInForce, o.Price, o.Volume, o.Remaining = record.Buy, record.Limit, record.GFD, price, 1, 1
	book.Rest(o)
	return o
}

// BenchmarkTouch rests and removes an order at the best price of a full book.
func BenchmarkTouch(b *testing.B) {
	book := New()
	for i := range int64(2000) {
		rest(book, 20_000-i/10)
	}
	b.ReportAllocs()
	for b.Loop() {
		o := rest(book, 20_000)
		book.Remove(o)
		book.Release(o)
	}
}

// BenchmarkSweep trades through 100 levels of one order each; ns are per level.
func BenchmarkSweep(b *testing.B) {
	const levels = 100
	book := New()
	var fills []Fill
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%levels != 0 {
			continue
		}
		for p := range int64(levels) {
			rest(book, 20_000-p)
		}
		taker := book.Acquire()
		taker.Side, taker.TimeInForce, taker.Price, taker.Remaining = record.Sell, record.IOC, 1, levels
		fills = book.Match(taker, fills[:0])
		for _, f := range fills {
			book.Release(f.Maker)
		}
		book.Release(taker)
	}
}

func TestManyOrdersAtAnyPrice(t *testing.T) {
	book := New()
	r := rand.New(rand.NewPCG(3, 3))
	orders := make([]*order.Order, 300_000)
	for i := range orders {
		orders[i] = rest(book, int64(r.Uint64())>>r.IntN(40))
	}
	if err := book.check(); err != nil {
		t.Fatal(err)
	}
	for i, o := range orders {
		if i%3 != 0 {
			book.Remove(o)
			book.Release(o)
		}
	}
	if err := book.check(); err != nil {
		t.Fatal(err)
	}
	if got, want := book.Orders(record.Buy), (len(orders)+2)/3; got != want {
		t.Errorf("%d orders rest, expected %d", got, want)
	}
	taker := book.Acquire()
	taker.Side, taker.TimeInForce, taker.Price, taker.Volume, taker.Remaining = record.Sell, record.FOK, math.MinInt64, int64(book.Orders(record.Buy)), int64(book.Orders(record.Buy))
	if fills := book.Match(taker, nil); len(fills) != int(taker.Volume) || book.half(record.Buy).index.root != nil {
		t.Errorf("a sweep of the whole book made %d fills of %d and left the index %v", len(fills), taker.Volume, book.half(record.Buy).index.root)
	}
}
