// Package launch is what the programs that run an exchange, or carry its records,
// have in common: flags of delivery and logs, certificates, listeners, metrics.
package launch

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/identity"
)

// ErrUsage marks errors of the command line.
var ErrUsage = errors.New("usage")

// Delivery are the flags that tune the way from the outbox to the shards.
type Delivery struct {
	preset            string
	batchSize, window int
	linger            time.Duration
	cmd               *cobra.Command
}

// Bind adds the flags to a command.
func (d *Delivery) Bind(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&d.preset, "preset", "default", "delivery settings: default (100 records, 10ms) or production (1000 records, 5ms)")
	fs.IntVar(&d.batchSize, "batch-size", 0, "records in a batch (default: the preset's)")
	fs.DurationVar(&d.linger, "linger", 0, "how long a batch waits to be filled (default: the preset's)")
	fs.IntVar(&d.window, "window", 0, "batches on their way to a shard (default: the preset's)")
	d.cmd = cmd
}

// Settings returns the preset's settings, with those that were given in their place.
// Its errors wrap ErrUsage and name the flag.
func (d *Delivery) Settings() (exchange.Delivery, error) {
	s, err := exchange.DeliveryPreset(d.preset)
	if err != nil {
		return s, fmt.Errorf("%w: --preset: %w", ErrUsage, err)
	}
	given := d.cmd.Flags().Changed
	for flag, v := range map[string]int{"batch-size": d.batchSize, "window": d.window} {
		if given(flag) && v < 1 {
			return s, fmt.Errorf("%w: --%s: %d: use at least 1", ErrUsage, flag, v)
		}
	}
	if given("linger") && d.linger <= 0 {
		return s, fmt.Errorf("%w: --linger: %v: use more than 0, such as 1us", ErrUsage, d.linger)
	}
	if given("batch-size") {
		s.BatchRecords = d.batchSize
	}
	if given("linger") {
		s.Linger = d.linger
	}
	if given("window") {
		s.WindowBatches = d.window
	}
	return s, nil
}

// Log are the flags of what is logged.
type Log struct{ level, format string }

// Bind adds the flags to a command.
func (l *Log) Bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&l.format, "log-format", "text", "text or json")
}

// Logger returns a logger to w. Its errors wrap ErrUsage and name the flag.
func (l *Log) Logger(w io.Writer) (*slog.Logger, error) {
	var o slog.HandlerOptions
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, fmt.Errorf("%w: --log-level: %q: use debug, info, warn or error", ErrUsage, l.level)
	}
	o.Level = level
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &o)), nil
	}
	return nil, fmt.Errorf("%w: --log-format: %q: use text or json", ErrUsage, l.format)
}

// Certificates opens the source of the exchange's certificates in dir, nil for no
// dir. Its errors wrap ErrUsage and name the flag --tls-dir.
func Certificates(dir, cluster string, log *slog.Logger) (*identity.Source, error) {
	if dir == "" {
		return nil, nil
	}
	s, err := identity.Open(dir, identity.Options{
		Accept: identity.Expect(identity.Identity{Cluster: cluster, Role: identity.Exchange}), Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: --tls-dir: %w", ErrUsage, err)
	}
	return s, nil
}

// Listen listens on the address that a flag gives. An address that can not be one
// is an ErrUsage.
func Listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("--%s %s: the port is in use: stop the other process or choose another port (%w)", flag, address, err)
	case err != nil:
		return nil, fmt.Errorf("%w: --%s %s: %w", ErrUsage, flag, address, err)
	}
	return l, nil
}

const metricsHeaderTimeout = 5 * time.Second

// Probes are what is served beside a program's work.
type Probes struct{ Metrics, Alive, Ready http.Handler }

// Serve serves the probes on l until the server that it returns is closed.
func (p Probes) Serve(l net.Listener, log *slog.Logger) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("/metrics", p.Metrics)
	mux.Handle("/healthz", p.Alive)
	mux.Handle("/readyz", p.Ready)
	h := &http.Server{Handler: mux, ReadHeaderTimeout: metricsHeaderTimeout}
	go func() {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are not served any more", "error", err)
		}
	}()
	log.Info("metrics", "url", "http://"+l.Addr().String()+"/metrics")
	return h
}
