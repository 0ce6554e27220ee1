package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/replicas"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// memberStats is what one member says of itself, or why it says nothing.
type memberStats struct {
	Shard       string                       `json:"shard"`
	Member      string                       `json:"member"`
	Address     string                       `json:"address"`
	Error       string                       `json:"error,omitempty"`
	Status      *storagepb.StatusResponse    `json:"status,omitempty"`
	Instruments []*storagepb.InstrumentStats `json:"instruments,omitempty"`
}

func newStats(s *settings) *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show every shard: who leads, how far each member is, what it holds",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := t.bounded(cmd.Context())
			defer cancel()
			all := collectStats(ctx, c, t.replica)
			if len(all) == 0 {
				return output.Exit(output.ExitUsage, fmt.Errorf("no member %q in the shard map", t.replica))
			}
			p := s.printer(cmd)
			if s.format == output.JSON {
				err = p.JSON(all)
			} else {
				printStats(p, all)
			}
			if err == nil && !slices.ContainsFunc(all, func(m memberStats) bool { return m.Status != nil }) {
				err = output.Exit(output.ExitUnavailable, fmt.Errorf("no member answers: %s", all[0].Error))
			}
			return err
		},
	}
	t.bind(cmd)
	return cmd
}

func collectStats(ctx context.Context, c *client.Client, only string) []memberStats {
	var all []memberStats
	for _, shard := range c.Map().Shards {
		for _, m := range shard.Members {
			if only != "" && m.ID != only {
				continue
			}
			all = append(all, statsOf(ctx, c, shard.Name, m))
		}
	}
	return all
}

func statsOf(ctx context.Context, c *client.Client, shard string, m client.Member) memberStats {
	out := memberStats{Shard: shard, Member: m.ID, Address: m.Address}
	st, err := c.Status(ctx, shard, m.ID)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	out.Status = st
	held, err := c.Instruments(ctx, shard, client.Replica{Member: m.ID})
	if err != nil {
		out.Error = err.Error()
		return out
	}
	out.Instruments = held.Instruments
	return out
}

func printStats(p *output.Printer, all []memberStats) {
	var members, held [][]string
	for _, m := range all {
		if m.Status == nil {
			members = append(members, []string{m.Shard, m.Member, m.Address, p.Bad("down"), "", "", "", ""})
			continue
		}
		st := m.Status
		members = append(members, []string{
			m.Shard, m.Member, m.Address, stateOf(p, st), output.Count(st.Term),
			output.Count(st.AppliedIndex), output.Count(st.LastIndex), output.Bytes(st.DiskFreeBytes),
		})
		for _, i := range m.Instruments {
			held = append(held, []string{
				i.Instrument, m.Member, output.Count(i.LastSeq), output.Count(i.MemtableRecords),
				output.Count(i.TableRecords), fmt.Sprint(i.Tables), replicas.EpochName(i.Epoch), fmt.Sprintf("%08x", i.Chain),
			})
		}
	}
	p.Table([]string{"shard", "member", "address", "state", "term", "applied", "log", "free"}, members)
	slices.SortStableFunc(held, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	p.Line("")
	p.Table([]string{"instrument", "member", "records", "in memory", "in tables", "tables", "epoch", "chain"}, held)
}

// stateOf prints a member's state, whether its data is damaged, and how much has
// come of a snapshot that it receives.
func stateOf(p *output.Printer, st *storagepb.StatusResponse) string {
	if x := st.Receiving; x != nil && x.TotalBytes > 0 {
		return fmt.Sprintf("%s, snapshot %d %% of %s", st.State, 100*x.DoneBytes/x.TotalBytes, output.Bytes(x.TotalBytes))
	}
	if st.Damage != "" {
		return st.State + ", " + p.Bad("DAMAGED")
	}
	return st.State
}
