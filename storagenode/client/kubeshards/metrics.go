package kubeshards

import (
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// gauges are what Follow has come to.
type gauges struct {
	mu      sync.Mutex
	members map[string]int // by shard
	ignored int
}

func (g *gauges) setMembers(shard string, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.members == nil {
		g.members = make(map[string]int)
	}
	g.members[shard] = n
}

func (g *gauges) setIgnored(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ignored = n
}

func (g *gauges) values() (members map[string]int, ignored int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.members), g.ignored
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("countinghouse_shards_"+name, help, labels, nil)
}

var (
	ageDesc     = desc("sync_age_seconds", "Time since the Kubernetes API server last told of InstrumentShards; -1 before the first time.")
	errorsDesc  = desc("sync_errors_total", "Requests for InstrumentShards that failed.")
	ignoredDesc = desc("ignored_instruments", "Instruments that came to a shard, left one or moved since the start, which is ignored until the next.")
	membersDesc = desc("members", "Members of a shard that the client knows.", "shard")
)

// Describe implements prometheus.Collector.
func (w *Watcher) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{ageDesc, errorsDesc, ignoredDesc, membersDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (w *Watcher) Collect(ch chan<- prometheus.Metric) {
	age, failures := w.store.age()
	members, ignored := w.gauges.values()
	ch <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, age)
	ch <- prometheus.MustNewConstMetric(errorsDesc, prometheus.CounterValue, float64(failures))
	ch <- prometheus.MustNewConstMetric(ignoredDesc, prometheus.GaugeValue, float64(ignored))
	for shard, n := range members {
		ch <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(n), shard)
	}
}

// age returns how many seconds ago the API server said something, and how often it
// did not answer.
func (s *store) age() (seconds float64, failures uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.IsZero() {
		return -1, s.errors
	}
	return time.Since(s.last).Seconds(), s.errors
}
