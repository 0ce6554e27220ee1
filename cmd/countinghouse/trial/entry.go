package trial

import (
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/countinghouse/countinghouse/exchange/core"
)

// Entry is the way in for a flow: the exchange's router, with a stopwatch. It
// measures each request from call to return, inside this process.
//
// It is for one goroutine; Mark may be called from others.
type Entry struct {
	*core.Router

	failing atomic.Bool // between the kill of a leader and the end of the failover
	calm    *hdrhistogram.Histogram
	failed  *hdrhistogram.Histogram

	submitted, accepted, changes uint64
}

const (
	latencyMaxNanos = int64(10 * time.Second)
	latencyDigits   = 3
)

func newEntry(r *core.Router) *Entry {
	return &Entry{
		Router: r,
		calm:   hdrhistogram.New(1, latencyMaxNanos, latencyDigits),
		failed: hdrhistogram.New(1, latencyMaxNanos, latencyDigits),
	}
}

// mark says whether what follows is measured as during a failover.
func (e *Entry) mark(failing bool) { e.failing.Store(failing) }

func (e *Entry) measure(start time.Time) {
	ns := min(max(int64(time.Since(start)), 1), latencyMaxNanos)
	h := e.calm
	if e.failing.Load() {
		h = e.failed
	}
	_ = h.RecordValue(ns) // in range by the line before
}

// Submit submits an order and measures it.
func (e *Entry) Submit(n *core.NewOrder) core.Result {
	start := time.Now()
	res := e.Router.Submit(n)
	e.measure(start)
	e.submitted++
	if res.Status != core.Refused {
		e.accepted++
	}
	return res
}

// Cancel cancels an order and measures it.
func (e *Entry) Cancel(c *core.CancelOrder) core.Result {
	start := time.Now()
	res := e.Router.Cancel(c)
	e.measure(start)
	e.changes++
	return res
}

// Amend amends an order and measures it.
func (e *Entry) Amend(a *core.AmendOrder) core.Result {
	start := time.Now()
	res := e.Router.Amend(a)
	e.measure(start)
	e.changes++
	return res
}

// Latency is a distribution of latencies in nanoseconds.
type Latency struct {
	P50   int64 `json:"p50"`
	P99   int64 `json:"p99"`
	P999  int64 `json:"p999"`
	Max   int64 `json:"max"`
	Count int64 `json:"count"`
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	return Latency{
		P50: h.ValueAtQuantile(50), P99: h.ValueAtQuantile(99), P999: h.ValueAtQuantile(99.9),
		Max: h.Max(), Count: h.TotalCount(),
	}
}

// all returns the distribution over the whole run.
func (e *Entry) all() Latency {
	sum := hdrhistogram.New(1, latencyMaxNanos, latencyDigits)
	sum.Merge(e.calm)
	sum.Merge(e.failed)
	return latencyOf(sum)
}
