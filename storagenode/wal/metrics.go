package wal

import "github.com/prometheus/client_golang/prometheus"

// metrics are the log's collectors. Their number is fixed: none has a label
// but the constant ones of Options.MetricLabels.
type metrics struct {
	fsyncSeconds prometheus.Histogram
	bytesWritten prometheus.Counter
	entries      prometheus.Counter
	groups       prometheus.Counter
	segments     prometheus.Gauge
	prepared     prometheus.Counter
	recycled     prometheus.Counter
	unfilled     prometheus.Counter
	prepareWaits prometheus.Counter
	cacheHits    prometheus.Counter
	cacheMisses  prometheus.Counter
	cacheBytes   prometheus.Gauge
	tornBytesCut prometheus.Counter
	firstIndex   prometheus.Gauge
	lastIndex    prometheus.Gauge
	outOfService prometheus.Gauge
	everyMetric  []prometheus.Collector
}

func newMetrics(labels prometheus.Labels) *metrics {
	m := &metrics{}
	name := func(n, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "countinghouse", Subsystem: "wal", Name: n, Help: help, ConstLabels: labels}
	}
	counter := func(n, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts(name(n, help)))
		m.everyMetric = append(m.everyMetric, c)
		return c
	}
	gauge := func(n, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts(name(n, help)))
		m.everyMetric = append(m.everyMetric, g)
		return g
	}
	m.fsyncSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "countinghouse", Subsystem: "wal", Name: "fsync_seconds", ConstLabels: labels,
		Help:    "Time of the fdatasync of one group of entries.",
		Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
	})
	m.everyMetric = append(m.everyMetric, m.fsyncSeconds)
	m.bytesWritten = counter("written_bytes_total", "Bytes written for entries, with headers and padding.")
	m.entries = counter("entries_total", "Entries stored.")
	m.groups = counter("groups_total", "Groups of entries, each written and synced at once.")
	m.segments = gauge("segments", "Segments that hold entries.")
	m.prepared = counter("segments_prepared_total", "Segments made ready ahead of use.")
	m.recycled = counter("segments_recycled_total", "Segments made ready from a file that was used before.")
	m.unfilled = counter("segments_unfilled_total", "Segments taken before they were filled with zeroes, for the log grew faster than that.")
	m.prepareWaits = counter("segment_waits_total", "Appends that had to wait for the next segment.")
	m.cacheHits = counter("cache_hits_total", "Entries read from memory.")
	m.cacheMisses = counter("cache_misses_total", "Entries read from disk.")
	m.cacheBytes = gauge("cache_bytes", "Bytes of entries held in memory.")
	m.tornBytesCut = counter("torn_bytes_cut_total", "Bytes of unfinished writes that were cut off when the log was opened.")
	m.firstIndex = gauge("first_index", "Index of the first entry, 0 for none.")
	m.lastIndex = gauge("last_index", "Index of the last entry, 0 for none.")
	m.outOfService = gauge("out_of_service", "1 after an I/O error took the log out of service.")
	return m
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.everyMetric {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.everyMetric {
		c.Collect(ch)
	}
}
