package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/exchange/core"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
)

// orderEntry is the OrderEntry service.
type orderEntry struct {
	pb.UnimplementedOrderEntryServer
	*Server
}

// request is a request for order entry, of any kind.
type request struct {
	name    string // for the metrics
	durable bool
	// enter takes the request to the router, and refuse has it refused there.
	enter  func() (core.Result, *reject)
	refuse func(why risk.Reason) core.Result
}

func (e *orderEntry) submit(r *pb.SubmitRequest) request {
	return request{
		name: "submit", durable: r.Durable,
		enter: func() (core.Result, *reject) {
			n, bad := e.newOrder(r)
			if isMalformed(bad) {
				return e.x.Router().Refuse(n, bad.why), bad
			}
			return e.x.Router().Submit(n), bad
		},
		refuse: func(why risk.Reason) core.Result {
			n, _ := e.newOrder(r)
			return e.x.Router().Refuse(n, why)
		},
	}
}

func (e *orderEntry) cancel(r *pb.CancelRequest) request {
	return request{
		name: "cancel", durable: r.Durable,
		enter: func() (core.Result, *reject) {
			sym, _, bad := e.termsOf(r.Instrument)
			return e.x.Router().Cancel(&core.CancelOrder{Instrument: sym, Account: r.Account, OrderID: r.OrderId}), bad
		},
		refuse: func(why risk.Reason) core.Result {
			sym, _, _ := e.termsOf(r.Instrument)
			return e.x.Router().RefuseChange(sym, r.Account, r.OrderId, why)
		},
	}
}

func (e *orderEntry) amend(r *pb.AmendRequest) request {
	refuse := func(why risk.Reason) core.Result {
		sym, _, _ := e.termsOf(r.Instrument)
		return e.x.Router().RefuseChange(sym, r.Account, r.OrderId, why)
	}
	return request{
		name: "amend", durable: r.Durable, refuse: refuse,
		enter: func() (core.Result, *reject) {
			a, bad := e.amendOrder(r)
			if isMalformed(bad) {
				return refuse(bad.why), bad
			}
			return e.x.Router().Amend(a), bad
		},
	}
}

func isMalformed(bad *reject) bool { return bad != nil && bad.why == risk.Malformed }

// run carries a request out.
func (e *orderEntry) run(r *request) *pb.OrderResponse {
	began := time.Now()
	res, bad := r.enter()
	took := time.Since(began)
	out := response(&res, bad)
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
			out.Message = notDurable(err)
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

// notDurable says what becomes of an order whose records were not stored in time.
func notDurable(err error) string {
	if errors.Is(err, subscriber.ErrFenced) || errors.Is(err, subscriber.ErrDiverged) {
		return "another exchange has taken over: the order is lost unless that one shows it: " + err.Error()
	}
	return "the order stands, but its records are not known to be durable: " + err.Error()
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
	res := r.refuse(risk.Overloaded)
	out := response(&res, nil)
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
