package subscriber

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// reportEvery is how often a Follower looks for the other process's report.
const reportEvery = 100 * time.Millisecond

// FollowerConfig says what a Follower looks at.
type FollowerConfig struct {
	// OutboxDir is the outbox's directory; its writer has opened it and made the
	// lanes' cursors.
	OutboxDir string
	// Opening is the outbox's incarnation: reports for another one do not count.
	Opening uint64
	Shards  *client.Map
	// Published returns the last published global.
	Published func() uint64
	// Lost is Config.Lost.
	Lost func() uint64
	// OnStop, if set, is called once with what the other process reports.
	OnStop func(shard string, err error)
}

// Follower stands in an exchange for a Subscriber that runs in another process: it
// learns from the lanes' cursors, which are mapped files, what is durable. Its
// methods may be called from anywhere, but Run once only.
type Follower struct {
	config  FollowerConfig
	cursors []*outbox.CursorView // by shard, in the order of the map
	whole   watermark
	waits   chan struct{} // holds one token when somebody waits
}

// NewFollower opens views of the lanes' cursors.
func NewFollower(c FollowerConfig) (*Follower, error) {
	f := &Follower{config: c, waits: make(chan struct{}, 1)}
	for i := range c.Shards.Shards {
		v, err := outbox.ViewCursor(c.OutboxDir, CursorName(c.Shards.Shards[i].Name))
		if err != nil {
			return nil, fmt.Errorf("subscriber: shard %s: %w", c.Shards.Shards[i].Name, err)
		}
		f.cursors = append(f.cursors, v)
	}
	return f, nil
}

// look raises the watermark to the lowest cursor.
func (f *Follower) look() {
	lowest := f.cursors[0].Global()
	for _, c := range f.cursors[1:] {
		lowest = min(lowest, c.Global())
	}
	f.whole.raise(lowest)
}

// Run follows the cursors until ctx ends. It costs nothing while nobody waits, but
// for a look for reports.
func (f *Follower) Run(ctx context.Context) {
	defer f.whole.fail(ErrStopped)
	reports := time.NewTicker(reportEvery)
	defer reports.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-reports.C:
			if f.reported() {
				return
			}
		case <-f.waits:
			f.follow(ctx, reports.C)
		}
	}
}

// follow looks at the cursors until nobody waits any more, or it is time to look
// for a report.
func (f *Follower) follow(ctx context.Context, until <-chan time.Time) {
	pause, last := pollMin, f.whole.load()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for f.whole.waited() {
		select {
		case <-ctx.Done():
			return
		case <-until:
			f.wake()
			f.reported()
			return
		case <-timer.C:
		}
		f.look()
		if now := f.whole.load(); now > last {
			pause, last = pollMin, now
		} else {
			pause = min(2*pause, pollMax)
		}
		timer.Reset(pause)
	}
}

func (f *Follower) wake() {
	select {
	case f.waits <- struct{}{}:
	default:
	}
}

// reported looks for a report, and ends all waits if there is one.
func (f *Follower) reported() bool {
	if f.whole.failure() != nil {
		return true
	}
	r, err := readReport(f.config.OutboxDir)
	if err != nil || r.Opening != f.config.Opening {
		return false // none, or one that is half of an older build's: the next look may tell
	}
	f.look() // what is durable by now stays so
	f.whole.fail(r.cause())
	if f.config.OnStop != nil {
		f.config.OnStop(r.Shard, r.cause())
	}
	return true
}

// Durable is Subscriber.Durable.
func (f *Follower) Durable() uint64 {
	f.look()
	return f.whole.load()
}

// OnDurable is Subscriber.OnDurable. The call may come up to a millisecond after
// the cursors have moved.
func (f *Follower) OnDurable(global uint64, done func(error)) {
	f.look()
	f.whole.notify(global, done)
	f.wake()
}

// WaitDurable returns when OnDurable would call, or with an error when ctx ends.
func (f *Follower) WaitDurable(ctx context.Context, global uint64) error {
	f.look()
	if err := f.whole.waitAnd(ctx, global, f.wake); err != nil {
		return fmt.Errorf("subscriber: record %d: %w", global, err)
	}
	return nil
}

// WaitDrained returns when everything that was published before the call is
// durable on a quorum of its shard, or with an error when ctx ends.
func (f *Follower) WaitDrained(ctx context.Context) error {
	return f.WaitDurable(ctx, f.config.Published())
}

// Lanes returns what is known of each lane: its cursor and how far that is behind.
func (f *Follower) Lanes() []Stats {
	all := make([]Stats, len(f.cursors))
	for i, c := range f.cursors {
		s := Stats{Shard: f.config.Shards.Shards[i].Name, State: StateExternal, Cursor: c.Global()}
		if published := f.config.Published(); published > s.Cursor {
			s.LagRecords = published - s.Cursor
		}
		if err := f.whole.failure(); err != nil {
			s.State, s.LastError = stateOf(err), err
			if errors.Is(err, ErrStopped) {
				s.State = StateStopped
			}
		}
		all[i] = s
	}
	return all
}

// Stats returns what is known of all lanes together: the lowest cursor and the
// greatest lag.
func (f *Follower) Stats() Stats {
	lanes := f.Lanes()
	sum := lanes[0]
	sum.Shard = ""
	for _, l := range lanes[1:] {
		sum.Cursor, sum.LagRecords = min(sum.Cursor, l.Cursor), max(sum.LagRecords, l.LagRecords)
	}
	if f.config.Lost != nil {
		sum.Lost = f.config.Lost()
	}
	return sum
}

// Collector returns the lanes' lags as Prometheus metrics; the other process has
// the rest.
func (f *Follower) Collector() prometheus.Collector { return followerCollector{f} }

type followerCollector struct{ f *Follower }

// Describe implements prometheus.Collector.
func (c followerCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- lagDesc
	ch <- lostDesc
}

// Collect implements prometheus.Collector.
func (c followerCollector) Collect(ch chan<- prometheus.Metric) {
	for _, l := range c.f.Lanes() {
		ch <- prometheus.MustNewConstMetric(lagDesc, prometheus.GaugeValue, float64(l.LagRecords), l.Shard)
	}
	if c.f.config.Lost != nil {
		ch <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, float64(c.f.config.Lost()))
	}
}
