package reads

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/countinghouse/countinghouse/bench/measure"
)

const (
	tailBatch = 10 // records
	tailTick  = time.Millisecond
	tailGrace = 10 * time.Second // for the last records to be seen
)

// stopwatch measures from the writing of a batch to its being seen.
type stopwatch struct {
	first   uint64         // last seq of the first batch
	started []atomic.Int64 // by batch, nanoseconds since base
	base    time.Time
	seen    uint64 // batches
	h       *measure.Histogram
	all     chan struct{} // closed when all are seen
}

// newStopwatch is for batches of tailBatch records after seq last.
func newStopwatch(last uint64, batches int) *stopwatch {
	return &stopwatch{
		first: last + tailBatch, started: make([]atomic.Int64, batches), base: time.Now(),
		h: measure.NewHistogram(), all: make(chan struct{}),
	}
}

// start notes that a batch is about to be written.
func (w *stopwatch) start(lastSeq uint64) {
	w.started[(lastSeq-w.first)/tailBatch].Store(int64(time.Since(w.base)))
}

// stop notes that everything up to a seq was seen. One goroutine calls it.
func (w *stopwatch) stop(lastSeq uint64) {
	now := time.Since(w.base)
	for w.seen < uint64(len(w.started)) && w.first+w.seen*tailBatch <= lastSeq {
		w.h.Record(now - time.Duration(w.started[w.seen].Load()))
		if w.seen++; w.seen == uint64(len(w.started)) {
			close(w.all)
		}
	}
}

// sample waits until everything was seen. Its figure is the median.
func (w *stopwatch) sample(ctx context.Context, failed <-chan error) (measure.Sample, error) {
	late := time.NewTimer(tailGrace)
	defer late.Stop()
	select {
	case <-w.all:
	case err := <-failed:
		return measure.Sample{}, fmt.Errorf("the follower ended: %w", err)
	case <-ctx.Done():
		return measure.Sample{}, ctx.Err()
	case <-late.C:
		return measure.Sample{}, errors.New("the follower does not see the end")
	}
	return measure.Sample{Value: float64(w.h.Latency().P50), Latency: w.h}, nil
}

// tail follows stream 0 while batches are written to it, and with busy set further
// ones to the other streams before each.
func tail(ctx context.Context, f *filled, d time.Duration, busy bool) (measure.Sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := int(d / tailTick)
	last := f.next[0] - 1
	w := newStopwatch(last, batches)
	failed := make(chan error, 1)
	go func() { failed <- f.follow(ctx, 0, last+1, w.stop) }()
	tick := time.NewTicker(tailTick)
	defer tick.Stop()
	for range batches {
		<-tick.C
		for i := 1; busy && i < len(f.streams); i++ {
			if err := f.write(i, writeRecords/(len(f.streams)-1)); err != nil {
				return measure.Sample{}, err
			}
		}
		w.start(f.next[0] + tailBatch - 1)
		if err := f.write(0, tailBatch); err != nil {
			return measure.Sample{}, err
		}
	}
	s, err := w.sample(ctx, failed)
	cancel()
	if err == nil {
		err = <-failed
	}
	return s, err
}
