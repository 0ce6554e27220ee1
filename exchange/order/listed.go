package order

import "github.com/countinghouse/countinghouse/record"

// Listed fills the body of r, whose header it leaves alone, with the terms.
func (t *Instrument) Listed(r *record.InstrumentListed) {
	r.TickValue, r.TickSize, r.Decimals = t.TickValue, t.TickSize, t.Decimals
	r.FeeMode, r.FeeOpen, r.FeeClose, r.FeeCloseToday = t.FeeMode, t.FeeOpen, t.FeeClose, t.FeeCloseToday
	r.LongMarginPPM, r.ShortMarginPPM = t.LongMarginPPM, t.ShortMarginPPM
	r.PriceLimitBP, r.UpperLimit, r.LowerLimit = t.PriceLimitBP, t.UpperLimit, t.LowerLimit
	r.MaxOrderVolume, r.PositionLimit = t.MaxOrderVolume, t.PositionLimit
}

// FromListed returns the terms that r states. They may come from outside: the
// caller checks them.
func FromListed(r *record.InstrumentListed) Instrument {
	return Instrument{
		Symbol:    r.Instrument,
		TickValue: r.TickValue, TickSize: r.TickSize, Decimals: r.Decimals,
		FeeMode: r.FeeMode, FeeOpen: r.FeeOpen, FeeClose: r.FeeClose, FeeCloseToday: r.FeeCloseToday,
		LongMarginPPM: r.LongMarginPPM, ShortMarginPPM: r.ShortMarginPPM,
		PriceLimitBP: r.PriceLimitBP, UpperLimit: r.UpperLimit, LowerLimit: r.LowerLimit,
		MaxOrderVolume: r.MaxOrderVolume, PositionLimit: r.PositionLimit,
	}
}
