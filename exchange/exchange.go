package exchange

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// What callers handle; test with errors.Is. Errors name what differs and what
// can be done. An outbox in use is outbox.ErrLocked, one of another cluster is
// outbox.ErrWrongCluster.
var (
	// ErrDiverged means that outbox, stores and state file do not tell the same
	// history. The stores were not written to unless they agreed up to there.
	ErrDiverged = subscriber.ErrDiverged
	// ErrStores means that shards did not answer, without which no start is
	// possible.
	ErrStores = errors.New("the stores cannot be read")
	// ErrTerms means that an instrument's tick, or what a tick is worth, is not
	// what it was listed with.
	ErrTerms = errors.New("instrument was listed with other terms")
	// ErrDropped means that records were dropped under the policy Drop, so that
	// nothing can be rebuilt from what is left.
	ErrDropped = errors.New("records were dropped")
	// ErrClosed means that the exchange was closed.
	ErrClosed = errors.New("exchange is closed")
)

// Exchange is a running exchange. Its methods may be called from anywhere.
type Exchange struct {
	config     Config
	client     *client.Client
	outbox     *outbox.Writer
	hold       *outbox.Hold // nil when another process carries the records
	subscriber deliverer
	router     *core.Router
	gateway    atomic.Pointer[gateway.Gateway]
	recovery   Recovery

	known *knownState // the recovery's, then the state keeper's, then Close's

	alive      context.Context // of the goroutines in background
	end        context.CancelFunc
	background sync.WaitGroup

	mu     sync.Mutex
	cause  error         // why failed was closed
	failed chan struct{} // closed when the exchange can not go on

	closing sync.Once
	closed  Closed
	closeEr error
}

// deliverer is what the exchange knows of the way of its records to the shards: a
// subscriber of its own, or a follower of another process's.
type deliverer interface {
	Durable() uint64
	OnDurable(global uint64, done func(error))
	WaitDurable(ctx context.Context, global uint64) error
	WaitDrained(ctx context.Context) error
	Stats() subscriber.Stats
	Lanes() []subscriber.Stats
	Collector() prometheus.Collector
}

// Open starts an exchange: it recovers, see the package's documentation, and
// takes orders when it returns. ctx bounds the recovery only.
func Open(ctx context.Context, config Config) (*Exchange, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	c, err := client.New(config.Shards, config.Client)
	if err != nil {
		return nil, err
	}
	x := &Exchange{config: config, client: c, failed: make(chan struct{})}
	x.alive, x.end = context.WithCancel(context.Background())
	if config.Follow != nil {
		x.background.Go(func() { config.Follow(x.alive, c) })
	}
	if x.known, err = loadState(config.OutboxDir, config.Shards.Cluster); err == nil {
		err = x.known.whole(config.OutboxDir)
	}
	if err == nil {
		r := &recovery{Exchange: x}
		err = r.run(ctx)
	}
	if errors.Is(err, outbox.ErrOptions) {
		err = fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("exchange %s: %w", config.Shards.Cluster, err), x.release())
	}
	x.background.Go(x.keepState)
	return x, nil
}

// open lets requests in through router.
func (x *Exchange) open(ex *core.Exchange, router *core.Router) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cause != nil {
		return x.cause
	}
	x.router = router
	router.Start(ex)
	return nil
}

// release ends everything that was started.
func (x *Exchange) release() error {
	x.end()
	x.background.Wait()
	var err error
	if x.hold != nil {
		err = x.hold.Close()
	}
	if x.outbox != nil {
		err = errors.Join(err, x.outbox.Close())
	}
	return errors.Join(err, x.client.Close())
}

// Router takes requests from any number of goroutines: orders, accounts, money,
// control and queries. Its Start and Close are not for callers; Close of the
// Exchange does that. Once the exchange stops it answers with risk.Unavailable.
func (x *Exchange) Router() *core.Router { return x.router }

// Fanout returns what local subscribers subscribe to, also while and after the
// exchange stops.
func (x *Exchange) Fanout() *gateway.Fanout { return x.gateway.Load().Fanout() }

// Client returns the client of the storage nodes, for reading.
func (x *Exchange) Client() *client.Client { return x.client }

// Config returns the configuration with its defaults filled in.
func (x *Exchange) Config() Config { return x.config }

// Recovery returns what Open found and did.
func (x *Exchange) Recovery() Recovery { return x.recovery }

// WaitDurable returns when every record up to global is on disk on a quorum of its
// shard, with ctx's error before that, or with subscriber.ErrStopped when the
// exchange ends. A rebuild needs all records before one, those of other
// instruments among them, so the slowest shard decides.
func (x *Exchange) WaitDurable(ctx context.Context, global uint64) error {
	return x.subscriber.WaitDurable(ctx, global)
}

// OnDurable calls done once, when WaitDurable would return. The call must not
// block. Each one that is outstanding takes memory; the caller bounds them.
func (x *Exchange) OnDurable(global uint64, done func(error)) { x.subscriber.OnDurable(global, done) }

// WaitDrained returns when everything that is published at the time of the call
// is on disk on a quorum of its shard.
func (x *Exchange) WaitDrained(ctx context.Context) error { return x.subscriber.WaitDrained(ctx) }

// State returns books, accounts, positions and numbering. Orders wait while they
// are copied.
// It returns ErrClosed once the exchange has ended.
func (x *Exchange) State() (core.State, error) {
	s, ok := x.router.State()
	if !ok {
		return core.State{}, ErrClosed
	}
	return s, nil
}

// Collector returns the subscriber's Prometheus metrics.
func (x *Exchange) Collector() prometheus.Collector { return x.subscriber.Collector() }

// Failed is closed when the exchange can not go on, such as when another one has
// taken over its streams or a store diverges; Err then says why, and the caller
// calls Close. It takes no requests from then on.
func (x *Exchange) Failed() <-chan struct{} { return x.failed }

// Err returns why Failed was closed, nil if it was not.
func (x *Exchange) Err() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.cause
}

// laneStopped takes the error with which a shard's lane stopped for good. To
// trade on would fill the outbox with what can never be delivered.
func (x *Exchange) laneStopped(_ string, err error) {
	if errors.Is(err, subscriber.ErrMissing) {
		err = fmt.Errorf("%w: %w", ErrDiverged, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cause != nil {
		return
	}
	x.cause = err
	x.config.Log.Error("the exchange stops", "error", err)
	if x.router != nil {
		x.router.Close()
	}
	close(x.failed)
}

// lost returns how many records the policy Drop has cost.
func (x *Exchange) lost() uint64 {
	if gw := x.gateway.Load(); gw != nil {
		return gw.Dropped()
	}
	return 0
}

// Closed says how an exchange ended.
type Closed struct {
	State   core.State // the last one, empty when Failed was closed
	Drained bool       // everything is on disk on a quorum; else it waits in the outbox
}

// Close stops taking requests, waits up to Config.CloseWait for the delivery of
// what the outbox holds, notes the state, and ends.
func (x *Exchange) Close() (Closed, error) {
	x.closing.Do(func() { x.closed, x.closeEr = x.close() })
	return x.closed, x.closeEr
}

func (x *Exchange) close() (out Closed, err error) {
	ex := x.router.Close()
	ctx, cancel := context.WithTimeout(x.alive, x.config.CloseWait)
	defer cancel()
	stop := x.report(ctx, func() Progress {
		return Progress{Phase: PhaseDrain, Done: x.subscriber.Stats().Cursor, Total: x.outbox.Published()}
	})
	out.Drained = x.subscriber.WaitDrained(ctx) == nil
	stop()
	x.end()
	x.background.Wait()
	switch {
	case ex != nil:
		out.State = ex.State()
		err = x.note(out.State)
	case x.lost() > x.known.Dropped:
		x.noteDrops()
	}
	return out, errors.Join(err, x.release())
}

// Stats are the exchange's numbers at one time.
type Stats struct {
	Core       core.Totals
	Outbox     outbox.Stats
	Subscriber subscriber.Stats   // of all lanes together
	Lanes      []subscriber.Stats // by shard, in the order of the shard map
}

// Stats reads the numbers; it is meant for a metrics scrape or a progress line.
func (x *Exchange) Stats() Stats {
	return Stats{
		Core: x.router.Totals(), Outbox: x.outbox.Stats(),
		Subscriber: x.subscriber.Stats(), Lanes: x.subscriber.Lanes(),
	}
}

// note writes the state file. Records that were dropped are in the state, but
// will not be in a replay: then none is known.
func (x *Exchange) note(s core.State) error {
	x.known.Global, x.known.Hash = s.Global, s.Hash()
	if x.known.Dropped = x.lost(); x.known.Dropped > 0 {
		x.known.Global, x.known.Hash = 0, ""
	}
	x.known.Time = time.Now().UTC()
	return x.known.store()
}

// stateShare is the part of the time that taking states may cost: one in this many.
const stateShare = 1000

// keepState notes the state from time to time, and at once that records are
// being dropped.
func (x *Exchange) keepState() {
	var due, look <-chan time.Time
	if x.config.StateEvery > 0 {
		due = time.After(x.config.StateEvery)
	}
	if x.config.Policy == gateway.Drop {
		t := time.NewTicker(dropLookEvery)
		defer t.Stop()
		look = t.C
	}
	for {
		select {
		case <-x.alive.Done():
			return
		case <-look:
			if x.lost() > 0 {
				look = nil
				x.noteDrops()
			}
		case <-due:
			pause, ok := x.noteState()
			if !ok {
				return
			}
			due = time.After(pause)
		}
	}
}

// noteState notes the state, and returns when to do so again; false when there
// is none any more.
func (x *Exchange) noteState() (pause time.Duration, ok bool) {
	began := time.Now()
	s, ok := x.router.State()
	if !ok {
		return 0, false
	}
	pause = max(x.config.StateEvery, stateShare*time.Since(began))
	if err := x.note(s); err != nil {
		x.config.Log.Warn("the state was not noted", "error", err)
	}
	return pause, true
}

// dropLookEvery is how often the policy Drop is looked after: a process that is
// killed sooner after its first drop leaves no note of it.
const dropLookEvery = 10 * time.Millisecond

// noteDrops notes that this outbox holds a part of the history only.
func (x *Exchange) noteDrops() {
	x.known.Dropped = x.lost()
	x.known.Global, x.known.Hash = 0, ""
	x.config.Log.Warn("the outbox is full and records are dropped; the exchange can not be restarted or rebuilt any more", "dropped", x.known.Dropped)
	if err := x.known.store(); err != nil {
		x.config.Log.Error("it was not noted that records are dropped", "error", err)
	}
}

const progressEvery = 100 * time.Millisecond

// report tells the caller's Progress what now returns, until stop is called or
// ctx ends.
func (x *Exchange) report(ctx context.Context, now func() Progress) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			x.config.Progress(now())
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
