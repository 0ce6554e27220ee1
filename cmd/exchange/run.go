package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/exchange/launch"
	"github.com/countinghouse/countinghouse/exchange/server"
)

const progressLogEvery = time.Second

// logProgress returns a Progress that logs about once a second.
func logProgress(log *slog.Logger) func(exchange.Progress) {
	last := time.Now()
	return func(p exchange.Progress) {
		if time.Since(last) < progressLogEvery {
			return
		}
		last = time.Now()
		log.Info(string(p.Phase), "records", p.Done, "of", p.Total)
	}
}

// run runs an exchange until ctx ends or it can not go on.
func (f *flags) run(ctx context.Context, cmd *cobra.Command) (err error) {
	log, err := f.log.Logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	config, err := f.config(log)
	if err != nil {
		return err
	}
	var source *shardSource
	if f.shardsFrom == fromKubernetes {
		if source, err = f.kubernetes(log); err != nil {
			return fmt.Errorf("%w: --shards-from kubernetes: %w", errUsage, err)
		}
	}
	// With a source the shard map comes later, and is of the cluster that is named.
	if config.Client.TLS, err = launch.Certificates(f.tlsDir, f.clusterOf(config.Shards), log); err != nil {
		return err
	}
	// The ports first: a second exchange on them fails without a trace.
	l, err := launch.Listen("listen", f.listen)
	if err != nil {
		return err
	}
	defer l.Close()
	var metrics net.Listener
	if f.metricsListen != "" {
		if metrics, err = launch.Listen("metrics-listen", f.metricsListen); err != nil {
			return err
		}
		defer metrics.Close()
	}
	return f.serve(ctx, cmd, config, source, l, metrics)
}

// serve answers on l: while the exchange recovers only to say so, and then until
// ctx ends or the exchange can not go on. source is nil when the configuration has
// its shard map.
func (f *flags) serve(ctx context.Context, cmd *cobra.Command, config exchange.Config, source *shardSource, l, metrics net.Listener) error {
	options := server.Options{TLS: config.Client.TLS}
	if source != nil {
		options.Metrics = []prometheus.Collector{source.watcher}
		stop := source.start()
		defer stop()
	}
	s, err := server.New(options)
	if err != nil {
		return err
	}
	if config.Client.TLS != nil {
		following, unfollow := context.WithCancel(context.Background()) // to the end, beyond ctx's
		defer unfollow()
		go config.Client.TLS.Run(following)
	}
	if metrics != nil {
		h := launch.Probes{Metrics: s.Metrics(), Alive: s.Alive(), Ready: s.Ready()}.Serve(metrics, config.Log)
		defer h.Close()
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	config.Log.Info("recovering", "address", l.Addr().String())
	x, err := open(ctx, config, source, s)
	if err != nil {
		s.Stop(0)
		return err
	}
	log := config.Log
	r := x.Recovery()
	log.Info("recovered", "records", r.Records, "from_outbox", r.FromOutbox, "drained", r.Drained, "delivered", r.Delivered,
		"state_checked", r.StateChecked, "drain_took", r.DrainTook, "replay_took", r.ReplayTook)
	fmt.Fprintf(cmd.OutOrStdout(), "exchange %s takes orders on %s; %d records so far\n", x.Config().Shards.Cluster, l.Addr(), r.Global)
	select {
	case <-ctx.Done():
		log.Info("stopping")
	case <-x.Failed():
		err = x.Err()
	case err = <-served:
	}
	s.Drain()
	closed, closeErr := x.Close()
	s.Stop(f.stopGrace)
	log.Info("stopped", "global", closed.State.Global, "everything_delivered", closed.Drained)
	return errors.Join(err, closeErr)
}

// open recovers the exchange and opens s to it.
func open(ctx context.Context, config exchange.Config, source *shardSource, s *server.Server) (*exchange.Exchange, error) {
	if source != nil {
		if err := source.prepare(ctx, &config); err != nil {
			return nil, err
		}
	}
	x, err := exchange.Open(ctx, config)
	if errors.Is(err, exchange.ErrConfig) {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	if err != nil {
		return nil, err
	}
	if err := s.Start(x); err != nil {
		_, closeErr := x.Close()
		return nil, errors.Join(err, closeErr)
	}
	return x, nil
}
