package main

import (
	"fmt"
	"os"

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
	cmd := &cobra.Command{Use: "cluster", Short: "Run a cluster of storage nodes on this machine", Args: cobra.NoArgs}
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
			"started there again, the cluster goes on with it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if shards < 1 || shards > 64 {
				return output.Exit(output.ExitUsage, fmt.Errorf("--shards-count %d: use 1 to 64", shards))
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
	if err != nil {
		return err
	}
	defer c.Stop()
	path, err := c.WriteMap()
	if err != nil {
		return err
	}
	if err := c.AwaitLeaders(cmd.Context()); err != nil {
		return err
	}
	m, p := c.Map(), s.printer(cmd)
	if s.format == output.JSON {
		if err := p.JSON(map[string]any{"shard_map": path, "shards": m.Shards}); err != nil {
			return err
		}
	} else {
		printCluster(p, path, m)
	}
	<-cmd.Context().Done()
	p.Note("stopping %d storage nodes", len(c.Members()))
	return nil
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
