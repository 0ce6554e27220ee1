package order

import (
	"errors"
	"fmt"

	"github.com/countinghouse/countinghouse/record"
)

// ErrTerms means that an instrument's terms cannot be traded on.
var ErrTerms = errors.New("unusable terms")

// ErrOffTick means that a price lies between two ticks.
var ErrOffTick = errors.New("price is not a multiple of the tick")

// Instrument is the terms of one instrument. It holds exactly what a
// record.InstrumentListed states. A plain cash instrument has a margin of
// 100 % (1,000,000 parts per million).
//
// Invariant (held by Check): LotWorth times MaxOrderVolume is at most MaxAmount,
// and rates are at most one. That bounds one order; what bounds an account over
// all its orders and positions is said in package account.
type Instrument struct {
	Symbol         record.Symbol
	TickValue      int64  // minor units that one lot gains when the price rises one tick
	TickSize       uint32 // one tick in units of 10^-Decimals of the quoted price
	Decimals       uint8  // at most 12
	FeeMode        record.FeeMode
	PriceLimitBP   uint16 // width of the daily limits, basis points either side of the settlement before
	LongMarginPPM  uint32 // parts per million of the turnover
	ShortMarginPPM uint32
	FeeOpen        int64 // parts per million of the turnover, or minor units per lot
	FeeClose       int64
	FeeCloseToday  int64
	UpperLimit     int64 // ticks; highest price that is accepted today
	LowerLimit     int64 // ticks; lowest price that is accepted today
	MaxOrderVolume int64 // lots per order
	PositionLimit  int64 // lots per account and side, 0 for none but what they may be worth
}

const maxDecimals = 12

// Check reports the first rule that the terms break; the error wraps ErrTerms.
func (t *Instrument) Check() error {
	if err := t.Symbol.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrTerms, err)
	}
	if t.Symbol.String() == record.AccountStream {
		return t.broken("the name is reserved for account changes")
	}
	for _, rule := range t.rules() {
		if !rule.held {
			return t.broken(rule.says)
		}
	}
	return t.checkFees()
}

type rule struct {
	held bool
	says string
}

func (t *Instrument) rules() []rule {
	return []rule{
		{t.TickSize > 0, "the tick must be above zero"},
		{t.Decimals <= maxDecimals, "a price has at most 12 decimals"},
		{t.TickValue > 0 && t.TickValue <= maxAmount, "the value of a tick must be above zero and at most 2^60 minor units"},
		{t.LongMarginPPM > 0 && t.LongMarginPPM <= million, "the long margin must be above 0 and at most 1 (100 %)"},
		{t.ShortMarginPPM > 0 && t.ShortMarginPPM <= million, "the short margin must be above 0 and at most 1 (100 %)"},
		{t.PriceLimitBP > 0, "the price limit must be at least 0.0001"},
		{t.LowerLimit > 0 && t.LowerLimit <= t.UpperLimit, "the lower price limit must be above zero and not above the upper one"},
		{t.UpperLimit <= maxAmount/max(int64(t.TickSize), 1), "the upper price limit has too many digits"},
		{t.MaxOrderVolume > 0, "the order volume limit must be above zero"},
		{t.PositionLimit >= 0, "the position limit must not be negative"},
		{t.fits(t.UpperLimit, t.MaxOrderVolume), "the largest order at the upper price limit is worth more than 2^60 minor units: lower the order volume limit or take a larger minor unit"},
	}
}

func (t *Instrument) broken(why string) error {
	return fmt.Errorf("instrument %s: %w: %s", t.Symbol, ErrTerms, why)
}

func (t *Instrument) checkFees() error {
	for _, fee := range []int64{t.FeeOpen, t.FeeClose, t.FeeCloseToday} {
		switch {
		case fee < 0:
			return t.broken("fees must not be negative")
		case t.FeeMode == record.FeeByTurnover && fee > million:
			return t.broken("a fee rate must not be above 1")
		case t.FeeMode == record.FeeByLot && fee > maxAmount/t.MaxOrderVolume:
			return t.broken("the fee of the largest order is above 2^60 minor units")
		}
	}
	if t.FeeMode != record.FeeByTurnover && t.FeeMode != record.FeeByLot {
		return t.broken("the fee mode is neither turnover nor lot")
	}
	return nil
}

// fits reports whether price × TickValue × volume is at most MaxAmount.
func (t *Instrument) fits(price, volume int64) bool {
	value, ok := MulDiv(price, t.TickValue, 1, Down)
	if !ok {
		return false
	}
	value, ok = MulDiv(value, volume, 1, Down)
	return ok && value <= maxAmount
}

// LotWorth returns the most that the turnover or the fee of one lot can come to
// while the limits are what they are, in minor units.
func (t *Instrument) LotWorth() int64 {
	worth := t.TickValue * t.UpperLimit
	if t.FeeMode == record.FeeByLot {
		worth = max(worth, t.FeeOpen, t.FeeClose, t.FeeCloseToday)
	}
	return worth
}

// Turnover returns the worth of cost, a sum of ticks × lots, in minor units.
func (t *Instrument) Turnover(cost int64) int64 { return cost * t.TickValue }

// Margin returns what a position of the given cost (ticks × lots, ≥ 0) ties up,
// in minor units, rounded up. A buyer's position is long, a seller's short.
func (t *Instrument) Margin(side record.Side, cost int64) int64 {
	return share(t.Turnover(cost), int64(t.marginPPM(side)), million, Up)
}

func (t *Instrument) marginPPM(side record.Side) uint32 {
	if side == record.Buy {
		return t.LongMarginPPM
	}
	return t.ShortMarginPPM
}

// LotMargin returns the margin that an opening order freezes for each lot when
// it can trade at price at worst. It is rounded up lot by lot, so that what is
// frozen for some lots always covers the margin of a fill of as many.
func (t *Instrument) LotMargin(side record.Side, offset record.Offset, price int64) int64 {
	if offset != record.Open {
		return 0
	}
	return t.Margin(side, price)
}

// LotFee returns the fee that an order freezes for each lot, rounded up lot by
// lot, in minor units.
func (t *Instrument) LotFee(offset record.Offset, price int64) int64 {
	rate := t.feeRate(offset)
	if t.FeeMode == record.FeeByLot {
		return rate
	}
	return share(t.Turnover(price), rate, million, Up)
}

// Fee returns the fee of one fill in minor units, rounded to the nearest. It is
// at most volume × LotFee at the same or a higher price.
func (t *Instrument) Fee(offset record.Offset, price, volume int64) int64 {
	rate := t.feeRate(offset)
	if t.FeeMode == record.FeeByLot {
		return rate * volume
	}
	return share(t.Turnover(price*volume), rate, million, Nearest)
}

func (t *Instrument) feeRate(offset record.Offset) int64 {
	switch offset {
	case record.Close:
		return t.FeeClose
	case record.CloseToday:
		return t.FeeCloseToday
	}
	return t.FeeOpen
}

// LimitsAround returns the daily limits that follow from a reference price,
// such as the settlement price of the day before: PriceLimitBP either side,
// rounded inwards to whole ticks, at least one tick, and not so high that the
// terms would break a rule of Check.
func (t *Instrument) LimitsAround(reference int64) (lower, upper int64) {
	width := int64(t.PriceLimitBP)
	upper = share(reference, 10_000+width, 10_000, Down)
	lower = share(reference, max(10_000-width, 0), 10_000, Up)
	upper = min(upper, maxAmount/t.TickValue/t.MaxOrderVolume, maxAmount/max(int64(t.TickSize), 1))
	lower = min(max(lower, 1), upper)
	return lower, max(upper, 1)
}

// ParsePrice turns a decimal price into ticks. The error wraps ErrDecimal or
// ErrOffTick.
func (t *Instrument) ParsePrice(s string) (ticks int64, err error) {
	d, err := parseDecimal(s)
	if err != nil {
		return 0, fmt.Errorf("price %w", err)
	}
	units, ok := d.scaled(int(t.Decimals))
	if !ok || units%int64(t.TickSize) != 0 {
		return 0, fmt.Errorf("price %s of %s: %w, which is %s", s, t.Symbol, ErrOffTick, t.FormatPrice(1))
	}
	return units / int64(t.TickSize), nil
}

// FormatPrice writes a price in ticks as a decimal.
func (t *Instrument) FormatPrice(ticks int64) string {
	return formatScaled(ticks*int64(t.TickSize), int(t.Decimals))
}
