package subscriber

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

const (
	// grantPoll is how often a Process looks for the exchange's grant, and whether
	// the one it carries under still holds.
	grantPoll = 50 * time.Millisecond
	// sameWordEvery is how often a Process that waits for the same thing says so.
	sameWordEvery = 30 * time.Second
)

// ProcessConfig says what a Process connects.
type ProcessConfig struct {
	// OutboxDir is the outbox's directory. The outbox need not be there yet.
	OutboxDir string
	// Shards says which shard owns which instrument, as the exchange's map does.
	Shards *client.Map
	// Storage reaches the shards; see FromClient.
	Storage Storage
	Options Options
	// Log takes what an operator should know. Default: nothing is logged.
	Log *slog.Logger
}

// Process carries the records of an exchange that runs in another process, through
// its restarts. It carries under a grant of the exchange only, see Grant; without
// one it waits. Its methods may be called from anywhere, but Run once only.
type Process struct {
	config ProcessConfig
	hold   *outbox.Hold
	failed outbox.Identity // under its incarnation a lane stopped for good
	cause  error           // valid with failed

	current atomic.Pointer[Subscriber] // nil while it waits, unless for all lanes have stopped

	mu     sync.Mutex
	word   string // what it waits for, empty while it carries
	wordAt time.Time
}

// NewProcess returns a Process that has not begun.
func NewProcess(c ProcessConfig) (*Process, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	probe := Config{Shards: c.Shards, Storage: c.Storage, Options: c.Options, Incarnation: 1}
	if err := probe.complete(); err != nil {
		return nil, err
	}
	return &Process{config: c, word: "has not begun"}, nil
}

// Run carries records until ctx ends, which is no error. It ends with an error when
// another process carries this outbox's records (outbox.ErrSubscribed,
// ErrSuperseded), or when outbox and shard map are not of one exchange
// (outbox.ErrWrongCluster, ErrOtherShards).
func (p *Process) Run(ctx context.Context) error {
	defer p.release()
	for {
		grant, err := p.await(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = p.carry(ctx, grant)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			p.say(err.Error())
			return err
		}
	}
}

func (p *Process) release() {
	if p.hold != nil {
		_ = p.hold.Close()
		p.hold = nil
	}
}

// await returns the exchange's grant once there is one that can be used.
func (p *Process) await(ctx context.Context) (*Grant, error) {
	for {
		grant, waits, err := p.look()
		if err != nil || grant != nil {
			return grant, err
		}
		p.say(waits)
		if !sleep(ctx, grantPoll) {
			return nil, ctx.Err()
		}
	}
}

// look returns the grant that can be used, or what is waited for.
func (p *Process) look() (grant *Grant, waits string, err error) {
	dir := p.config.OutboxDir
	id, err := outbox.Identify(dir)
	switch {
	case errors.Is(err, outbox.ErrNotFound):
		return nil, "the exchange has not made the outbox yet", nil
	case err != nil:
		return nil, err.Error(), nil
	case id.Cluster != p.config.Shards.Cluster:
		return nil, "", fmt.Errorf("outbox %s: %w: %q, the shard map is of %q", dir, outbox.ErrWrongCluster, id.Cluster, p.config.Shards.Cluster)
	}
	if p.hold != nil && !p.hold.Valid() { // another outbox lies where this one was
		p.release()
	}
	if p.hold == nil {
		if p.hold, err = outbox.HoldSubscriber(dir); err != nil {
			return nil, "", fmt.Errorf("%w: one at a time may; end that one first", err)
		}
		p.failed, p.cause = outbox.Identity{}, nil
	}
	g, err := ReadGrant(dir)
	switch {
	case !id.ThisBoot:
		return nil, "the machine went down since the exchange ran; its start recovers the outbox", nil
	case p.cause != nil && id == p.failed:
		return nil, "this start of the exchange can not go on, and the next is waited for: " + p.cause.Error(), nil
	case errors.Is(err, fs.ErrNotExist), err == nil && g.Opening != id.Incarnation:
		return nil, "the exchange has not fenced the writers before it yet", nil
	case err != nil:
		return nil, err.Error(), nil
	}
	if err := g.Fits(p.config.Shards); err != nil {
		return nil, "", err
	}
	return g, "", nil
}

// say notes what is waited for, and logs it when it changes and from time to time.
func (p *Process) say(word string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if word == p.word && time.Since(p.wordAt) < sameWordEvery {
		return
	}
	p.word, p.wordAt = word, time.Now()
	if word != "" {
		p.config.Log.Info("waiting", "outbox", p.config.OutboxDir, "because", word)
	}
}

// Waits returns what is waited for, empty while records are carried.
func (p *Process) Waits() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.word
}

// carry carries records for as long as the grant holds. An error is one after which
// this process must end.
func (p *Process) carry(ctx context.Context, grant *Grant) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := Config{
		OutboxDir: p.config.OutboxDir, Incarnation: grant.Incarnation, Shards: p.config.Shards, Storage: p.config.Storage,
		Options: p.config.Options, Terms: true,
		OnStop: func(shard string, err error) { p.laneStopped(grant, shard, err, cancel) },
	}
	s, err := New(c)
	if err != nil { // such as a cursor that a starting exchange reads with
		p.say(err.Error())
		sleep(ctx, grantPoll)
		return nil
	}
	p.current.Store(s)
	p.say("")
	p.config.Log.Info("carrying", "outbox", p.config.OutboxDir, "incarnation", grant.Incarnation, "from", s.Durable(), "published", s.lanes[0].reader.Published())
	var watching sync.WaitGroup
	watching.Go(func() { p.watch(ctx, grant, cancel) })
	err = s.Run(ctx)
	id, unknown := outbox.Identify(p.config.OutboxDir)
	cause := context.Cause(ctx)
	if unknown == nil && id.Incarnation == grant.Opening && cause == nil {
		p.failed, p.cause = id, err // every lane stopped for good, which the metrics go on to show
	} else {
		p.current.Store(nil)
	}
	cancel(nil)
	watching.Wait()
	if errors.Is(cause, ErrSuperseded) {
		return cause
	}
	return nil
}

var (
	errGrantVoid = errors.New("the exchange has started again")
	errNextTerm  = errors.New("the term's sessions are used up")
)

// watch ends the carrying when the grant does not hold any more.
func (p *Process) watch(ctx context.Context, grant *Grant, cancel context.CancelCauseFunc) {
	for sleep(ctx, grantPoll) {
		id, err := outbox.Identify(p.config.OutboxDir)
		if errors.Is(err, outbox.ErrNotFound) || err == nil && (id.Incarnation != grant.Opening || !p.hold.Valid()) {
			p.config.Log.Info("the grant is void: the exchange starts again", "incarnation", grant.Incarnation)
			cancel(errGrantVoid)
			return
		}
	}
}

// laneStopped looks at why a lane stopped for good. The exchange hears of it, unless
// it is the exchange's own start that has fenced the lane.
func (p *Process) laneStopped(grant *Grant, shard string, err error, cancel context.CancelCauseFunc) {
	log := p.config.Log.With("shard", shard, "error", err)
	switch {
	case errors.Is(err, ErrSuperseded):
		cancel(err)
		return
	case errors.Is(err, ErrSessions):
		log.Warn("the lanes take the next term")
		cancel(errNextTerm)
		return
	}
	id, unknown := outbox.Identify(p.config.OutboxDir)
	if unknown != nil || id.Incarnation != grant.Opening {
		log.Info("fenced by the exchange's start")
		return
	}
	log.Error("the lane stops; the exchange is told and stops, too")
	if r := newReport(grant.Opening, shard, err); r != nil {
		if err := r.write(p.config.OutboxDir); err != nil {
			log.Error("the exchange was not told", "because", err)
		}
	}
}

// Stats returns the statistics of all lanes together, false while there are no lanes.
func (p *Process) Stats() (Stats, bool) {
	s := p.current.Load()
	if s == nil {
		return Stats{}, false
	}
	return s.Stats(), true
}

var readyDesc = desc("ready", "1 while the process carries records under the exchange's grant, 0 while it waits for one.", nil)

// Collector returns the lanes' Prometheus metrics, to be registered once. They count
// from each start of the exchange on.
func (p *Process) Collector() prometheus.Collector { return processCollector{p} }

type processCollector struct{ p *Process }

// Describe implements prometheus.Collector.
func (c processCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- readyDesc
	collector{}.Describe(ch)
}

// Collect implements prometheus.Collector.
func (c processCollector) Collect(ch chan<- prometheus.Metric) {
	ready := 0.0
	if c.p.Waits() == "" {
		ready = 1
	}
	if s := c.p.current.Load(); s != nil {
		collector{s}.Collect(ch)
	}
	ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, ready)
}
