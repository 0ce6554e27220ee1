package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/storagenode/replica"
)

// recovery is the recover command's flags.
type recovery struct {
	dir    string
	member string
	accept string
	token  string
}

func newRecover(s *settings) *cobra.Command {
	var r recovery
	cmd := &cobra.Command{
		Use:   "recover --data-dir DIR --member ID",
		Short: "Make a stopped member the only voter of a shard that has lost its quorum for good",
		Long: "Make a stopped member the only voter of a shard that has lost its quorum for good: more than half of its\n" +
			"voters have lost their disks. The shard then goes on with what this member holds, in a generation of its own:\n" +
			"the other members are refused for ever, should they come back with their data. Start the node afterwards with\n" +
			"the flags that it always has, and add members to it.\n\n" +
			"What is lost is what a quorum acknowledged without this member. It can not be known from here; an exchange\n" +
			"that was told of it notices, and does not go on. So take the member whose log reaches furthest: run this\n" +
			"command without an answer for each, and compare.\n\n" +
			"Nothing is done before the member's id is typed, or given with --yes-i-accept-loss, and nothing if other\n" +
			"members answer and could elect a leader. A shard on Kubernetes is recovered through its operator:\n" +
			"kubectl countinghouse recover.",
		Example: "  countinghouse recover --data-dir /data/s1-2 --member s1-2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.run(s.printer(cmd), cmd.InOrStdin())
		},
	}
	cmd.Flags().StringVar(&r.dir, "data-dir", "", "data directory of the stopped member (required)")
	cmd.Flags().StringVar(&r.member, "member", "", "id of the member whose directory it is (required)")
	cmd.Flags().StringVar(&r.accept, "yes-i-accept-loss", "", "the member's id once more, instead of typing it")
	cmd.Flags().StringVar(&r.token, "token", "", "name of this decision, carried out once (default: made of the time)")
	return cmd
}

// recoveryReport is what recover prints as JSON.
type recoveryReport struct {
	Cluster    string         `json:"cluster"`
	Shard      string         `json:"shard"`
	Member     string         `json:"member"`
	LastIndex  uint64         `json:"last_index"`
	LastTerm   uint64         `json:"last_term"`
	Members    []replica.Peer `json:"members"`
	Token      string         `json:"token"`
	Generation uint64         `json:"generation"`
	Index      uint64         `json:"index"`
	GivenUp    []replica.Peer `json:"given_up"`
}

func (r *recovery) run(p *output.Printer, in io.Reader) error {
	if r.dir == "" || r.member == "" {
		return output.Exit(output.ExitUsage, errors.New("name the member: --data-dir and --member are required"))
	}
	if p.Format == output.JSON && r.accept == "" {
		return output.Exit(output.ExitUsage, fmt.Errorf("nobody can answer: add --yes-i-accept-loss=%s", r.member))
	}
	if r.token == "" {
		r.token = "by-hand-" + time.Now().UTC().Format("20060102T150405Z")
	}
	if err := replica.CheckToken(r.token); err != nil {
		return output.Exit(output.ExitUsage, fmt.Errorf("--token: %w", err))
	}
	quiet := slog.New(slog.DiscardHandler)
	found, err := replica.SurveyDataDir(replica.Config{DataDir: r.dir, Logger: quiet})
	if err != nil {
		return err
	}
	if found.Identity.ID != r.member {
		return output.Exit(output.ExitUsage, fmt.Errorf("--member: %s is the directory of member %s of shard %s, not of %s", r.dir, found.Identity.ID, found.Identity.Shard, r.member))
	}
	if p.Format == output.Human {
		r.explain(p, &found)
	}
	if err := r.confirm(p, in); err != nil {
		return err
	}
	done, err := replica.RecoverOffline(replica.Config{DataDir: r.dir, Recover: r.token, Logger: quiet})
	if err != nil {
		return err
	}
	return r.report(p, &found, done)
}

func (r *recovery) explain(p *output.Printer, s *replica.Survey) {
	p.Line("Member %s of shard %s, cluster %s, in %s", s.Identity.ID, s.Identity.Shard, s.Identity.Cluster, r.dir)
	p.Line("  its log reaches entry %d of term %d (generation %d)", s.LastIndex, s.LastTerm, replica.Generation(s.LastTerm))
	p.Line("")
	p.Line("It becomes the shard's only voter. These members are given up, and are refused from then on:")
	for _, m := range s.Members {
		if m.ID != s.Identity.ID {
			p.Line("  %s at %s", m.ID, m.Address)
		}
	}
	p.Line("Records that were acknowledged by the others without this member are lost. If the log of another")
	p.Line("member reaches further, that one should be recovered instead.")
}

// confirm wants the member's id.
func (r *recovery) confirm(p *output.Printer, in io.Reader) error {
	given := r.accept
	if given == "" {
		p.Line("")
		p.Line("Type the member's id to go on, anything else to leave everything as it is:")
		line, err := bufio.NewReader(in).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		given = strings.TrimSpace(line)
	}
	if given != r.member {
		return output.Exit(output.ExitUsage, fmt.Errorf("nothing was done: %q is not the member's id, %s", given, r.member))
	}
	return nil
}

func (r *recovery) report(p *output.Printer, s *replica.Survey, done replica.Recovery) error {
	if p.Format == output.JSON {
		return p.JSON(recoveryReport{
			Cluster: s.Identity.Cluster, Shard: s.Identity.Shard, Member: s.Identity.ID, LastIndex: s.LastIndex, LastTerm: s.LastTerm,
			Members: s.Members, Token: done.Token, Generation: done.Generation, Index: done.Index, GivenUp: done.GivenUp,
		})
	}
	if done.Index == 0 {
		p.Line("Nothing was to be done: member %s is its shard's only voter already.", s.Identity.ID)
		return nil
	}
	p.Line("Done, as %s: member %s is the only voter of shard %s, in generation %d from entry %d on.", done.Token, s.Identity.ID, s.Identity.Shard, done.Generation, done.Index)
	p.Line("Start its node again, add members with --join under ids that were never used, and keep the others'")
	p.Line("directories aside until the exchange goes on.")
	return nil
}
