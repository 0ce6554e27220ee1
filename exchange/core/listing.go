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
	m := e.bySymbol.get(terms.Symbol)
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

// checkWorth refuses terms under which what is held and ordered could no longer
// be reckoned with; see package account.
func (e *Exchange) checkWorth(m *market, terms *order.Instrument) error {
	if terms.LotWorth() > e.ledger.WorthLimit(m.index) {
		return &risk.Error{Reason: risk.BadTerms, Detail: fmt.Sprintf(
			"instrument %s: at the upper limit of the changed terms an account's lots would be worth more than 2^60 minor units", terms.Symbol)}
	}
	if id := e.ledger.Strained(m.index); id != 0 {
		return &risk.Error{Reason: risk.BadTerms, Detail: fmt.Sprintf(
			"instrument %s: the balance of account %d, which holds it, is too far from zero; withdraw or deposit first", terms.Symbol, id)}
	}
	return nil
}
