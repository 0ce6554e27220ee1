// Package carrier is the command that carries an exchange's records to the shards
// in a process of its own.
package carrier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/exchange/launch"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// shardsEvery is how often the shard map's file is looked at.
const shardsEvery = time.Second

// carrier are the flags of the command subscriber.
type carrier struct {
	outbox, shards, cluster string
	tlsDir, metricsListen   string
	delivery                launch.Delivery
	log                     launch.Log
}

// Command returns the command. Its errors carry their exit codes.
func Command() *cobra.Command {
	var f carrier
	cmd := &cobra.Command{
		Use:   "subscriber --outbox DIR --shards FILE",
		Short: "Carry the records of an exchange to the shards, in a process of its own",
		Long: "Carry the records of an exchange to the shards, in a process of its own.\n\n" +
			"The exchange runs beside it with --subscriber=external and shares the outbox's directory. Either may be\n" +
			"started first, and ended or killed at any time. The records are carried once the exchange has fenced all\n" +
			"writers before it, also while it does not run; until then this command waits, and logs for what. The shard\n" +
			"map's file is waited for as well, and followed: a shard's members may change, its instruments may not.\n\n" +
			"One such process of an outbox may run. It ends with code 1 when there is another one.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := f.run(cmd)
			if errors.Is(err, launch.ErrUsage) {
				return output.Exit(output.ExitUsage, err)
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.outbox, "outbox", "", "the exchange's outbox `directory`")
	flags.StringVar(&f.shards, "shards", "", "shard map `file` (YAML); an exchange that has its map from Kubernetes keeps one as <outbox>.shards")
	flags.StringVar(&f.cluster, "cluster", "", "name of the cluster; the shard map's must be the same")
	flags.StringVar(&f.tlsDir, "tls-dir", "", "`directory` with tls.crt, tls.key and ca.crt of the exchange, which may change at any time")
	flags.StringVar(&f.metricsListen, "metrics-listen", "", "host:port to serve Prometheus metrics on, at /metrics, and /healthz and /readyz (default: none)")
	for _, name := range []string{"outbox", "shards"} {
		cobra.CheckErr(cmd.MarkFlagRequired(name))
	}
	f.delivery.Bind(cmd)
	f.log.Bind(cmd)
	return cmd
}

// run carries records until the command is interrupted, which is how it ends.
func (f *carrier) run(cmd *cobra.Command) error {
	log, err := f.log.Logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	settings, err := f.delivery.Settings()
	if err != nil {
		return err
	}
	st := &status{waits: "waits for the shard map " + f.shards}
	if f.metricsListen != "" {
		l, err := launch.Listen("metrics-listen", f.metricsListen)
		if err != nil {
			return err
		}
		h := st.probes().Serve(l, log)
		defer h.Close()
	}
	ctx := cmd.Context()
	m, err := f.awaitMap(ctx, log)
	if m == nil {
		return err
	}
	certificates, err := launch.Certificates(f.tlsDir, m.Cluster, log)
	if err != nil {
		return err
	}
	c, err := client.New(m, client.Options{TLS: certificates})
	if err != nil {
		return fmt.Errorf("%w: --shards: %w", launch.ErrUsage, err)
	}
	defer c.Close()
	p, err := subscriber.NewProcess(subscriber.ProcessConfig{
		OutboxDir: f.outbox, Shards: m, Storage: subscriber.FromClient(c), Log: log,
		Options: subscriber.Options{BatchRecords: settings.BatchRecords, Linger: settings.Linger, Window: settings.WindowBatches},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", launch.ErrUsage, err)
	}
	st.begin(p)
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	beside.Go(func() { f.follow(ctx, c, log) })
	if certificates != nil {
		beside.Go(func() { certificates.Run(ctx) })
	}
	if err := p.Run(ctx); err != nil {
		return err
	}
	log.Info("stopped; what is not delivered stays in the outbox")
	return nil
}

// awaitMap reads the shard map once its file is there. It returns nil when ctx ends
// before.
func (f *carrier) awaitMap(ctx context.Context, log *slog.Logger) (*client.Map, error) {
	for told := false; ; told = true {
		m, err := client.LoadMap(f.shards)
		switch {
		case err == nil && f.cluster != "" && f.cluster != m.Cluster:
			return nil, fmt.Errorf("%w: --shards: %s is of cluster %q, but --cluster is %q", launch.ErrUsage, f.shards, m.Cluster, f.cluster)
		case err == nil:
			return m, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%w: --shards: %w", launch.ErrUsage, err)
		case !told:
			log.Info("waiting", "because", "there is no shard map yet", "file", f.shards)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(shardsEvery):
		}
	}
}

// follow gives c the members that the shard map's file names, when it changes.
func (f *carrier) follow(ctx context.Context, c *client.Client, log *slog.Logger) {
	var last os.FileInfo
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(shardsEvery):
		}
		info, err := os.Stat(f.shards)
		if err != nil || last != nil && os.SameFile(info, last) && info.ModTime().Equal(last.ModTime()) && info.Size() == last.Size() {
			continue // gone for a moment, or as before
		}
		last = info
		m, err := client.LoadMap(f.shards)
		if err == nil {
			err = setMembers(c, m, log)
		}
		if err != nil {
			log.Warn("the members stay as they are", "file", f.shards, "error", err)
		}
	}
}

// setMembers gives c the members of m, which must be of the same cluster.
func setMembers(c *client.Client, m *client.Map, log *slog.Logger) error {
	if m.Cluster != c.Map().Cluster {
		return fmt.Errorf("it is of cluster %q now", m.Cluster)
	}
	for _, shard := range c.Map().Shards {
		now := m.Shard(shard.Name)
		if now == nil {
			return fmt.Errorf("there is no shard %s any more", shard.Name)
		}
		if slices.Equal(now.Members, c.Members(shard.Name)) {
			continue
		}
		if err := c.SetMembers(shard.Name, now.Members); err != nil {
			return err
		}
		log.Info("members of a shard changed", "shard", shard.Name)
	}
	return nil
}

// status answers probes and scrapes, also before there is anything to run.
type status struct {
	mu       sync.Mutex
	process  *subscriber.Process
	waits    string // while process is nil
	registry *prometheus.Registry
}

func (s *status) probes() launch.Probes {
	s.registry = prometheus.NewRegistry()
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return launch.Probes{
		Metrics: promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{Registry: s.registry}),
		Alive:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ALIVE") }),
		Ready:   http.HandlerFunc(s.ready),
	}
}

func (s *status) begin(p *subscriber.Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = p
	if s.registry != nil {
		s.registry.MustRegister(p.Collector())
	}
}

// ready answers 200 while records are carried, 503 while something is waited for.
func (s *status) ready(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	waits := s.waits
	if s.process != nil {
		waits = s.process.Waits()
	}
	s.mu.Unlock()
	if waits != "" {
		http.Error(w, waits, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "SERVING")
}
