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
	givenUp        prometheus.Counter
	refusals       *prometheus.CounterVec
	diskWrite      prometheus.Histogram
	slowDiskWrites prometheus.Counter
	proposals      prometheus.Gauge
	inFlightBytes  prometheus.Gauge

	logWaitingBytes prometheus.Gauge
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
		givenUp:        counter("refused_generation_messages_total", "Messages of members that a recovery of the shard has given up."),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: "replica", Name: "refused_proposals_total", Help: "Proposals refused, by reason.",
		}, []string{"code"}),
		diskWrite: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: "replica", Name: "disk_write_seconds",
			Help:    "Duration of the writes of the log and of term and vote, fsync included.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18),
		}),
		slowDiskWrites: counter("slow_disk_writes_total", "Writes of the log and of term and vote that took more than half the heartbeat timeout."),
		proposals:      gauge("proposals_in_flight", "Proposals that Raft has not answered."),
		inFlightBytes:  gauge("proposals_in_flight_bytes", "Bytes of proposals that Raft has not answered."),

		logWaitingBytes: gauge("log_waiting_bytes", "Bytes of entries that wait to be written to the log."),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{
		m.appliedRecords, m.snapshots, m.restores, m.raftRestarts, m.givenUp,
		m.refusals, m.diskWrite, m.slowDiskWrites, m.proposals, m.inFlightBytes, m.logWaitingBytes,
	}
}

// Describe implements prometheus.Collector.
func (r *Replica) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range r.metrics.all() {
		c.Describe(ch)
	}
	for _, d := range descs {
		ch <- d
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
	for _, m := range r.readings() {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value, m.labels...)
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

type reading struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	value  float64
	labels []string
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "raft", name), help, labels, nil)
}

var (
	descLeader   = desc("leader", "1 while the node leads its shard.")
	descTerm     = desc("term", "Raft term.")
	descGen      = desc("generation", "How often the shard was recovered from a lost quorum.")
	descLast     = desc("last_index", "Last index of the Raft log.")
	descCommit   = desc("commit_index", "Raft index up to which entries are committed.")
	descApplied  = desc("applied_index", "Raft index up to which the store shows entries.")
	descLag      = desc("member_lag_entries", "Log entries that another member lacks, as the leader knows it.", "member")
	descSnapshot = desc("snapshot_index", "Raft index of the newest snapshot, 0 for none.")
	descSnapSize = desc("snapshot_bytes", "Size of the newest snapshot; its tables share their disk space with the store.")
	descReading  = desc("snapshots_read", "Snapshots that are being read, and therefore kept.")
	descSending  = desc("snapshots_sending", "Snapshots that are being sent to members.")
	descSendAll  = desc("snapshot_send_size_bytes", "Size of the snapshots that are being sent.")
	descSendDone = desc("snapshot_send_done_bytes", "What the members have of them.")
	descRecvAll  = desc("snapshot_receive_size_bytes", "Size of the snapshot that is being received, 0 for none.")
	descRecvDone = desc("snapshot_receive_done_bytes", "What this member has of it.")
	descSent     = desc("snapshot_sent_bytes_total", "Bytes of snapshots that were sent.")
	descReceived = desc("snapshot_received_bytes_total", "Bytes of snapshots that were received.")
	descResumed  = desc("snapshot_resumed_bytes_total", "Bytes of snapshots that were not sent again: an earlier transfer had brought them.")
	descDiskFree = desc("disk_free_bytes", "Free bytes of the data directory's disk.")
	descDiskFull = desc("disk_full", "1 while appends are refused for lack of disk space.")
	descDamaged  = desc("damaged", "1 since damage was found in the node's data: replace the member.")
)

var descs = []*prometheus.Desc{
	descLeader, descTerm, descGen, descLast, descCommit, descApplied, descLag, descSnapshot, descSnapSize, descReading, descSending,
	descSendAll, descSendDone, descRecvAll, descRecvDone, descSent, descReceived, descResumed, descDiskFree, descDiskFull, descDamaged,
}

func (r *Replica) readings() []reading {
	ra := r.raft()
	applied, _ := r.fsm.appliedIndex()
	out := []reading{
		gauge(descLeader, boolValue(r.IsLeader())),
		gauge(descTerm, float64(ra.CurrentTerm())),
		gauge(descGen, float64(Generation(ra.CurrentTerm()))),
		gauge(descLast, float64(ra.LastIndex())),
		gauge(descCommit, float64(ra.CommitIndex())),
		gauge(descApplied, float64(applied)),
		gauge(descDiskFree, float64(r.disk.free.Load())),
		gauge(descDiskFull, boolValue(r.disk.full.Load())),
		gauge(descDamaged, boolValue(r.damage() != nil)),
	}
	out = append(out, r.snapshotReadings()...)
	return append(out, r.lagReadings()...)
}

func (r *Replica) snapshotReadings() []reading {
	var index, size float64
	if newest, err := r.snapshots.newest(); err == nil && newest != nil {
		index, size = float64(newest.Raft.Index), float64(newest.Raft.Size)
	}
	t := &r.transport.transfers
	sending, total, done := t.totals()
	var own, ownDone int64
	if x := t.incoming(); x != nil {
		own, ownDone = x.total, x.done.Load()
	}
	return []reading{
		gauge(descSnapshot, index), gauge(descSnapSize, size),
		gauge(descReading, float64(r.snapshots.read())),
		gauge(descSending, float64(sending)), gauge(descSendAll, float64(total)), gauge(descSendDone, float64(done)),
		gauge(descRecvAll, float64(own)), gauge(descRecvDone, float64(ownDone)),
		counter(descSent, t.sent.Load()), counter(descReceived, t.received.Load()), counter(descResumed, t.resumed.Load()),
	}
}

func (r *Replica) lagReadings() (out []reading) {
	if !r.IsLeader() {
		return nil
	}
	ra := r.raft()
	f := ra.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	for _, s := range f.Configuration().Servers {
		if string(s.ID) == r.cfg.ID {
			continue
		}
		lag := lagOf(ra.LastIndex(), r.transport.progress.of(s.ID, ra.CurrentTerm()).Match)
		out = append(out, reading{descLag, prometheus.GaugeValue, float64(lag), []string{string(s.ID)}})
	}
	return out
}

func gauge(d *prometheus.Desc, v float64) reading {
	return reading{desc: d, kind: prometheus.GaugeValue, value: v}
}

func counter(d *prometheus.Desc, v int64) reading {
	return reading{desc: d, kind: prometheus.CounterValue, value: float64(v)}
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
