package core

import (
	"fmt"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// maxMarkets bounds the instruments of one exchange.
const maxMarkets = 1024

// checkListing reports why terms cannot be listed or put in the place of the
// terms the instrument has.
func (e *Exchange) checkListing(terms *order.Instrument) error {
	if err := terms.Check(); err != nil {
		return err
	}
	m := e.bySymbol[terms.Symbol]
	switch {
	case m == nil && len(e.markets) == maxMarkets:
		return &risk.Error{Reason: risk.BadTerms, Detail: fmt.Sprintf("%d instruments are listed already", maxMarkets)}
	case m == nil:
		return nil
	case m.terms.TickValue != terms.TickValue || m.terms.TickSize != terms.TickSize || m.terms.Decimals != terms.Decimals:
		return &risk.Error{Reason: risk.BadTerms, Detail: fmt.Sprintf("instrument %s: the tick and its value cannot change once listed", terms.Symbol)}
	case m.orders.count > 0 && chargesDiffer(&m.terms, terms):
		return &risk.Error{Reason: risk.BadTerms, Detail: fmt.Sprintf(
			"instrument %s: margins and fees cannot change while its %d orders are live, which froze money for them; settle or cancel first",
			terms.Symbol, m.orders.count)}
	case !m.bookWithin(terms):
		return &risk.Error{Reason: risk.BadTerms, Detail: fmt.Sprintf(
			"instrument %s: the best bid or ask is beyond the changed price limits; cancel first", terms.Symbol)}
	}
	return e.checkWorth(m, terms)
}

// bookWithin reports whether what an incoming order meets first is within the
// limits of terms: what a seller freezes is reckoned from the best bid.
func (m *market) bookWithin(terms *order.Instrument) bool {
	bid, _, bids := m.book.Best(record.Buy)
	ask, _, asks := m.book.Best(record.Sell)
	return (!bids || bid <= terms.UpperLimit) && (!asks || ask >= terms.LowerLimit)
}

// chargesDiffer reports whether an order freezes other amounts under b than under a.
func chargesDiffer(a, b *order.Instrument) bool {
	return a.LongMarginPPM != b.LongMarginPPM || a.ShortMarginPPM != b.ShortMarginPPM ||
		a.FeeMode != b.FeeMode || a.FeeOpen != b.FeeOpen || a.FeeClose != b.FeeClose || a.FeeCloseToday != b.FeeCloseToday
}

// checkWorth refuses terms under which what is held could no longer be reckoned
// with: held and ordered lots must stay within MaxPosition but for the position
// limit, which only binds what is opened from there on.
func (e *Exchange) checkWorth(m *market, terms *order.Instrument) error {
	bound := *terms
	bound.PositionLimit = 0
	most := bound.MaxPosition()
	for i := range uint32(e.ledger.Len()) {
		p := e.ledger.Position(m.index, i)
		if max(p.Long.Volume()+p.Long.Opening, p.Short.Volume()+p.Short.Opening) > most {
			return &risk.Error{Reason: risk.BadTerms, Detail: fmt.Sprintf(
				"instrument %s: at the upper limit of the changed terms account %d would hold more than 2^60 minor units",
				terms.Symbol, e.ledger.Account(i).ID)}
		}
	}
	return nil
}
