package server

import (
	"context"
	"time"

	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/exchange/core"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
)

// orderEntry is the OrderEntry service.
type orderEntry struct {
	pb.UnimplementedOrderEntryServer
	*Server
}

// request is a request for order entry, of any kind.
type request struct {
	name          string // for the metrics
	instrument    string
	orderID       uint64
	clientOrderID uint64
	durable       bool
	// enter takes the request to the router.
	enter func() (core.Result, *reject)
}

func (e *orderEntry) submit(r *pb.SubmitRequest) request {
	return request{
		name: "submit", instrument: r.Instrument, clientOrderID: r.ClientOrderId, durable: r.Durable,
		enter: func() (core.Result, *reject) {
			n, bad := e.newOrder(r)
			if bad != nil {
				return core.Result{}, bad
			}
			return e.x.Router().Submit(n), nil
		},
	}
}

func (e *orderEntry) cancel(r *pb.CancelRequest) request {
	return request{
		name: "cancel", instrument: r.Instrument, orderID: r.OrderId, durable: r.Durable,
		enter: func() (core.Result, *reject) {
			sym, _, bad := e.termsOf(r.Instrument)
			if bad != nil {
				return core.Result{}, bad
			}
			return e.x.Router().Cancel(&core.CancelOrder{Instrument: sym, Account: r.Account, OrderID: r.OrderId}), nil
		},
	}
}

func (e *orderEntry) amend(r *pb.AmendRequest) request {
	return request{
		name: "amend", instrument: r.Instrument, orderID: r.OrderId, durable: r.Durable,
		enter: func() (core.Result, *reject) {
			a, bad := e.amendOrder(r)
			if bad != nil {
				return core.Result{}, bad
			}
			return e.x.Router().Amend(a), nil
		},
	}
}

// run carries a request out.
func (e *orderEntry) run(r *request) *pb.OrderResponse {
	began := time.Now()
	res, bad := r.enter()
	took := time.Since(began)
	var out *pb.OrderResponse
	if bad != nil {
		out = rejection(r.orderID, r.clientOrderID, bad.why.String(), bad.message)
	} else {
		out = response(&res)
	}
	e.metrics.answered(r.name, out, took)
	return out
}

// waits reports whether the answer must wait for durability.
func waits(r *request, out *pb.OrderResponse) bool {
	return r.durable && out.State != pb.OrderState_ORDER_STATE_REJECTED
}

// claim takes a place among those that wait for durability.
func (s *Server) claim() bool {
	if s.durableWaits.Add(1) > int64(s.options.DurableWaitsMax) {
		s.durableWaits.Add(-1)
		return false
	}
	return true
}

// whenDurable calls done once the records of the answered request are durable on
// a quorum, or it is known that they will not be while the exchange runs. It
// gives the place back that was claimed.
func (s *Server) whenDurable(out *pb.OrderResponse, done func()) {
	finish := func(err error) {
		s.durableWaits.Add(-1)
		out.Durable = err == nil
		if err != nil {
			out.Message = "the order stands, but its records are not known to be durable: " + err.Error()
		}
		done()
	}
	if out.Global == 0 {
		finish(errDropped)
		return
	}
	began := time.Now()
	s.x.OnDurable(out.Global, func(err error) {
		s.metrics.durable(time.Since(began))
		finish(err)
	})
}

// unary answers a single call.
func (e *orderEntry) unary(ctx context.Context, r request) (*pb.OrderResponse, error) {
	if !r.durable {
		return e.run(&r), nil
	}
	if !e.claim() {
		return e.overloaded(&r), nil
	}
	out := e.run(&r)
	if !waits(&r, out) {
		e.durableWaits.Add(-1)
		return out, nil
	}
	done := make(chan struct{})
	e.whenDurable(out, func() { close(done) })
	select {
	case <-done:
		return out, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (e *orderEntry) overloaded(r *request) *pb.OrderResponse {
	out := rejection(r.orderID, r.clientOrderID, Overloaded, overloadedMessage)
	e.metrics.answered(r.name, out, 0)
	return out
}

// Submit is one order in one call.
func (e *orderEntry) Submit(ctx context.Context, r *pb.SubmitRequest) (*pb.OrderResponse, error) {
	return e.unary(ctx, e.submit(r))
}

// Cancel is one cancel in one call.
func (e *orderEntry) Cancel(ctx context.Context, r *pb.CancelRequest) (*pb.OrderResponse, error) {
	return e.unary(ctx, e.cancel(r))
}

// Amend is one amend in one call.
func (e *orderEntry) Amend(ctx context.Context, r *pb.AmendRequest) (*pb.OrderResponse, error) {
	return e.unary(ctx, e.amend(r))
}
