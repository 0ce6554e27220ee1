package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	kube "sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// recovery is the recover command's flags.
type recovery struct {
	survivor string
	accept   string
	wait     time.Duration
}

func newRecover(s *settings) *cobra.Command {
	var r recovery
	cmd := &cobra.Command{
		Use:   "recover SHARD --survivor MEMBER",
		Short: "Let a shard that has lost its quorum for good go on from one member",
		Long: "Let a shard that has lost its quorum for good go on from one member. It shows what each member that answers\n" +
			"holds, says what is given up, and does nothing before the survivor's name is typed, or given with\n" +
			"--yes-i-accept-loss. Then it writes the annotation " + v1.AnnotationRecoverFrom + " to the shard, and follows\n" +
			"what the operator does: the pods of the other members end for ever, the survivor starts as the only voter,\n" +
			"further members join. The decision is recorded in the shard's status. The volumes of members that are given\n" +
			"up are kept; at the end it says how to delete them.\n\n" +
			"What is lost is what a quorum acknowledged without the survivor. Take the member whose log reaches furthest.\n" +
			"An exchange that was told of lost records notices, and does not go on.",
		Example: "  kubectl countinghouse recover futures --survivor futures-2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sess, err := s.connect(s)
			if err != nil {
				return err
			}
			shard, err := sess.shard(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return sess.recover(cmd.Context(), s.printer(cmd), cmd.InOrStdin(), shard, &r)
		},
	}
	cmd.Flags().StringVar(&r.survivor, "survivor", "", "the member from which the shard goes on (required)")
	cmd.Flags().StringVar(&r.accept, "yes-i-accept-loss", "", "the survivor's name once more, instead of typing it")
	cmd.Flags().DurationVar(&r.wait, "wait", time.Hour, "how long to follow the operator; 0: not at all")
	return cmd
}

// holding is what a member holds, as far as it could be asked.
type holding struct {
	Member    string            `json:"member"`
	Volume    string            `json:"volume"` // "-": gone
	Answered  bool              `json:"answered"`
	Error     string            `json:"error,omitempty"`
	LastIndex uint64            `json:"last_index"`
	Term      uint64            `json:"term"`
	Records   uint64            `json:"records"` // applied, of all streams
	LastSeqs  map[string]uint64 `json:"last_seqs"`
}

func (s *session) recover(ctx context.Context, p *output.Printer, in io.Reader, shard *v1.InstrumentShard, r *recovery) error {
	v, err := s.look(ctx, shard)
	if err != nil {
		return err
	}
	held, err := s.holdings(ctx, v)
	if err != nil {
		return err
	}
	if p.Format == output.Human {
		printHoldings(p, shard, held)
	}
	if err := mayRecover(v, r, held); err != nil {
		return err
	}
	if err := r.confirm(p, in, shard, held); err != nil {
		return err
	}
	before := shard.DeepCopy()
	if shard.Annotations == nil {
		shard.Annotations = map[string]string{}
	}
	shard.Annotations[v1.AnnotationRecoverFrom] = r.survivor
	if err := s.kube.Patch(ctx, shard, kube.MergeFrom(before)); err != nil {
		return apiError(err)
	}
	p.Note("annotation %s=%s is set", v1.AnnotationRecoverFrom, r.survivor)
	if r.wait == 0 {
		return nil
	}
	return s.follow(ctx, p, before, held, r)
}

// holdings asks every member that runs what it holds.
func (s *session) holdings(ctx context.Context, v *view) ([]holding, error) {
	c, err := s.members(ctx, v.shard, v.running())
	if err != nil {
		return nil, err
	}
	if c != nil {
		defer c.Close()
	}
	out := []holding{}
	for _, m := range v.shard.Status.Members {
		h := holding{Member: m.ID, Volume: v.member(m).Volume, LastSeqs: map[string]uint64{}}
		if m.Role == v1.RoleLost {
			h.Volume = "-"
		}
		a, asked := v.asked[m.ID]
		switch {
		case !asked:
			h.Error = "no running pod"
		case a.err != nil:
			h.Error = reason(a.err)
		default:
			h.Answered, h.LastIndex, h.Term = true, a.status.LastIndex, a.status.Term
			held, err := c.Instruments(ctx, v.shard.Name, client.Replica{Member: m.ID})
			if err != nil {
				h.Error = reason(err)
			}
			for _, st := range held.GetInstruments() {
				h.LastSeqs[st.Instrument] = st.LastSeq
				h.Records += st.LastSeq
			}
		}
		out = append(out, h)
	}
	return out, nil
}

func printHoldings(p *output.Printer, shard *v1.InstrumentShard, held []holding) {
	p.Line("Shard %s of cluster %s. What its members hold:", shard.Name, shard.Spec.Cluster)
	p.Line("")
	var rows [][]string
	for _, h := range held {
		row := []string{h.Member, h.Volume, "-", "-", "-", h.Error}
		if h.Answered {
			row[2], row[3], row[4] = output.Count(h.LastIndex), output.Count(h.Term), output.Count(h.Records)
		}
		row[5] = output.Clip(orDash(h.Error), 30)
		rows = append(rows, row)
	}
	p.Table([]string{"member", "volume", "log reaches", "term", "records applied", "error"}, rows)
	p.Line("")
}

// mayRecover refuses what the operator would refuse, before anything is asked.
func mayRecover(v *view, r *recovery, held []holding) error {
	st := &v.shard.Status
	lost := meta.FindStatusCondition(st.Conditions, v1.ConditionQuorumLost)
	switch {
	case v.leader != nil:
		return output.Exit(output.ExitFailed, fmt.Errorf("member %s leads shard %s: it has a quorum, and nothing is to be recovered", v.leader.Id, v.shard.Name))
	case lost == nil || lost.Status != "True":
		return output.Exit(output.ExitFailed, fmt.Errorf("shard %s has not lost its quorum: too few of its members have lost their volume. "+
			"Bring the others back; if the disk of one is gone for good though its volume claim is there, delete the claim", v.shard.Name))
	case r.survivor == "":
		return output.Exit(output.ExitUsage, fmt.Errorf("--survivor: name the member from which the shard goes on%s", suggestion(held)))
	}
	if err := checkMember(v.shard, r.survivor); err != nil {
		return err
	}
	for _, h := range held {
		if h.Member == r.survivor && h.Volume == "-" {
			return output.Exit(output.ExitUsage, fmt.Errorf("--survivor: member %s has lost its volume%s", r.survivor, suggestion(held)))
		}
	}
	return nil
}

// furthest returns the member whose log reaches furthest, nil if none answers.
func furthest(held []holding) *holding {
	var best *holding
	for i := range held {
		if h := &held[i]; h.Answered && h.Volume != "-" && (best == nil || h.LastIndex > best.LastIndex) {
			best = h
		}
	}
	return best
}

func suggestion(held []holding) string {
	if best := furthest(held); best != nil {
		return ": of those that answer, the log of " + best.Member + " reaches furthest"
	}
	return ": none answers"
}

// confirm says what is given up, and wants the survivor's name.
func (r *recovery) confirm(p *output.Printer, in io.Reader, shard *v1.InstrumentShard, held []holding) error {
	if p.Format == output.Human {
		p.Line("The shard is to go on from %s alone. Given up for ever, with what they acknowledged", r.survivor)
		p.Line("without it:")
		for _, h := range held {
			if h.Member != r.survivor {
				p.Line("  %s (volume %s)", h.Member, h.Volume)
			}
		}
		if best := furthest(held); best == nil {
			p.Line("%s", p.Bad("The survivor does not answer: what it holds is not known."))
		} else if best.Member != r.survivor {
			p.Line("%s", p.Bad(fmt.Sprintf("The log of %s reaches further, or the survivor does not answer: is %s the right one?", best.Member, r.survivor)))
		}
	}
	given := r.accept
	if given == "" && p.Format == output.JSON {
		return output.Exit(output.ExitUsage, fmt.Errorf("nobody can answer: add --yes-i-accept-loss=%s", r.survivor))
	}
	if given == "" {
		p.Line("")
		p.Line("Type the survivor's name to go on, anything else to leave everything as it is:")
		line, err := bufio.NewReader(in).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		given = strings.TrimSpace(line)
	}
	if given != r.survivor {
		return output.Exit(output.ExitUsage, fmt.Errorf("nothing was done to shard %s: %q is not the survivor's name, %s", shard.Name, given, r.survivor))
	}
	return nil
}

// follow waits until the operator has recovered the shard, or has refused to.
func (s *session) follow(ctx context.Context, p *output.Printer, before *v1.InstrumentShard, held []holding, r *recovery) error {
	deadline := s.now().Add(r.wait)
	for {
		shard := new(v1.InstrumentShard)
		if err := s.kube.Get(ctx, kube.ObjectKeyFromObject(before), shard); err != nil {
			return apiError(err)
		}
		rec := shard.Status.Recovery
		begun := rec != nil && (before.Status.Recovery == nil || rec.Token != before.Status.Recovery.Token)
		condition := meta.FindStatusCondition(shard.Status.Conditions, v1.ConditionRecovery)
		switch {
		case begun && rec.Phase == v1.RecoveryDone:
			return printRecovered(p, shard, held)
		case !begun && condition != nil && condition.Reason == "Refused":
			return output.Exit(output.ExitFailed, fmt.Errorf("the operator refuses: %s; the annotation stays until it is removed: kubectl annotate ishard -n %s %s %s-",
				condition.Message, shard.Namespace, shard.Name, v1.AnnotationRecoverFrom))
		case begun:
			p.Progress("%s: %s", rec.Phase, next(shard))
		default:
			p.Progress("the operator has not seen it yet")
		}
		if s.now().After(deadline) {
			return output.Exit(output.ExitUnavailable, fmt.Errorf("shard %s is not recovered yet; the operator goes on: kubectl countinghouse status %s", shard.Name, shard.Name))
		}
		select {
		case <-time.After(s.poll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func printRecovered(p *output.Printer, shard *v1.InstrumentShard, held []holding) error {
	if p.Format == output.JSON {
		return p.JSON(map[string]any{"shard": shard.Name, "recovery": shard.Status.Recovery, "held_before": held})
	}
	p.Line("Shard %s is recovered: it went on from %s, and has all its members again.", shard.Name, shard.Status.Recovery.Survivor)
	if c := meta.FindStatusCondition(shard.Status.Conditions, v1.ConditionRecovery); c != nil {
		printWrapped(p, "note", c.Message)
	}
	return nil
}
