package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/replicas"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// compareWait is how long replicas have to be at the same place.
const compareWait = 10 * time.Second

func newVerify(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "verify SHARD [MEMBER]",
		Short: "Have members re-read all that they hold, and compare them",
		Long: "Have every member, or one, re-read its store: manifests, tables and records in memory, their checksums,\n" +
			"sequence numbers and chained hashes. If all members answer, and none is named, it then compares epoch, last\n" +
			"number and chained hash of every stream between them. Log, vote and snapshots are not looked at.\n\n" +
			"It changes nothing. Exits with 1 if anything is damaged or differs, with 3 if something could not be checked.",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			sess, err := s.connect(s)
			if err != nil {
				return err
			}
			shard, err := sess.shard(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return sess.verify(cmd.Context(), s.printer(cmd), shard, first(args[1:]))
		},
	}
}

// verdict is what verify says of a member, or of all together.
type verdict struct {
	Target   string   `json:"target"`
	OK       bool     `json:"ok"`
	Error    string   `json:"error,omitempty"` // it could not be checked
	Files    uint64   `json:"files"`
	Bytes    uint64   `json:"bytes"`
	Records  uint64   `json:"records"`
	Findings []string `json:"findings"`
	Notes    []string `json:"notes"` // differences that are harmless
}

func (s *session) verify(ctx context.Context, p *output.Printer, shard *v1.InstrumentShard, member string) error {
	if err := checkMember(shard, member); err != nil {
		return err
	}
	v, err := s.look(ctx, shard)
	if err != nil {
		return err
	}
	c, err := s.members(ctx, shard, v.running())
	if err != nil {
		return err
	}
	if c != nil {
		defer c.Close()
	}
	var all []verdict
	reachable := true
	for _, m := range shard.Status.Members {
		if member != "" && m.ID != member || m.Role == v1.RoleLost || m.Role == v1.RoleLeaving {
			continue
		}
		if !isRunning(v.pods[m.ID]) {
			reachable = false
			all = append(all, verdict{Target: m.ID, Error: "it has no running pod", Findings: []string{}, Notes: []string{}})
			continue
		}
		one := verifyMember(ctx, p, c, shard.Name, m.ID)
		reachable = reachable && one.Error == ""
		all = append(all, one)
	}
	if member == "" && reachable && len(all) > 1 {
		all = append(all, compare(ctx, p, c))
	}
	return printVerdicts(p, shard.Name, all)
}

func verifyMember(ctx context.Context, p *output.Printer, c *client.Client, shard, id string) verdict {
	out := verdict{Target: id, Findings: []string{}, Notes: []string{}}
	last, err := c.Verify(ctx, shard, id, func(r *storagepb.VerifyResponse) {
		if r.Finding != "" {
			out.Findings = append(out.Findings, fmt.Sprintf("%s at %d: %s", r.File, r.Offset, r.Finding))
		}
		p.Progress("verifying %s: %s records, %s", id, output.Count(r.Records), output.Bytes(r.Bytes))
	})
	if err != nil {
		out.Error = reason(err)
		return out
	}
	out.OK, out.Files, out.Bytes, out.Records = last.Ok, last.Files, last.Bytes, last.Records
	return out
}

func compare(ctx context.Context, p *output.Printer, c *client.Client) verdict {
	p.Progress("comparing the members")
	out := verdict{Target: "all of them", Findings: []string{}, Notes: []string{}}
	result, err := replicas.Compare(ctx, c, c.Map().Shards[0], compareWait)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	for _, f := range result.Findings {
		if f.Harmless {
			out.Notes = append(out.Notes, f.What)
		} else {
			out.Findings = append(out.Findings, f.What)
		}
	}
	out.OK, out.Records = result.OK(), result.Records
	return out
}

func printVerdicts(p *output.Printer, shard string, all []verdict) error {
	bad, unchecked := 0, 0
	var rows [][]string
	for _, v := range all {
		state := p.Good("ok")
		switch {
		case v.Error != "":
			state = p.Bad("not checked")
			unchecked++
		case !v.OK:
			state = p.Bad("DAMAGED")
			bad++
		}
		rows = append(rows, []string{v.Target, output.Count(v.Files), output.Bytes(v.Bytes), output.Count(v.Records), state})
	}
	if p.Format == output.JSON {
		if err := p.JSON(map[string]any{"shard": shard, "ok": bad+unchecked == 0, "targets": all}); err != nil {
			return err
		}
	} else {
		p.Table([]string{"member", "files", "size", "records", "state"}, rows)
		for _, v := range all {
			for _, text := range append(append([]string{}, v.Findings...), v.Notes...) {
				printWrapped(p, v.Target, text)
			}
			if v.Error != "" {
				printWrapped(p, v.Target, v.Error)
			}
		}
	}
	switch {
	case bad > 0:
		return output.Exit(output.ExitFailed, fmt.Errorf("%d of %d checks of shard %s found damage: delete the volume claims of damaged members, one at a time, and the operator replaces them", bad, len(all), shard))
	case unchecked > 0:
		return output.Exit(output.ExitUnavailable, fmt.Errorf("%d of %d checks of shard %s could not be made", unchecked, len(all), shard))
	}
	return nil
}
