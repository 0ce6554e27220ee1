package storagenode

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/countinghouse/countinghouse/identity"
)

type metrics struct {
	batches        *prometheus.CounterVec
	records        prometheus.Counter
	appendStreams  prometheus.Gauge
	appendsRefused prometheus.Counter
	connections    prometheus.Gauge
	readersEnded   prometheus.Counter

	connectionsRefused prometheus.Counter
	callsForbidden     *prometheus.CounterVec

	appendSeconds  prometheus.Histogram
	queries        *prometheus.GaugeVec
	queriesRefused prometheus.Counter
	recordsRead    prometheus.Counter
}

func newMetrics() *metrics {
	const namespace, subsystem = "storagenode", "server"
	return &metrics{
		batches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "batches_total", Help: "Batches answered, by result.",
		}, []string{"result"}),
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "records_acknowledged_total", Help: "Records acknowledged as durable on a quorum.",
		}),
		appendStreams: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "append_streams", Help: "Append streams that are open.",
		}),
		appendsRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "append_streams_refused_total", Help: "Append streams refused because too many were open.",
		}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "connections", Help: "Connections that are open.",
		}),
		connectionsRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "connections_refused_total", Help: "Connections closed at once because too many were open.",
		}),
		callsForbidden: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "calls_forbidden_total",
			Help: "Calls refused because the role of their caller may not make them.",
		}, []string{"method", "role"}),
		readersEnded: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "readers_ended_total", Help: "Streams ended because their client took nothing of what it was sent.",
		}),
		appendSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "append_seconds",
			Help:    "Time from the arrival of a batch to its answer.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2, 18),
		}),
		queries: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "queries", Help: "Queries under way, by kind.",
		}, []string{"kind"}),
		queriesRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "queries_refused_total", Help: "Queries refused because too many were under way.",
		}),
		recordsRead: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "records_read_total", Help: "Records sent to queries.",
		}),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{
		m.batches, m.records, m.appendStreams, m.appendSeconds, m.queries, m.queriesRefused, m.recordsRead,
		m.appendsRefused, m.connections, m.connectionsRefused, m.readersEnded, m.callsForbidden,
	}
}

func (m *metrics) forbid(method string, role identity.Role) {
	m.callsForbidden.WithLabelValues(method, string(role)).Inc()
}
