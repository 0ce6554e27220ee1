// Command bench measures Countinghouse side by side with what could be used in its
// place, and with the floor that the machine sets.
//
//	bench [flags] [suite...]
//
// Without names it runs every suite. Tables go to stdout, progress to stderr, and
// each suite's figures to a JSON file of its name.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/countinghouse/countinghouse/bench/child"
	"github.com/countinghouse/countinghouse/bench/growth"
	"github.com/countinghouse/countinghouse/bench/handoff"
	"github.com/countinghouse/countinghouse/bench/ingest"
	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/bench/orders"
	"github.com/countinghouse/countinghouse/bench/reads"
	"github.com/countinghouse/countinghouse/bench/recovery"
)

// suites in the order in which they run.
var suites = []measure.Suite{handoff.Suite(), orders.Suite(), ingest.Suite(), reads.Suite(), recovery.Suite(), growth.Suite()}

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	child.Main()
	if was, err := handoff.ReadElsewhere(); was {
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(exitFailed)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(exitUsage)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(exitFailed)
	}
}

var errUsage = errors.New("wrong usage")

type options struct {
	quick bool
	runs  int
	out   string
	dir   string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { usage(flags, stderr) }
	flags.BoolVar(&o.quick, "quick", false, "the few cases that show most, in about three minutes; writes quick.json")
	flags.IntVar(&o.runs, "runs", 0, "how often each figure is measured; 0: 3, or 1 with -quick")
	flags.StringVar(&o.out, "out", "out", "directory of the JSON files")
	flags.StringVar(&o.dir, "dir", "", "directory on the disk to measure; default: that of temporary files")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	chosen, err := choose(flags.Args())
	if err != nil {
		return err
	}
	if o.runs <= 0 {
		o.runs = 3
		if o.quick {
			o.runs = 1
		}
	}
	if o.dir == "" {
		o.dir = os.TempDir()
	}
	return o.runAll(ctx, chosen, stdout, stderr)
}

func choose(names []string) ([]measure.Suite, error) {
	if len(names) == 0 {
		return suites, nil
	}
	var out []measure.Suite
	for _, name := range names {
		found := false
		for _, s := range suites {
			if s.Name == name {
				out, found = append(out, s), true
			}
		}
		if !found {
			return nil, fmt.Errorf("%w: no suite %q: bench -help lists them", errUsage, name)
		}
	}
	return out, nil
}

func (o *options) runAll(ctx context.Context, chosen []measure.Suite, stdout, stderr io.Writer) error {
	machine := measure.Describe(o.dir)
	_, err := fmt.Fprintf(stdout, "%s, %d cores, %d MB, %s, %s, %s, commit %s\nmedian of %d runs; ~: the ranges of the runs overlap\n",
		machine.CPU, machine.Cores, machine.MemoryMB, machine.Kernel, machine.Disk, machine.GoVersion, machine.Commit, o.runs)
	if err != nil {
		return err
	}
	var reports []measure.Report
	for _, s := range chosen {
		b := &measure.Bench{Quick: o.quick, Runs: o.runs, Root: o.dir, Progress: stderr}
		r, err := runSuite(ctx, s, b, machine)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		if err := r.Print(stdout); err != nil {
			return err
		}
		reports = append(reports, r)
		if !o.quick {
			if err := measure.WriteJSON(filepath.Join(o.out, s.Name+".json"), r); err != nil {
				return err
			}
		}
	}
	if o.quick {
		return measure.WriteJSON(filepath.Join(o.out, "quick.json"), quickReport(machine, reports))
	}
	return nil
}

func runSuite(ctx context.Context, s measure.Suite, b *measure.Bench, m measure.Machine) (measure.Report, error) {
	if os.Getenv("GOMAXPROCS") == "" {
		m.GOMAXPROCS += s.MoreProcessors
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(m.GOMAXPROCS))
	}
	start := time.Now()
	err := s.Run(ctx, b)
	return b.Report(s, m, start), err
}

// quick is the content of quick.json.
type quick struct {
	Machine     measure.Machine      `json:"machine"`
	Comparisons []measure.Comparison `json:"comparisons"`
	Suites      []measure.Report     `json:"suites"`
}

func quickReport(m measure.Machine, reports []measure.Report) quick {
	q := quick{Machine: m, Suites: reports, Comparisons: []measure.Comparison{}}
	for _, r := range reports {
		q.Comparisons = append(q.Comparisons, r.Comparisons...)
	}
	return q
}

func usage(flags *flag.FlagSet, w io.Writer) {
	_, _ = fmt.Fprintf(w, "usage: bench [flags] [suite...]\n\nSuites:\n")
	for _, s := range suites {
		_, _ = fmt.Fprintf(w, "  %-10s %s\n", s.Name, s.About)
	}
	_, _ = fmt.Fprintf(w, "\nFlags:\n")
	flags.PrintDefaults()
}
