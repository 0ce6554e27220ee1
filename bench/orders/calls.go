package orders

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/bench/measure"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/orderflow"
)

// callSizes say what is measured over gRPC.
type callSizes struct {
	warm                     int // requests carried out in process beforehand
	seconds                  float64
	unaryRates, sessionRates []int // calls or requests per second
	unaryCallers             []int // that each wait for an answer before the next call
	sessionWindows           []int // requests that may wait for their answers
	requestsMax              int   // of one run; 0: 200,000
}

// warmCalls go ahead of those that are measured, to bring the connection up.
const warmCalls = 500

func compareCalls(ctx context.Context, b *measure.Bench, c callSizes) error {
	if c.requestsMax == 0 {
		c.requestsMax = 200_000
	}
	f, err := drawFlow(3, c.warm, c.requestsMax+warmCalls)
	if err != nil {
		return fmt.Errorf("draw the flow for gRPC: %w", err)
	}
	calls := translate(f.measured)
	for _, rate := range c.unaryRates {
		name := fmt.Sprintf("gRPC, a call each, %s/s: latency, p50", measure.Number(float64(rate)))
		if err := compareServices(ctx, b, f, measure.Case{Name: name, Unit: "ns", LowerIsBetter: true}, unaryAtRate(calls, rate, c)); err != nil {
			return err
		}
	}
	for _, callers := range c.unaryCallers {
		name := fmt.Sprintf("gRPC, a call each, %d callers", callers)
		if err := compareServices(ctx, b, f, measure.Case{Name: name, Unit: "orders/s"}, unaryClosed(calls, callers, c)); err != nil {
			return err
		}
	}
	for _, rate := range c.sessionRates {
		name := fmt.Sprintf("gRPC, one session, %s/s: latency, p50", measure.Number(float64(rate)))
		if err := compareServices(ctx, b, f, measure.Case{Name: name, Unit: "ns", LowerIsBetter: true}, sessionAtRate(calls, rate, c)); err != nil {
			return err
		}
	}
	for _, window := range c.sessionWindows {
		name := fmt.Sprintf("gRPC, one session, %d unanswered", window)
		if err := compareServices(ctx, b, f, measure.Case{Name: name, Unit: "orders/s"}, sessionClosed(calls, window, c)); err != nil {
			return err
		}
	}
	return nil
}

// callTrial is a load on a server.
type callTrial func(ctx context.Context, s *service) (measure.Sample, error)

func compareServices(ctx context.Context, b *measure.Bench, f *flow, c measure.Case, load callTrial) error {
	return b.Compare(ctx, c,
		measure.Contestant{System: "exchange", Ours: true, Note: "client and server in one process, over loopback", Run: runService(b, f, serveExchange, load)},
		measure.Contestant{System: "empty answer (floor)", Note: "the same protocol, nothing is done", Run: runService(b, f, serveEcho, load)},
	)
}

func runService(b *measure.Bench, f *flow, open serviceOpener, load callTrial) func(context.Context) (measure.Sample, error) {
	return func(ctx context.Context) (measure.Sample, error) {
		dir, remove, err := b.Dir()
		if err != nil {
			return measure.Sample{}, err
		}
		defer remove()
		s, err := open(f, dir)
		if err != nil {
			return measure.Sample{}, err
		}
		sample, err := load(ctx, s)
		return sample, errors.Join(err, s.close())
	}
}

// call is a request in the protocol's terms.
type call struct {
	session pb.SessionRequest
	send    func(ctx context.Context, to pb.OrderEntryClient) error
}

// translate makes calls of requests.
func translate(requests []request) []call {
	out := make([]call, len(requests))
	for i := range requests {
		out[i].fill(uint64(i), &requests[i])
	}
	return out
}

func (c *call) fill(id uint64, r *request) {
	c.session.RequestId = id
	o := &r.order
	instrument := o.Instrument.String()
	switch r.kind {
	case orderflow.Submit:
		m := &pb.SubmitRequest{
			Instrument: instrument, Account: o.Account, ClientOrderId: o.ClientOrderID,
			Side: pb.Side(o.Side), Offset: pb.Offset(o.Offset), Kind: pb.Kind(o.Kind), TimeInForce: pb.TimeInForce(o.TimeInForce),
			PriceTicks: o.Price, Volume: o.Volume,
		}
		if m.Kind == pb.Kind_KIND_MARKET {
			m.PriceTicks = 0
		}
		c.session.Request = &pb.SessionRequest_Submit{Submit: m}
		c.send = func(ctx context.Context, to pb.OrderEntryClient) error { return failed(to.Submit(ctx, m)) }
	case orderflow.Cancel:
		m := &pb.CancelRequest{Instrument: instrument, Account: o.Account, OrderId: r.id}
		c.session.Request = &pb.SessionRequest_Cancel{Cancel: m}
		c.send = func(ctx context.Context, to pb.OrderEntryClient) error { return failed(to.Cancel(ctx, m)) }
	default:
		m := &pb.AmendRequest{Instrument: instrument, Account: o.Account, OrderId: r.id, PriceTicks: o.Price, Volume: o.Volume}
		c.session.Request = &pb.SessionRequest_Amend{Amend: m}
		c.send = func(ctx context.Context, to pb.OrderEntryClient) error { return failed(to.Amend(ctx, m)) }
	}
}

// failed drops an answer: calls may overtake each other, so that a request may be
// refused that was not when it was drawn.
func failed(_ *pb.OrderResponse, err error) error { return err }

// split returns the calls ahead and those that are measured, as many as a rate
// allows.
func split(calls []call, most int) (ahead, measured []call) {
	return calls[:warmCalls], calls[warmCalls:min(len(calls), warmCalls+most)]
}

func sendAll(ctx context.Context, s *service, calls []call) error {
	for i := range calls {
		if err := calls[i].send(ctx, s.entry); err != nil {
			return err
		}
	}
	return nil
}

// unaryWorkers are the most calls at a time at a fixed rate; if all are under way,
// those that are due wait, which their latency includes.
const unaryWorkers = 256

func unaryAtRate(calls []call, rate int, c callSizes) callTrial {
	ahead, measured := split(calls, int(float64(rate)*c.seconds))
	return func(ctx context.Context, s *service) (measure.Sample, error) {
		if err := sendAll(ctx, s, ahead); err != nil {
			return measure.Sample{}, err
		}
		due := make(chan int, len(measured))
		took := make([]time.Duration, len(measured)) // each call's own
		before := readRuntime()
		clock := schedule{start: time.Now(), perSecond: rate}
		workers, ctx := errgroup.WithContext(ctx)
		for range unaryWorkers {
			workers.Go(func() error {
				for i := range due {
					if err := measured[i].send(ctx, s.entry); err != nil {
						return err
					}
					took[i] = clock.late(i)
				}
				return nil
			})
		}
		err := onThread(func() error {
			for i := range measured {
				clock.awaitKindly(i)
				due <- i
			}
			return nil
		})
		close(due)
		if err := errors.Join(err, workers.Wait()); err != nil {
			return measure.Sample{}, err
		}
		more := readRuntime().since(before, len(measured))
		h := histogram(took)
		return measure.Sample{Value: float64(h.Latency().P50), Latency: h, More: more}, nil
	}
}

// histogram is of the calls that were answered.
func histogram(took []time.Duration) *measure.Histogram {
	h := measure.NewHistogram()
	for _, d := range took {
		if d > 0 {
			h.Record(d)
		}
	}
	return h
}

func atRateSample(h *measure.Histogram, before runtimeCounts, n int) measure.Sample {
	return measure.Sample{Value: float64(h.Latency().P50), Latency: h, More: readRuntime().since(before, n)}
}

// nearby is how long before it is due a request is waited for without sleep.
const nearby = 40 * time.Microsecond

// awaitKindly is await that sleeps in the kernel as long as that is precise enough.
// Go's own timers and runtime.Gosched would hold up what the network brings, which
// is looked for when there is nothing else to do.
func (s schedule) awaitKindly(i int) {
	due := s.due(i)
	for left := due - time.Since(s.start); left > 0; left = due - time.Since(s.start) {
		if left > nearby {
			ts := unix.NsecToTimespec(int64(left - nearby))
			_ = unix.Nanosleep(&ts, nil) // if it is interrupted the loop goes on
		}
	}
}

// onThread runs f on a thread of its own, whose sleeps are precise.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func unaryClosed(calls []call, callers int, c callSizes) callTrial {
	ahead, measured := split(calls, c.requestsMax)
	return func(ctx context.Context, s *service) (measure.Sample, error) {
		if err := sendAll(ctx, s, ahead); err != nil {
			return measure.Sample{}, err
		}
		took := make([]time.Duration, len(measured)) // each call's own
		before, start := readRuntime(), time.Now()
		var next atomic.Int64
		workers, ctx := errgroup.WithContext(ctx)
		for range callers {
			workers.Go(func() error {
				for time.Since(start).Seconds() < c.seconds {
					i := int(next.Add(1)) - 1
					if i >= len(measured) {
						break
					}
					sent := time.Now()
					if err := measured[i].send(ctx, s.entry); err != nil {
						return err
					}
					took[i] = time.Since(sent)
				}
				return nil
			})
		}
		if err := workers.Wait(); err != nil {
			return measure.Sample{}, err
		}
		return closedSample(took, before, time.Since(start)), nil
	}
}

// closedSample is of the calls that were answered within elapsed.
func closedSample(took []time.Duration, before runtimeCounts, elapsed time.Duration) measure.Sample {
	after := readRuntime()
	h := histogram(took)
	done := int(h.Latency().Samples)
	return measure.Sample{Value: float64(done) / elapsed.Seconds(), Latency: h, More: after.since(before, done)}
}

// talk opens a session. send is called with what sends a call and must return when
// all are sent; answered is called with the id of each answer, by one goroutine.
func talk(ctx context.Context, s *service, send func(func(*call) error) error, answered func(id uint64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.entry.Session(ctx)
	if err != nil {
		return err
	}
	var both errgroup.Group
	both.Go(func() error {
		for {
			out, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				cancel()
				return err
			}
			answered(out.RequestId)
		}
	})
	err = send(func(c *call) error { return stream.Send(&c.session) })
	return errors.Join(err, stream.CloseSend(), both.Wait())
}

func sessionAtRate(calls []call, rate int, c callSizes) callTrial {
	ahead, measured := split(calls, int(float64(rate)*c.seconds))
	return func(ctx context.Context, s *service) (measure.Sample, error) {
		if err := sendAll(ctx, s, ahead); err != nil {
			return measure.Sample{}, err
		}
		h, before := measure.NewHistogram(), readRuntime()
		first := measured[0].session.RequestId
		clock := schedule{start: time.Now(), perSecond: rate}
		err := talk(ctx, s, func(send func(*call) error) error {
			return onThread(func() error {
				for i := range measured {
					clock.awaitKindly(i)
					if err := send(&measured[i]); err != nil {
						return err
					}
				}
				return nil
			})
		}, func(id uint64) { h.Record(clock.late(int(id - first))) })
		if err != nil {
			return measure.Sample{}, err
		}
		return atRateSample(h, before, len(measured)), nil
	}
}

func sessionClosed(calls []call, window int, c callSizes) callTrial {
	ahead, measured := split(calls, c.requestsMax)
	return func(ctx context.Context, s *service) (measure.Sample, error) {
		if err := sendAll(ctx, s, ahead); err != nil {
			return measure.Sample{}, err
		}
		sent := make([]atomic.Int64, len(measured)) // nanoseconds after start
		took := make([]time.Duration, len(measured))
		first := measured[0].session.RequestId
		before, start := readRuntime(), time.Now()
		places := make(chan struct{}, window)
		err := talk(ctx, s, func(send func(*call) error) error {
			for i := range measured {
				select {
				case places <- struct{}{}:
				case <-ctx.Done():
					return ctx.Err()
				}
				now := time.Since(start)
				if now.Seconds() >= c.seconds {
					return nil
				}
				sent[i].Store(int64(now))
				if err := send(&measured[i]); err != nil {
					return err
				}
			}
			return nil
		}, func(id uint64) {
			took[id-first] = time.Since(start) - time.Duration(sent[id-first].Load())
			<-places
		})
		if err != nil {
			return measure.Sample{}, err
		}
		return closedSample(took, before, time.Since(start)), nil
	}
}
