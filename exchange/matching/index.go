package matching

import (
	"math/bits"
	"unsafe"
)

const (
	pageBits  = 5 // bits of a key that one page resolves
	pageSlots = 1 << pageBits
	slotMask  = pageSlots - 1 // a slot AND slotMask needs no bounds check
)

// index finds the level of a rank, and for a level that is added its better
// neighbour. It is a trie over the ranks' bits, five at a time: the leaves are
// ladders of 32 consecutive ranks, and a chain of pages with one entry each is
// left out, so that there are fewer pages than twice the levels, and a lookup
// touches at most thirteen. Around the best price, where nearly all orders go, it
// is a ladder: one comparison finds the leaf that was used last.
type index struct {
	root *page
	near *page // the leaf that was used last, or nil
}

// page is one node of the trie: a leaf (shift 0) whose slots are levels of
// consecutive ranks, or an inner page whose slots are pages.
//
// Invariants: bit i of used is set if and only if slots[i] is not nil; an inner
// page in the trie has at least two slots used, a leaf at least one; all keys
// below a page equal prefix when shifted right by shift+pageBits.
type page struct {
	prefix uint64
	parent *page
	used   uint32
	shift  uint8
	slots  [pageSlots]unsafe.Pointer // *level in a leaf, otherwise *page
}

// keyOf maps ranks to unsigned keys of the same order.
func keyOf(rank int64) uint64 { return uint64(rank) ^ 1<<63 }

func (p *page) covers(key uint64) bool { return key>>(p.shift+pageBits) == p.prefix }
func (p *page) slot(key uint64) uint   { return uint(key>>p.shift) & slotMask }

// firstKey is the smallest key that the page covers.
func (p *page) firstKey() uint64 { return p.prefix << (p.shift + pageBits) }

func (p *page) put(slot uint, x unsafe.Pointer) {
	p.slots[slot&slotMask] = x
	p.used |= 1 << slot
}

func (p *page) clear(slot uint) {
	p.slots[slot&slotMask] = nil
	p.used &^= 1 << slot
}

// find returns the level of the given rank, or nil.
func (x *index) find(rank int64) *level {
	key := keyOf(rank)
	if p := x.near; p != nil && key>>pageBits == p.prefix {
		return (*level)(p.slots[key&slotMask])
	}
	p := x.root
	for p != nil && p.covers(key) {
		if p.shift == 0 {
			x.near = p
			return (*level)(p.slots[key&slotMask])
		}
		p = (*page)(p.slots[p.slot(key)])
	}
	return nil
}

// add enters lv, whose rank must not be in the index, and returns the level with
// the next smaller rank, or nil.
func (x *index) add(pool *pool, lv *level) *level {
	key := keyOf(lv.rank)
	leaf := x.leafFor(pool, key)
	leaf.put(leaf.slot(key), unsafe.Pointer(lv))
	lv.leaf, x.near = leaf, leaf
	return leaf.before(key)
}

// leafFor returns the leaf that covers key and makes it if need be.
func (x *index) leafFor(pool *pool, key uint64) *page {
	if p := x.near; p != nil && p.covers(key) {
		return p
	}
	var parent *page
	p := x.root
	for p != nil && p.covers(key) {
		if p.shift == 0 {
			return p
		}
		parent, p = p, (*page)(p.slots[p.slot(key)])
	}
	leaf := pool.page(key>>pageBits, 0)
	if p != nil {
		// p stands where key should go but covers other keys: both go below a
		// page at the highest group of bits in which they differ.
		parent = x.fork(pool, parent, p, key)
	}
	x.hang(parent, leaf, key)
	return leaf
}

// fork puts a page between parent and p that covers p and key, and returns it.
func (x *index) fork(pool *pool, parent, p *page, key uint64) *page {
	differ := uint8(bits.Len64(key^p.firstKey())-1) / pageBits * pageBits
	forked := pool.page(key>>(differ+pageBits), differ)
	x.hang(parent, forked, key)
	x.hang(forked, p, p.firstKey())
	return forked
}

// hang puts p, which covers key, into its parent's slot for key; a nil parent
// makes p the root.
func (x *index) hang(parent, p *page, key uint64) {
	p.parent = parent
	if parent == nil {
		x.root = p
		return
	}
	parent.put(parent.slot(key), unsafe.Pointer(p))
}

// before returns the level with the largest key below the given one, which the
// leaf p covers, or nil.
func (p *page) before(key uint64) *level {
	for ; p != nil; p = p.parent {
		if lower := p.used & (1<<p.slot(key) - 1); lower != 0 {
			return p.last(lower)
		}
	}
	return nil
}

// last returns the level with the largest key in those slots of p that among
// names, at least one.
func (p *page) last(among uint32) *level {
	for {
		x := p.slots[(bits.Len32(among)-1)&slotMask]
		if p.shift == 0 {
			return (*level)(x)
		}
		p = (*page)(x)
		among = p.used
	}
}

// remove takes lv out, and with it the pages that nothing needs any more.
func (x *index) remove(pool *pool, lv *level) {
	key := keyOf(lv.rank)
	leaf := lv.leaf
	leaf.clear(leaf.slot(key))
	if leaf.used != 0 {
		return
	}
	if x.near == leaf {
		x.near = nil
	}
	parent := leaf.parent
	pool.putPage(leaf)
	if parent == nil {
		x.root = nil
		return
	}
	parent.clear(parent.slot(key))
	if parent.used&(parent.used-1) == 0 {
		x.splice(pool, parent, key)
	}
}

// splice replaces p, which has one child left, by that child.
func (x *index) splice(pool *pool, p *page, key uint64) {
	slot := uint(bits.TrailingZeros32(p.used))
	child := (*page)(p.slots[slot&slotMask])
	p.clear(slot)
	x.hang(p.parent, child, key)
	pool.putPage(p)
}
