package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// nodeCommand returns the command line that runs this program as a storage node.
func nodeCommand() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the program's own file to start storage nodes: %w", err)
	}
	return []string{self, "node"}, nil
}

// spread deals the instruments out to n shards; the account stream goes to the
// first one.
func spread(instruments []string, n, replicas int) []localcluster.Shard {
	shards := make([]localcluster.Shard, n)
	for i := range shards {
		shards[i] = localcluster.Shard{Name: fmt.Sprintf("s%d", i+1), Replicas: replicas}
	}
	for i, name := range instruments {
		s := &shards[i%n]
		s.Instruments = append(s.Instruments, name)
	}
	shards[0].Instruments = append(shards[0].Instruments, record.AccountStream)
	return shards
}

func newCluster(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use: "cluster", Short: "Run a cluster of storage nodes on this machine", Args: cobra.NoArgs,
		// Without this, cobra prints the help for any unknown word, and succeeds.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newClusterUp(s))
	return cmd
}

func newClusterUp(s *settings) *cobra.Command {
	var dir, name string
	var shards, replicas int
	var instruments []string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start storage nodes in the foreground and stop them on Ctrl-C",
		Long: "Starts storage nodes as processes of their own on loopback ports, prints where they are,\n" +
			"and writes a shard map that exchange and the reading commands take. The data stays in --data-dir;\n" +
			"started there again with the same shards, replicas and instruments, the cluster goes on with it.\n" +
			"A node that ends by itself is not started again; the exit code is then 1.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if shards < 1 || shards > 64 {
				return output.Exit(output.ExitUsage, fmt.Errorf("--shards-count %d: use 1 to 64", shards))
			}
			if replicas < 1 || replicas > 7 || replicas%2 == 0 {
				return output.Exit(output.ExitUsage, fmt.Errorf("--replicas %d: use 1, 3, 5 or 7", replicas))
			}
			for _, name := range instruments {
				if _, err := instrumentArg(name); err != nil {
					return err
				}
			}
			layout := spread(instruments, shards, replicas)
			return s.clusterUp(cmd, dir, name, layout)
		},
	}
	cmd.Flags().StringVar(&dir, "data-dir", "", "`directory` for the nodes' data (required)")
	cmd.Flags().StringVar(&name, "cluster", "local", "`name` of the cluster")
	cmd.Flags().IntVar(&shards, "shards-count", 1, "`number` of shards")
	cmd.Flags().IntVar(&replicas, "replicas", 3, "storage nodes in each shard: 1, 3, 5 or 7")
	cmd.Flags().StringSliceVar(&instruments, "instruments", []string{"IF2501", "IC2501", "IH2501"}, "`names` to spread over the shards")
	if err := cmd.MarkFlagRequired("data-dir"); err != nil {
		cobra.CheckErr(err)
	}
	return cmd
}

func (s *settings) clusterUp(cmd *cobra.Command, dir, name string, layout []localcluster.Shard) error {
	command, err := nodeCommand()
	if err != nil {
		return err
	}
	c, err := localcluster.Start(cmd.Context(), localcluster.Options{Cluster: name, Dir: dir, Command: command, Shards: layout})
	if errors.Is(err, localcluster.ErrLayout) {
		return output.Exit(output.ExitUsage, fmt.Errorf("--shards-count, --replicas, --instruments, --cluster: %w", err))
	}
	if err != nil {
		return err
	}
	defer c.Stop()
	path, err := c.WriteMap()
	if err != nil {
		return err
	}
	u := &upkeep{p: s.printer(cmd), cluster: c, leaders: make(chan error, 1), ends: make(chan nodeEnd, len(c.Members()))}
	err = u.run(cmd.Context(), func() error {
		if s.format == output.JSON {
			return u.p.JSON(map[string]any{"shard_map": path, "shards": c.Map().Shards})
		}
		printCluster(u.p, path, c.Map())
		return nil
	})
	u.p.Note("stopping the storage nodes")
	return err
}

// nodeEnd is the end of a node's process.
type nodeEnd struct {
	member localcluster.Member
	err    error // nil for exit code 0
}

// upkeep is the time while a cluster runs.
type upkeep struct {
	p       *output.Printer
	cluster *localcluster.Cluster
	leaders chan error   // whether every shard has found a leader
	ends    chan nodeEnd // with room for all
	ended   []string     // ids of nodes that have ended by themselves
}

// run calls ready when every shard has a leader, reports nodes that end by
// themselves, and returns when ctx ends or no node is left.
func (u *upkeep) run(ctx context.Context, ready func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { u.leaders <- u.cluster.AwaitLeaders(ctx) }()
	go func() {
		defer close(u.ends)
		u.cluster.NotifyEnds(ctx, func(m localcluster.Member, err error) { u.ends <- nodeEnd{m, err} })
	}()
	for {
		select {
		case err := <-u.leaders:
			if ctx.Err() != nil { // Ctrl-C, which is how a cluster is stopped
				return u.verdict()
			}
			if err == nil {
				err = ready()
			}
			if err != nil {
				return errors.Join(err, u.verdict())
			}
		case end, more := <-u.ends:
			if !more { // no node runs, or ctx has ended
				return u.verdict()
			}
			u.report(end)
		}
	}
}

func (u *upkeep) report(end nodeEnd) {
	u.ended = append(u.ended, end.member.ID)
	how := "exit code 0"
	if end.err != nil {
		how = end.err.Error()
	}
	u.p.Note("%s %s has ended (%s); its log, %s, ends with:\n%s",
		u.p.Bad("node"), end.member.ID, how, end.member.LogFile, u.cluster.LogTail(end.member.ID))
}

// verdict returns an error that names the nodes that have ended by themselves.
func (u *upkeep) verdict() error {
	if len(u.ended) == 0 {
		return nil
	}
	return output.Exit(output.ExitFailed, fmt.Errorf("ended by themselves: %s", strings.Join(u.ended, ", ")))
}

func printCluster(p *output.Printer, path string, m *client.Map) {
	var rows [][]string
	for _, s := range m.Shards {
		for _, member := range s.Members {
			rows = append(rows, []string{s.Name, member.ID, member.Address, fmt.Sprint(s.Instruments)})
		}
	}
	p.Table([]string{"shard", "member", "address", "instruments"}, rows)
	p.Line("\nshard map: %s", path)
	p.Line("try:  countinghouse stats --shards %s", path)
	p.Line("Ctrl-C stops the nodes; the data stays.")
}
