package gateway

import (
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// Inserted writes the acceptance of o, as it enters matching.
func (g *Gateway) Inserted(s *Stream, now int64, o *order.Order) {
	r := g.next(s, record.TypeOrderInsert, now)
	b := r.OrderInsert()
	b.OrderID, b.ClientOrderID, b.Account = o.ID, o.ClientOrderID, o.Account
	b.Price, b.Volume = o.Price, o.Volume
	b.FrozenMargin, b.FrozenFee = o.FrozenMargin, o.FrozenFee
	b.Side, b.Offset, b.Kind, b.TimeInForce = o.Side, o.Offset, o.Kind, o.TimeInForce
	g.fan.push(r, Executions)
}

// Canceled writes that the Remaining lots of o left the book. The order's frozen
// amounts must still be in it.
func (g *Gateway) Canceled(s *Stream, now int64, o *order.Order, why record.CancelReason) {
	r := g.next(s, record.TypeOrderCancel, now)
	b := r.OrderCancel()
	b.OrderID, b.ClientOrderID, b.Account = o.ID, o.ClientOrderID, o.Account
	b.Price, b.Volume = o.Price, o.Remaining
	b.ReleasedMargin, b.ReleasedFee = o.FrozenMargin, o.FrozenFee
	b.Side, b.Offset, b.Reason = o.Side, o.Offset, why
	g.fan.push(r, Executions)
}

// Amended writes that o, which holds its values after the change, had another
// price or volume before.
func (g *Gateway) Amended(s *Stream, now int64, o *order.Order, oldPrice, oldVolume int64, kept bool) {
	r := g.next(s, record.TypeOrderAmend, now)
	b := r.OrderAmend()
	b.OrderID, b.ClientOrderID, b.Account = o.ID, o.ClientOrderID, o.Account
	b.Price, b.Volume, b.OldPrice, b.OldVolume = o.Price, o.Remaining, oldPrice, oldVolume
	b.FrozenMargin, b.FrozenFee = o.FrozenMargin, o.FrozenFee
	b.Side, b.Offset = o.Side, o.Offset
	if kept {
		b.KeptPriority = 1
	}
	g.fan.push(r, Executions)
}

// Trade is one fill as Traded records it.
type Trade struct {
	ID                 uint64
	Maker, Taker       *order.Order
	Price, Volume      int64 // ticks, lots
	MakerFee, TakerFee int64 // minor units
}

// Traded writes a fill.
func (g *Gateway) Traded(s *Stream, now int64, t *Trade) {
	r := g.next(s, record.TypeTradeExecuted, now)
	b := r.TradeExecuted()
	b.TradeID, b.MakerOrderID, b.TakerOrderID = t.ID, t.Maker.ID, t.Taker.ID
	b.MakerAccount, b.TakerAccount = t.Maker.Account, t.Taker.Account
	b.Price, b.Volume, b.MakerFee, b.TakerFee = t.Price, t.Volume, t.MakerFee, t.TakerFee
	b.TakerSide, b.MakerOffset, b.TakerOffset = t.Taker.Side, t.Maker.Offset, t.Taker.Offset
	g.fan.pushTrade(r, t)
}

// Account returns the body of an AccountUpdate for the caller to fill at once.
func (g *Gateway) Account(s *Stream, now int64) *record.AccountUpdate {
	return g.next(s, record.TypeAccountUpdate, now).AccountUpdate()
}

// Opened writes that an account was opened.
func (g *Gateway) Opened(s *Stream, now int64, account uint64) {
	g.next(s, record.TypeAccountOpened, now).AccountOpened().Account = account
}

// CashMoved writes a deposit or withdrawal, as typ says.
func (g *Gateway) CashMoved(s *Stream, now int64, typ record.Type, account uint64, amount, balance int64, reference uint64) {
	b := g.next(s, typ, now).CashMove()
	b.Account, b.Amount, b.Balance, b.Reference = account, amount, balance, reference
}

// Listed writes an instrument's terms.
func (g *Gateway) Listed(s *Stream, now int64, terms *order.Instrument) {
	terms.Listed(g.next(s, record.TypeInstrumentListed, now).InstrumentListed())
}

// Halted writes that trading is halted or resumed.
func (g *Gateway) Halted(s *Stream, now int64, halted bool) {
	b := g.next(s, record.TypeTradingState, now).TradingState()
	if halted {
		b.Halted = 1
	}
}

// Settlement is the end of an instrument's trading day as Settled records it.
type Settlement struct {
	Day          uint32 // yyyymmdd
	Price        int64  // ticks
	Previous     int64  // ticks, the settlement before, 0 for none
	Lower, Upper int64  // ticks, limits of the next day
}

// Settled writes the end of an instrument's trading day.
func (g *Gateway) Settled(s *Stream, now int64, e *Settlement) {
	b := g.next(s, record.TypeSettlement, now).Settlement()
	b.Day, b.Price, b.Previous = e.Day, e.Price, e.Previous
	b.UpperLimit, b.LowerLimit = e.Upper, e.Lower
}
