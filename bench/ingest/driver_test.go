package ingest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// scripted is a cluster that answers as reply says.
type scripted struct {
	reply func(shard int, done func(error))

	mu       sync.Mutex
	inFlight map[int]int // by shard
	highest  int         // of one shard
	acked    int64
}

func newScripted(reply func(shard int, done func(error))) *scripted {
	return &scripted{reply: reply, inFlight: make(map[int]int)}
}

func (s *scripted) Submit(shard int, _ []byte, done func(error)) {
	s.mu.Lock()
	s.inFlight[shard]++
	s.highest = max(s.highest, s.inFlight[shard])
	s.mu.Unlock()
	s.reply(shard, func(err error) {
		s.mu.Lock()
		s.inFlight[shard]--
		if err == nil {
			s.acked++
		}
		s.mu.Unlock()
		done(err)
	})
}

func (s *scripted) Stored(int) (int, error) { return 0, nil }
func (s *scripted) Close() error            { return nil }

// bounded is a load that ends with its last batch.
func bounded(shards, window, records, batches int) load {
	return load{
		shards: shards, window: window, records: records,
		measureTime: time.Hour, bytesMax: int64(shards * batches * records * recordBytes),
	}
}

func TestWindowIsFilledAndNeverExceeded(t *testing.T) {
	const shards, window, batches = 3, 4, 40
	var mu sync.Mutex
	held := make(map[int][]func(error))
	c := newScripted(func(shard int, done func(error)) {
		mu.Lock()
		defer mu.Unlock()
		// Nothing is acknowledged before the window is full.
		if held[shard] = append(held[shard], done); len(held[shard]) < window {
			return
		}
		full := held[shard]
		held[shard] = nil
		go func() {
			for _, done := range full {
				done(nil)
			}
		}()
	})
	r, err := drive(t.Context(), c, makeBatch(1), bounded(shards, window, 1, batches*window))
	if err != nil {
		t.Fatal(err)
	}
	if c.highest != window {
		t.Errorf("%d batches were in flight at a time, want %d", c.highest, window)
	}
	if want := int64(shards * batches * window); r.submitted != want || r.acked != want || c.acked != want {
		t.Errorf("%d submitted, %d acknowledged, %d by the cluster: want %d", r.submitted, r.acked, c.acked, want)
	}
}

func TestWhatIsAcknowledgedAfterTheWarmUpIsCounted(t *testing.T) {
	const warm, batches, records = 5, 20, 10
	var d *driver
	answered := make([]int, 2)
	c := newScripted(func(shard int, done func(error)) {
		if answered[shard]++; answered[shard] > warm {
			<-d.began
		}
		done(nil)
	})
	l := bounded(len(answered), 1, records, batches)
	l.warmBatches, l.warmTime = warm, time.Hour
	d = newDriver(c, makeBatch(records), l)
	r, err := d.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(len(answered) * batches); r.submitted != want || r.acked != want {
		t.Errorf("%d submitted, %d acknowledged: want %d", r.submitted, r.acked, want)
	}
	counted := int64(len(answered) * (batches - warm))
	if r.records != counted*records {
		t.Errorf("%d records counted, want %d", r.records, counted*records)
	}
	if l := r.latency.Latency(); l == nil || l.Samples != counted {
		t.Errorf("latencies %+v, want %d of them", l, counted)
	}
}

func TestErrorEndsTheRun(t *testing.T) {
	broken := errors.New("broken")
	for name, begun := range map[string]bool{"in the warm-up": false, "when measuring": true} {
		t.Run(name, func(t *testing.T) {
			var d *driver
			n := 0
			c := newScripted(func(_ int, done func(error)) {
				if n++; n <= 3 {
					done(nil)
					return
				}
				if begun {
					<-d.began
				}
				done(broken)
			})
			l := bounded(1, 1, 1, 1<<30)
			l.warmBatches, l.warmTime = 3, time.Hour
			if !begun {
				l.warmBatches = 4
			}
			d = newDriver(c, makeBatch(1), l)
			r, err := d.run(t.Context())
			if !errors.Is(err, broken) || r.acked != 3 {
				t.Errorf("%d acknowledged, error %v: want 3 and %v", r.acked, err, broken)
			}
		})
	}
}

func TestDriveEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	c := newScripted(func(_ int, done func(error)) {
		if n++; n == 10 {
			cancel()
		}
		done(nil)
	})
	r, err := drive(ctx, c, makeBatch(1), bounded(1, 1, 1, 1<<30))
	if !errors.Is(err, context.Canceled) || r.submitted != r.acked {
		t.Errorf("%d of %d acknowledged, error %v: want all and %v", r.acked, r.submitted, err, context.Canceled)
	}
}
