package core

import (
	"math/bits"

	"github.com/countinghouse/countinghouse/exchange/order"
)

// orderIndex finds live orders by id: open addressing with linear probing, at
// most half full, without tombstones, so that a steady flow of orders neither
// allocates nor slows it down.
//
// Invariant: between an order's home slot and the slot it is in, none is empty.
type orderIndex struct {
	slots []indexSlot // a power of two
	shift uint        // 64 − log2(len(slots))
	count int
}

type indexSlot struct {
	id    uint64 // 0 for an empty slot
	order *order.Order
}

const indexSlotsMin = 1 << 6

func newOrderIndex() orderIndex {
	return orderIndex{slots: make([]indexSlot, indexSlotsMin), shift: uint(64 - bits.TrailingZeros(indexSlotsMin))}
}

func (x *orderIndex) home(id uint64) int { return int(id * 0x9E3779B97F4A7C15 >> x.shift) }

func (x *orderIndex) get(id uint64) *order.Order {
	mask := len(x.slots) - 1
	for i := x.home(id); x.slots[i].id != 0; i = (i + 1) & mask {
		if x.slots[i].id == id {
			return x.slots[i].order
		}
	}
	return nil
}

func (x *orderIndex) put(o *order.Order) {
	if x.count*2 >= len(x.slots) {
		x.grow()
	}
	x.insert(o)
	x.count++
}

func (x *orderIndex) insert(o *order.Order) {
	mask := len(x.slots) - 1
	i := x.home(o.ID)
	for x.slots[i].id != 0 {
		i = (i + 1) & mask
	}
	x.slots[i] = indexSlot{id: o.ID, order: o}
}

func (x *orderIndex) grow() {
	old := x.slots
	x.slots = make([]indexSlot, 2*len(old))
	x.shift--
	for i := range old {
		if old[i].id != 0 {
			x.insert(old[i].order)
		}
	}
}

// remove takes an id out and moves those behind it up, so that no gap parts an
// order from its home slot.
func (x *orderIndex) remove(id uint64) {
	mask := len(x.slots) - 1
	i := x.home(id)
	for x.slots[i].id != id {
		if x.slots[i].id == 0 {
			return
		}
		i = (i + 1) & mask
	}
	x.count--
	for j := (i + 1) & mask; x.slots[j].id != 0; j = (j + 1) & mask {
		if home := x.home(x.slots[j].id); (j-home)&mask >= (j-i)&mask {
			x.slots[i] = x.slots[j]
			i = j
		}
	}
	x.slots[i] = indexSlot{}
}
