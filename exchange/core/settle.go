package core

import (
	"fmt"
	"time"

	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// settleChunk bounds the records of one transaction of a settlement but for the
// one that settles, which has a record for every instrument. It is less where
// the outbox has no room for so many at once.
const settleChunk = 256

// SettlementPrice is one instrument's settlement price.
type SettlementPrice struct {
	Instrument record.Symbol
	Price      int64 // ticks, within the instrument's daily limits
}

// Settled answers Settle.
type Settled struct {
	Reason         risk.Reason
	Detail         string   // what exactly was refused
	CloseOut       []uint64 // accounts whose available funds are negative, in the order of their opening
	OrdersCanceled int
	// UpdatesSkipped counts AccountUpdates for which the outbox had no room.
	// They repeat what follows from the settlement: nothing is lost with them.
	UpdatesSkipped int
	Global         uint64 // of the last record
}

// Settle ends the trading day of all instruments: it cancels what rests, marks
// every position to its settlement price, makes today's positions history, and
// sets the next day's limits. prices names every listed instrument once; day is
// yyyymmdd and above the day settled last.
//
// A settlement that would take a balance beyond account.BalanceBound is refused
// as a whole, with BadAmount and the account.
//
// When the outbox has no room at all, Settle stops with BacklogFull before positions
// are marked; orders that were cancelled until then stay cancelled, and the
// call can be repeated.
func (e *Exchange) Settle(now int64, day uint32, prices []SettlementPrice) Settled {
	byMarket, refused := e.checkSettlement(day, prices)
	if refused.Reason != risk.OK {
		return refused
	}
	canceled, ok := e.cancelAll(now)
	if !ok || !e.gw.Begin(len(e.markets), gateway.Urgent) {
		return Settled{Reason: risk.BacklogFull, OrdersCanceled: canceled, Global: e.gw.Published()}
	}
	for _, m := range e.markets {
		s := e.settlement(m, day, byMarket[m.index])
		e.settle(m, &s)
		e.gw.Settled(&m.stream, now, &s)
	}
	e.gw.End()
	res := Settled{OrdersCanceled: canceled, CloseOut: e.ledger.BelowZero()}
	res.UpdatesSkipped = e.restateAll(now)
	res.Global = e.gw.Published()
	for _, m := range e.markets {
		e.announce(m)
	}
	return res
}

// checkSettlement returns the prices by market index.
func (e *Exchange) checkSettlement(day uint32, prices []SettlementPrice) ([]int64, Settled) {
	if day <= e.day || !validDay(day) {
		return nil, Settled{Reason: risk.BadDay, Detail: fmt.Sprintf("day %d, settled last: %d", day, e.day)}
	}
	byMarket := make([]int64, len(e.markets))
	for _, p := range prices {
		m := e.bySymbol.get(p.Instrument)
		switch {
		case m == nil:
			return nil, Settled{Reason: risk.BadPrices, Detail: p.Instrument.String() + " is not listed"}
		case byMarket[m.index] != 0:
			return nil, Settled{Reason: risk.BadPrices, Detail: p.Instrument.String() + " is named twice"}
		case p.Price < m.terms.LowerLimit || p.Price > m.terms.UpperLimit:
			return nil, Settled{Reason: risk.BadPrices, Detail: fmt.Sprintf("%s: %s is outside the limits %s … %s", p.Instrument,
				m.terms.FormatPrice(p.Price), m.terms.FormatPrice(m.terms.LowerLimit), m.terms.FormatPrice(m.terms.UpperLimit))}
		}
		byMarket[m.index] = p.Price
	}
	for _, m := range e.markets {
		if byMarket[m.index] == 0 {
			return nil, Settled{Reason: risk.BadPrices, Detail: m.terms.Symbol.String() + " has no price"}
		}
	}
	if id, balance, ok := e.ledger.CheckSettle(byMarket); !ok {
		return nil, Settled{Reason: risk.BadAmount, Detail: fmt.Sprintf(
			"account %d would have %d minor units; withdraw or deposit first", id, balance)}
	}
	return byMarket, Settled{}
}

func validDay(day uint32) bool {
	_, err := time.Parse("20060102", fmt.Sprint(day))
	return err == nil
}

// portion returns how many of want records the next transaction shall have: up
// to settleChunk, by halves down to what there is room for, and at least one.
func (e *Exchange) portion(want int) int {
	n := min(want, settleChunk)
	for n > 1 && !e.gw.HasRoom(n, gateway.Urgent) {
		n /= 2
	}
	return n
}

// cancelAll takes all orders off all books, in the order of the markets, buyers
// first, by priority. ok is false when the outbox had no room for all.
func (e *Exchange) cancelAll(now int64) (canceled int, ok bool) {
	chunk := make([]*order.Order, 0, settleChunk)
	for _, m := range e.markets {
		for _, side := range []record.Side{record.Buy, record.Sell} {
			for left := m.book.Orders(side); left > 0; left = m.book.Orders(side) {
				chunk = m.first(side, e.portion(left), chunk[:0])
				if !e.cancelChunk(now, m, chunk) {
					return canceled, false
				}
				canceled += len(chunk)
			}
		}
	}
	return canceled, true
}

// cancelChunk cancels orders in one transaction; false when there is no room.
func (e *Exchange) cancelChunk(now int64, m *market, chunk []*order.Order) bool {
	if !e.gw.Begin(len(chunk), gateway.Urgent) {
		return false
	}
	for _, o := range chunk {
		e.cancel(now, m, o, record.CancelEndOfDay)
	}
	e.gw.End()
	e.announce(m)
	return true
}

// first appends the first n orders of one side to dst.
func (m *market) first(side record.Side, n int, dst []*order.Order) []*order.Order {
	m.book.Each(side, func(o *order.Order) bool {
		dst = append(dst, o)
		return len(dst) < n
	})
	return dst
}

// settlement works out the end of a market's day.
func (e *Exchange) settlement(m *market, day uint32, price int64) gateway.Settlement {
	s := gateway.Settlement{Day: day, Price: price, Previous: m.settlement}
	s.Lower, s.Upper = m.terms.LimitsAround(price)
	s.Upper = max(s.Lower, min(s.Upper, e.worthLimit(m)))
	return s
}

// worthLimit returns the highest price at which no account's lots are worth more
// than order.MaxAmount.
func (e *Exchange) worthLimit(m *market) int64 {
	return e.ledger.WorthLimit(m.index) / m.terms.TickValue
}

// settle carries out the end of a market's day.
func (e *Exchange) settle(m *market, s *gateway.Settlement) {
	m.terms.LowerLimit, m.terms.UpperLimit = s.Lower, s.Upper
	e.ledger.Settle(m.index, s.Price)
	e.marks[m.index] = s.Price
	m.settlement = s.Price
	e.day = s.Day
}

// restateAll writes every position that is held, in portions, and returns how
// many found no room.
func (e *Exchange) restateAll(now int64) (skipped int) {
	held := make([]uint32, 0, settleChunk)
	for _, m := range e.markets {
		for i := range uint32(e.ledger.Len()) {
			if e.ledger.Position(m.index, i).Empty() {
				continue
			}
			if held = append(held, i); len(held) == settleChunk {
				skipped += e.restateChunk(now, m, held)
				held = held[:0]
			}
		}
		skipped += e.restateChunk(now, m, held)
		held = held[:0]
	}
	return skipped
}

// restateChunk restates accounts in as many transactions as there is room for.
func (e *Exchange) restateChunk(now int64, m *market, held []uint32) (skipped int) {
	for len(held) > 0 {
		n := e.portion(len(held))
		if !e.gw.Begin(n, gateway.Urgent) {
			break
		}
		for _, i := range held[:n] {
			e.ledger.Update(m.index, i, e.gw.Account(&m.stream, now))
		}
		e.gw.End()
		held = held[n:]
	}
	return len(held)
}
