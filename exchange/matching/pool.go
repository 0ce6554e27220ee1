package matching

import (
	"unsafe"

	"github.com/countinghouse/countinghouse/exchange/order"
)

// Orders, levels and pages are made in slabs and reused through free lists, so
// a pool is as large as the most that was in use at one time. It never shrinks:
// the caller bounds it by bounding the orders that are open.
const (
	slabOrders = 512
	slabLevels = 128
	slabPages  = 16
)

// pooled marks the nodes that are in a pool.
var pooled level

type pool struct {
	nodes  *node  // linked by next
	levels *level // linked by worse
	pages  *page  // linked by parent
}

// Acquire returns a zeroed order from the book's pool. It is the caller's until
// Release; while it rests, only the book's methods may change Side, Price,
// Volume or Remaining.
func (b *Book) Acquire() *order.Order {
	n := b.pool.nodes
	if n == nil {
		n = b.pool.growNodes()
	}
	b.pool.nodes = n.next
	*n = node{}
	return &n.Order
}

// Release gives o, which must come from Acquire of this book and must not rest,
// back to the pool. A resting order and one that was released before are left
// alone.
func (b *Book) Release(o *order.Order) {
	n := nodeOf(o)
	if n.level != nil {
		return
	}
	n.level, n.next, b.pool.nodes = &pooled, b.pool.nodes, n
}

func nodeOf(o *order.Order) *node { return (*node)(unsafe.Pointer(o)) }

// The cast in nodeOf needs the order at the node's start.
var _ = [1]struct{}{}[unsafe.Offsetof(node{}.Order)]

func (p *pool) growNodes() *node {
	slab := make([]node, slabOrders)
	for i := range slab {
		slab[i].level = &pooled
		if i+1 < len(slab) {
			slab[i].next = &slab[i+1]
		}
	}
	return &slab[0]
}

func (p *pool) level() *level {
	if p.levels == nil {
		slab := make([]level, slabLevels)
		for i := range slab {
			p.putLevel(&slab[i])
		}
	}
	lv := p.levels
	p.levels = lv.worse
	*lv = level{}
	return lv
}

func (p *pool) putLevel(lv *level) { lv.worse, p.levels = p.levels, lv }

// page returns an empty page of the index for the given prefix and shift.
func (p *pool) page(prefix uint64, shift uint8) *page {
	if p.pages == nil {
		slab := make([]page, slabPages)
		for i := range slab {
			p.putPage(&slab[i])
		}
	}
	pg := p.pages
	p.pages, pg.parent = pg.parent, nil
	pg.prefix, pg.shift = prefix, shift
	return pg
}

// putPage takes back a page whose slots are all empty.
func (p *pool) putPage(pg *page) { pg.parent, p.pages = p.pages, pg }
