package server

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

const (
	pageDefault = 1000
	pageMax     = 10_000
)

// pageOf returns how many entries an answer has at most.
func pageOf(limit uint32) (int, error) {
	switch {
	case limit == 0:
		return pageDefault, nil
	case limit > pageMax:
		return 0, invalid("limit", "%d; use up to %d, or 0 for %d", limit, pageMax, pageDefault)
	}
	return int(limit), nil
}

// LiveOrders lists an account's orders that rest. The router is asked for one
// instrument at a time, so that orders wait for one book at most.
func (e *orderEntry) LiveOrders(_ context.Context, r *pb.LiveOrdersRequest) (*pb.LiveOrdersResponse, error) {
	limit, err := pageOf(r.Limit)
	if err != nil {
		return nil, err
	}
	symbols, err := e.symbols(r.Instrument)
	if err != nil {
		return nil, err
	}
	if _, ok := e.x.Router().Account(r.Account); !ok {
		return nil, e.unknownAccount(r.Account)
	}
	var live []*pb.LiveOrder
	for _, sym := range symbols {
		orders, seq := e.x.Router().LiveOrders(r.Account, sym)
		for i := range orders {
			if o := &orders[i]; o.ID > r.AfterOrderId {
				live = append(live, liveOrder(sym, seq, o))
			}
		}
	}
	slices.SortFunc(live, func(a, b *pb.LiveOrder) int { return cmp.Compare(a.OrderId, b.OrderId) })
	return &pb.LiveOrdersResponse{Orders: live[:min(len(live), limit)], More: len(live) > limit}, nil
}

// symbols returns the instrument of that name, or all when it is empty.
func (s *Server) symbols(name string) ([]record.Symbol, error) {
	if name != "" {
		sym, _, bad := s.termsOf(name)
		if bad != nil {
			return nil, refusal(bad.why, bad.message)
		}
		return []record.Symbol{sym}, nil
	}
	views := s.x.Router().Instruments()
	if views == nil {
		return nil, refusal(risk.Unavailable, "")
	}
	symbols := make([]record.Symbol, 0, len(views))
	for i := range views {
		symbols = append(symbols, views[i].Terms.Symbol)
	}
	return symbols, nil
}

// unknownAccount tells an account that is not open from an exchange that is closed.
func (s *Server) unknownAccount(id uint64) error {
	if s.closed() {
		return refusal(risk.Unavailable, "")
	}
	return refusal(risk.UnknownAccount, fmt.Sprintf("account: %d", id))
}

func liveOrder(sym record.Symbol, seq uint64, o *order.Order) *pb.LiveOrder {
	return &pb.LiveOrder{
		Instrument: sym.String(), Seq: seq, OrderId: o.ID, ClientOrderId: o.ClientOrderID,
		Side: pb.Side(o.Side), Offset: pb.Offset(o.Offset), Kind: kind(o.Kind), TimeInForce: pb.TimeInForce(o.TimeInForce),
		Price: o.Price, Volume: o.Volume, Remaining: o.Remaining,
	}
}
