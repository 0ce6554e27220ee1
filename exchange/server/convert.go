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

// reject is why a request must be refused, as far as can be seen before it comes
// to the router, which may find a reason that comes first.
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
		return record.Symbol{}, nil, &reject{risk.UnknownInstrument, fmt.Sprintf("instrument: %v", err)}
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

// newOrder returns the order that r asks for, as far as it can be stated, and
// what is wrong with it. Only a malformed one must not go to the router.
func (s *Server) newOrder(r *pb.SubmitRequest) (*core.NewOrder, *reject) {
	sym, terms, unknown := s.termsOf(r.Instrument)
	n := &core.NewOrder{Instrument: sym, Account: r.Account, ClientOrderID: r.ClientOrderId, Volume: r.Volume}
	if bad := form(n, r); bad != nil {
		return n, bad
	}
	switch priced := r.Price != "" || r.PriceTicks != 0; {
	case n.Kind == record.Market && priced:
		return n, malformed("price: a market order has none; leave price and price_ticks unset")
	case n.Kind == record.Limit && !priced:
		return n, malformed("price: missing; a limit order needs price or price_ticks")
	case unknown != nil:
		return n, unknown
	}
	var bad *reject
	if n.Price, bad = ticks(terms, r.Price, r.PriceTicks); bad != nil {
		n.PriceFault = bad.why
	}
	return n, bad
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

// amendOrder is newOrder of an amend.
func (s *Server) amendOrder(r *pb.AmendRequest) (*core.AmendOrder, *reject) {
	sym, terms, bad := s.termsOf(r.Instrument)
	a := &core.AmendOrder{Instrument: sym, Account: r.Account, OrderID: r.OrderId, Volume: r.Volume}
	if bad != nil {
		return a, bad
	}
	if a.Price, bad = ticks(terms, r.Price, r.PriceTicks); bad != nil {
		a.PriceFault = bad.why
	}
	return a, bad
}

// response answers with what became of an order. It says what bad knows about the
// reason, if that is the one for which the order was refused.
func response(res *core.Result, bad *reject) *pb.OrderResponse {
	out := &pb.OrderResponse{
		OrderId: res.OrderID, ClientOrderId: res.ClientOrderID, State: pb.OrderState(res.Status) + pb.OrderState_ORDER_STATE_REJECTED,
		Filled: res.Filled, Remaining: res.Remaining, Seq: res.Seq, Global: res.Global,
	}
	if res.Reason != risk.OK {
		out.RejectReason, out.Message = res.Reason.String(), res.Reason.Message()
		if bad != nil && bad.why == res.Reason {
			out.Message = bad.message
		}
	}
	return out
}
