package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// verdict is what verify says of one data directory or one member.
type verdict struct {
	Target   string    `json:"target"`
	Cluster  string    `json:"cluster,omitempty"`
	Shard    string    `json:"shard,omitempty"`
	Member   string    `json:"member,omitempty"`
	OK       bool      `json:"ok"`
	Error    string    `json:"error,omitempty"` // the check could not be done
	Files    uint64    `json:"files"`
	Bytes    uint64    `json:"bytes"`
	Records  uint64    `json:"records"`
	Entries  uint64    `json:"log_entries,omitempty"`
	Findings []finding `json:"findings"`
}

type finding struct {
	File     string `json:"file"`
	Offset   int64  `json:"offset"`
	What     string `json:"what"`
	Harmless bool   `json:"harmless"`
}

func newVerify(s *settings) *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use:   "verify [DIR…]",
		Short: "Re-check every checksum and sequence number of stopped nodes' directories or of live shards",
		Long: "With directories, checks the data of nodes that are stopped: identity, tables, manifests, Raft log,\n" +
			"snapshots. With --shards, has every running member, or the one that --replica names, check its own.\n" +
			"It changes nothing, and exits with 1 when anything is damaged.",
		Example: "  countinghouse verify data/s1-0 data/s1-1\n  countinghouse verify --shards shards.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) == (t.shards == "") {
				return output.Exit(output.ExitUsage, errors.New("name the directories of stopped nodes, or --shards of a running cluster"))
			}
			p := s.printer(cmd)
			var all []verdict
			var err error
			if t.shards == "" {
				all = verifyDirs(p, args)
			} else if all, err = verifyLive(cmd.Context(), p, &t); err != nil {
				return err
			}
			return printVerdicts(p, all)
		},
	}
	t.bindOptional(cmd)
	return cmd
}

func verifyDirs(p *output.Printer, dirs []string) []verdict {
	all := make([]verdict, len(dirs))
	for i, dir := range dirs {
		p.Progress("verifying %s", dir)
		v := verdict{Target: dir, Findings: []finding{}}
		sum, err := replica.VerifyDataDir(vfs.Default, dir, func(f replica.Finding) {
			v.Findings = append(v.Findings, finding{f.File, f.Offset, f.What, f.Harmless})
		})
		v.Cluster, v.Shard, v.Member = sum.Cluster, sum.Shard, sum.ID
		v.Files, v.Bytes, v.Records, v.Entries = sum.Files, sum.Bytes, sum.Records, sum.LogEntries
		v.OK = err == nil && sum.Damaged == 0
		if err != nil {
			v.Error = err.Error()
		}
		all[i] = v
	}
	return all
}

func verifyLive(ctx context.Context, p *output.Printer, t *target) ([]verdict, error) {
	c, err := t.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var all []verdict
	for _, shard := range c.Map().Shards {
		for _, m := range shard.Members {
			if t.replica == "" || t.replica == m.ID {
				all = append(all, verifyMember(ctx, p, c, shard.Name, m))
			}
		}
	}
	if len(all) == 0 {
		return nil, output.Exit(output.ExitUsage, fmt.Errorf("no member %q in the shard map", t.replica))
	}
	return all, nil
}

func verifyMember(ctx context.Context, p *output.Printer, c *client.Client, shard string, m client.Member) verdict {
	v := verdict{Target: m.Address, Cluster: c.Map().Cluster, Shard: shard, Member: m.ID, Findings: []finding{}}
	last, err := c.Verify(ctx, shard, m.ID, func(r *storagepb.VerifyResponse) {
		if r.Finding != "" {
			v.Findings = append(v.Findings, finding{File: r.File, Offset: r.Offset, What: r.Finding})
		}
		p.Progress("verifying %s: %s records, %s", m.ID, output.Count(r.Records), output.Bytes(r.Bytes))
	})
	if err != nil {
		v.Error = err.Error()
		return v
	}
	v.OK, v.Files, v.Bytes, v.Records = last.Ok, last.Files, last.Bytes, last.Records
	return v
}

// printVerdicts prints what was found and returns an error unless all is well.
func printVerdicts(p *output.Printer, all []verdict) error {
	var damaged, unchecked int
	for _, v := range all {
		switch {
		case v.Error != "":
			unchecked++
		case !v.OK:
			damaged++
		}
	}
	if p.Format == output.JSON {
		if err := p.JSON(map[string]any{"ok": damaged+unchecked == 0, "targets": all}); err != nil {
			return err
		}
	} else {
		printVerdictTable(p, all)
	}
	switch {
	case damaged > 0:
		return output.Exit(output.ExitFailed, fmt.Errorf("%d of %d are damaged", damaged, len(all)))
	case unchecked > 0:
		return output.Exit(output.ExitUnavailable, fmt.Errorf("%d of %d could not be checked", unchecked, len(all)))
	}
	return nil
}

func printVerdictTable(p *output.Printer, all []verdict) {
	rows := make([][]string, len(all))
	for i, v := range all {
		state := p.Good("ok")
		if v.Error != "" {
			state = p.Bad("not checked")
		} else if !v.OK {
			state = p.Bad("DAMAGED")
		}
		rows[i] = []string{v.Target, v.Member, output.Count(v.Files), output.Bytes(v.Bytes), output.Count(v.Records), output.Count(v.Entries), state}
	}
	p.Table([]string{"target", "member", "files", "size", "records", "log entries", "state"}, rows)
	for _, v := range all {
		if v.Error != "" {
			p.Line("%s: %s", v.Target, v.Error)
		}
		for _, f := range v.Findings {
			note := ""
			if f.Harmless {
				note = " (harmless)"
			}
			p.Line("%s offset %d%s: %s", f.File, f.Offset, note, f.What)
		}
	}
}
