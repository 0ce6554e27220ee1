package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/exchange/core"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/matching"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// marketData is the MarketData service.
type marketData struct {
	pb.UnimplementedMarketDataServer
	*Server
}

const (
	depthDefault = 10
	depthMax     = 1000
)

var errDropped = errors.New("the outbox was full and the records were dropped")

// Instruments lists what is traded.
func (m *marketData) Instruments(context.Context, *pb.InstrumentsRequest) (*pb.InstrumentsResponse, error) {
	views := m.x.Router().Instruments()
	if views == nil {
		return nil, refusal(risk.Unavailable, "")
	}
	out := &pb.InstrumentsResponse{}
	for i := range views {
		v := &views[i]
		out.Instruments = append(out.Instruments, &pb.Instrument{
			Name: v.Terms.Symbol.String(), Tick: v.Terms.FormatPrice(1), TickValue: v.Terms.TickValue,
			UpperLimit: v.Terms.UpperLimit, LowerLimit: v.Terms.LowerLimit, MaxOrderVolume: v.Terms.MaxOrderVolume,
			Halted: v.Halted, LastSeq: v.Seq,
		})
	}
	return out, nil
}

// bookOf returns what a BookRequest asks for.
func (m *marketData) bookOf(r *pb.BookRequest) (record.Symbol, int, error) {
	sym, _, bad := m.termsOf(r.Instrument)
	if bad != nil {
		return sym, 0, refusal(bad.why, bad.message)
	}
	depth := int(r.Depth)
	if depth == 0 {
		depth = depthDefault
	}
	if depth > depthMax {
		return sym, 0, invalid("depth", "%d; use up to %d, or 0 for %d", r.Depth, depthMax, depthDefault)
	}
	return sym, depth, nil
}

// Book returns the best levels of an instrument's book.
func (m *marketData) Book(_ context.Context, r *pb.BookRequest) (*pb.BookSnapshot, error) {
	sym, depth, err := m.bookOf(r)
	if err != nil {
		return nil, err
	}
	view, err := m.view(sym, depth)
	if err != nil {
		return nil, err
	}
	return snapshot(&view), nil
}

func (m *marketData) view(sym record.Symbol, depth int) (core.BookView, error) {
	view, ok := m.x.Router().Book(sym, depth)
	if !ok {
		return view, refusal(risk.Unavailable, "")
	}
	return view, nil
}

func snapshot(v *core.BookView) *pb.BookSnapshot {
	return &pb.BookSnapshot{Instrument: v.Instrument.String(), Seq: v.Seq, Bids: levels(v.Bids), Asks: levels(v.Asks)}
}

func levels(in []matching.Level) []*pb.Level {
	out := make([]*pb.Level, len(in))
	for i := range in {
		out[i] = &pb.Level{Price: in[i].Price, Volume: in[i].Volume, Orders: int32(in[i].Orders)}
	}
	return out
}

// subscribe adds a subscriber to the fan-out, if there is room for one more.
func (s *Server) subscribe(topics gateway.Topics) (*gateway.Subscription, func(), error) {
	if s.subscribers.Add(1) > int64(s.options.SubscribersMax) {
		s.subscribers.Add(-1)
		return nil, nil, statusOf(codes.ResourceExhausted, risk.Overloaded.String(), "too many Books and Executions streams; try again later")
	}
	sub := s.x.Fanout().Subscribe(topics, s.options.SubscriberEventsMax)
	return sub, func() {
		sub.Close()
		s.subscribers.Add(-1)
	}, nil
}

// Books sends the book, and again after it changed: not more often than
// BookPause allows, so that one update can stand for several changes.
func (m *marketData) Books(r *pb.BookRequest, stream grpc.ServerStreamingServer[pb.BookUpdate]) error {
	sym, depth, err := m.bookOf(r)
	if err != nil {
		return err
	}
	sub, done, err := m.subscribe(gateway.MarketData)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := m.streaming(stream.Context())
	defer cancel()
	w := bookWatch{sub: sub, sym: sym}
	for missed := uint64(0); ; {
		view, err := m.view(sym, depth)
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.BookUpdate{Book: snapshot(&view), Missed: missed}); err != nil {
			return err
		}
		if missed, err = w.next(ctx, view.Change, m.options.BookPause); err != nil {
			return m.streamEnd(stream.Context())
		}
	}
}

// bookWatch follows the changes of one book.
type bookWatch struct {
	sub     *gateway.Subscription
	sym     record.Symbol
	event   gateway.Event
	changes uint64 // of the book, after the snapshot
	told    uint64 // lost events, of any book, that are accounted for
}

// next waits for a change of the book after the one of that number, then for the
// least pause, and returns how many further changes the next snapshot takes in.
func (w *bookWatch) next(ctx context.Context, after uint64, least time.Duration) (missed uint64, err error) {
	w.changes = 0
	for w.drain(after); w.changes == 0 && w.sub.Lost() == w.told; w.drain(after) {
		if err := w.sub.Next(ctx, &w.event); err != nil {
			return 0, err
		}
		w.count(after)
	}
	if err := pause(ctx, least); err != nil {
		return 0, err
	}
	w.drain(after)
	lost := w.sub.Lost()
	missed = lost - w.told + max(w.changes, 1) - 1
	w.told = lost
	return missed, nil
}

func (w *bookWatch) drain(after uint64) {
	for w.sub.TryNext(&w.event) {
		w.count(after)
	}
}

func (w *bookWatch) count(after uint64) {
	if e := &w.event; e.Kind == gateway.TopEvent && e.Top.Instrument == w.sym && e.Top.Change > after {
		w.changes++
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// streamEnd returns the status with which a subscription ends.
func (s *Server) streamEnd(stream context.Context) error { return refusalStopping(stream) }

func refusalStopping(stream context.Context) error {
	if err := stream.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return refusal(risk.Unavailable, "")
}
