package replica

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

const namespace = "storagenode"

// metrics are the replica's own; the log and the store have theirs.
type metrics struct {
	appliedRecords prometheus.Counter
	snapshots      prometheus.Counter
	restores       prometheus.Counter
	raftRestarts   prometheus.Counter
	refusals       *prometheus.CounterVec
	diskWrite      prometheus.Histogram
	proposals      prometheus.Gauge
	inFlightBytes  prometheus.Gauge
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: "replica", Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: "replica", Name: name, Help: help})
	}
	return &metrics{
		appliedRecords: counter("applied_records_total", "Records of batches that were applied, replays included."),
		snapshots:      counter("snapshots_total", "Snapshots taken of the own store."),
		restores:       counter("snapshots_restored_total", "Snapshots received from a leader and made live."),
		raftRestarts:   counter("raft_restarts_total", "Restarts of the Raft instance to get out of a state that it can not leave."),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: "replica", Name: "refused_proposals_total", Help: "Proposals refused, by reason.",
		}, []string{"code"}),
		diskWrite: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: "replica", Name: "disk_write_seconds",
			Help:    "Duration of the writes of the log and of term and vote, fsync included.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18),
		}),
		proposals:     gauge("proposals_in_flight", "Proposals that Raft has not answered."),
		inFlightBytes: gauge("proposals_in_flight_bytes", "Bytes of proposals that Raft has not answered."),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{
		m.appliedRecords, m.snapshots, m.restores, m.raftRestarts,
		m.refusals, m.diskWrite, m.proposals, m.inFlightBytes,
	}
}

// Describe implements prometheus.Collector.
func (r *Replica) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range r.metrics.all() {
		c.Describe(ch)
	}
	for _, g := range r.gauges() {
		ch <- g.desc
	}
	if log := r.logMetrics(); log != nil {
		log.Describe(ch)
	}
	if view, err := r.Read(context.Background(), true); err == nil {
		defer view.Release()
		view.Shard.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (r *Replica) Collect(ch chan<- prometheus.Metric) {
	for _, c := range r.metrics.all() {
		c.Collect(ch)
	}
	for _, g := range r.gauges() {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value)
	}
	if log := r.logMetrics(); log != nil {
		log.Collect(ch)
	}
	if view, err := r.Read(context.Background(), true); err == nil {
		defer view.Release()
		view.Shard.Collect(ch)
	}
}

// logMetrics returns the log's own metrics, nil when it has none.
func (r *Replica) logMetrics() prometheus.Collector {
	if log, ok := r.logs.LogStore.(interface{ Metrics() prometheus.Collector }); ok {
		return log.Metrics()
	}
	return nil
}

type gaugeReading struct {
	desc  *prometheus.Desc
	value float64
}

func desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "raft", name), help, nil, nil)
}

var (
	descLeader   = desc("leader", "1 while the node leads its shard.")
	descTerm     = desc("term", "Raft term.")
	descLast     = desc("last_index", "Last index of the Raft log.")
	descCommit   = desc("commit_index", "Raft index up to which entries are committed.")
	descApplied  = desc("applied_index", "Raft index up to which the store shows entries.")
	descDiskFree = desc("disk_free_bytes", "Free bytes of the data directory's disk.")
	descDiskFull = desc("disk_full", "1 while appends are refused for lack of disk space.")
	descDamaged  = desc("damaged", "1 since damage was found in the node's data: replace the member.")
)

func (r *Replica) gauges() []gaugeReading {
	ra := r.raft()
	applied, _ := r.fsm.appliedIndex()
	return []gaugeReading{
		{descLeader, boolValue(r.IsLeader())},
		{descTerm, float64(ra.CurrentTerm())},
		{descLast, float64(ra.LastIndex())},
		{descCommit, float64(ra.CommitIndex())},
		{descApplied, float64(applied)},
		{descDiskFree, float64(r.disk.free.Load())},
		{descDiskFull, boolValue(r.disk.full.Load())},
		{descDamaged, boolValue(r.damage() != nil)},
	}
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
