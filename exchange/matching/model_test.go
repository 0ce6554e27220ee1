package matching

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// model is an order book that is slow and obviously right: one slice of the
// resting orders, sorted by price and time each time it is asked.
type model struct {
	orders []modelOrder
	clock  int
}

type modelOrder struct {
	id            uint64
	side          record.Side
	price, volume int64
	time          int
}

type modelFill struct {
	maker         uint64
	price, volume int64
	done          bool
}

// queue returns the orders of one side in priority order.
func (m *model) queue(side record.Side) []modelOrder {
	var q []modelOrder
	for _, o := range m.orders {
		if o.side == side {
			q = append(q, o)
		}
	}
	slices.SortFunc(q, func(a, b modelOrder) int {
		switch {
		case a.price == b.price:
			return a.time - b.time
		case (a.price < b.price) == (side == record.Sell):
			return -1
		}
		return 1
	})
	return q
}

func (m *model) set(o modelOrder) {
	m.orders = slices.DeleteFunc(m.orders, func(x modelOrder) bool { return x.id == o.id })
	if o.volume > 0 {
		m.orders = append(m.orders, o)
	}
}

func (m *model) rest(o modelOrder) {
	m.clock++
	o.time = m.clock
	m.set(o)
}

func reaches(side record.Side, limit, price int64) bool {
	if side == record.Buy {
		return price <= limit
	}
	return price >= limit
}

func (m *model) match(o *modelOrder, fok bool) (fills []modelFill) {
	volume := o.volume
	var makers []modelOrder
	for _, maker := range m.queue(o.side.Opposite()) {
		if !reaches(o.side, o.price, maker.price) || volume == 0 {
			break
		}
		n := min(volume, maker.volume)
		volume -= n
		maker.volume -= n
		makers = append(makers, maker)
		fills = append(fills, modelFill{maker.id, maker.price, n, maker.volume == 0})
	}
	if fok && volume > 0 {
		return nil
	}
	o.volume = volume
	for _, maker := range makers {
		m.set(maker)
	}
	return fills
}

// pair drives a Book and a model with the same calls and compares them.
type pair struct {
	t      *testing.T
	book   *Book
	model  model
	live   map[uint64]*order.Order
	nextID uint64
	fills  []Fill
	// audit is how many steps lie between two looks at the whole book.
	audit, steps int
}

func newPair(t *testing.T, audit int) *pair {
	return &pair{t: t, book: New(), live: map[uint64]*order.Order{}, audit: audit}
}

func (p *pair) submit(side record.Side, kind record.Kind, tif record.TimeInForce, price, volume int64) {
	p.nextID++
	o := p.book.Acquire()
	if *o != (order.Order{}) {
		p.t.Fatalf("Acquire returned a used order: %+v", *o)
	}
	*o = order.Order{ID: p.nextID, Side: side, Kind: kind, TimeInForce: tif, Price: price, Volume: volume, Remaining: volume}
	m := modelOrder{id: o.ID, side: side, price: price, volume: volume}

	can := p.book.CanFill(side, price, volume)
	p.fills = p.book.Match(o, p.fills[:0])
	want := p.model.match(&m, tif == record.FOK)
	p.compareFills(want)
	if o.Remaining != m.volume {
		p.t.Fatalf("order %d has %d lots left, the model says %d", o.ID, o.Remaining, m.volume)
	}
	if can != (m.volume == 0) {
		p.t.Fatalf("CanFill said %v of order %d, which was left with %d lots", can, o.ID, m.volume)
	}
	p.settle(o, m)
}

func (p *pair) compareFills(want []modelFill) {
	var got []modelFill
	for _, f := range p.fills {
		got = append(got, modelFill{f.Maker.ID, f.Price, f.Volume, f.MakerDone})
	}
	if !slices.Equal(got, want) {
		p.t.Fatalf("fills\n  %v\nthe model says\n  %v", got, want)
	}
	for _, f := range p.fills {
		if f.MakerDone {
			delete(p.live, f.Maker.ID)
			p.book.Release(f.Maker)
		}
	}
}

func (p *pair) settle(o *order.Order, m modelOrder) {
	if o.Remaining == 0 || o.TimeInForce != record.GFD || o.Kind == record.Market {
		p.book.Release(o)
		return
	}
	p.book.Rest(o)
	p.model.rest(m)
	p.live[o.ID] = o
}

func (p *pair) cancel(id uint64) {
	o := p.live[id]
	p.book.Remove(o)
	p.model.set(modelOrder{id: id})
	delete(p.live, id)
	p.book.Release(o)
}

// amend keeps to the side of the book that the contract asks for.
func (p *pair) amend(id uint64, price, remaining int64) {
	o := p.live[id]
	if best, _, ok := p.book.Best(o.Side.Opposite()); ok && reaches(o.Side, price, best) {
		return
	}
	old := p.model.orders[slices.IndexFunc(p.model.orders, func(x modelOrder) bool { return x.id == id })]
	keeps := old.price == price && remaining <= old.volume
	changed := old
	changed.price, changed.volume = price, remaining
	if keeps {
		p.model.set(changed)
	} else {
		p.model.rest(changed)
	}
	if got := p.book.Amend(o, price, remaining); got != keeps {
		p.t.Fatalf("Amend of order %d from %d@%d to %d@%d returned %v", id, old.volume, old.price, remaining, price, got)
	}
}

func (p *pair) compareBooks() {
	if p.steps++; p.steps%p.audit != 0 {
		return
	}
	if err := p.book.check(); err != nil {
		p.t.Fatal(err)
	}
	for _, side := range []record.Side{record.Buy, record.Sell} {
		p.compareSide(side)
	}
}

func (p *pair) compareSide(side record.Side) {
	want := p.model.queue(side)
	var levels []Level
	i := 0
	p.book.Each(side, func(o *order.Order) bool {
		if i >= len(want) || o.ID != want[i].id || o.Remaining != want[i].volume || o.Price != want[i].price {
			p.t.Fatalf("%v order %d in priority is %+v, the model has %v", side, i, *o, want)
		}
		if n := len(levels); n == 0 || levels[n-1].Price != o.Price {
			levels = append(levels, Level{Price: o.Price})
		}
		levels[len(levels)-1].Volume += o.Remaining
		levels[len(levels)-1].Orders++
		i++
		return true
	})
	if i != len(want) || p.book.Orders(side) != len(want) {
		p.t.Fatalf("%v: %d orders yielded, %d counted, the model has %d", side, i, p.book.Orders(side), len(want))
	}
	if got := p.book.Depth(side, math.MaxInt, nil); !slices.Equal(got, levels) {
		p.t.Fatalf("%v depth\n  %v\nits orders say\n  %v", side, got, levels)
	}
	price, volume, ok := p.book.Best(side)
	if ok != (len(levels) > 0) || ok && (price != levels[0].Price || volume != levels[0].Volume) {
		p.t.Fatalf("%v best is %d, %d, %v; depth %v", side, price, volume, ok, levels)
	}
}

// step makes one random call.
func (p *pair) step(r *rand.Rand, price func(*rand.Rand) int64) {
	side := record.Side(1 + r.IntN(2))
	volume := 1 + r.Int64N(9)
	switch x := r.IntN(100); {
	case x < 45:
		p.submit(side, record.Limit, record.GFD, price(r), volume)
	case x < 52:
		p.submit(side, record.Limit, record.IOC, price(r), volume)
	case x < 60:
		p.submit(side, record.Limit, record.FOK, price(r), 2*volume)
	case x < 65:
		p.submit(side, record.Market, record.IOC, price(r), volume)
	default:
		if id, ok := p.pick(r); !ok {
			return
		} else if x < 85 {
			p.cancel(id)
		} else if old := p.live[id]; x < 92 {
			p.amend(id, old.Price, 1+r.Int64N(old.Remaining+2))
		} else {
			p.amend(id, price(r), volume)
		}
	}
	p.compareBooks()
}

func (p *pair) pick(r *rand.Rand) (id uint64, ok bool) {
	if len(p.model.orders) == 0 {
		return 0, false
	}
	return p.model.orders[r.IntN(len(p.model.orders))].id, true
}

func TestBookEqualsModel(t *testing.T) {
	prices := map[string]func(*rand.Rand) int64{
		"few prices": func(r *rand.Rand) int64 { return 100 + r.Int64N(8) },
		"a band":     func(r *rand.Rand) int64 { return r.Int64N(3000) - 1500 },
		"any price":  func(r *rand.Rand) int64 { return int64(r.Uint64()) },
		"mixed widths": func(r *rand.Rand) int64 {
			return int64(r.Uint64()) >> r.IntN(64)
		},
		"the ends": func(r *rand.Rand) int64 {
			return []int64{math.MinInt64, math.MinInt64 + 1, -1, 0, 1, math.MaxInt64 - 1, math.MaxInt64}[r.IntN(7)]
		},
	}
	for name, price := range prices {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("%s/seed %d", name, seed), func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 7))
				p := newPair(t, 1)
				for range 1500 {
					p.step(r, price)
				}
			})
		}
	}
}

// FuzzBook lets the fuzzer choose the calls.
func FuzzBook(f *testing.F) {
	f.Add([]byte{0, 0, 1, 2, 3, 4, 1, 1, 2, 2, 3, 1})
	f.Add([]byte{0, 1, 255, 9, 0, 0, 254, 9, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, calls []byte) {
		p := newPair(t, 1)
		for ; len(calls) >= 4; calls = calls[4:] {
			p.call(calls[0], calls[1], calls[2], calls[3])
			p.compareBooks()
		}
	})
}

func (p *pair) call(op, a, b, c byte) {
	side := record.Side(1 + a&1)
	price := int64(b-128) << (a >> 3 & 31 * 2 % 57) // near and far prices
	volume := 1 + int64(c)
	switch op % 5 {
	case 0, 1:
		p.submit(side, record.Limit, record.TimeInForce(1+op/5%3), price, volume)
	case 2:
		p.submit(side, record.Market, record.IOC, price, volume)
	default:
		if len(p.model.orders) == 0 {
			return
		}
		id := p.model.orders[int(b)%len(p.model.orders)].id
		if op%5 == 3 {
			p.cancel(id)
		} else {
			p.amend(id, price, volume)
		}
	}
}
