package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/trial"
	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/localcluster"
)

// trialNodeArgs suit storage nodes that share a small machine: elections begin
// sooner than between machines, and log files are small.
var trialNodeArgs = []string{"--heartbeat-timeout", "500ms", "--segment-bytes", "16777216"}

// demoFlags are the flags of demo.
type demoFlags struct {
	seed     uint64
	seconds  float64
	rate     float64
	accounts int
	shards   int
	replicas int
	keep     string
	noKill   bool
}

func newDemo(s *settings) *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Trade on one machine while a storage leader is killed, and prove that nothing was lost",
		Long: "Starts 2 shards of 3 storage nodes as processes on loopback and an exchange with IF2501, IC2501 and\n" +
			"IH2501 in this process, and puts seeded order flow through it. Half-way it kills the leader of the first\n" +
			"shard with SIGKILL, and starts it again later. At the end it reads everything back from every replica,\n" +
			"compares the replicas byte by byte, rebuilds the exchange from the store, and compares books and accounts.\n" +
			"It exits with 1 if anything was lost, doubled or differs.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return output.Exit(output.ExitUsage, err)
			}
			if !cmd.Flags().Changed("seed") {
				f.seed = rand.Uint64()
			}
			return s.demo(cmd, f)
		},
	}
	cmd.Flags().Uint64Var(&f.seed, "seed", 0, "`number` from which the order flow is drawn (default: a random one, which is printed)")
	cmd.Flags().Float64Var(&f.seconds, "seconds", 20, "how long trading goes on")
	cmd.Flags().Float64Var(&f.rate, "rate", 10_000, "requests a second, on average: they come in clusters")
	cmd.Flags().IntVar(&f.accounts, "accounts", 300, "`number` of accounts that trade")
	cmd.Flags().IntVar(&f.shards, "shards-count", 2, "`number` of shards")
	cmd.Flags().IntVar(&f.replicas, "replicas", 3, "storage nodes in each shard: 1, 3, 5 or 7")
	cmd.Flags().StringVar(&f.keep, "data-dir", "", "keep all data in this `directory`, which must be empty (default: a temporary one that is removed)")
	cmd.Flags().BoolVar(&f.noKill, "no-kill", false, "leave the leader alone")
	return cmd
}

func (f *demoFlags) check() error {
	switch {
	case !(f.seconds > 0) || f.seconds > 3600:
		return fmt.Errorf("--seconds %g: use more than 0 and at most 3600", f.seconds)
	case !(f.rate > 0) || f.rate > 1e6:
		return fmt.Errorf("--rate %g: use more than 0 and at most 1000000", f.rate)
	case f.accounts < 2 || f.accounts > 100_000:
		return fmt.Errorf("--accounts %d: use 2 to 100000", f.accounts)
	case f.shards < 1 || f.shards > 3:
		return fmt.Errorf("--shards-count %d: use 1 to 3, the number of instruments", f.shards)
	case f.replicas != 1 && f.replicas != 3 && f.replicas != 5 && f.replicas != 7:
		return fmt.Errorf("--replicas %d: use 1, 3, 5 or 7", f.replicas)
	case f.replicas == 1 && !f.noKill:
		return errors.New("--replicas 1: a shard of one node does not survive the kill; add --no-kill")
	}
	return nil
}

// trialDir returns an empty directory for a trial's data, and what removes it.
func trialDir(keep string) (dir string, remove func(), err error) {
	if keep == "" {
		dir, err = os.MkdirTemp("", "countinghouse-")
		return dir, func() { _ = os.RemoveAll(dir) }, err
	}
	if dir, err = filepath.Abs(keep); err != nil {
		return "", nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, err
	}
	if len(entries) > 0 {
		return "", nil, fmt.Errorf("--data-dir %s is not empty: name another directory", keep)
	}
	return dir, func() {}, os.MkdirAll(dir, 0o755)
}

func (s *settings) demo(cmd *cobra.Command, f demoFlags) error {
	set, err := order.DefaultSet()
	if err != nil {
		return err
	}
	flow, err := newSyntheticFlow(set, f.seed, uint64(f.seconds*f.rate), f.rate, f.accounts)
	if err != nil {
		return output.Exit(output.ExitUsage, err)
	}
	var names []string
	for i := range set.Instruments {
		names = append(names, set.Instruments[i].Symbol.String())
	}
	report, err := s.runTrial(cmd, trial.Config{
		Seed: f.seed, Cluster: "demo", Instruments: set, Flow: flow,
		Shards: spread(names, f.shards, f.replicas), KillLeader: !f.noKill,
	}, f.keep)
	if err != nil {
		return err
	}
	p := s.printer(cmd)
	if s.format == output.JSON {
		err = p.JSON(report)
	} else {
		printReport(p, &report)
	}
	return verdictOf(err, &report)
}

// runTrial runs a trial in keep, or in a temporary directory.
func (s *settings) runTrial(cmd *cobra.Command, c trial.Config, keep string) (trial.Report, error) {
	p := s.printer(cmd)
	p.Note("seed %d", c.Seed)
	var err error
	if c.NodeCommand, err = nodeCommand(); err != nil {
		return trial.Report{}, err
	}
	dir, remove, err := trialDir(keep)
	if err != nil {
		return trial.Report{}, output.Exit(output.ExitUsage, err)
	}
	defer remove()
	c.Dir, c.NodeArgs, c.Progress, c.Note = dir, trialNodeArgs, p.Progress, p.Note
	if c.Delivery, err = exchange.DeliveryPreset("default"); err != nil {
		return trial.Report{}, err
	}
	report, err := trial.Run(cmd.Context(), c)
	if err != nil {
		err = fmt.Errorf("seed %d: %w", c.Seed, err)
	}
	if keep != "" {
		p.Note("data kept in %s; shard map %s", keep, filepath.Join(keep, localcluster.MapFile))
	}
	return report, err
}

// verdictOf returns the error that a report's verdict makes.
func verdictOf(err error, r *trial.Report) error {
	if err == nil && !r.OK {
		return output.Exit(output.ExitFailed, fmt.Errorf("seed %d: the stored records are not what was published", r.Seed))
	}
	return err
}

func printReport(p *output.Printer, r *trial.Report) {
	n := r.Notifications
	p.Line("")
	p.Table([]string{"", ""}, [][]string{
		{"trading", fmt.Sprintf("%s orders (%s accepted), %s cancels and amends, %s trades", output.Count(r.Orders), output.Count(r.Accepted), output.Count(r.Changes), output.Count(r.Trades))},
		{"notifications", fmt.Sprintf("%s received, %s persisted in %s batches", output.Count(n.Received), output.Count(n.Persisted), output.Count(r.Batches))},
		{"lost", verdictCount(p, n.Lost)},
		{"duplicated", verdictCount(p, n.Duplicated)},
		{"replicas", verdictWord(p, r.Identical, fmt.Sprintf("identical (%s of %d nodes compared byte by byte)", output.Bytes(r.BytesCompared), r.Replicas), "DIFFER")},
		{"rebuilt exchange", verdictWord(p, r.Rebuilt, fmt.Sprintf("identical to the one that ran (books, accounts, positions; %.0f ms)", r.RebuildMS), "DIFFERS")},
		{"greatest lag", output.Count(r.LagMax) + " records behind the exchange"},
	})
	if r.Killed != "" {
		p.Line("%s was killed; everything published by then was on a quorum again after %.0f ms", r.Killed, r.FailoverMS)
	}
	p.Line("\norder latency, from call to return in this process")
	p.Table([]string{"", "requests", "p50", "p99", "p99.9", "max"}, [][]string{
		latencyRow("before and after", r.LatencyCalm), latencyRow("during the failover", r.LatencyFailed),
	})
	for _, f := range r.Findings {
		p.Line("%s %s", p.Bad("found:"), f)
	}
	p.Line("\n%s  seed %d, %.1f s", verdictWord(p, r.OK, "OK: nothing lost, nothing doubled", "FAILED"), r.Seed, r.Seconds)
}

func latencyRow(name string, l trial.Latency) []string {
	return []string{name, output.Count(l.Count), output.Nanos(l.P50), output.Nanos(l.P99), output.Nanos(l.P999), output.Nanos(l.Max)}
}

func verdictCount(p *output.Printer, n uint64) string {
	return verdictWord(p, n == 0, "0", output.Count(n))
}

func verdictWord(p *output.Printer, ok bool, good, bad string) string {
	if ok {
		return p.Good(good)
	}
	return p.Bad(bad)
}
