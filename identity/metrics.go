package identity

import "github.com/prometheus/client_golang/prometheus"

// metrics are those of one source.
type metrics struct {
	reloads, failures, refused, ended prometheus.Counter
	expiry, trustExpiry, stale        prometheus.GaugeFunc
}

func newMetrics(s *Source) metrics {
	const namespace, subsystem = "countinghouse", "tls"
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	gauge := func(name, help string, value func() float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, value)
	}
	return metrics{
		reloads:  counter("reloads_total", "Changes of the certificate files that were taken into use."),
		failures: counter("reload_failures_total", "Changes of the certificate files that could not be taken into use."),
		refused:  counter("handshakes_refused_total", "Handshakes refused because of the peer's certificate."),
		ended:    counter("connections_ended_total", "Connections ended because the peer's certificate expired or is not trusted any more."),
		expiry: gauge("certificate_expiry_timestamp_seconds", "When the certificate in use expires, in seconds since 1970.",
			func() float64 { return float64(s.Expires().Unix()) }),
		trustExpiry: gauge("authority_expiry_timestamp_seconds", "When the last of the trusted authorities expires, in seconds since 1970.", s.trustExpiry),
		stale:       gauge("files_unusable", "1 while the certificate files can not be used and the last good ones stay in force.", s.unusable),
	}
}

func (s *Source) trustExpiry() (last float64) {
	for _, ca := range s.current.Load().authorities {
		last = max(last, float64(ca.NotAfter.Unix()))
	}
	return last
}

func (s *Source) unusable() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.problem != "" {
		return 1
	}
	return 0
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.reloads, m.failures, m.refused, m.ended, m.expiry, m.trustExpiry, m.stale}
}

// Describe implements prometheus.Collector.
func (s *Source) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s.metrics.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (s *Source) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s.metrics.all() {
		c.Collect(ch)
	}
}
