package core

import (
	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// Submit checks an order, matches it, and rests or cancels what is left.
func (e *Exchange) Submit(now int64, n *NewOrder) Result {
	var draft order.Order
	m, reason := e.draft(n, &draft)
	if reason == risk.OK {
		reason = e.admit(m, &draft, n.PriceFault)
	}
	if reason != risk.OK {
		return e.refuse(now, n, reason)
	}
	o := m.book.Acquire()
	*o = draft
	e.lastOrderID++
	o.ID = e.lastOrderID
	e.ledger.Freeze(m.index, o)
	e.gw.Inserted(&m.stream, now, o)
	return e.run(now, m, o)
}

// draft fills d from the request, as far as instrument and account are known.
func (e *Exchange) draft(n *NewOrder, d *order.Order) (*market, risk.Reason) {
	kind, tif := defaults(n)
	if r := risk.Form(n.Side, n.Offset, kind, tif); r != risk.OK {
		return nil, r
	}
	m := e.bySymbol.get(n.Instrument)
	if m == nil {
		return nil, risk.UnknownInstrument
	}
	i, ok := e.ledger.Find(n.Account)
	if !ok {
		return nil, risk.UnknownAccount
	}
	*d = order.Order{
		ClientOrderID: n.ClientOrderID, Account: n.Account, AccountIndex: i,
		Side: n.Side, Offset: n.Offset, Kind: kind, TimeInForce: tif,
		Price: n.Price, Volume: n.Volume, Remaining: n.Volume,
	}
	if kind == record.Market {
		d.Price = m.protection(n.Side)
	}
	return m, risk.OK
}

func defaults(n *NewOrder) (record.Kind, record.TimeInForce) {
	kind, tif := n.Kind, n.TimeInForce
	if kind == 0 {
		kind = record.Limit
	}
	if tif == 0 {
		tif = record.GFD
		if kind == record.Market {
			tif = record.IOC
		}
	}
	return kind, tif
}

// admit makes the checks of an order whose instrument and account are known,
// works out what it freezes, and begins its transaction.
func (e *Exchange) admit(m *market, d *order.Order, fault risk.Reason) risk.Reason {
	if m.halted {
		return risk.TradingHalted
	}
	if r := m.inTerms(d.Volume, d.Price, fault); r != risk.OK {
		return r
	}
	p := e.ledger.Position(m.index, d.AccountIndex)
	if r := e.holdings(m, p, d, d.Volume); r != risk.OK {
		return r
	}
	if risk.MayMeetItself(p, d.Side, d.Price) && m.meetsOwn(d) {
		return risk.SelfTrade
	}
	m.price(d)
	if r := risk.Funds(e.ledger.Account(d.AccountIndex), d.Offset, d.FrozenMargin+d.FrozenFee); r != risk.OK {
		return r
	}
	if d.TimeInForce == record.GFD && m.orders.count >= e.liveOrdersMax {
		return risk.BookFull
	}
	return e.begin(m, d)
}

// inTerms checks volume and price, which has a fault of its own unless that is OK.
func (m *market) inTerms(volume, price int64, fault risk.Reason) risk.Reason {
	r := risk.Terms(&m.terms, volume, price)
	if fault != risk.OK && r != risk.BadVolume {
		return fault
	}
	return r
}

// holdings checks that the account of d may take on volume further lots.
func (e *Exchange) holdings(m *market, p *account.Position, d *order.Order, volume int64) risk.Reason {
	if r := risk.Holdings(&m.terms, p, d.Side, d.Offset, volume); r != risk.OK {
		return r
	}
	return risk.Worth(e.ledger.Account(d.AccountIndex), e.ledger.LotWorth(m.index), d.Offset, volume)
}

// begin starts the transaction of an order that is about to be matched.
func (e *Exchange) begin(m *market, o *order.Order) risk.Reason {
	if e.gw.TryBegin(recordsMax(m.fillsMax(o)), gateway.Orders) {
		return risk.OK
	}
	if !e.gw.Begin(recordsMax(m.fillsExact(o)), gateway.Orders) {
		return risk.BacklogFull
	}
	return risk.OK
}

// recordsMax returns the most records that an order with so many fills leads
// to: itself, a cancel, and for each fill a trade and the maker's account, and
// the taker's.
func recordsMax(fills int) int {
	if fills == 0 {
		return 2
	}
	return 2 + 2*fills + 1
}

// refuse answers a refused NewOrder and tells the drop copy.
func (e *Exchange) refuse(now int64, n *NewOrder, why risk.Reason) Result {
	if f := e.gw.Fanout(); f.Wanted(gateway.Executions) {
		f.Reject(&gateway.Rejected{
			Instrument: n.Instrument, Account: n.Account, ClientOrderID: n.ClientOrderID,
			Reason: uint8(why), Time: now,
		})
	}
	return Result{ClientOrderID: n.ClientOrderID, Reason: why}
}

// run matches o, which is frozen and recorded but not in the book, and ends the
// transaction.
func (e *Exchange) run(now int64, m *market, o *order.Order) Result {
	res := Result{OrderID: o.ID, ClientOrderID: o.ClientOrderID}
	open := o.Remaining
	e.fills = m.book.Match(o, e.fills[:0])
	e.book(now, m, o, open)
	res.Remaining, res.Filled = o.Remaining, open-o.Remaining
	taker := o.AccountIndex
	res.Status = e.place(now, m, o, res.Filled)
	e.restate(now, m, taker)
	res.Seq, res.Global = m.stream.Seq, e.gw.End()
	e.announce(m)
	return res
}

// book carries the fills of taker, which had open lots before, into records and
// accounts, and forgets the makers that are done.
func (e *Exchange) book(now int64, m *market, taker *order.Order, open int64) {
	e.transaction++
	e.touched = e.touched[:0]
	for i := range e.fills {
		f := &e.fills[i]
		e.lastTradeID++
		t := gateway.Trade{
			ID: e.lastTradeID, Maker: f.Maker, Taker: taker, Price: f.Price, Volume: f.Volume,
			MakerFee: m.terms.Fee(f.Maker.Offset, f.Price, f.Volume),
			TakerFee: m.terms.Fee(taker.Offset, f.Price, f.Volume),
		}
		e.gw.Traded(&m.stream, now, &t)
		e.ledger.Fill(m.index, f.Maker, f.Maker.Remaining+f.Volume, f.Price, f.Volume, t.MakerFee)
		e.ledger.Fill(m.index, taker, open, f.Price, f.Volume, t.TakerFee)
		open -= f.Volume
		e.marks[m.index] = f.Price
		e.touch(f.Maker.AccountIndex)
		if f.MakerDone {
			e.forget(m, f.Maker)
		}
	}
}

// touch notes a maker whose account must be restated.
func (e *Exchange) touch(i uint32) {
	if e.stamps[i] != e.transaction {
		e.stamps[i] = e.transaction
		e.touched = append(e.touched, i)
	}
}

// place rests what is left of o, or cancels it, or lets a filled order go.
func (e *Exchange) place(now int64, m *market, o *order.Order, filled int64) Status {
	switch {
	case o.Remaining == 0:
		m.book.Release(o)
		return Filled
	case o.TimeInForce != record.GFD:
		why := record.CancelIOC
		if o.TimeInForce == record.FOK {
			why = record.CancelFOK
		}
		e.gw.Canceled(&m.stream, now, o, why)
		e.ledger.Release(m.index, o, o.Remaining)
		m.book.Release(o)
		return Canceled
	}
	e.rest(m, o)
	if filled > 0 {
		return PartlyFilled
	}
	return Resting
}

func (e *Exchange) rest(m *market, o *order.Order) {
	m.book.Rest(o)
	m.orders.put(o)
	e.ledger.Position(m.index, o.AccountIndex).Quotes(o.Side).Add(o.Side, o.Price)
}

// forget lets go of an order that has left the book.
func (e *Exchange) forget(m *market, o *order.Order) {
	e.unlist(m, o)
	m.book.Release(o)
}

// unlist undoes what rest did beside the book.
func (e *Exchange) unlist(m *market, o *order.Order) {
	m.orders.remove(o.ID)
	e.ledger.Position(m.index, o.AccountIndex).Quotes(o.Side).Remove()
}

// restate writes the accounts that the fills touched, the taker's last.
func (e *Exchange) restate(now int64, m *market, taker uint32) {
	if len(e.fills) == 0 {
		return
	}
	for _, i := range e.touched {
		e.ledger.Update(m.index, i, e.gw.Account(&m.stream, now))
	}
	e.ledger.Update(m.index, taker, e.gw.Account(&m.stream, now))
}

// announce counts a change of the book and tells market data subscribers the
// best prices.
func (e *Exchange) announce(m *market) {
	m.changes++
	f := e.gw.Fanout()
	if !f.Wanted(gateway.MarketData) {
		return
	}
	t := gateway.Top{Instrument: m.terms.Symbol, Seq: m.stream.Seq, Change: m.changes}
	t.BidPrice, t.BidVolume, _ = m.book.Best(record.Buy)
	t.AskPrice, t.AskVolume, _ = m.book.Best(record.Sell)
	f.Top(&t)
}
