package measure

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latency sums up how long single operations took, in nanoseconds. Percentiles
// are exact to three digits.
type Latency struct {
	Samples int64 `json:"samples"`
	P50     int64 `json:"p50_ns"`
	P99     int64 `json:"p99_ns"`
	P999    int64 `json:"p999_ns"`
	Max     int64 `json:"max_ns"`
}

// Histogram collects durations from 1 ns to 10 min. It is not safe for concurrent
// use; recording allocates nothing.
type Histogram struct{ h *hdrhistogram.Histogram }

// NewHistogram returns an empty histogram.
func NewHistogram() *Histogram {
	return &Histogram{h: hdrhistogram.New(1, int64(10*time.Minute), 3)}
}

// Record adds a duration. One that is out of range counts as the nearest that is in it.
func (h *Histogram) Record(d time.Duration) {
	_ = h.h.RecordValue(min(max(int64(d), 1), int64(10*time.Minute))) // can not fail within the range
}

// Merge adds what another histogram holds.
func (h *Histogram) Merge(other *Histogram) { h.h.Merge(other.h) }

// Latency returns nil if nothing was recorded.
func (h *Histogram) Latency() *Latency {
	if h == nil || h.h.TotalCount() == 0 {
		return nil
	}
	return &Latency{
		Samples: h.h.TotalCount(),
		P50:     h.h.ValueAtQuantile(50), P99: h.h.ValueAtQuantile(99), P999: h.h.ValueAtQuantile(99.9),
		Max: h.h.Max(),
	}
}
