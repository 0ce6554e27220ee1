package main

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/storagenode/replica"
)

// verdict is what verify says of one directory or one member.
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

	Outbox *outboxState `json:"outbox,omitempty"`
}

type finding struct {
	File     string `json:"file"`
	Offset   int64  `json:"offset"`
	What     string `json:"what"`
	Harmless bool   `json:"harmless"`
}

func newVerify(s *settings) *cobra.Command {
	var t target
	var records bool
	cmd := &cobra.Command{
		Use:   "verify [DIR…]",
		Short: "Re-check every checksum and sequence number of stopped nodes' directories, of outboxes, or of live shards",
		Long: "With directories, checks everything in those of nodes that are stopped: identity, tables, manifests, term and\n" +
			"vote, every entry of the Raft log, snapshots, and that the log has not lost what the tables show. A directory\n" +
			"may also be an exchange's outbox, whether the exchange runs or not: its control file, its cursors and every\n" +
			"published record that it keeps are checked, and it says which records are damaged and which are still good.\n\n" +
			"With --shards, has every running member, or the one that --replica names, re-read its store: manifests, tables\n" +
			"and records in memory, their checksums, sequence numbers and chained hashes. It then compares epoch, last\n" +
			"number and chained hash of every stream between the replicas of each shard. Log, vote, identity and snapshots\n" +
			"of a running node are not looked at. With --records, too, it reads every record of every replica, compares\n" +
			"them byte by byte, and counts the numbers that run through all streams, from 1 on: each must be there once.\n" +
			"That is for a cluster that nobody writes to.\n\n" +
			"It changes nothing, and exits with 1 when anything is damaged.",
		Example: "  countinghouse verify data/s1-0 data/s1-1\n  countinghouse verify data/outbox\n  countinghouse verify --shards shards.yaml --records",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) == (t.shards == "") {
				return output.Exit(output.ExitUsage, errors.New("name the directories of stopped nodes or of outboxes, or --shards of a running cluster"))
			}
			if records && (t.shards == "" || t.replica != "") {
				return output.Exit(output.ExitUsage, errors.New("--records compares all replicas of a running cluster: use it with --shards, without --replica"))
			}
			p := s.printer(cmd)
			var all []verdict
			var err error
			if t.shards == "" {
				all = verifyDirs(p, args)
			} else if all, err = verifyLive(cmd.Context(), p, &t, records); err != nil {
				return err
			}
			return printVerdicts(p, all)
		},
	}
	t.bindOptional(cmd)
	cmd.Flags().BoolVar(&records, "records", false, "also compare every record of all replicas, and count the numbers through all streams")
	return cmd
}

func verifyDirs(p *output.Printer, dirs []string) []verdict {
	all := make([]verdict, len(dirs))
	for i, dir := range dirs {
		p.Progress("verifying %s", dir)
		if outbox.Is(dir) {
			all[i] = verifyOutbox(dir)
			continue
		}
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
		if v.Outbox != nil {
			p.Line("%s: %s", v.Target, v.Outbox.line())
		}
		for _, f := range v.Findings {
			note := ""
			if f.Harmless {
				note = " (harmless)"
			}
			where := f.File
			if f.Offset > 0 {
				where = fmt.Sprintf("%s offset %d", f.File, f.Offset)
			}
			p.Line("%s%s: %s", where, note, f.What)
		}
	}
}
