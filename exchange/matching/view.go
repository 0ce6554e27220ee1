package matching

import (
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// Level is what rests at one price.
type Level struct {
	Price  int64 // ticks
	Volume int64 // lots open
	Orders int
}

// Best returns the best price of one side of the book and the lots open there;
// ok is false when the side is empty.
func (b *Book) Best(side record.Side) (price, volume int64, ok bool) {
	h := b.half(side)
	if h.best == nil {
		return 0, 0, false
	}
	return h.priceOf(h.best), h.best.volume, true
}

// Depth appends up to n levels of one side, best first, to dst.
func (b *Book) Depth(side record.Side, n int, dst []Level) []Level {
	h := b.half(side)
	for lv := h.best; lv != nil && n > 0; lv, n = lv.worse, n-1 {
		dst = append(dst, Level{Price: h.priceOf(lv), Volume: lv.volume, Orders: lv.orders})
	}
	return dst
}

// Orders returns the number of orders that rest on one side, in O(1).
func (b *Book) Orders(side record.Side) int { return b.half(side).orders }

// Each yields the orders of one side in priority order until yield returns
// false. The book must not change meanwhile.
func (b *Book) Each(side record.Side, yield func(*order.Order) bool) {
	for lv := b.half(side).best; lv != nil; lv = lv.worse {
		for n := lv.head; n != nil; n = n.next {
			if !yield(&n.Order) {
				return
			}
		}
	}
}
