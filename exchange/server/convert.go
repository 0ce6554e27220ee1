package server

import (
	"errors"
	"fmt"

	"github.com/countinghouse/countinghouse/exchange/core"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// reject is why a request is refused before it comes to the router.
type reject struct {
	why     risk.Reason
	message string // names the field
}

func malformed(format string, args ...any) *reject {
	return &reject{risk.Malformed, fmt.Sprintf(format, args...)}
}

// termsOf returns the terms of a listed instrument as far as they never change:
// its tick.
func (s *Server) termsOf(name string) (record.Symbol, *order.Instrument, *reject) {
	sym, err := record.MakeSymbol(name)
	if err != nil {
		return sym, nil, &reject{risk.UnknownInstrument, fmt.Sprintf("instrument: %v", err)}
	}
	if known, ok := s.terms.Load(sym); ok {
		return sym, known.(*order.Instrument), nil
	}
	view, ok := s.x.Router().Instrument(sym)
	if !ok {
		return sym, nil, s.notListed(name)
	}
	s.terms.Store(sym, &view.Terms)
	return sym, &view.Terms, nil
}

// notListed tells an unknown instrument from an exchange that is closed.
func (s *Server) notListed(name string) *reject {
	if s.closed() {
		return &reject{risk.Unavailable, risk.Unavailable.Message()}
	}
	return &reject{risk.UnknownInstrument, fmt.Sprintf("instrument: %q is not listed", name)}
}

// closed reports whether the exchange has ended: one that runs lists something.
func (s *Server) closed() bool { return s.x.Router().Instruments() == nil }

// ticks returns the price of a request, 0 when neither field is set.
func ticks(t *order.Instrument, decimal string, inTicks int64) (int64, *reject) {
	if decimal == "" {
		return inTicks, nil
	}
	if inTicks != 0 {
		return 0, malformed("price, price_ticks: both are set; set one")
	}
	price, err := t.ParsePrice(decimal)
	switch {
	case errors.Is(err, order.ErrOffTick):
		return 0, &reject{risk.OffTick, err.Error()}
	case err != nil:
		return 0, malformed("%v", err)
	case price == 0:
		return 0, &reject{risk.OutsideLimits, "price: is zero"}
	}
	return price, nil
}

func (s *Server) newOrder(r *pb.SubmitRequest) (*core.NewOrder, *reject) {
	sym, terms, bad := s.termsOf(r.Instrument)
	if bad != nil {
		return nil, bad
	}
	n := &core.NewOrder{Instrument: sym, Account: r.Account, ClientOrderID: r.ClientOrderId, Volume: r.Volume}
	if bad := form(n, r); bad != nil {
		return nil, bad
	}
	if n.Price, bad = ticks(terms, r.Price, r.PriceTicks); bad != nil {
		return nil, bad
	}
	switch {
	case n.Kind == record.Market && n.Price != 0:
		return nil, malformed("price: a market order has none; leave price and price_ticks unset")
	case n.Kind == record.Limit && n.Price == 0:
		return nil, malformed("price: missing; a limit order needs price or price_ticks")
	}
	return n, nil
}

// form sets what kind of order n is. The numbers of the protocol are those of
// package record, but a limit order may go without saying so.
func form(n *core.NewOrder, r *pb.SubmitRequest) *reject {
	switch {
	case r.Side != pb.Side_SIDE_BUY && r.Side != pb.Side_SIDE_SELL:
		return malformed("side: %s; use SIDE_BUY or SIDE_SELL", r.Side)
	case r.Offset < pb.Offset_OFFSET_OPEN || r.Offset > pb.Offset_OFFSET_CLOSE_TODAY:
		return malformed("offset: %s; use OFFSET_OPEN, OFFSET_CLOSE or OFFSET_CLOSE_TODAY", r.Offset)
	case r.Kind < 0 || r.Kind > pb.Kind_KIND_MARKET:
		return malformed("kind: %s; use KIND_LIMIT or KIND_MARKET", r.Kind)
	case r.TimeInForce < 0 || r.TimeInForce > pb.TimeInForce_TIME_IN_FORCE_FOK:
		return malformed("time_in_force: %s; use TIME_IN_FORCE_GFD, TIME_IN_FORCE_IOC or TIME_IN_FORCE_FOK", r.TimeInForce)
	case r.Kind == pb.Kind_KIND_MARKET && r.TimeInForce == pb.TimeInForce_TIME_IN_FORCE_GFD:
		return malformed("time_in_force: a market order cannot rest; use TIME_IN_FORCE_IOC or TIME_IN_FORCE_FOK")
	}
	n.Side, n.Offset, n.TimeInForce = record.Side(r.Side), record.Offset(r.Offset), record.TimeInForce(r.TimeInForce)
	n.Kind = record.Limit
	if r.Kind == pb.Kind_KIND_MARKET {
		n.Kind = record.Market
	}
	return nil
}

func (s *Server) amendOrder(r *pb.AmendRequest) (*core.AmendOrder, *reject) {
	sym, terms, bad := s.termsOf(r.Instrument)
	if bad != nil {
		return nil, bad
	}
	price, bad := ticks(terms, r.Price, r.PriceTicks)
	if bad != nil {
		return nil, bad
	}
	return &core.AmendOrder{Instrument: sym, Account: r.Account, OrderID: r.OrderId, Price: price, Volume: r.Volume}, nil
}

// response answers with what became of an order.
func response(res *core.Result) *pb.OrderResponse {
	out := &pb.OrderResponse{
		OrderId: res.OrderID, ClientOrderId: res.ClientOrderID, State: pb.OrderState(res.Status) + pb.OrderState_ORDER_STATE_REJECTED,
		Filled: res.Filled, Remaining: res.Remaining, Seq: res.Seq, Global: res.Global,
	}
	if res.Reason != risk.OK {
		out.RejectReason, out.Message = res.Reason.String(), res.Reason.Message()
	}
	return out
}

func rejection(orderID, clientOrderID uint64, reason, message string) *pb.OrderResponse {
	return &pb.OrderResponse{
		OrderId: orderID, ClientOrderId: clientOrderID, State: pb.OrderState_ORDER_STATE_REJECTED,
		RejectReason: reason, Message: message,
	}
}
