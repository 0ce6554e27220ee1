package main

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const latencyMax = int64(time.Minute)

// steps keep figures for each step of a test. Safe for concurrent use.
type steps struct {
	mu   sync.Mutex
	list []*step
}

type step struct {
	name     string
	began    time.Time
	ended    time.Time
	latency  *hdrhistogram.Histogram
	lost     uint64
	skipped  uint64
	rejected map[string]uint64
	gaps     map[string]time.Duration // by shard, the longest
	waits    map[string]time.Duration // by shard, the longest
}

// Figures are those of one step.
type Figures struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	// Answers that came, and microseconds from when a request was due to its answer.
	Answers   int64 `json:"answers"`
	P50Micros int64 `json:"p50_us"`
	P99Micros int64 `json:"p99_us"`
	MaxMicros int64 `json:"max_us"`
	// Requests that got no answer, and those that were not made meanwhile.
	Lost     uint64            `json:"lost_answers"`
	Skipped  uint64            `json:"not_made"`
	Rejected map[string]uint64 `json:"rejected,omitempty"`
	// WaitMillis is the longest time, by shard, that a record was seen to wait for its
	// commit: a time without a leader.
	WaitMillis map[string]int64 `json:"commit_wait_max_ms,omitempty"`
	// GapMillis is the longest time, by shard, in which a reader of the shard's streams
	// saw no record.
	GapMillis map[string]int64 `json:"reader_gap_max_ms,omitempty"`
}

func newSteps() *steps {
	s := &steps{}
	s.begin("start")
	return s
}

func (s *steps) begin(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if len(s.list) > 0 {
		s.list[len(s.list)-1].ended = now
	}
	s.list = append(s.list, &step{name: name, began: now, latency: hdrhistogram.New(1, latencyMax, 3),
		rejected: map[string]uint64{}, gaps: map[string]time.Duration{}, waits: map[string]time.Duration{}})
}

func (s *steps) note(f func(*step)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.list[len(s.list)-1])
}

func (s *steps) answered(d time.Duration) {
	s.note(func(s *step) { _ = s.latency.RecordValue(min(max(int64(d), 1), latencyMax)) })
}
func (s *steps) lost()             { s.note(func(s *step) { s.lost++ }) }
func (s *steps) skipped(n uint64)  { s.note(func(s *step) { s.skipped += n }) }
func (s *steps) rejected(r string) { s.note(func(s *step) { s.rejected[r]++ }) }

// gap notes that a shard showed nothing for a while, which ends now. It counts for
// the step in which it ends.
func (s *steps) gap(shard string, d time.Duration) {
	s.note(func(s *step) { s.gaps[shard] = max(s.gaps[shard], d) })
}

// waited notes that a shard's oldest record has waited for so long.
func (s *steps) waited(shard string, d time.Duration) {
	s.note(func(s *step) { s.waits[shard] = max(s.waits[shard], d) })
}

func (s *steps) all() []Figures {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Figures, 0, len(s.list))
	for _, st := range s.list {
		end := st.ended
		if end.IsZero() {
			end = time.Now()
		}
		f := Figures{Name: st.name, Seconds: end.Sub(st.began).Seconds(), Answers: st.latency.TotalCount(),
			P50Micros: st.latency.ValueAtQuantile(50) / 1000, P99Micros: st.latency.ValueAtQuantile(99) / 1000, MaxMicros: st.latency.Max() / 1000,
			Lost: st.lost, Skipped: st.skipped, Rejected: st.rejected, GapMillis: millis(st.gaps), WaitMillis: millis(st.waits)}
		out = append(out, f)
	}
	return out
}

func millis(m map[string]time.Duration) map[string]int64 {
	out := make(map[string]int64, len(m))
	for k, d := range m {
		out[k] = d.Milliseconds()
	}
	return out
}
