package controllers

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
)

// report stores the status if it changed.
func (p *pass) report(ctx context.Context) error {
	st := p.status()
	st.ObservedGeneration = p.shard.Generation
	st.Selector = resource.Selector(p.shard.Name)
	st.Leader, st.Replicas, st.ReadyReplicas = "", 0, 0
	if p.raft != nil {
		st.Leader = p.raft.leader
	}
	for i := range st.Members {
		p.describe(&st.Members[i])
	}
	st.InstrumentSummary = summary(st.Instruments)
	p.conditions()
	p.recoveryCondition()
	if equality.Semantic.DeepEqual(p.before, st) {
		return nil
	}
	return p.r.Status().Update(ctx, p.shard)
}

func (p *pass) describe(m *v1.MemberStatus) {
	st := p.status()
	pod := p.pods[m.ID]
	m.Pod, m.Ready = "", false
	if pod != nil {
		m.Pod, m.Ready = pod.Name, ready(pod)
	}
	if m.Role == v1.RoleLost || m.Role == v1.RoleLeaving {
		return
	}
	if m.Ready {
		st.ReadyReplicas++
	}
	if p.raft == nil {
		if m.Role == v1.RoleLeader {
			m.Role = v1.RoleFollower // of nobody, at present
		}
		if m.Role != v1.RoleJoining {
			st.Replicas++
		}
		return
	}
	r := p.raft.members[m.ID]
	switch {
	case r == nil:
		return // joining
	case m.ID == p.raft.leader:
		m.Role = v1.RoleLeader
	case r.Voter:
		m.Role = v1.RoleFollower
	default:
		m.Role = v1.RoleLearner
	}
	st.Replicas++
}

// summary names some instruments, and how many there are.
func summary(names []string) string {
	const shown = 3
	switch {
	case len(names) == 0:
		return ""
	case len(names) <= shown:
		return fmt.Sprintf("%d: %s", len(names), join(names))
	}
	return fmt.Sprintf("%d: %s …", len(names), join(names[:shown]))
}

func join(names []string) string {
	out := names[0]
	for _, n := range names[1:] {
		out += " " + n
	}
	return out
}

func (p *pass) conditions() {
	st := p.status()
	quorum := resource.Quorum(max(st.Replicas, 1))
	lost, _, _ := p.quorumLost()
	switch {
	case st.Leader == "":
		p.condition(v1.ConditionAvailable, false, "NoLeader", "no member leads the shard")
	case st.ReadyReplicas < quorum:
		p.condition(v1.ConditionAvailable, false, "TooFewReady", fmt.Sprintf("%d members are ready, a quorum is %d", st.ReadyReplicas, quorum))
	default:
		p.condition(v1.ConditionAvailable, true, "LeaderAndQuorum", "a member leads, and a quorum is ready")
	}
	if p.settled() {
		p.condition(v1.ConditionProgressing, false, "Done", "the shard is what its spec says")
	} else {
		p.condition(v1.ConditionProgressing, true, "Working", p.next)
	}
	if st.ReadyReplicas < p.shard.Spec.Replicas || lost > 0 {
		p.condition(v1.ConditionDegraded, true, "MembersMissing", fmt.Sprintf("%d of %d members are ready, %d have lost their volume", st.ReadyReplicas, p.shard.Spec.Replicas, lost))
	} else {
		p.condition(v1.ConditionDegraded, false, "AllReady", "all members are ready")
	}
	if lost, voters, is := p.quorumLost(); is && p.recovering() {
		p.condition(v1.ConditionQuorumLost, true, "Recovering", fmt.Sprintf("%d of %d members are lost; the shard goes on from member %s", lost, voters, st.Recovery.Survivor))
	} else if is {
		p.condition(v1.ConditionQuorumLost, true, "VolumesLost", fmt.Sprintf(
			"%d of %d members have lost their volume: those that are left can elect no leader; nothing is done before somebody decides: see kubectl countinghouse recover", lost, voters))
	} else {
		p.condition(v1.ConditionQuorumLost, false, "Quorum", "enough members have their volume")
	}
	if n := len(st.RefusedInstruments); n > 0 {
		p.condition(v1.ConditionAccepted, false, "OwnedByOthers", fmt.Sprintf("%d instruments belong to other shards, such as %s to %s",
			n, st.RefusedInstruments[0].Name, st.RefusedInstruments[0].Owner))
	} else {
		p.condition(v1.ConditionAccepted, true, "Accepted", "the shard has every instrument that it names")
	}
}

func (p *pass) condition(kind string, is bool, reason, message string) {
	value := metav1.ConditionFalse
	if is {
		value = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&p.status().Conditions, metav1.Condition{
		Type: kind, Status: value, Reason: reason, Message: message, ObservedGeneration: p.shard.Generation,
	})
}

// event tells an operator of something that happened.
func (p *pass) event(kind, reason, format string, args ...any) {
	if p.r.Events != nil {
		p.r.Events.Eventf(p.shard, nil, kind, reason, "Reconcile", format, args...)
	}
}

// release lets the shard go.
func (p *pass) release(ctx context.Context) error {
	i := slices.Index(p.shard.Finalizers, Finalizer)
	if i < 0 {
		return nil
	}
	before := p.shard.DeepCopy()
	p.shard.Finalizers = slices.Delete(slices.Clone(p.shard.Finalizers), i, i+1)
	// Other finalizers, such as one that was added meanwhile, stay.
	return client.IgnoreNotFound(p.r.Patch(ctx, p.shard, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})))
}
