package server

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/identity"
)

// metrics are those that the server counts itself.
type metrics struct {
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	durables prometheus.Histogram
	sessions prometheus.Gauge
	started  prometheus.Gauge

	forbidden *prometheus.CounterVec
}

func newMetrics() metrics {
	return metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countinghouse_exchange_requests_total",
			Help: "Orders, cancels and amends by what became of them: a state, or the reason of the refusal.",
		}, []string{"request", "result"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "countinghouse_exchange_request_latency_nanoseconds",
			Help:    "Time from a decoded request to its result, without the wait for durability.",
			Buckets: prometheus.ExponentialBuckets(250, 2, 20), // 250 ns to 131 ms
		}, []string{"request"}),
		durables: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "countinghouse_exchange_durable_wait_nanoseconds",
			Help:    "Time from the result to its durability on a quorum, of requests that asked for it.",
			Buckets: prometheus.ExponentialBuckets(100_000, 2, 18), // 100 µs to 13 s
		}),
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "countinghouse_exchange_sessions", Help: "Order entry sessions that are open.",
		}),
		forbidden: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countinghouse_exchange_calls_forbidden_total",
			Help: "Calls refused because the role of their caller may not make them.",
		}, []string{"method", "role"}),
		started: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "countinghouse_exchange_started", Help: "1 since the recovery is over, 0 before.",
		}),
	}
}

func (m *metrics) forbid(method string, role identity.Role) {
	m.forbidden.WithLabelValues(method, string(role)).Inc()
}

var results = map[pb.OrderState]string{
	pb.OrderState_ORDER_STATE_RESTING: "resting", pb.OrderState_ORDER_STATE_PARTLY_FILLED: "partly-filled",
	pb.OrderState_ORDER_STATE_FILLED: "filled", pb.OrderState_ORDER_STATE_CANCELED: "canceled",
}

func (m *metrics) answered(name string, out *pb.OrderResponse, took time.Duration) {
	result := results[out.State]
	if result == "" {
		result = out.RejectReason
	}
	m.requests.WithLabelValues(name, result).Inc()
	m.latency.WithLabelValues(name).Observe(float64(took.Nanoseconds()))
}

func (m *metrics) durable(took time.Duration) { m.durables.Observe(float64(took.Nanoseconds())) }

// gauges are read from the exchange when metrics are scraped.
type gauges struct{ s *Server }

func desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("countinghouse_exchange_"+name, help, nil, nil)
}

var (
	ordersDesc       = desc("orders_accepted_total", "Orders accepted, ever.")
	tradesDesc       = desc("trades_total", "Trades, ever.")
	publishedDesc    = desc("published_records", "Global number of the last record.")
	droppedDesc      = desc("dropped_records_total", "Records lost under the policy drop.")
	backlogDesc      = desc("backlog_refused_total", "Requests refused because the outbox had no room.")
	outboxFreeDesc   = desc("outbox_free_records", "Records that fit before the outbox's quota is used up.")
	outboxUsedDesc   = desc("outbox_used_bytes", "Size of the outbox's files.")
	outboxFilesDesc  = desc("outbox_segments", "The outbox's files.")
	quotaRefusedDesc = desc("outbox_quota_refused_total", "Reservations refused because of the quota.")
	roomRefusedDesc  = desc("outbox_room_refused_total", "Reservations refused because the next file was not ready.")
	accountsDesc     = desc("accounts", "Accounts that are open.")
	instrumentsDesc  = desc("instruments", "Instruments that are listed.")
	liveOrdersDesc   = desc("live_orders", "Orders that rest in all books.")
	waitsDesc        = desc("durable_waits", "Requests that wait for durability.")
	subscribersDesc  = desc("subscribers", "Books and Executions streams that are open.")
)

// Describe implements prometheus.Collector.
func (g gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		ordersDesc, tradesDesc, publishedDesc, droppedDesc, backlogDesc, outboxFreeDesc, outboxUsedDesc,
		outboxFilesDesc, quotaRefusedDesc, roomRefusedDesc, waitsDesc, subscribersDesc,
		accountsDesc, instrumentsDesc, liveOrdersDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g gauges) Collect(ch chan<- prometheus.Metric) {
	st := g.s.x.Stats()
	for _, m := range []struct {
		d *prometheus.Desc
		t prometheus.ValueType
		v float64
	}{
		{ordersDesc, prometheus.CounterValue, float64(st.Core.Orders)},
		{tradesDesc, prometheus.CounterValue, float64(st.Core.Trades)},
		{publishedDesc, prometheus.GaugeValue, float64(st.Outbox.Published)},
		{droppedDesc, prometheus.CounterValue, float64(st.Core.Gateway.Dropped)},
		{backlogDesc, prometheus.CounterValue, float64(st.Core.Gateway.Refused)},
		{outboxFreeDesc, prometheus.GaugeValue, float64(st.Outbox.FreeRecords)},
		{outboxUsedDesc, prometheus.GaugeValue, float64(st.Outbox.SegmentBytes)},
		{outboxFilesDesc, prometheus.GaugeValue, float64(st.Outbox.Segments)},
		{quotaRefusedDesc, prometheus.CounterValue, float64(st.Outbox.RefusedQuota)},
		{roomRefusedDesc, prometheus.CounterValue, float64(st.Outbox.RefusedRoom)},
		{accountsDesc, prometheus.GaugeValue, float64(st.Core.Accounts)},
		{instrumentsDesc, prometheus.GaugeValue, float64(st.Core.Instruments)},
		{liveOrdersDesc, prometheus.GaugeValue, float64(st.Core.LiveOrders)},
		{waitsDesc, prometheus.GaugeValue, float64(g.s.durableWaits.Load())},
		{subscribersDesc, prometheus.GaugeValue, float64(g.s.subscribers.Load())},
	} {
		ch <- prometheus.MustNewConstMetric(m.d, m.t, m.v)
	}
}

// newRegistry returns a registry of the server's metrics, and of those of the Go
// runtime and the process; those of the exchange come with Start.
func (s *Server) newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.metrics.requests, s.metrics.latency, s.metrics.durables, s.metrics.sessions, s.metrics.started, s.metrics.forbidden,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// Metrics returns the handler of the server's metrics.
func (s *Server) Metrics() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{Registry: s.registry})
}
