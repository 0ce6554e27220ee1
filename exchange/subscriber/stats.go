package subscriber

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// State is what a lane does.
type State int32

// The states of a lane.
const (
	StateStarting State = iota // has not reached its shard yet
	StateRunning
	StateRetrying // waits after an error
	StateStopped  // ended by its owner
	StateFenced   // the rest: stopped for good, see the errors of those names
	StateDiverged
	StateMissing
	StateFailed
	StateExternal // another process has the lane and knows its state
)

var stateNames = [...]string{"starting", "running", "retrying", "stopped", "fenced", "diverged", "missing", "failed", "external"}

// String returns the state's name in lower case.
func (s State) String() string { return stateNames[s] }

func stateOf(err error) State {
	switch {
	case errors.Is(err, ErrFenced), errors.Is(err, ErrSuperseded):
		return StateFenced
	case errors.Is(err, ErrDiverged):
		return StateDiverged
	case errors.Is(err, ErrMissing):
		return StateMissing
	}
	return StateFailed
}

// laneStats are written by the lane and read from anywhere.
type laneStats struct {
	received, persisted, batches, errors, unowned atomic.Uint64
	inFlight                                      atomic.Int64
	oldest                                        atomic.Int64 // time of the record after the cursor, Unix nanoseconds

	mu     sync.Mutex
	last   error
	lastAt time.Time
}

func (s *laneStats) note(err error) {
	s.errors.Add(1)
	s.mu.Lock()
	s.last, s.lastAt = err, time.Now()
	s.mu.Unlock()
}

// Stats are the statistics of one lane, or of all of them together. Records are
// counted once, however often they are read again and sent again.
type Stats struct {
	Shard       string // empty for all together
	State       State
	Received    uint64 // records of the shard read from the outbox
	Persisted   uint64 // of these, durable on a quorum
	Batches     uint64 // acknowledged
	InFlight    int    // batches on their way
	Errors      uint64
	LastError   error
	LastErrorAt time.Time
	Cursor      uint64 // global up to which the shard has everything
	LagRecords  uint64 // records, of any shard, after the cursor
	// LagAge is the age of the first record after the cursor, by the time that
	// it carries; 0 without a lag.
	LagAge  time.Duration
	Unowned uint64 // records of instruments that no shard owns
	Lost    uint64 // dropped by the exchange before the outbox; only for all together
}

func (l *lane) snapshot(now time.Time) Stats {
	s := Stats{
		Shard: l.shard, State: State(l.state.Load()),
		Persisted: l.stats.persisted.Load(), Batches: l.stats.batches.Load(),
		Errors: l.stats.errors.Load(), Unowned: l.stats.unowned.Load(), InFlight: int(l.stats.inFlight.Load()),
		Cursor: l.cursor.load(),
	}
	s.Received = l.stats.received.Load() // after Persisted, so that it is not less
	if published := l.reader.Published(); published > s.Cursor {
		s.LagRecords = published - s.Cursor
		if t := l.stats.oldest.Load(); t > 0 {
			s.LagAge = max(0, now.Sub(time.Unix(0, t)))
		}
	}
	l.stats.mu.Lock()
	s.LastError, s.LastErrorAt = l.stats.last, l.stats.lastAt
	l.stats.mu.Unlock()
	return s
}

// Lanes returns the statistics of each lane, in the order of the shard map.
func (s *Subscriber) Lanes() []Stats {
	now := time.Now()
	all := make([]Stats, len(s.lanes))
	for i, l := range s.lanes {
		all[i] = l.snapshot(now)
	}
	return all
}

// Stats returns the statistics of all lanes together: sums, the lowest cursor,
// the greatest lag, the last error, and the state of the lane that is worst off.
func (s *Subscriber) Stats() Stats {
	var sum Stats
	for i, l := range s.Lanes() {
		sum.Received += l.Received
		sum.Persisted += l.Persisted
		sum.Batches += l.Batches
		sum.InFlight += l.InFlight
		sum.Errors += l.Errors
		sum.Unowned += l.Unowned
		sum.LagRecords = max(sum.LagRecords, l.LagRecords)
		sum.LagAge = max(sum.LagAge, l.LagAge)
		if i == 0 || l.Cursor < sum.Cursor {
			sum.Cursor = l.Cursor
		}
		if l.LastErrorAt.After(sum.LastErrorAt) {
			sum.LastError, sum.LastErrorAt = l.LastError, l.LastErrorAt
		}
		if i == 0 || severity(l.State) > severity(sum.State) {
			sum.State = l.State
		}
	}
	if s.config.Lost != nil {
		sum.Lost = s.config.Lost()
	}
	return sum
}

// severity ranks a lane that still starts above one that runs.
func severity(s State) State {
	switch s {
	case StateStarting:
		return StateRunning
	case StateRunning:
		return StateStarting
	}
	return s
}

// collector gives the statistics to Prometheus.
type collector struct{ s *Subscriber }

var (
	shardLabel = []string{"shard"}

	receivedDesc  = desc("received_records_total", "Records of the shard read from the outbox.", shardLabel)
	persistedDesc = desc("persisted_records_total", "Records that are durable on a quorum of the shard.", shardLabel)
	batchesDesc   = desc("batches_total", "Batches acknowledged by the shard.", shardLabel)
	errorsDesc    = desc("errors_total", "Errors after which the lane went back to its cursor, and its stop.", shardLabel)
	inFlightDesc  = desc("in_flight_batches", "Batches on their way to the shard.", shardLabel)
	lagDesc       = desc("lag_records", "Records in the outbox after the lane's cursor.", shardLabel)
	lagAgeDesc    = desc("lag_age_seconds", "Age of the first record after the lane's cursor.", shardLabel)
	unownedDesc   = desc("unowned_records_total", "Records of instruments that no shard owns; they stay in the outbox.", nil)
	lostDesc      = desc("lost_records_total", "Records dropped by the exchange because the outbox was full.", nil)
	stateDesc     = desc("state", "1 for the state that the lane is in.", []string{"shard", "state"})
)

func desc(name, help string, labels []string) *prometheus.Desc {
	return prometheus.NewDesc("countinghouse_subscriber_"+name, help, labels, nil)
}

// Collector returns the statistics as Prometheus metrics, to be registered once.
func (s *Subscriber) Collector() prometheus.Collector { return collector{s} }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		receivedDesc, persistedDesc, batchesDesc, errorsDesc, inFlightDesc, lagDesc, lagAgeDesc, unownedDesc, lostDesc, stateDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	var unowned uint64
	for _, l := range c.s.Lanes() {
		count(receivedDesc, l.Received, l.Shard)
		count(persistedDesc, l.Persisted, l.Shard)
		count(batchesDesc, l.Batches, l.Shard)
		count(errorsDesc, l.Errors, l.Shard)
		gauge(inFlightDesc, float64(l.InFlight), l.Shard)
		gauge(lagDesc, float64(l.LagRecords), l.Shard)
		gauge(lagAgeDesc, l.LagAge.Seconds(), l.Shard)
		gauge(stateDesc, 1, l.Shard, l.State.String())
		unowned += l.Unowned
	}
	count(unownedDesc, unowned)
	if c.s.config.Lost != nil {
		count(lostDesc, c.s.config.Lost())
	}
}
