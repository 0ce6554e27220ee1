package matching

import (
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// Fill is one trade of an incoming order with an order that rested.
type Fill struct {
	Maker     *order.Order // Remaining is what the fill left; valid until Release
	Price     int64        // ticks: the maker's
	Volume    int64        // lots, above zero
	MakerDone bool         // the maker has no lots left and is off the book
}

// Match executes o, which must not rest, against the other side as far as its
// price and time in force allow, and appends the fills to fills in the order in
// which they happen. A FOK order fills completely or not at all. A market order
// trades up or down to its Price. Match reduces the Remaining of both orders; it
// never rests what is left of o. A maker that is done leaves the book and stays
// valid until the caller releases it.
//
// Makers are taken whoever owns them: self-trades are refused before matching.
func (b *Book) Match(o *order.Order, fills []Fill) []Fill {
	h := b.half(o.Side.Opposite())
	limit := h.rankOf(o.Price)
	if o.TimeInForce == record.FOK && !h.covers(limit, o.Remaining) {
		return fills
	}
	for lv := h.best; lv != nil && lv.rank <= limit && o.Remaining > 0; lv = h.best {
		fills = h.take(lv, o, fills)
		if lv.head != nil {
			break
		}
		b.dropLevel(h, lv)
	}
	return fills
}

// take fills o from the head of one level's queue.
func (h *half) take(lv *level, o *order.Order, fills []Fill) []Fill {
	price := h.priceOf(lv)
	for n := lv.head; n != nil && o.Remaining > 0; n = lv.head {
		volume := min(n.Remaining, o.Remaining)
		n.Remaining -= volume
		o.Remaining -= volume
		lv.volume -= volume
		done := n.Remaining == 0
		if done {
			h.popHead(lv, n)
		}
		fills = append(fills, Fill{Maker: &n.Order, Price: price, Volume: volume, MakerDone: done})
	}
	return fills
}

func (h *half) popHead(lv *level, n *node) {
	lv.head = n.next
	if n.next == nil {
		lv.tail = nil
	} else {
		n.next.prev = nil
	}
	n.level, n.next = nil, nil
	lv.orders--
	h.orders--
}

// CanFill reports whether an incoming order of the given side and limit could
// trade at least volume lots at once. It walks the levels it needs.
func (b *Book) CanFill(side record.Side, limit, volume int64) bool {
	h := b.half(side.Opposite())
	return h.covers(h.rankOf(limit), volume)
}

func (h *half) covers(limit, volume int64) bool {
	for lv := h.best; lv != nil && lv.rank <= limit && volume > 0; lv = lv.worse {
		volume -= lv.volume
	}
	return volume <= 0
}
