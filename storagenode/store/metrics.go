package store

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// metrics are a shard's counters. None has a label for the instrument: there
// may be many thousands.
type metrics struct {
	records, batches, replayed        atomic.Uint64
	refusals                          [32]atomic.Uint64 // by code
	stalls, stallNanos                atomic.Uint64
	flushes, flushNanos, flushBytes   atomic.Uint64
	merges, mergeBytes, mergeFailures atomic.Uint64
	gets, getBlocks, getWasted        atomic.Uint64
	scans, corruptReads               atomic.Uint64
	snapshots                         atomic.Uint64
}

func (m *metrics) refused(code storagepb.Code) {
	if int(code) < len(m.refusals) {
		m.refusals[code].Add(1)
	}
}

func (m *metrics) refusedErr(err error) {
	var e *refusal.Error
	if errors.As(err, &e) {
		m.refused(e.Code)
	}
}

func (m *metrics) looked(st sstable.LookupStats) {
	m.getBlocks.Add(uint64(st.Blocks))
	m.getWasted.Add(uint64(st.FalsePositives))
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("countinghouse_store_"+name, help, labels, nil)
}

var refusalsDesc = desc("refusals_total", "Refused writes and reads, by code.", "code")

// samples are the metrics without labels.
var samples = []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Shard) float64
}{
	{desc("records_total", "Records appended."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.records })},
	{desc("batches_total", "Batches appended."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.batches })},
	{desc("replayed_batches_total", "Batches skipped because they were stored before."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.replayed })},
	{desc("append_stalls_total", "Appends that waited for a flush."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.stalls })},
	{desc("append_stall_seconds_total", "Time that appends waited for flushes."), prometheus.CounterValue, seconds(func(m *metrics) *atomic.Uint64 { return &m.stallNanos })},
	{desc("flushes_total", "Tables written from memtables."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.flushes })},
	{desc("flush_seconds_total", "Time spent in flushes."), prometheus.CounterValue, seconds(func(m *metrics) *atomic.Uint64 { return &m.flushNanos })},
	{desc("flush_bytes_total", "Bytes of tables written from memtables."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.flushBytes })},
	{desc("merges_total", "Tables written from smaller ones."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.merges })},
	{desc("merge_bytes_total", "Bytes of tables written from smaller ones."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.mergeBytes })},
	{desc("merge_failures_total", "Merges given up because a table is damaged."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.mergeFailures })},
	{desc("gets_total", "Searches by id."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.gets })},
	{desc("get_blocks_total", "Table blocks read by searches."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.getBlocks })},
	{desc("get_blocks_in_vain_total", "Table blocks read by searches that held nothing."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.getWasted })},
	{desc("scans_total", "Scans begun."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.scans })},
	{desc("corrupt_reads_total", "Reads that met a damaged table."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.corruptReads })},
	{desc("snapshots_total", "Snapshots persisted."), prometheus.CounterValue, counter(func(m *metrics) *atomic.Uint64 { return &m.snapshots })},
	{desc("memtable_bytes", "Bytes of all memtables."), prometheus.GaugeValue, func(s *Shard) float64 { return float64(s.memBytes.Load()) }},
	{desc("open_tables", "Tables mapped into memory."), prometheus.GaugeValue, func(s *Shard) float64 { return float64(s.cache.len()) }},
	{desc("tables", "Tables of the instruments owned."), prometheus.GaugeValue, func(s *Shard) float64 { n, _ := s.tables(); return float64(n) }},
	{desc("table_bytes", "Bytes of these tables."), prometheus.GaugeValue, func(s *Shard) float64 { _, n := s.tables(); return float64(n) }},
	{desc("table_remove_errors_total", "Tables that could not be removed."), prometheus.CounterValue, func(s *Shard) float64 { return float64(s.cache.removeErrors.Load()) }},
	{desc("instruments", "Instruments owned."), prometheus.GaugeValue, func(s *Shard) float64 { return float64(len(s.owned.Load().sorted)) }},
	{desc("applied_index", "Raft index applied last."), prometheus.GaugeValue, func(s *Shard) float64 { return float64(s.AppliedIndex()) }},
	{desc("durable_index", "Raft index up to which the log is not needed."), prometheus.GaugeValue, func(s *Shard) float64 { return float64(s.DurableIndex()) }},
	{desc("poisoned", "1 after an error that ended all writing."), prometheus.GaugeValue, func(s *Shard) float64 {
		if s.poison.Load() != nil {
			return 1
		}
		return 0
	}},
}

// tables counts the tables of all instruments, and their bytes.
func (s *Shard) tables() (n int, bytes int64) {
	for _, in := range s.owned.Load().sorted {
		v := in.view.Load()
		n += len(v.tables)
		for _, t := range v.tables {
			bytes += t.meta.size
		}
	}
	return n, bytes
}

func counter(field func(*metrics) *atomic.Uint64) func(*Shard) float64 {
	return func(s *Shard) float64 { return float64(field(&s.metrics).Load()) }
}

func seconds(field func(*metrics) *atomic.Uint64) func(*Shard) float64 {
	return func(s *Shard) float64 { return float64(field(&s.metrics).Load()) / 1e9 }
}

// Describe implements prometheus.Collector.
func (s *Shard) Describe(ch chan<- *prometheus.Desc) {
	ch <- refusalsDesc
	for i := range samples {
		ch <- samples[i].desc
	}
}

// Collect implements prometheus.Collector.
func (s *Shard) Collect(ch chan<- prometheus.Metric) {
	for i := range samples {
		ch <- prometheus.MustNewConstMetric(samples[i].desc, samples[i].kind, samples[i].value(s))
	}
	for code, name := range storagepb.Code_name {
		if int(code) >= len(s.metrics.refusals) {
			continue
		}
		if n := s.metrics.refusals[code].Load(); n > 0 {
			ch <- prometheus.MustNewConstMetric(refusalsDesc, prometheus.CounterValue, float64(n), name)
		}
	}
}
