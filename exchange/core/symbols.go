package core

import (
	"encoding/binary"
	"math/bits"

	"github.com/countinghouse/countinghouse/record"
)

// symbolIndex finds markets by their instrument's name. It is open addressing with
// linear probing, at most half full; nothing is ever taken out. Every request looks
// here: a map of Go would cost it as much as matching does.
//
// Invariant: between a market's home slot and the slot it is in, none is empty.
type symbolIndex struct {
	slots []symbolSlot // a power of two
	shift uint         // 64 − log2(len(slots))
	count int
}

type symbolSlot struct {
	symbol record.Symbol
	market *market // nil for an empty slot
}

const symbolSlotsMin = 16

func newSymbolIndex() symbolIndex {
	return symbolIndex{slots: make([]symbolSlot, symbolSlotsMin), shift: uint(64 - bits.TrailingZeros(symbolSlotsMin))}
}

func (x *symbolIndex) home(s *record.Symbol) int {
	low, high := binary.LittleEndian.Uint64(s[:8]), binary.LittleEndian.Uint64(s[8:])
	h := (low ^ bits.RotateLeft64(high, 32)) * 0x9E3779B97F4A7C15
	h ^= h >> 32 // names differ in their last letters: bring those to the top as well
	return int(h * 0xBF58476D1CE4E5B9 >> x.shift)
}

// get returns the market of that name, nil if there is none.
func (x *symbolIndex) get(s record.Symbol) *market {
	mask := len(x.slots) - 1
	for i := x.home(&s); ; i = (i + 1) & mask {
		slot := &x.slots[i&mask]
		if slot.market == nil || slot.symbol == s {
			return slot.market
		}
	}
}

// put adds a market that is not there yet.
func (x *symbolIndex) put(m *market) {
	if x.count*2 >= len(x.slots) {
		x.grow()
	}
	x.insert(m)
	x.count++
}

func (x *symbolIndex) insert(m *market) {
	mask := len(x.slots) - 1
	i := x.home(&m.terms.Symbol)
	for x.slots[i].market != nil {
		i = (i + 1) & mask
	}
	x.slots[i] = symbolSlot{symbol: m.terms.Symbol, market: m}
}

func (x *symbolIndex) grow() {
	old := x.slots
	x.slots = make([]symbolSlot, 2*len(old))
	x.shift--
	for i := range old {
		if old[i].market != nil {
			x.insert(old[i].market)
		}
	}
}
