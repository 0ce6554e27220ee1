package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/storagenode"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/version"
)

const metricsHeaderTimeout = 5 * time.Second

func logLevel(name string) (slog.Level, error) {
	var level slog.Level
	err := level.UnmarshalText([]byte(name))
	return level, err
}

func (c *Config) logger() *slog.Logger {
	level, err := logLevel(c.LogLevel)
	if err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(c.log, o))
	}
	return slog.New(slog.NewTextHandler(c.log, o))
}

// node is what Run has started.
type node struct {
	cfg      Config
	log      *slog.Logger
	listener net.Listener
	replica  *replica.Replica
	server   *storagenode.Server
	metrics  *http.Server
	tls      *identity.Source // nil: no TLS
	unfollow context.CancelFunc
	fatal    chan error // receives at most one
	served   chan error // receives when the server has ended
}

// Run runs a node until ctx ends or the node can not go on. Every error says what
// to correct.
//
// When the disk has failed, Run returns without closing anything, because closing
// would wait for the disk: the process should then end.
func Run(ctx context.Context, c Config) error {
	if c.log == nil {
		c.log = os.Stderr
	}
	if c.ready == nil {
		c.ready = io.Discard
	}
	if err := c.Validate(); err != nil {
		return err
	}
	n := &node{cfg: c, log: c.logger().With("member", c.ID), fatal: make(chan error, 1), served: make(chan error, 1)}
	if err := n.unlessFatal(n.start); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return n.unlessFatal(n.stop)
	case err := <-n.fatal:
		return n.ended(err)
	case err := <-n.served:
		return errors.Join(err, n.unlessFatal(n.stop))
	}
}

// unlessFatal returns what do returns, or earlier when the node can not go on: do
// may then wait for a disk that hangs.
func (n *node) unlessFatal(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case err := <-n.fatal:
		return n.ended(err)
	}
}

func (n *node) ended(err error) error {
	return fmt.Errorf("member %s can not go on: %w", n.cfg.ID, err)
}

// start claims the port before the data directory: the address must be known, and
// a second node on the same port must fail without a trace.
func (n *node) start() error {
	l, err := listen("listen", n.cfg.Listen)
	if err != nil {
		return err
	}
	n.listener = l
	if n.tls, err = n.cfg.certificates(n.log); err != nil {
		l.Close()
		return err
	}
	address := n.cfg.Advertise
	if address == "" {
		address = l.Addr().String()
	}
	rc, err := n.cfg.replicaConfig(address)
	if err != nil {
		l.Close()
		return err
	}
	rc.Logger, rc.OnFatal = n.log, n.onFatal
	if n.tls != nil {
		rc.Transport.DialOptions = append(rc.Transport.DialOptions, grpc.WithTransportCredentials(n.tls.Client(n.cfg.identity())))
	}
	if n.replica, err = replica.Open(rc); err != nil {
		l.Close()
		return err
	}
	options := n.cfg.serverOptions()
	options.Version, options.TLS = version.String(), n.tls
	n.server = storagenode.New(n.replica, options)
	if err := n.serveMetrics(); err != nil {
		l.Close()
		return errors.Join(err, n.replica.Close())
	}
	n.followCertificates()
	go func() { n.served <- n.server.Serve(l) }()
	fmt.Fprintf(n.cfg.ready, "storagenode %s of shard %s in cluster %s listens on %s\n", n.cfg.ID, n.cfg.Shard, n.cfg.Cluster, address)
	return nil
}

// followCertificates keeps the certificates up to date until stop.
func (n *node) followCertificates() {
	var ctx context.Context
	ctx, n.unfollow = context.WithCancel(context.Background())
	if n.tls != nil {
		go n.tls.Run(ctx)
	}
}

func (n *node) onFatal(err error) {
	select {
	case n.fatal <- err:
	default:
	}
}

func listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("--%s %s: the port is in use: stop the other process or choose another port (%w)", flag, address, err)
	case err != nil:
		return nil, fmt.Errorf("--%s %s: %w", flag, address, err)
	}
	return l, nil
}

func (n *node) serveMetrics() error {
	if n.cfg.MetricsListen == "" {
		return nil
	}
	l, err := listen("metrics-listen", n.cfg.MetricsListen)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(n.server, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if n.tls != nil {
		registry.MustRegister(n.tls)
	}
	mux := http.NewServeMux()
	mux.Handle("/healthz", n.server.Health(""))
	mux.Handle("/readyz", n.server.Health(storagenode.ReadyService))
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	n.metrics = &http.Server{Handler: mux, ReadHeaderTimeout: metricsHeaderTimeout}
	go func() {
		if err := n.metrics.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("metrics are not served any more", "error", err)
		}
	}()
	n.log.Info("metrics", "url", "http://"+l.Addr().String()+"/metrics")
	return nil
}

// stop hands leadership over, so that the shard does not have to notice that its
// leader is gone, and closes everything.
func (n *node) stop() error {
	if n.replica.IsLeader() && n.cfg.StopGrace > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), n.cfg.StopGrace)
		if id, err := n.replica.TransferLeadership(ctx, ""); err != nil {
			n.log.Info("leadership was not handed over", "reason", err)
		} else {
			n.log.Info("leadership handed over", "to", id)
		}
		cancel()
	}
	n.server.Stop()
	n.unfollow()
	if n.metrics != nil {
		n.metrics.Close()
	}
	err := n.replica.Close()
	n.log.Info("stopped")
	return err
}
