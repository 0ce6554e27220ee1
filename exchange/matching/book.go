package matching

import (
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// Book is the order book of one instrument. It is not safe for concurrent use.
//
// Prices may lie anywhere in int64. The open lots of one price level must not
// add up to more than an int64 holds.
type Book struct {
	halves [2]half // buy, sell
	pool   pool
}

// half is one side of a book. Prices are turned into ranks, which ascend from
// the best price to the worst on either side, so that no code below asks which
// side it works on.
//
// Invariants: ranks ascend strictly along the list from best; each level in the
// list has at least one order and is in the index under its rank, and the index
// holds nothing else; orders is the number of orders on all levels.
type half struct {
	flip   int64 // rank = price XOR flip: 0 for sells, all ones for buys
	best   *level
	orders int
	index  index
}

// level is the queue of the orders at one price. 64 bytes: one cache line.
//
// Invariants: volume is the sum of the orders' Remaining; orders is their number.
type level struct {
	rank          int64
	volume        int64 // lots
	orders        int
	head, tail    *node // first and last in time priority
	better, worse *level
	leaf          *page // the index page that holds the level
}

// node is an order and its place in the book. Order comes first: a *order.Order
// that Acquire returned is cast back to its node.
//
// Invariant: level is nil while the order is its caller's, &pooled while it is in
// the pool, otherwise the level in whose queue it stands.
type node struct {
	order.Order
	next, prev *node
	level      *level
}

// New returns an empty book.
func New() *Book {
	b := &Book{}
	b.half(record.Buy).flip = -1
	return b
}

func (b *Book) half(side record.Side) *half { return &b.halves[(side-record.Buy)&1] }

func (h *half) rankOf(price int64) int64   { return price ^ h.flip }
func (h *half) priceOf(level *level) int64 { return level.rank ^ h.flip }

// Rest puts o at the end of the queue at its price. o must be from Acquire, have
// lots open, not rest already and not cross the other side. A resting order is
// left where it is.
func (b *Book) Rest(o *order.Order) {
	n := nodeOf(o)
	if n.level != nil {
		return
	}
	b.enqueue(b.half(o.Side), n)
}

func (b *Book) enqueue(h *half, n *node) {
	rank := h.rankOf(n.Price)
	lv := h.index.find(rank)
	if lv == nil {
		lv = b.addLevel(h, rank)
	}
	n.level, n.prev, n.next = lv, lv.tail, nil
	if lv.tail == nil {
		lv.head = n
	} else {
		lv.tail.next = n
	}
	lv.tail = n
	lv.orders++
	lv.volume += n.Remaining
	h.orders++
}

func (b *Book) addLevel(h *half, rank int64) *level {
	lv := b.pool.level()
	lv.rank = rank
	lv.better = h.index.add(&b.pool, lv)
	if lv.better == nil {
		lv.worse, h.best = h.best, lv
	} else {
		lv.worse, lv.better.worse = lv.better.worse, lv
	}
	if lv.worse != nil {
		lv.worse.better = lv
	}
	return lv
}

// Remove takes o off the book and leaves it to the caller. An order that does
// not rest is left alone.
func (b *Book) Remove(o *order.Order) {
	n := nodeOf(o)
	if n.level == nil || n.level == &pooled {
		return
	}
	b.dequeue(b.half(o.Side), n)
}

func (b *Book) dequeue(h *half, n *node) {
	lv := n.level
	if n.prev == nil {
		lv.head = n.next
	} else {
		n.prev.next = n.next
	}
	if n.next == nil {
		lv.tail = n.prev
	} else {
		n.next.prev = n.prev
	}
	n.level, n.prev, n.next = nil, nil, nil
	lv.orders--
	lv.volume -= n.Remaining
	h.orders--
	if lv.head == nil {
		b.dropLevel(h, lv)
	}
}

func (b *Book) dropLevel(h *half, lv *level) {
	if lv.better == nil {
		h.best = lv.worse
	} else {
		lv.better.worse = lv.worse
	}
	if lv.worse != nil {
		lv.worse.better = lv.better
	}
	h.index.remove(&b.pool, lv)
	b.pool.putLevel(lv)
}

// Amend changes the price and the open lots of o, which rests, and sets its
// Volume to the open lots. An order that keeps its price and gets no larger
// keeps its place in the queue; otherwise it goes to the end of the queue at its
// price. remaining must be above zero and the price must not cross the other
// side: an order that crosses is removed, matched and rested instead. An order
// that does not rest is left alone.
func (b *Book) Amend(o *order.Order, price, remaining int64) (keptPriority bool) {
	n := nodeOf(o)
	if n.level == nil || n.level == &pooled {
		return false
	}
	if price == n.Price && remaining <= n.Remaining {
		n.level.volume -= n.Remaining - remaining
		n.Remaining, n.Volume = remaining, remaining
		return true
	}
	h := b.half(o.Side)
	b.dequeue(h, n)
	n.Price, n.Remaining, n.Volume = price, remaining, remaining
	b.enqueue(h, n)
	return false
}
