package matching

import (
	"fmt"
	"math/bits"
	"unsafe"

	"github.com/countinghouse/countinghouse/record"
)

// check reports the first invariant of the book's structures that does not hold.
func (b *Book) check() error {
	for _, side := range []record.Side{record.Buy, record.Sell} {
		if err := b.half(side).check(); err != nil {
			return fmt.Errorf("%v side: %w", side, err)
		}
	}
	buy, sell := b.half(record.Buy), b.half(record.Sell)
	if buy.best != nil && sell.best != nil && buy.priceOf(buy.best) >= sell.priceOf(sell.best) {
		return fmt.Errorf("crossed: buy %d, sell %d", buy.priceOf(buy.best), sell.priceOf(sell.best))
	}
	return nil
}

func (h *half) check() error {
	orders, levels := 0, 0
	var better *level
	for lv := h.best; lv != nil; better, lv = lv, lv.worse {
		if lv.better != better || better != nil && better.rank >= lv.rank {
			return fmt.Errorf("rank %d: the list of levels is out of order", lv.rank)
		}
		if err := h.checkLevel(lv); err != nil {
			return fmt.Errorf("rank %d: %w", lv.rank, err)
		}
		orders += lv.orders
		levels++
	}
	if orders != h.orders {
		return fmt.Errorf("%d orders rest, the book counts %d", orders, h.orders)
	}
	indexed, err := checkPage(h.index.root, nil)
	if err != nil {
		return err
	}
	if indexed != levels {
		return fmt.Errorf("the index holds %d levels, the list %d", indexed, levels)
	}
	return nil
}

func (h *half) checkLevel(lv *level) error {
	var prev *node
	orders, volume := 0, int64(0)
	for n := lv.head; n != nil; prev, n = n, n.next {
		if n.prev != prev || n.level != lv || h.rankOf(n.Price) != lv.rank {
			return fmt.Errorf("order %d is linked wrongly", n.ID)
		}
		if n.Remaining <= 0 || n.Remaining > n.Volume {
			return fmt.Errorf("order %d rests with %d of %d lots", n.ID, n.Remaining, n.Volume)
		}
		orders++
		volume += n.Remaining
	}
	if orders == 0 || orders != lv.orders || volume != lv.volume || lv.tail != prev {
		return fmt.Errorf("%d orders of %d lots, the level says %d of %d", orders, volume, lv.orders, lv.volume)
	}
	if h.index.find(lv.rank) != lv {
		return fmt.Errorf("the index does not find the level")
	}
	return nil
}

func checkPage(p, parent *page) (levels int, err error) {
	if p == nil {
		return 0, nil
	}
	if p.parent != parent {
		return 0, fmt.Errorf("page %x/%d has the wrong parent", p.prefix, p.shift)
	}
	if p.used == 0 || p.shift > 0 && bits.OnesCount32(p.used) < 2 {
		return 0, fmt.Errorf("page %x/%d has only the slots %b", p.prefix, p.shift, p.used)
	}
	for i, slot := range p.slots {
		if (slot != nil) != (p.used>>i&1 == 1) {
			return 0, fmt.Errorf("page %x/%d: slot %d is %v, bitmap %b", p.prefix, p.shift, i, slot, p.used)
		}
		n, err := checkSlot(p, uint(i), slot)
		if err != nil {
			return 0, err
		}
		levels += n
	}
	return levels, nil
}

func checkSlot(p *page, i uint, slot unsafe.Pointer) (levels int, err error) {
	switch {
	case slot == nil:
		return 0, nil
	case p.shift == 0:
		lv := (*level)(slot)
		if key := keyOf(lv.rank); !p.covers(key) || p.slot(key) != i || lv.leaf != p {
			return 0, fmt.Errorf("page %x: rank %d stands in slot %d", p.prefix, lv.rank, i)
		}
		return 1, nil
	}
	child := (*page)(slot)
	if first := child.firstKey(); !p.covers(first) || p.slot(first) != i || child.shift >= p.shift {
		return 0, fmt.Errorf("page %x/%d stands in slot %d of %x/%d", child.prefix, child.shift, i, p.prefix, p.shift)
	}
	return checkPage(child, p)
}
