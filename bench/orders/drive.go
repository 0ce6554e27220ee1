package orders

import (
	"context"
	"time"

	"github.com/countinghouse/countinghouse/bench/measure"
)

// schedule says when requests are due at a fixed rate.
type schedule struct {
	start     time.Time
	perSecond int
}

// due returns the time from start until request i, from 0, is due.
func (s schedule) due(i int) time.Duration {
	return time.Duration(float64(i) * float64(time.Second) / float64(s.perSecond))
}

// await returns when request i is due, at once if that is past, without giving the
// processor away.
func (s schedule) await(i int) {
	due := s.due(i)
	for time.Since(s.start) < due {
	}
}

// late returns how long ago request i was due.
func (s schedule) late(i int) time.Duration { return time.Since(s.start) - s.due(i) }

// saturate sends all requests one after the other.
func saturate(s system, requests []request) time.Duration {
	start := time.Now()
	for i := range requests {
		s.do(&requests[i])
	}
	return time.Since(start)
}

// atRate sends requests when they are due and returns their latencies.
func atRate(s system, requests []request, perSecond int) *measure.Histogram {
	h := measure.NewHistogram()
	clock := schedule{start: time.Now(), perSecond: perSecond}
	for i := range requests {
		clock.await(i)
		s.do(&requests[i])
		h.Record(clock.late(i))
	}
	return h
}

// trial is one system under one load.
type trial struct {
	flow     *flow
	open     opener
	requests int // the first so many of the flow's
	rate     int // requests per second; 0: as fast as they are answered
}

func (t trial) run(b *measure.Bench) func(context.Context) (measure.Sample, error) {
	return func(context.Context) (measure.Sample, error) {
		dir, remove, err := b.Dir()
		if err != nil {
			return measure.Sample{}, err
		}
		defer remove()
		s, err := t.open(t.flow, dir)
		if err != nil {
			return measure.Sample{}, err
		}
		sample := t.measure(s)
		if n := s.refused(); n > 0 { // such as when the outbox has no room for an instant
			sample.More["answered otherwise than drawn"] = float64(n)
		}
		return sample, s.close()
	}
}

func (t trial) measure(s system) measure.Sample {
	requests := t.flow.measured[:t.requests]
	before := readRuntime()
	var sample measure.Sample
	if t.rate == 0 {
		sample.Value = float64(len(requests)) / saturate(s, requests).Seconds()
	} else {
		sample.Latency = atRate(s, requests, t.rate)
		sample.Value = float64(sample.Latency.Latency().P50)
	}
	sample.More = readRuntime().since(before, len(requests))
	return sample
}
