package reads

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/record"
)

// seed of the choice of ids and ranges, the same for all.
const seed = 1

// asker chooses what is asked.
type asker struct {
	rng     *rand.Rand
	streams []history.Stream
	records uint64 // of each stream
}

func newAsker(streams []history.Stream, records uint64) *asker {
	return &asker{rng: rand.New(rand.NewPCG(seed, records)), streams: streams, records: records}
}

// id returns a stream and an id that some of its records carry.
func (a *asker) id(kind record.IDKind) (stream int, id record.ID) {
	stream = a.rng.IntN(len(a.streams))
	group := a.rng.Uint64N(a.records / history.Group)
	id = record.ID{Kind: kind, Value: a.streams[stream].Trade(group)}
	if kind == record.OrderID {
		id.Value = a.streams[stream].Order(group, a.rng.IntN(3))
	}
	return stream, id
}

// span returns a stream and a range of n of its records.
func (a *asker) span(n uint64) (stream int, from, to uint64) {
	from = 1 + a.rng.Uint64N(a.records-n+1)
	return a.rng.IntN(len(a.streams)), from, from + n - 1
}

// read is one call of an engine, which returns the records that it has read.
type read func(ctx context.Context) (records uint64, err error)

// point reads the records of one id.
func point(f *filled, kind record.IDKind) read {
	a := newAsker(f.streams, f.records)
	return func(ctx context.Context) (uint64, error) {
		stream, id := a.id(kind)
		got, err := f.byID(ctx, stream, id)
		if err == nil && got.records == 0 {
			err = fmt.Errorf("%s has no %s %d", f.system, id.Kind, id.Value)
		}
		return got.records, err
	}
}

// window reads a range of n records, or a whole stream for n 0.
func window(f *filled, n uint64) read {
	a := newAsker(f.streams, f.records)
	if n == 0 {
		n = f.records
	}
	return func(context.Context) (uint64, error) {
		got, err := f.scan(a.span(n))
		if err == nil && got.records != n {
			err = fmt.Errorf("%s: %d records of a range of %d", f.system, got.records, n)
		}
		return got.records, err
	}
}

// perRead makes of a run's sums the figure of a case.
type perRead func(reads, records uint64, took time.Duration) float64

func nanosPerRead(reads, _ uint64, took time.Duration) float64 {
	return float64(took) / float64(reads)
}

func recordsPerSecond(_, records uint64, took time.Duration) float64 {
	return float64(records) / took.Seconds()
}

// limit ends a run of reads: the first bound that is reached.
type limit struct {
	duration time.Duration
	reads    uint64 // 0: no bound
}

// repeat calls r until the limit.
func repeat(ctx context.Context, r read, l limit, figure perRead) (measure.Sample, error) {
	h := measure.NewHistogram()
	runtime.GC()
	var reads, records uint64
	start := time.Now()
	last := start
	for last.Sub(start) < l.duration && (l.reads == 0 || reads < l.reads) {
		n, err := r(ctx)
		if err != nil {
			return measure.Sample{}, err
		}
		now := time.Now()
		h.Record(now.Sub(last))
		reads, records, last = reads+1, records+n, now
	}
	return measure.Sample{Value: figure(reads, records, last.Sub(start)), Latency: h}, nil
}

const (
	writeTick    = time.Millisecond
	writeRecords = 50 // a tick
)

// beside runs do while records are written at a steady pace, to all streams in turn.
func (f *filled) beside(ctx context.Context, do func(context.Context) (measure.Sample, error)) (measure.Sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var written atomic.Uint64
	var wg sync.WaitGroup
	var writeErr error
	wg.Go(func() {
		defer cancel()
		tick := time.NewTicker(writeTick)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if writeErr = f.write(i%len(f.streams), writeRecords); writeErr != nil {
				return
			}
			written.Add(writeRecords)
		}
	})
	start := time.Now()
	s, err := do(ctx)
	rate := float64(written.Load()) / time.Since(start).Seconds()
	cancel()
	wg.Wait()
	s.More = map[string]float64{"written records/s": rate}
	return s, errors.Join(writeErr, err)
}

// warm reads everything once, and some by id.
func (f *filled) warm(ctx context.Context) error {
	for i := range f.streams {
		if _, err := f.scan(i, 1, f.records); err != nil {
			return err
		}
	}
	for _, kind := range []record.IDKind{record.OrderID, record.TradeID} {
		if _, err := repeat(ctx, point(f, kind), limit{duration: time.Second, reads: 5000}, nanosPerRead); err != nil {
			return err
		}
	}
	return nil
}
