package trial

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countinghouse/countinghouse/exchange/subscriber"
)

const (
	// stallMax is how long a trial goes on while a shard that lags takes nothing;
	// a failover takes a tenth of it.
	stallMax = 20 * time.Second
	// stopWait is how long the end waits for delivery: settle has waited already
	// if there was anything to prove.
	stopWait = 200 * time.Millisecond
)

// stall notices a shard that takes nothing. It is for one goroutine.
type stall struct {
	max     time.Duration
	cursors []uint64    // by lane
	since   []time.Time // when the lane's cursor moved last, or did not lag
}

// check returns an error with the reason when a lane has lagged for too long
// without its cursor moving.
func (s *stall) check(lanes []subscriber.Stats, now time.Time) error {
	if s.since == nil {
		s.cursors, s.since = make([]uint64, len(lanes)), make([]time.Time, len(lanes))
	}
	for i, l := range lanes {
		if s.since[i].IsZero() || l.Cursor != s.cursors[i] || l.LagRecords == 0 {
			s.cursors[i], s.since[i] = l.Cursor, now
			continue
		}
		if waited := now.Sub(s.since[i]); waited > s.max {
			return fmt.Errorf("shard %s has taken no records for %.0f s: %w", l.Shard, waited.Seconds(), reasonOf(l))
		}
	}
	return nil
}

func reasonOf(l subscriber.Stats) error {
	if l.LastError == nil {
		return errors.New("it refuses nothing, and does not answer")
	}
	return l.LastError
}

// trouble says for a progress line why shards take nothing at the moment, "" if
// all of them do.
func trouble(lanes []subscriber.Stats) string {
	var b strings.Builder
	for _, l := range lanes {
		if l.State != subscriber.StateRunning && l.LastError != nil {
			fmt.Fprintf(&b, "  %s: %v", l.Shard, l.LastError)
		}
	}
	return b.String()
}

// watchStall returns when ctx ends, or with the reason when a shard takes nothing.
func (t *trial) watchStall(ctx context.Context) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	s := stall{max: t.stallMax}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.ex.Failed():
			return fmt.Errorf("the exchange stopped: %w", t.ex.Err())
		case <-tick.C:
		}
		if err := s.check(t.ex.Stats().Lanes, time.Now()); err != nil {
			return err
		}
	}
}

// unlessStalled runs work, whose context ends when a shard takes nothing any more.
// The reason then stands for the work's own error.
func (t *trial) unlessStalled(ctx context.Context, work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	watching, end := context.WithCancel(ctx)
	go func() {
		defer close(watched)
		if err := t.watchStall(watching); err != nil {
			cancel(err)
		}
	}()
	err := work(ctx)
	end()
	<-watched
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	cancel(nil)
	return err
}
