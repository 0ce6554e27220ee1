package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/bench/measure"
)

// load is what a cluster is asked for.
type load struct {
	shards  int
	window  int // batches in flight, of each shard
	records int // of each batch

	warmBatches int           // acknowledged, of each shard, before the measurement begins …
	warmTime    time.Duration // … or this, if it comes first
	measureTime time.Duration
	// bytesMax bounds the records handed over, of all shards together, warm-up
	// included; then the measurement ends early.
	bytesMax int64
}

// drainTimeout bounds the wait for what is on its way when the measurement ends.
const drainTimeout = 20 * time.Second

// errDrain is returned when batches are not acknowledged after the measurement.
var errDrain = errors.New("batches in flight are not acknowledged")

// result is what a driver measured.
type result struct {
	records   int64 // acknowledged during the measurement
	took      time.Duration
	latency   *measure.Histogram
	processor time.Duration // used by the whole process during the measurement
	submitted int64         // batches, warm-up included
	acked     int64         // batches, warm-up included
}

func (r *result) perSecond() float64 { return float64(r.records) / r.took.Seconds() }

// more returns what the acknowledged records have cost all members and the driver
// together.
func (r *result) more() map[string]float64 {
	if r.records == 0 {
		return nil
	}
	return map[string]float64{"processor ns/record": float64(r.processor) / float64(r.records)}
}

// driver keeps a window of batches in flight on each shard.
type driver struct {
	load    load
	cluster cluster
	batch   []byte
	lanes   []*lane
	failed  chan error    // receives the first error
	began   chan struct{} // closed when the measurement has begun
}

// lane is one shard's window and what came of it.
type lane struct {
	d     *driver
	shard int
	free  chan *slot // window slots that no batch holds
	warm  chan struct{}

	mu        sync.Mutex
	measuring bool
	submitted int64
	acked     int64
	counted   int64 // batches acknowledged during the measurement
	latency   *measure.Histogram
}

// slot is a place in the window. Its done is made once, so that a batch costs the
// driver no allocation.
type slot struct {
	start time.Time
	done  func(error)
}

// drive runs a driver.
func drive(ctx context.Context, c cluster, batch []byte, l load) (result, error) {
	return newDriver(c, batch, l).run(ctx)
}

func newDriver(c cluster, batch []byte, l load) *driver {
	d := &driver{load: l, cluster: c, batch: batch, failed: make(chan error, 1), began: make(chan struct{})}
	for shard := range l.shards {
		d.lanes = append(d.lanes, newLane(d, shard))
	}
	return d
}

// run hands batches over until the measurement has ended, and waits for those that
// are on their way. The first batch that fails ends it.
func (d *driver) run(ctx context.Context) (result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	for _, lane := range d.lanes {
		running.Go(func() { lane.run(ctx) })
	}
	ended := make(chan struct{})
	go func() {
		running.Wait()
		close(ended)
	}()
	r, err := d.measure(ctx, ended)
	cancel()
	if drainErr := d.drain(ended); err == nil {
		err = drainErr
	}
	d.sum(&r)
	return r, err
}

func newLane(d *driver, shard int) *lane {
	l := &lane{
		d: d, shard: shard, free: make(chan *slot, d.load.window), warm: make(chan struct{}),
		latency: measure.NewHistogram(),
	}
	for range d.load.window {
		s := &slot{}
		s.done = func(err error) { l.acknowledged(s, err) }
		l.free <- s
	}
	return l
}

// run submits until ctx ends or the shard's part of the bytes is handed over.
func (l *lane) run(ctx context.Context) {
	batches := l.d.load.bytesMax / int64(l.d.load.shards) / int64(len(l.d.batch))
	for range max(batches, 1) {
		var s *slot
		select {
		case s = <-l.free:
		case <-ctx.Done():
			return
		}
		if ctx.Err() != nil {
			l.free <- s
			return
		}
		l.mu.Lock()
		l.submitted++
		l.mu.Unlock()
		s.start = time.Now()
		l.d.cluster.Submit(l.shard, l.d.batch, s.done)
	}
}

func (l *lane) acknowledged(s *slot, err error) {
	took := time.Since(s.start)
	if err != nil {
		l.d.fail(fmt.Errorf("shard %d: %w", l.shard, err))
	} else {
		l.count(took)
	}
	l.free <- s
}

func (l *lane) count(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked++
	if l.acked == int64(l.d.load.warmBatches) {
		close(l.warm)
	}
	if l.measuring {
		l.counted++
		l.latency.Record(took)
	}
}

func (l *lane) setMeasuring(on bool) {
	l.mu.Lock()
	l.measuring = on
	l.mu.Unlock()
}

func (d *driver) fail(err error) {
	select {
	case d.failed <- err:
	default:
	}
}

// measure waits for the warm-up and then counts for the time of the measurement,
// or until all bytes are handed over.
func (d *driver) measure(ctx context.Context, ended <-chan struct{}) (result, error) {
	if err := d.warmUp(ctx); err != nil {
		return result{}, err
	}
	start, before := time.Now(), processorTime()
	for _, l := range d.lanes {
		l.setMeasuring(true)
	}
	close(d.began)
	err := d.pause(ctx, d.load.measureTime, ended)
	for _, l := range d.lanes {
		l.setMeasuring(false)
	}
	return result{took: time.Since(start), processor: processorTime() - before}, err
}

func (d *driver) warmUp(ctx context.Context) error {
	if d.load.warmBatches <= 0 {
		return nil
	}
	warm := make(chan struct{})
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		defer close(warm)
		for _, l := range d.lanes {
			select {
			case <-l.warm:
			case <-stop:
				return
			}
		}
	}()
	return d.pause(ctx, d.load.warmTime, warm)
}

// pause returns after a time, or earlier with early, an error, or ctx's end.
func (d *driver) pause(ctx context.Context, t time.Duration, early <-chan struct{}) error {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-early:
	case err := <-d.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// drain waits until no lane submits any more and every slot is free again.
func (d *driver) drain(ended <-chan struct{}) error {
	timeout := time.NewTimer(drainTimeout)
	defer timeout.Stop()
	select {
	case <-ended:
	case <-timeout.C:
		return errDrain
	}
	for _, l := range d.lanes {
		for range d.load.window {
			select {
			case <-l.free:
			case <-timeout.C:
				return errDrain
			}
		}
	}
	select {
	case err := <-d.failed:
		return err
	default:
		return nil
	}
}

// sum adds what the lanes have counted.
func (d *driver) sum(r *result) {
	r.latency = measure.NewHistogram()
	for _, l := range d.lanes {
		l.mu.Lock()
		r.records += l.counted * int64(d.load.records)
		r.submitted += l.submitted
		r.acked += l.acked
		r.latency.Merge(l.latency)
		l.mu.Unlock()
	}
}
