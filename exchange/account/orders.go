package account

import (
	"math"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// Freeze holds what o, with its Remaining lots, may need: margin and fee as they
// stand in the order, and the position it will close. The caller has checked
// that there is enough.
func (l *Ledger) Freeze(instrument int, o *order.Order) {
	a := &l.accounts[o.AccountIndex]
	a.FrozenMargin += o.FrozenMargin
	a.FrozenFee += o.FrozenFee
	l.hold(instrument, o, o.Remaining)
}

// Release undoes Freeze for volume of the order's Remaining lots. It changes the
// order's frozen amounts but not Remaining, which belongs to matching; it must
// be called before Remaining is lowered.
func (l *Ledger) Release(instrument int, o *order.Order, volume int64) (margin, fee int64) {
	margin, fee = o.FrozenMargin/o.Remaining*volume, o.FrozenFee/o.Remaining*volume
	l.release(instrument, o, volume, margin, fee)
	return margin, fee
}

// hold adds lots to what the account's live orders will open or close.
func (l *Ledger) hold(instrument int, o *order.Order, lots int64) {
	b := &l.books[instrument]
	h := b.positions[o.AccountIndex].Holding(o.Side, o.Offset)
	if o.Offset == record.Open {
		h.Opening += lots
		l.accounts[o.AccountIndex].Worth += lots * b.lotWorth
		return
	}
	h.Leg(o.Offset).Frozen += lots
}

func (l *Ledger) release(instrument int, o *order.Order, volume, margin, fee int64) {
	a := &l.accounts[o.AccountIndex]
	a.FrozenMargin -= margin
	a.FrozenFee -= fee
	o.FrozenMargin -= margin
	o.FrozenFee -= fee
	l.hold(instrument, o, -volume)
}

// Fill books a fill of volume lots of o at price, of the lots open before it:
// what was frozen for them is freed, the fee is charged, and the position is
// opened or closed.
func (l *Ledger) Fill(instrument int, o *order.Order, open, price, volume, fee int64) {
	l.release(instrument, o, volume, o.FrozenMargin/open*volume, o.FrozenFee/open*volume)
	b := &l.books[instrument]
	a, p := &l.accounts[o.AccountIndex], &b.positions[o.AccountIndex]
	p.Fees = tally(p.Fees, fee)
	a.Balance -= fee
	h := p.Holding(o.Side, o.Offset)
	if o.Offset == record.Open {
		h.Today.Volume += volume
		h.Today.Cost += price * volume
		a.Worth += volume * b.lotWorth
	} else {
		profit := b.terms.Turnover(reduce(h.Leg(o.Offset), o.Side, price, volume))
		p.Realised = tally(p.Realised, profit)
		a.Balance += profit
		a.Worth -= volume * b.lotWorth
	}
	b.remargin(a, p, h)
}

// tally adds to a sum that is only reported and has no bound: it stops at the
// ends of an int64.
func tally(sum, amount int64) int64 {
	switch {
	case amount > 0 && sum > math.MaxInt64-amount:
		return math.MaxInt64
	case amount < 0 && sum < math.MinInt64-amount:
		return math.MinInt64
	}
	return sum + amount
}

// reduce takes volume lots off the leg and returns the profit in ticks × lots.
// A buyer closes a short position, a seller a long one.
func reduce(leg *Leg, side record.Side, price, volume int64) int64 {
	cost, _ := order.MulDiv(leg.Cost, volume, leg.Volume, order.Down)
	leg.Volume -= volume
	leg.Cost -= cost
	if side == record.Buy {
		return cost - price*volume
	}
	return price*volume - cost
}

// remargin reckons the margin of one side of a position anew.
func (b *book) remargin(a *Account, p *Position, h *Holding) {
	side := record.Buy
	if h == &p.Short {
		side = record.Sell
	}
	margin := b.terms.Margin(side, h.Cost())
	a.Margin += margin - h.Margin
	h.Margin = margin
}
