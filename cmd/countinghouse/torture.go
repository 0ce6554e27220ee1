package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/torture"
)

// tortureFlags are the words of the command.
type tortureFlags struct {
	seconds          int
	seed             uint64
	dir              string
	shards, replicas int
	rate             int
}

const (
	tortureShardsMax = 16
	tortureRateMax   = 1_000_000
)

func newTorture(s *settings) *cobra.Command {
	var f tortureFlags
	cmd := &cobra.Command{
		Use:   "torture",
		Short: "Write to real storage nodes while they are killed, halted, cut off and replaced, and check every record",
		Long: "Starts storage nodes as processes of their own, behind proxies on loopback addresses. Writers append and\n" +
			"readers read while nodes are killed (one, several, all), halted, restarted and replaced, leadership is moved,\n" +
			"and the links between nodes and clients are delayed, slowed, cut and silenced in one direction or both.\n" +
			"Then all faults are healed, all nodes are killed and started once more, and every record is read back from\n" +
			"every replica: lost, duplicated and reordered must be 0.\n\n" +
			"Ctrl-C ends the faults and checks what was written so far; a second Ctrl-C ends the check, too.\n" +
			"The exit code is 1 when anything is found. Then, and with --data-dir, the data is kept.\n" +
			"Linux only: it uses addresses of 127.0.0.0/8.",
		Example: "  countinghouse torture --seconds 60\n  countinghouse torture --seconds 3600 --seed 7 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return output.Exit(output.ExitUsage, err)
			}
			if !cmd.Flags().Changed("seed") {
				f.seed = uint64(time.Now().UnixNano())
			}
			return s.torture(cmd, &f)
		},
	}
	cmd.Flags().IntVar(&f.seconds, "seconds", 60, "how `long` faults are injected")
	cmd.Flags().Uint64Var(&f.seed, "seed", 0, "`seed` of the plan of faults and of the load (default: from the clock)")
	cmd.Flags().StringVar(&f.dir, "data-dir", "", "empty `directory` for the data, which is then kept (default: a temporary one)")
	cmd.Flags().IntVar(&f.shards, "shards-count", 2, "`number` of shards")
	cmd.Flags().IntVar(&f.replicas, "replicas", 3, "storage nodes in each shard: 1, 3, 5 or 7")
	cmd.Flags().IntVar(&f.rate, "rate", 4000, "`records` a second that all writers together try to write")
	return cmd
}

func (f *tortureFlags) check() error {
	switch {
	case f.seconds < 1:
		return fmt.Errorf("--seconds %d: use 1 or more", f.seconds)
	case f.shards < 1 || f.shards > tortureShardsMax:
		return fmt.Errorf("--shards-count %d: use 1 to %d", f.shards, tortureShardsMax)
	case f.replicas < 1 || f.replicas > 7 || f.replicas%2 == 0:
		return fmt.Errorf("--replicas %d: use 1, 3, 5 or 7", f.replicas)
	case f.rate < 1 || f.rate > tortureRateMax:
		return fmt.Errorf("--rate %d: use 1 to %d", f.rate, tortureRateMax)
	}
	return nil
}

// tortureResult is what the command prints as JSON.
type tortureResult struct {
	torture.Report
	DataDir string `json:"data_dir,omitempty"` // when it is kept
	Error   string `json:"error,omitempty"`    // why the run is not complete
}

func (s *settings) torture(cmd *cobra.Command, f *tortureFlags) error {
	dir, err := tortureDir(f.dir)
	if err != nil {
		return err
	}
	command, err := nodeCommand()
	if err != nil {
		return err
	}
	p := s.printer(cmd)
	p.Note("seed %d, data in %s", f.seed, dir)
	ctx, release := untilSecondSignal(cmd.Context())
	defer release()
	report, err := torture.Run(ctx, torture.Config{
		Seed: f.seed, Duration: time.Duration(f.seconds) * time.Second, Dir: dir, Shards: f.shards, Replicas: f.replicas,
		Rate: f.rate, NodeCommand: command, Stop: cmd.Context().Done(), Progress: p.Progress, Note: p.Note,
	})
	result := tortureResult{Report: report, DataDir: dir}
	if err != nil {
		result.Error = err.Error()
	}
	if f.dir == "" && len(report.Findings) == 0 {
		result.DataDir = ""
		if err := os.RemoveAll(dir); err != nil {
			p.Note("%v", err)
		}
	}
	if err := printTorture(p, &result); err != nil {
		return err
	}
	switch {
	case len(report.Findings) > 0:
		return output.Exit(output.ExitFailed, fmt.Errorf("seed %d: %d findings; the data is in %s", report.Seed, len(report.Findings), dir))
	case err != nil:
		return fmt.Errorf("seed %d: the run is not complete: %w", report.Seed, err)
	}
	return nil
}

// tortureDir makes the directory for the data, which must be empty.
func tortureDir(dir string) (string, error) {
	if dir == "" {
		return os.MkdirTemp("", "countinghouse-torture-")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", output.Exit(output.ExitUsage, fmt.Errorf("--data-dir: %w", err))
	}
	names, err := os.ReadDir(dir)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("%s is not empty (%s): name an empty directory", dir, names[0].Name())
	}
	if err != nil {
		return "", output.Exit(output.ExitUsage, fmt.Errorf("--data-dir: %w", err))
	}
	return filepath.Abs(dir)
}

// untilSecondSignal returns a context that outlives the end of parent, which a
// first signal brings about, and ends with a second one.
func untilSecondSignal(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	go func() {
		select {
		case <-parent.Done():
		case <-ctx.Done():
			return
		}
		second := make(chan os.Signal, 1)
		signal.Notify(second, syscall.SIGINT, syscall.SIGTERM)
		defer signal.Stop(second)
		select {
		case <-second:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func printTorture(p *output.Printer, r *tortureResult) error {
	if p.Format == output.JSON {
		return p.JSON(r)
	}
	kinds := make([]string, 0, len(r.Faults))
	for kind := range r.Faults {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	var faults [][]string
	for _, kind := range kinds {
		faults = append(faults, []string{kind, output.Count(r.Faults[kind])})
	}
	p.Table([]string{"fault", "times"}, faults)
	p.Line("")
	u := r.Unavailable
	p.Table([]string{"checked", ""}, [][]string{
		{"faults", output.Count(r.FaultsTotal)},
		{"records acknowledged", output.Count(r.Acked)},
		{"records stored", output.Count(r.Stored)},
		{"records read back from replicas", output.Count(r.RecordsCompared)},
		{"sessions opened", output.Count(r.Sessions)},
		{"writers succeeded", output.Count(r.Takeovers)},
		{"writers fenced", output.Count(r.Fenced)},
		{"wrong batches refused", output.Count(r.Provoked)},
		{"scans by leaders", output.Count(r.Reads.Scans)},
		{"lookups by leaders", output.Count(r.Reads.Gets)},
		{"scans by any replica", output.Count(r.Reads.Stale)},
		{"records followed", output.Count(r.Reads.Tailed)},
		{"lost", output.Count(r.Lost)},
		{"duplicated", output.Count(r.Duplicated)},
		{"reordered", output.Count(r.Reordered)},
	})
	p.Line("\nunavailable %s times for 100 ms or more: p50 %s ms, p99 %s ms, max %s ms",
		output.Count(u.Count), output.Count(u.P50), output.Count(u.P99), output.Count(u.Max))
	p.Line("%d replicas read back, identical: %t; %d directories verified", r.ReplicasChecked, r.ReplicasIdentical, r.Verified)
	for _, f := range r.Findings {
		p.Line("%s %s", p.Bad("FINDING"), f)
	}
	verdict := p.Good("ok")
	switch {
	case len(r.Findings) > 0:
		verdict = p.Bad(fmt.Sprintf("%d FINDINGS", len(r.Findings)))
	case !r.Complete:
		verdict = p.Bad("not complete")
	}
	p.Line("seed %d, %.1f s: %s", r.Seed, r.Seconds, verdict)
	if r.DataDir != "" {
		p.Line("data: %s", r.DataDir)
	}
	return nil
}
