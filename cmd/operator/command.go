package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/countinghouse/countinghouse/controllers"
	"github.com/countinghouse/countinghouse/version"
)

// The exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// errUsage marks what is wrong with the command line.
var errUsage = errors.New("wrong use")

// flags is what the command line says.
type flags struct {
	namespaces    []string
	namespace     string
	image         string
	metricsListen string
	healthListen  string
	leaderElect   bool
	stopGrace     time.Duration
	propagation   time.Duration
	workers       int
	logLevel      string
	logFormat     string
}

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
		fmt.Fprintf(stderr, "operator: %v\nRun 'operator --help' for the flags.\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "operator: %v\n", err)
	return exitFailed
}

func newCommand() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "operator --image IMAGE",
		Short: "Reconcile InstrumentShards into storage nodes",
		Long: "Reconcile InstrumentShards into storage nodes.\n\n" +
			"It uses the service account of its pod, or the kubeconfig that KUBECONFIG names. Of several operators\n" +
			"with --leader-elect one works, and the others wait. Stopping it stops no storage node.",
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
			if err := f.check(); err != nil {
				return err
			}
			log, err := f.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return f.run(ctx, log)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	f.bind(cmd)
	return cmd
}

func (f *flags) bind(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringSliceVar(&f.namespaces, "namespaces", nil, "namespaces whose shards are reconciled, separated by commas (default: all)")
	fs.StringVar(&f.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace that the operator runs in (default: $POD_NAMESPACE)")
	fs.StringVar(&f.image, "image", "", "image of storage nodes where a shard names none (required)")
	fs.StringVar(&f.metricsListen, "metrics-listen", ":8080", "host:port to serve Prometheus metrics on, at /metrics; 0 for none")
	fs.StringVar(&f.healthListen, "health-listen", ":8081", "host:port to serve /healthz and /readyz on; 0 for none")
	fs.BoolVar(&f.leaderElect, "leader-elect", false, "work only while holding a lease in --namespace")
	fs.DurationVar(&f.stopGrace, "stop-grace", 10*time.Second, "how long the end waits for reconciliations to finish")
	fs.DurationVar(&f.propagation, "secret-propagation", controllers.DefaultPropagation, "how long a change of a secret may take to reach every process that has it mounted: twice the kubelet's sync period and its cache's age; a change of the authority waits for it")
	fs.IntVar(&f.workers, "workers", 4, "shards that are reconciled at a time")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&f.logFormat, "log-format", "text", "text or json")
}

// check names the first flag that is wrong, and the remedy.
func (f *flags) check() error {
	bad := func(flag, format string, args ...any) error {
		return fmt.Errorf("%w: --%s: %s", errUsage, flag, fmt.Sprintf(format, args...))
	}
	if f.image == "" {
		return bad("image", "is required: the image that has /storagenode")
	}
	if f.namespace == "" {
		return bad("namespace", "is required: set it, or POD_NAMESPACE, to the namespace that the operator runs in")
	}
	for flag, names := range map[string][]string{"namespace": {f.namespace}, "namespaces": f.namespaces} {
		for _, name := range names {
			if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
				return bad(flag, "%q is no name of a namespace: %s", name, problems[0])
			}
		}
	}
	for flag, address := range map[string]string{"metrics-listen": f.metricsListen, "health-listen": f.healthListen} {
		if _, _, err := net.SplitHostPort(address); err != nil && address != "0" {
			return bad(flag, "%q is not host:port", address)
		}
	}
	if f.workers < 1 {
		return bad("workers", "%d: use at least 1", f.workers)
	}
	if f.propagation < time.Second {
		return bad("secret-propagation", "%v: use at least 1s", f.propagation)
	}
	if f.stopGrace < 0 {
		return bad("stop-grace", "%v is negative; use 0s for no wait", f.stopGrace)
	}
	return nil
}

func (f *flags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return nil, fmt.Errorf("%w: --log-level: %q: use debug, info, warn or error", errUsage, f.logLevel)
	}
	o := &slog.HandlerOptions{Level: level}
	switch f.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("%w: --log-format: %q: use text or json", errUsage, f.logFormat)
}
