package core

import (
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// Cancel takes an order off the book. It is taken while trading is halted, and
// may use the part of the outbox's quota that orders leave free.
func (e *Exchange) Cancel(now int64, c *CancelOrder) Result {
	m, o, reason := e.find(c.Instrument, c.Account, c.OrderID)
	if reason == risk.OK && !e.gw.Begin(1, gateway.Urgent) {
		reason = risk.BacklogFull
	}
	if reason != risk.OK {
		return e.refuseChange(now, change{c.Instrument, c.Account, c.OrderID}, o, reason)
	}
	res := Result{OrderID: o.ID, ClientOrderID: o.ClientOrderID, Status: Canceled, Remaining: o.Remaining}
	e.cancel(now, m, o, record.CancelByUser)
	res.Seq, res.Global = m.stream.Seq, e.gw.End()
	e.announce(m)
	return res
}

// find returns the live order that a request of account is about.
func (e *Exchange) find(instrument record.Symbol, account, id uint64) (*market, *order.Order, risk.Reason) {
	m := e.bySymbol.get(instrument)
	if m == nil {
		return nil, nil, risk.UnknownInstrument
	}
	if _, ok := e.ledger.Find(account); !ok {
		return nil, nil, risk.UnknownAccount
	}
	o := m.orders.get(id)
	switch {
	case id == 0 || id > e.lastOrderID:
		return nil, nil, risk.UnknownOrder
	case o == nil:
		return nil, nil, risk.OrderDone
	case o.Account != account:
		return nil, nil, risk.NotYourOrder
	}
	return m, o, risk.OK
}

// cancel records and carries out the cancel of a resting order.
func (e *Exchange) cancel(now int64, m *market, o *order.Order, why record.CancelReason) {
	e.gw.Canceled(&m.stream, now, o, why)
	e.ledger.Release(m.index, o, o.Remaining)
	m.book.Remove(o)
	e.forget(m, o)
}

// change says which order a cancel or an amend is about.
type change struct {
	instrument       record.Symbol
	account, orderID uint64
}

// refuseChange answers a refused cancel or amend and tells the drop copy. o is
// the order it is about, nil when that is not known or not the account's.
func (e *Exchange) refuseChange(now int64, c change, o *order.Order, why risk.Reason) Result {
	res := Result{OrderID: c.orderID, Reason: why}
	if o != nil {
		res.ClientOrderID = o.ClientOrderID
	}
	if f := e.gw.Fanout(); f.Wanted(gateway.Executions) {
		f.Reject(&gateway.Rejected{
			Instrument: c.instrument, Account: c.account, ClientOrderID: res.ClientOrderID, OrderID: c.orderID,
			Reason: uint8(why), Time: now,
		})
	}
	return res
}

// Amend changes a resting order; see AmendOrder.
func (e *Exchange) Amend(now int64, a *AmendOrder) Result {
	c := change{a.Instrument, a.Account, a.OrderID}
	m, o, reason := e.find(a.Instrument, a.Account, a.OrderID)
	if reason != risk.OK {
		return e.refuseChange(now, c, nil, reason)
	}
	draft := *o
	if a.Price != 0 {
		draft.Price = a.Price
	}
	if a.Volume != 0 {
		draft.Remaining = a.Volume
	}
	draft.Volume = draft.Remaining
	if reason = e.admitAmend(m, o, &draft, a.PriceFault); reason != risk.OK {
		return e.refuseChange(now, c, o, reason)
	}
	if keepsPlace(o, &draft) {
		return e.shrink(now, m, o, draft.Remaining)
	}
	return e.requeue(now, m, o, &draft)
}

// keepsPlace reports whether the change from o to d leaves o in its queue.
func keepsPlace(o, d *order.Order) bool { return d.Price == o.Price && d.Remaining <= o.Remaining }

// admitAmend makes the checks of a change from o to d, works out what d freezes,
// and begins the transaction.
func (e *Exchange) admitAmend(m *market, o, d *order.Order, fault risk.Reason) risk.Reason {
	if m.halted {
		return risk.TradingHalted
	}
	if r := m.inTerms(d.Remaining, d.Price, fault); r != risk.OK {
		return r
	}
	if keepsPlace(o, d) {
		if !e.gw.Begin(1, gateway.Urgent) {
			return risk.BacklogFull
		}
		return risk.OK
	}
	p := e.ledger.Position(m.index, d.AccountIndex)
	if r := e.holdings(m, p, d, d.Remaining-o.Remaining); r != risk.OK {
		return r
	}
	if risk.MayMeetItself(p, d.Side, d.Price) && m.meetsOwn(d) {
		return risk.SelfTrade
	}
	m.price(d)
	more := d.FrozenMargin + d.FrozenFee - o.FrozenMargin - o.FrozenFee
	if r := risk.Funds(e.ledger.Account(d.AccountIndex), d.Offset, more); r != risk.OK {
		return r
	}
	return e.begin(m, d)
}

// shrink lowers a resting order's volume where it stands.
func (e *Exchange) shrink(now int64, m *market, o *order.Order, remaining int64) Result {
	old := o.Remaining
	e.ledger.Release(m.index, o, old-remaining)
	m.book.Amend(o, o.Price, remaining)
	o.Volume = remaining
	e.gw.Amended(&m.stream, now, o, o.Price, old, true)
	res := Result{OrderID: o.ID, ClientOrderID: o.ClientOrderID, Status: Resting, Remaining: remaining}
	res.Seq, res.Global = m.stream.Seq, e.gw.End()
	e.announce(m)
	return res
}

// requeue takes o out, gives it the values of d, and runs it as if it came in.
func (e *Exchange) requeue(now int64, m *market, o, d *order.Order) Result {
	oldPrice, oldRemaining := o.Price, o.Remaining
	e.lift(m, o)
	revalue(o, d)
	e.ledger.Freeze(m.index, o)
	e.gw.Amended(&m.stream, now, o, oldPrice, oldRemaining, false)
	return e.run(now, m, o)
}

// lift takes a resting order off the book, with all it froze, but keeps it.
func (e *Exchange) lift(m *market, o *order.Order) {
	e.ledger.Release(m.index, o, o.Remaining)
	m.book.Remove(o)
	e.unlist(m, o)
}

func revalue(o, d *order.Order) {
	o.Price, o.Volume, o.Remaining = d.Price, d.Volume, d.Remaining
	o.FrozenMargin, o.FrozenFee = d.FrozenMargin, d.FrozenFee
}
