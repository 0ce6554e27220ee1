package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

func newStatus(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "status [SHARD]",
		Short: "Show shards: members, roles, lag, disk, conditions, what the operator does next and why",
		Long: "Show the shards of the namespace, or one: members, roles, lag, disk, conditions, what the operator does next\n" +
			"and why. What moves all the time comes from the members themselves.\n\n" +
			"Exits with 1 if a shard is not available or degraded, or a member that runs does not answer.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sess, err := s.connect(s)
			if err != nil {
				return err
			}
			found, err := sess.shards(cmd.Context(), first(args))
			if err != nil {
				return err
			}
			reports := []report{}
			for i := range found {
				v, err := sess.look(cmd.Context(), &found[i])
				if err != nil {
					return err
				}
				reports = append(reports, sess.report(v))
			}
			return printReports(s.printer(cmd), sess.namespace, reports)
		},
	}
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// report is what status shows of a shard.
type report struct {
	Shard       string                 `json:"shard"`
	Namespace   string                 `json:"namespace"`
	Cluster     string                 `json:"cluster"`
	Age         string                 `json:"age"`
	Replicas    int32                  `json:"replicas"`
	Ready       int32                  `json:"ready"`
	Leader      string                 `json:"leader"`
	Term        uint64                 `json:"term,omitempty"`
	Generation  uint64                 `json:"generation,omitempty"` // recoveries from a lost quorum
	Instruments []string               `json:"instruments"`
	Refused     []v1.RefusedInstrument `json:"refused_instruments"`
	Next        string                 `json:"next"`
	Healthy     bool                   `json:"healthy"`
	Members     []memberReport         `json:"members"`
	Conditions  []conditionReport      `json:"conditions"`
	Recovery    *v1.RecoveryStatus     `json:"recovery,omitempty"`
}

type memberReport struct {
	ID        string  `json:"id"`
	Role      string  `json:"role"`
	Ready     bool    `json:"ready"`
	Pod       string  `json:"pod"` // phase, "-" for none
	Node      string  `json:"node,omitempty"`
	Volume    string  `json:"volume"` // size, "-" for none
	Answered  bool    `json:"answered"`
	Error     string  `json:"error,omitempty"`
	LastIndex uint64  `json:"last_index"`
	Applied   uint64  `json:"applied_index"`
	Lag       *uint64 `json:"lag,omitempty"` // entries, as the leader knows it
	DiskFree  uint64  `json:"disk_free_bytes"`
	DiskFull  bool    `json:"disk_full"`
	Damage    string  `json:"damage,omitempty"`
	Version   string  `json:"version,omitempty"`
}

type conditionReport struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Since   string `json:"since"`
}

func (s *session) report(v *view) report {
	st := &v.shard.Status
	r := report{
		Shard: v.shard.Name, Namespace: v.shard.Namespace, Cluster: v.shard.Spec.Cluster, Age: s.since(v.shard.CreationTimestamp),
		Replicas: v.shard.Spec.Replicas, Ready: st.ReadyReplicas, Leader: st.Leader,
		Instruments: append([]string{}, st.Instruments...), Refused: append([]v1.RefusedInstrument{}, st.RefusedInstruments...),
		Members: []memberReport{}, Conditions: []conditionReport{},
		Next: next(v.shard), Recovery: st.Recovery,
	}
	if v.leader != nil {
		r.Leader, r.Term, r.Generation = v.leader.Id, v.leader.Term, v.leader.Generation
	}
	for _, m := range st.Members {
		r.Members = append(r.Members, v.member(m))
	}
	for _, c := range st.Conditions {
		r.Conditions = append(r.Conditions, conditionReport{c.Type, string(c.Status), c.Reason, c.Message, s.since(c.LastTransitionTime)})
	}
	r.Healthy = meta.IsStatusConditionTrue(st.Conditions, v1.ConditionAvailable) && !meta.IsStatusConditionTrue(st.Conditions, v1.ConditionDegraded) &&
		!slices.ContainsFunc(r.Members, func(m memberReport) bool { return m.Error != "" || m.Damage != "" || m.DiskFull })
	return r
}

// next says what the operator does next, and why.
func next(shard *v1.InstrumentShard) string {
	st := &shard.Status
	recovery := meta.FindStatusCondition(st.Conditions, v1.ConditionRecovery)
	progress := meta.FindStatusCondition(st.Conditions, v1.ConditionProgressing)
	switch {
	case !shard.DeletionTimestamp.IsZero():
		return "the shard is being deleted"
	case progress == nil:
		return "the operator has not looked at the shard yet: is it running?"
	case st.ObservedGeneration < shard.Generation:
		return "the operator has not seen the latest change yet: is it running?"
	case recovery != nil && recovery.Reason == "Refused":
		return "no recovery: " + recovery.Message
	case meta.IsStatusConditionTrue(st.Conditions, v1.ConditionQuorumLost) && (recovery == nil || recovery.Status != metav1.ConditionTrue):
		return "nothing before somebody decides: see kubectl countinghouse recover " + shard.Name
	case progress.Status == metav1.ConditionTrue:
		return progress.Message
	}
	return "nothing: " + progress.Message
}

func (v *view) member(m v1.MemberStatus) memberReport {
	r := memberReport{ID: m.ID, Role: string(m.Role), Ready: m.Ready, Pod: "-", Volume: "-"}
	if pod := v.pods[m.ID]; pod != nil {
		r.Pod, r.Node = string(pod.Status.Phase), pod.Spec.NodeName
		if !pod.DeletionTimestamp.IsZero() {
			r.Pod = "Ending"
		}
	}
	if claim := v.claims[m.ID]; claim != nil && claim.DeletionTimestamp.IsZero() {
		r.Volume = claim.Spec.Resources.Requests.Storage().String()
	}
	a, asked := v.asked[m.ID]
	switch {
	case !asked:
		return r
	case a.err != nil:
		r.Error = reason(a.err)
		return r
	}
	r.Answered = true
	r.LastIndex, r.Applied, r.DiskFree, r.DiskFull = a.status.LastIndex, a.status.AppliedIndex, a.status.DiskFreeBytes, a.status.DiskFull
	r.Damage, r.Version = a.status.Damage, a.status.Version
	if v.leader != nil {
		for _, peer := range v.leader.Members {
			if peer.Id == m.ID {
				r.Lag = &peer.Lag
			}
		}
	}
	return r
}

func printReports(p *output.Printer, namespace string, reports []report) error {
	bad := 0
	for i, r := range reports {
		if !r.Healthy {
			bad++
		}
		if p.Format == output.Human {
			if i > 0 {
				p.Line("")
			}
			printReport(p, &r)
		}
	}
	if p.Format == output.JSON {
		if err := p.JSON(map[string]any{"namespace": namespace, "healthy": bad == 0, "shards": reports}); err != nil {
			return err
		}
	} else if len(reports) == 0 {
		p.Line("No shards in namespace %s.", namespace)
	}
	if bad > 0 {
		return output.Exit(output.ExitFailed, fmt.Errorf("%d of %d shards need attention", bad, len(reports)))
	}
	return nil
}

const (
	screenWidth = 100
	wrapIndent  = 14
)

func printReport(p *output.Printer, r *report) {
	state := p.Good("healthy")
	if !r.Healthy {
		state = p.Bad("needs attention")
	}
	leader := "no leader"
	if r.Leader != "" {
		leader = "leader " + r.Leader
	}
	p.Line("%s: %s · cluster %s · %d of %d ready · %s · age %s", r.Shard, state, r.Cluster, r.Ready, r.Replicas, leader, r.Age)
	printWrapped(p, "instruments", fmt.Sprintf("%d: %s", len(r.Instruments), output.Clip(strings.Join(r.Instruments, " "), screenWidth-wrapIndent-8)))
	for _, refused := range r.Refused {
		printWrapped(p, "refused", fmt.Sprintf("%s belongs to shard %s", refused.Name, refused.Owner))
	}
	printWrapped(p, "next", r.Next)
	p.Line("")
	printMembers(p, r)
	p.Line("")
	header, rows := []string{"condition", "is", "since", "reason", "message"}, [][]string{}
	for _, c := range r.Conditions {
		rows = append(rows, []string{c.Type, c.Status, c.Since, c.Reason, c.Message})
	}
	fit(header, rows)
	p.Table(header, rows)
}

// fit cuts the last column so that the rows fit the screen.
func fit(header []string, rows [][]string) {
	used, last := 0, len(header)-1
	for i, name := range header[:last] {
		widest := len(name)
		for _, row := range rows {
			widest = max(widest, utf8.RuneCountInString(row[i]))
		}
		used += widest + 2
	}
	for _, row := range rows {
		row[last] = output.Clip(row[last], max(screenWidth-used, 20))
	}
}

func printMembers(p *output.Printer, r *report) {
	var rows [][]string
	for _, m := range r.Members {
		ready, lag, free := "no", "-", "-"
		if m.Ready {
			ready = "yes"
		}
		if m.Lag != nil {
			lag = output.Count(*m.Lag)
		}
		if m.Answered {
			free = output.Bytes(m.DiskFree)
		}
		rows = append(rows, []string{m.ID, m.Role, ready, lag, free, m.Volume, m.Pod, output.Clip(orDash(m.Node), 24)})
	}
	p.Table([]string{"member", "role", "ready", "lag", "disk free", "volume", "pod", "node"}, rows)
	for _, m := range r.Members {
		for _, wrong := range []struct {
			is   bool
			what string
		}{
			{m.Error != "", "does not answer: " + m.Error},
			{m.Damage != "", "is damaged, replace it by deleting its volume claim: " + m.Damage},
			{m.DiskFull, "has a full disk: raise spec.storage.size"},
		} {
			if wrong.is {
				printWrapped(p, m.ID, wrong.what)
			}
		}
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printWrapped prints a name and its text, broken between words.
func printWrapped(p *output.Printer, name, text string) {
	line := fmt.Sprintf("  %-*s ", wrapIndent-3, name)
	for _, word := range strings.Fields(text) {
		if utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > screenWidth && strings.TrimSpace(line) != "" {
			p.Line("%s", strings.TrimRight(line, " "))
			line = strings.Repeat(" ", wrapIndent)
		}
		if strings.TrimSpace(line[min(len(line), wrapIndent):]) != "" {
			line += " "
		}
		line += word
	}
	p.Line("%s", strings.TrimRight(line, " "))
}

var errNoLeader = errors.New("no member answers as the leader")
