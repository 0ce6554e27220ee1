package core

import (
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// protection returns the price up or down to which a market order may trade.
func (m *market) protection(side record.Side) int64 {
	if side == record.Buy {
		return m.terms.UpperLimit
	}
	return m.terms.LowerLimit
}

// price sets what d freezes for its Remaining lots: margin and fee, lot by lot,
// at the worst price it can trade at. A buyer never pays more than its limit. A
// seller gets its limit or more, which ties up more margin: at most the best
// bid, if that is better.
func (m *market) price(d *order.Order) {
	worst := d.Price
	if d.Side == record.Sell {
		if bid, _, ok := m.book.Best(record.Buy); ok {
			worst = max(worst, bid)
		}
	}
	d.FrozenMargin = m.terms.LotMargin(d.Side, d.Offset, worst) * d.Remaining
	d.FrozenFee = m.terms.LotFee(d.Offset, worst) * d.Remaining
}

// crosses reports whether o could trade at all.
func (m *market) crosses(o *order.Order) bool {
	best, _, ok := m.book.Best(o.Side.Opposite())
	return ok && reaches(o, best)
}

// reaches reports whether o may trade at price.
func reaches(o *order.Order, price int64) bool {
	if o.Side == record.Buy {
		return price <= o.Price
	}
	return price >= o.Price
}

// fillsMax returns, in constant time, a number of fills that o cannot exceed.
func (m *market) fillsMax(o *order.Order) int {
	if !m.crosses(o) {
		return 0
	}
	return int(min(o.Remaining, int64(m.book.Orders(o.Side.Opposite()))))
}

// fillsExact returns the number of fills that o will have, by a walk over them.
func (m *market) fillsExact(o *order.Order) int {
	fills := 0
	filled := m.eachMaker(o, func(*order.Order) bool {
		fills++
		return true
	})
	if o.TimeInForce == record.FOK && !filled {
		return 0
	}
	return fills
}

// meetsOwn reports whether o would trade with an order of its own account. It
// looks at no more orders than o would trade with, or than stand in the way of
// an FOK order that is too large.
func (m *market) meetsOwn(o *order.Order) bool {
	own, whole := false, o.TimeInForce == record.FOK
	filled := m.eachMaker(o, func(maker *order.Order) bool {
		own = own || maker.AccountIndex == o.AccountIndex
		return !own || whole
	})
	return own && (filled || !whole)
}

// eachMaker yields the orders that o can trade with, in that order, until yield
// returns false. It reports whether those yielded fill o.
func (m *market) eachMaker(o *order.Order, yield func(*order.Order) bool) (filled bool) {
	left := o.Remaining
	m.book.Each(o.Side.Opposite(), func(maker *order.Order) bool {
		if left <= 0 || !reaches(o, maker.Price) {
			return false
		}
		left -= maker.Remaining
		return yield(maker)
	})
	return left <= 0
}
