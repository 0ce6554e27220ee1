package trial

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

// meter says how far the flow is.
type meter struct {
	done     atomic.Uint64
	finished chan struct{}
	once     sync.Once
}

func newMeter() *meter { return &meter{finished: make(chan struct{})} }

func (m *meter) advance(n uint64) { m.done.Store(n) }

func (m *meter) finish() { m.once.Do(func() { close(m.finished) }) }

const (
	pollEvery     = 2 * time.Millisecond
	progressEvery = 500 * time.Millisecond
)

// reach waits until the flow has made n requests or is finished.
func (m *meter) reach(ctx context.Context, n uint64) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for m.done.Load() < n {
		select {
		case <-tick.C:
		case <-m.finished:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// watch notes the largest lag and prints progress until the flow is finished.
func (t *trial) watch(ctx context.Context, m *meter) error {
	tick, last := time.NewTicker(pollEvery), time.Time{}
	defer tick.Stop()
	began := time.Now()
	for {
		select {
		case <-m.finished:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-t.ex.Failed():
			return fmt.Errorf("the exchange stopped: %w", t.ex.Err())
		case <-tick.C:
		}
		s := t.ex.Stats()
		lag := s.Subscriber.LagRecords
		t.report.LagMax = max(t.report.LagMax, lag)
		if time.Since(last) < progressEvery {
			continue
		}
		last = time.Now()
		done, elapsed := m.done.Load(), time.Since(began).Seconds()
		t.Progress("%5.1f s  %3d %%  %s requests, %s/s  %s trades  %s records, %s behind%s",
			elapsed, done*100/max(t.Flow.Steps(), 1), output.Count(done), output.Count(uint64(float64(done)/max(elapsed, 0.001))),
			output.Count(s.Core.Trades), output.Count(s.Outbox.Published), output.Count(lag), trouble(s.Lanes))
	}
}

// killAndRestart kills the first shard's leader half-way through the flow and
// starts it again at three quarters.
func (t *trial) killAndRestart(ctx context.Context, m *meter) error {
	shard := t.shards.Shards[0].Name
	steps := t.Flow.Steps()
	if err := m.reach(ctx, steps/2); err != nil {
		return err
	}
	leader, err := t.client.Leader(ctx, shard)
	if err != nil {
		return err
	}
	if err := t.failover(ctx, shard, leader.Id); err != nil {
		return err
	}
	if err := m.reach(ctx, steps/4*3); err != nil {
		return err
	}
	if err := t.cluster.StartNode(ctx, leader.Id); err != nil {
		return err
	}
	t.Note("%s started again; it catches up from its own log and its leader", leader.Id)
	return nil
}

// failover kills the leader and measures the time until everything that was
// published by then is on disk on a quorum.
func (t *trial) failover(ctx context.Context, shard, leader string) error {
	began := time.Now()
	t.entry.mark(true)
	defer t.entry.mark(false)
	if err := t.cluster.KillNode(leader); err != nil {
		return err
	}
	t.report.Killed = leader
	published := t.ex.Stats().Outbox.Published
	t.Note("killed %s, the leader of %s, with SIGKILL at record %s", leader, shard, output.Count(published))
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for t.ex.Stats().Subscriber.Cursor < published {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-t.ex.Failed():
			return fmt.Errorf("the exchange stopped: %w", t.ex.Err())
		}
	}
	t.report.FailoverMS = float64(time.Since(began).Microseconds()) / 1000
	t.Note("storage is back after %.0f ms: all that was published at the kill is on a quorum", t.report.FailoverMS)
	return nil
}
