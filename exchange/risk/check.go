package risk

import (
	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// Form reports whether side, offset, kind and time in force exist and go together.
func Form(side record.Side, offset record.Offset, kind record.Kind, tif record.TimeInForce) Reason {
	switch {
	case side != record.Buy && side != record.Sell,
		offset < record.Open || offset > record.CloseToday,
		kind != record.Limit && kind != record.Market,
		tif < record.GFD || tif > record.FOK,
		kind == record.Market && tif == record.GFD:
		return Malformed
	}
	return OK
}

// Terms checks volume and price (ticks) against the instrument's terms.
func Terms(t *order.Instrument, volume, price int64) Reason {
	switch {
	case volume <= 0 || volume > t.MaxOrderVolume:
		return BadVolume
	case price < t.LowerLimit || price > t.UpperLimit:
		return OutsideLimits
	}
	return OK
}

// Holdings checks that the account may take on volume further lots: for a
// closing order that as many are free to close, for an opening order that the
// position limit allows them.
func Holdings(t *order.Instrument, p *account.Position, side record.Side, offset record.Offset, volume int64) Reason {
	if volume <= 0 {
		return OK
	}
	h := p.Holding(side, offset)
	switch {
	case offset == record.Open:
		if t.PositionLimit > 0 && volume > t.PositionLimit-h.Volume()-h.Opening {
			return PositionLimit
		}
	case volume <= h.Leg(offset).Free():
	case offset == record.Close:
		return InsufficientHistory
	default:
		return InsufficientToday
	}
	return OK
}

// Worth checks that volume further lots, each of which counts for lotWorth, do
// not make all that the account holds and will open worth more than
// order.MaxAmount. Closing orders pass.
func Worth(a *account.Account, lotWorth int64, offset record.Offset, volume int64) Reason {
	if offset == record.Open && volume > 0 && volume > (order.MaxAmount-a.Worth)/lotWorth {
		return PositionLimit
	}
	return OK
}

// Funds checks that the account's available funds cover what an opening order
// freezes beyond what it froze before, and that its balance is not so far from
// zero that what the order may come to could not be kept. Closing orders pass.
func Funds(a *account.Account, offset record.Offset, freeze int64) Reason {
	switch {
	case offset != record.Open:
	case freeze > 0 && freeze > a.Available():
		return InsufficientFunds
	case a.Balance > account.BalanceBound || a.Balance < -account.BalanceBound:
		return BadAmount
	}
	return OK
}

// MayMeetItself reports whether an order could trade with one of its own
// account's resting orders, going by what is known without looking at the book.
func MayMeetItself(p *account.Position, side record.Side, price int64) bool {
	q := p.Quotes(side.Opposite())
	if q.Orders == 0 {
		return false
	}
	if side == record.Buy {
		return price >= q.Best
	}
	return price <= q.Best
}
