package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/launch"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/version"
)

// The process's exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // nothing was started
)

// errUsage marks errors of the command line.
var errUsage = launch.ErrUsage

// The values of --subscriber.
const (
	subscriberInternal = "internal"
	subscriberExternal = "external"
)

// flags are the command line.
type flags struct {
	cluster, shards, instruments, outbox string
	shardsFrom, namespace, kubeconfig    string
	listen, metricsListen, tlsDir        string
	quota, policy, subscriber            string
	segmentRecords, headroomRecords      int
	liveOrdersMax                        int
	init, acceptLoss                     bool
	storageWait, drainWait, closeWait    time.Duration
	stateEvery, stopGrace                time.Duration
	delivery                             launch.Delivery
	log                                  launch.Log
}

// execute runs the command and returns the process's exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := newCommand()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "exchange: %v\nRun 'exchange --help' for the flags.\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "exchange: %v\n", err)
	return exitFailed
}

func newCommand() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "exchange (--shards FILE | --shards-from kubernetes --cluster NAME) --outbox DIR",
		Short: "Run an exchange in front of the shards that keep its records",
		Long: "Run an exchange in front of the shards that keep its records.\n\n" +
			"It first recovers: it delivers what the outbox holds, rebuilds books and accounts from the shards, and\n" +
			"compares them with the last known state. It prints one line when it takes orders, and logs to standard\n" +
			"error. On SIGTERM or SIGINT it stops taking orders, delivers what it can, notes its state and ends.",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: %q: the command takes flags only", errUsage, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return f.run(ctx, cmd)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	f.bind(cmd)
	return cmd
}

func (f *flags) bind(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.shards, "shards", "", "file with the shard map (required unless --shards-from says otherwise)")
	fs.StringVar(&f.shardsFrom, "shards-from", fromFile, "where the shard map comes from: file, or kubernetes for the InstrumentShards of a namespace")
	fs.StringVar(&f.namespace, "namespace", "", "the InstrumentShards' namespace (default: $POD_NAMESPACE, the service account's or the kubeconfig's)")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "file that says how the Kubernetes API server is reached (default: as a pod of the cluster)")
	fs.StringVar(&f.outbox, "outbox", "", "directory of the outbox; its parent must exist (required)")
	fs.StringVar(&f.cluster, "cluster", "", "name of the cluster: required for kubernetes; with a file, the shard map's must be the same")
	fs.StringVar(&f.instruments, "instruments", "", "file with the instruments' terms (default: IF2501, IC2501 and IH2501)")
	fs.StringVar(&f.listen, "listen", "127.0.0.1:0", "host:port to serve on; port 0 takes a free one")
	fs.StringVar(&f.metricsListen, "metrics-listen", "", "host:port to serve Prometheus metrics on, at /metrics, and /healthz and /readyz (default: none)")
	fs.StringVar(&f.tlsDir, "tls-dir", "", "directory with tls.crt, tls.key and ca.crt, which may change at any time; all connections then need a certificate of the cluster (default: none, and no TLS)")
	fs.StringVar(&f.quota, "quota", "1GiB", "bound of the outbox's files, in bytes or with KiB, MiB, GiB or TiB")
	fs.StringVar(&f.policy, "policy", gateway.Reject.String(), "when the quota is used up: reject orders, or drop their records; drop gives up rebuild and restart, it is for simulators")
	fs.IntVar(&f.segmentRecords, "segment-records", 0, "records in one file of the outbox, a multiple of 32, fixed at its creation (default 65536)")
	fs.IntVar(&f.liveOrdersMax, "live-orders-max", core.DefaultLiveOrdersMax, "orders that may rest in one book")
	fs.IntVar(&f.headroomRecords, "headroom-records", 0, "part of the quota that orders leave to cancels, money and control (default 4096)")
	fs.StringVar(&f.subscriber, "subscriber", subscriberInternal, "who carries the records to the shards: internal, this process; or external, a 'countinghouse subscriber' that shares the outbox")
	f.delivery.Bind(cmd)
	fs.BoolVar(&f.acceptLoss, "accept-loss", false, "give up stored records that can not be rebuilt from, because others before them were lost with an outbox")
	fs.BoolVar(&f.init, "init", false, "declare the first start of a cluster that nothing is stored of; it may then start without storage")
	fs.DurationVar(&f.storageWait, "storage-wait", 30*time.Second, "how long to wait for shards without which no start is possible")
	fs.DurationVar(&f.drainWait, "drain-wait", 5*time.Second, "how long the start waits for the delivery of what the outbox holds")
	fs.DurationVar(&f.closeWait, "close-wait", 5*time.Second, "how long the end waits for the delivery of what the outbox holds")
	fs.DurationVar(&f.stateEvery, "state-every", time.Minute, "how often the state is noted beside the outbox; negative for at the end only")
	fs.DurationVar(&f.stopGrace, "stop-grace", time.Second, "how long the end waits for calls to finish")
	f.log.Bind(cmd)
}

// config reads the files and checks the flags.
func (f *flags) config(log *slog.Logger) (exchange.Config, error) {
	c := exchange.Config{
		OutboxDir: f.outbox, SegmentRecords: f.segmentRecords, HeadroomRecords: f.headroomRecords, LiveOrdersMax: f.liveOrdersMax, Init: f.init, AcceptLoss: f.acceptLoss,
		StorageWait: f.storageWait, DrainWait: f.drainWait, CloseWait: f.closeWait, StateEvery: f.stateEvery,
		Log: log, Progress: logProgress(log),
	}
	var err error
	for _, step := range []struct {
		flag string
		set  func() error
	}{
		{"shards-from", f.checkSource},
		{"shards", func() error { c.Shards, err = f.shardMap(); return err }},
		{"outbox", func() error { return required(f.outbox) }},
		{"instruments", func() error { c.Instruments, err = f.instrumentSet(); return err }},
		{"quota", func() error { c.QuotaBytes, err = parseBytes(f.quota); return err }},
		{"policy", func() error { c.Policy, err = gateway.ParsePolicy(f.policy); return err }},
		{"stop-grace", func() error { return notNegative(f.stopGrace) }},
		{"subscriber", func() error { c.ExternalSubscriber, err = f.external(); return err }},
	} {
		if err := step.set(); err != nil {
			return c, fmt.Errorf("%w: --%s: %w", errUsage, step.flag, err)
		}
	}
	c.Delivery, err = f.delivery.Settings()
	return c, err
}

// external reports whether another process carries the records.
func (f *flags) external() (bool, error) {
	switch f.subscriber {
	case subscriberInternal, subscriberExternal:
		return f.subscriber == subscriberExternal, nil
	}
	return false, fmt.Errorf("%q: use %s or %s", f.subscriber, subscriberInternal, subscriberExternal)
}

func required(value string) error {
	if value == "" {
		return errors.New("is required")
	}
	return nil
}

func notNegative(d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("%v is negative; use 0s for no wait", d)
	}
	return nil
}

// shardMap returns the map of the file, nil where it comes from elsewhere.
func (f *flags) shardMap() (*client.Map, error) {
	if f.shardsFrom != fromFile {
		return nil, nil
	}
	if err := required(f.shards); err != nil {
		return nil, err
	}
	m, err := client.LoadMap(f.shards)
	if err != nil {
		return nil, err
	}
	if f.cluster != "" && f.cluster != m.Cluster {
		return nil, fmt.Errorf("%s is of cluster %q, but --cluster is %q", f.shards, m.Cluster, f.cluster)
	}
	return m, nil
}

// clusterOf returns the cluster of a shard map, or the one that is named where the
// map is not known yet.
func (f *flags) clusterOf(m *client.Map) string {
	if m == nil {
		return f.cluster
	}
	return m.Cluster
}

func (f *flags) instrumentSet() (order.Set, error) {
	if f.instruments == "" {
		return order.DefaultSet()
	}
	return order.LoadSet(f.instruments)
}

// parseBytes reads a number of bytes such as "512MiB".
func parseBytes(s string) (int64, error) {
	digits, shift := s, 0
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if cut, ok := strings.CutSuffix(s, unit); ok {
			digits, shift = cut, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is not a size: use a number of bytes above zero, or one with KiB, MiB, GiB or TiB", s)
	}
	return n << shift, nil
}
