package torture

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// outageMin is the shortest time without an acknowledgement that counts as the
// shard being unavailable: above what a busy disk takes for a write.
const outageMin = 100 * time.Millisecond

const (
	outageMaxMillis = int64(24 * time.Hour / time.Millisecond)
	outageDigits    = 3
)

// outages measures the times in which a shard acknowledged nothing although a
// writer waited. It is safe for concurrent use.
type outages struct {
	mu      sync.Mutex
	now     func() time.Time
	waiting int
	since   time.Time // last acknowledgement, or when the first writer began to wait
	millis  *hdrhistogram.Histogram
	total   time.Duration
}

func newOutages(now func() time.Time) *outages {
	return &outages{now: now, millis: hdrhistogram.New(1, outageMaxMillis, outageDigits)}
}

// wait notes that a writer begins to wait for the shard.
func (o *outages) wait() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting++; o.waiting == 1 {
		o.since = o.now()
	}
}

// rest notes that a writer that waited has nothing to wait for any more, be it
// that all is acknowledged or that it gives up.
func (o *outages) rest() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting--; o.waiting == 0 {
		o.close()
	}
}

// acknowledged notes an acknowledgement by the shard.
func (o *outages) acknowledged() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting > 0 {
		o.close()
	}
}

// close ends the time since; the caller holds mu.
func (o *outages) close() {
	now := o.now()
	if d := now.Sub(o.since); d >= outageMin {
		_ = o.millis.RecordValue(min(d.Milliseconds(), outageMaxMillis)) // in range, so it can not fail
		o.total += d
	}
	o.since = now
}

// into adds what was measured to a histogram and returns the sum of all times.
func (o *outages) into(h *hdrhistogram.Histogram) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting > 0 {
		o.close()
	}
	h.Merge(o.millis)
	return o.total
}
