package account

import "math/bits"

// idIndex finds an account's index by its id: open addressing with linear probing,
// at most half full; nothing is ever taken out. Every request looks here.
//
// Invariant: between an id's home slot and the slot it is in, none is empty.
type idIndex struct {
	slots []idSlot // a power of two
	shift uint     // 64 − log2(len(slots))
	count int
}

type idSlot struct {
	id    uint64 // 0 for an empty slot
	index uint32
}

const idSlotsMin = 1 << 6

func newIDIndex() idIndex {
	return idIndex{slots: make([]idSlot, idSlotsMin), shift: uint(64 - bits.TrailingZeros(idSlotsMin))}
}

func (x *idIndex) home(id uint64) int { return int(id * 0x9E3779B97F4A7C15 >> x.shift) }

func (x *idIndex) get(id uint64) (index uint32, ok bool) {
	mask := len(x.slots) - 1
	for i := x.home(id); ; i = (i + 1) & mask {
		switch s := &x.slots[i&mask]; s.id {
		case 0: // also when the id is 0, which no account has
			return 0, false
		case id:
			return s.index, true
		}
	}
}

// put adds an id, not 0, that is not there yet.
func (x *idIndex) put(id uint64, index uint32) {
	if x.count*2 >= len(x.slots) {
		x.grow()
	}
	x.insert(idSlot{id: id, index: index})
	x.count++
}

func (x *idIndex) insert(s idSlot) {
	mask := len(x.slots) - 1
	i := x.home(s.id)
	for x.slots[i].id != 0 {
		i = (i + 1) & mask
	}
	x.slots[i] = s
}

func (x *idIndex) grow() {
	old := x.slots
	x.slots = make([]idSlot, 2*len(old))
	x.shift--
	for _, s := range old {
		if s.id != 0 {
			x.insert(s)
		}
	}
}
