package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
)

// recover lets a shard that has lost its quorum for good go on from one member, when
// somebody has named it. What is decided is recorded before anything is done, and
// each phase before the next begins:
//
//   - Isolating: the other members are lost from the first record on, and get no pod
//     any more. Their volume claims are marked, so that nothing ever takes them for
//     members', and their pods end.
//   - Restarting: only then the survivor's pod is replaced by one that makes it the
//     shard's only voter.
//   - Refilling: it leads; the annotation is gone, and lost members are replaced as
//     always.
//   - Done: the shard has all its members.
func (p *pass) recover(ctx context.Context) error {
	if name := p.shard.Annotations[v1.AnnotationRecoverFrom]; name != "" && !p.recovering() {
		if p.refusal = p.mayNotRecover(name); p.refusal != "" {
			p.tellRefusal(name)
			return nil
		}
		if err := p.decide(ctx, name); err != nil {
			return err
		}
	}
	rec := p.status().Recovery
	if rec == nil {
		return nil
	}
	switch rec.Phase {
	case v1.RecoveryIsolating:
		return p.isolate(ctx, rec)
	case v1.RecoveryRestarting:
		return p.restartSurvivor(ctx, rec)
	case v1.RecoveryRefilling:
		return p.finishRecovery(ctx, rec)
	}
	return nil
}

// recovering reports whether the survivor does not lead yet.
func (p *pass) recovering() bool {
	rec := p.status().Recovery
	return rec != nil && (rec.Phase == v1.RecoveryIsolating || rec.Phase == v1.RecoveryRestarting)
}

// quorumLost counts the members that have lost their volume, and reports whether
// those that are left can elect no leader.
func (p *pass) quorumLost() (lost, members int32, is bool) {
	st := p.status()
	for _, m := range st.Members {
		if m.Role == v1.RoleLost {
			lost++
		}
	}
	members = int32(len(st.Members))
	if expected := p.shard.Spec.Replicas; p.adopted() && members < expected {
		// How many there were was lost with the status; those without a volume are in it no more.
		lost, members = lost+expected-members, expected
	}
	return lost, members, st.Bootstrapped && p.raft == nil && members-lost < resource.Quorum(members)
}

// mayNotRecover says why the shard can not go on from a member, or "".
func (p *pass) mayNotRecover(name string) string {
	if p.raft != nil {
		return fmt.Sprintf("member %s leads the shard: there is a quorum, and nothing is to be recovered", p.raft.leader)
	}
	lost, members, is := p.quorumLost()
	if !is {
		return fmt.Sprintf("%d of %d members have lost their volume: the others can elect a leader once they run. "+
			"If the disk of another is gone for good though its volume claim is there, delete the claim first", lost, members)
	}
	i := slices.IndexFunc(p.status().Members, func(m v1.MemberStatus) bool { return m.ID == name })
	switch {
	case i < 0:
		return fmt.Sprintf("the shard has no member %q: name one of %s", name, strings.Join(p.survivors(), ", "))
	case !slices.Contains(p.survivors(), name):
		return fmt.Sprintf("member %s has no data of the shard: name one of %s", name, strings.Join(p.survivors(), ", "))
	}
	return ""
}

// adopted reports whether the members were made of the volumes that were there, and
// none of them has taken part in the shard since.
func (p *pass) adopted() bool {
	return p.status().Bootstrapped && !slices.ContainsFunc(p.status().Members, func(m v1.MemberStatus) bool {
		return m.First || m.Role != v1.RoleJoining && m.Role != v1.RoleLost
	})
}

// survivors returns the members that a shard without a quorum can go on from: those
// that have their volume and took part. After the status was lost, nothing says who
// did.
func (p *pass) survivors() (ids []string) {
	tookPart := slices.ContainsFunc(p.status().Members, func(m v1.MemberStatus) bool { return m.Role != v1.RoleJoining && m.Role != v1.RoleLost })
	for _, m := range p.status().Members {
		if m.Role == v1.RoleLost || m.Role == v1.RoleLeaving || m.ClaimUID == "" || tookPart && m.Role == v1.RoleJoining {
			continue
		}
		ids = append(ids, m.ID)
	}
	return ids
}

// tellRefusal sends an event, once for each reason.
func (p *pass) tellRefusal(name string) {
	if c := meta.FindStatusCondition(p.before.Conditions, v1.ConditionRecovery); c != nil && c.Reason == reasonRefused && c.Message == p.refusal {
		return
	}
	p.event(corev1.EventTypeWarning, "RecoveryRefused", "no recovery from %s: %s", name, p.refusal)
}

// decide records the decision.
func (p *pass) decide(ctx context.Context, name string) error {
	st := p.status()
	now := time.Now().UTC()
	rec := &v1.RecoveryStatus{
		Survivor: name, Token: now.Format("20060102T150405.000Z"), StartedAt: metav1.NewTime(now.Truncate(time.Second)), Phase: v1.RecoveryIsolating,
	}
	for i := range st.Members {
		if m := &st.Members[i]; m.ID != name {
			m.Role = v1.RoleLost
			rec.GivenUp = append(rec.GivenUp, m.ID)
		}
	}
	st.Recovery = rec
	p.event(corev1.EventTypeWarning, "Recovering", "the shard goes on from member %s alone; %s are given up, and what they acknowledged without it is lost",
		name, strings.Join(rec.GivenUp, ", "))
	return p.remember(ctx)
}

func (p *pass) isGivenUp(id string) bool {
	rec := p.status().Recovery
	return rec != nil && slices.Contains(rec.GivenUp, id)
}

// recoveryToken returns the token for a member's pod, "" for none.
func (p *pass) recoveryToken(id string) string {
	rec := p.status().Recovery
	if rec == nil || rec.Survivor != id || rec.Phase != v1.RecoveryRestarting && rec.Phase != v1.RecoveryRefilling {
		return ""
	}
	return rec.Token
}

// isolate ends the members that are given up, and waits until they are gone.
func (p *pass) isolate(ctx context.Context, rec *v1.RecoveryStatus) error {
	p.raft = nil // whoever answers is given up, or waits for them
	var left []string
	for _, id := range rec.GivenUp {
		if err := p.markGivenUp(ctx, id, rec.Token); err != nil {
			return err
		}
		pod := p.pods[id]
		if pod == nil {
			continue
		}
		left = append(left, id)
		if pod.DeletionTimestamp.IsZero() {
			if err := p.delete(ctx, pod); err != nil {
				return err
			}
		}
	}
	if len(left) > 0 {
		p.later("the pods of members that are given up end: %s; one on a node that is gone for good ends when the node is deleted", strings.Join(left, ", "))
		return nil
	}
	rec.Phase = v1.RecoveryRestarting
	if err := p.remember(ctx); err != nil {
		return err
	}
	return p.restartSurvivor(ctx, rec)
}

// markGivenUp marks a member's volume claim, if it has one.
func (p *pass) markGivenUp(ctx context.Context, id, token string) error {
	claim := p.claims[id]
	if claim == nil || claim.Annotations[resource.AnnotationRecovery] != "" {
		return nil
	}
	before := claim.DeepCopy()
	if claim.Annotations == nil {
		claim.Annotations = make(map[string]string)
	}
	claim.Annotations[resource.AnnotationRecovery] = token
	return client.IgnoreNotFound(p.r.Patch(ctx, claim, client.MergeFrom(before)))
}

// restartSurvivor replaces the survivor's pod by one that is told to recover, and
// waits until it leads. runPods makes that pod.
func (p *pass) restartSurvivor(ctx context.Context, rec *v1.RecoveryStatus) error {
	if p.raft != nil && p.raft.leader == rec.Survivor && p.raft.recovery == rec.Token {
		if err := p.dropAnnotation(ctx); err != nil {
			return err
		}
		rec.Phase = v1.RecoveryRefilling
		p.event(corev1.EventTypeNormal, "RecoveredAlone", "member %s leads the shard again, alone; further members join", rec.Survivor)
		return p.remember(ctx)
	}
	p.raft = nil
	p.later("member %s starts as the shard's only voter", rec.Survivor)
	pod := p.pods[rec.Survivor]
	if pod == nil || !pod.DeletionTimestamp.IsZero() || pod.Annotations[resource.AnnotationRecovery] == rec.Token {
		return nil
	}
	return p.delete(ctx, pod)
}

// dropAnnotation removes what asked for the recovery, so that it is not asked for
// once more.
func (p *pass) dropAnnotation(ctx context.Context) error {
	if _, there := p.shard.Annotations[v1.AnnotationRecoverFrom]; !there {
		return nil
	}
	before := p.shard.DeepCopy()
	delete(p.shard.Annotations, v1.AnnotationRecoverFrom)
	status := p.shard.Status.DeepCopy()
	err := p.r.Patch(ctx, p.shard, client.MergeFrom(before))
	p.shard.Status = *status // the answer has the stored one
	return err
}

// finishRecovery records the end, once the shard has all its members.
func (p *pass) finishRecovery(ctx context.Context, rec *v1.RecoveryStatus) error {
	if p.raft == nil || p.raft.voters() < p.shard.Spec.Replicas {
		return nil
	}
	now := metav1.NewTime(time.Now().UTC().Truncate(time.Second))
	rec.Phase, rec.FinishedAt = v1.RecoveryDone, &now
	p.event(corev1.EventTypeNormal, "Recovered", "the shard has all its members again; %s", p.keptClaims())
	return p.remember(ctx)
}

// keptClaims says which volumes of members that were given up are still there.
func (p *pass) keptClaims() string {
	var names []string
	for id, claim := range p.claims {
		if claim.Annotations[resource.AnnotationRecovery] != "" {
			names = append(names, id)
		}
	}
	if len(names) == 0 {
		return "no volume of a member that was given up is left"
	}
	slices.Sort(names)
	return fmt.Sprintf("volumes of members that were given up are kept; when the exchange goes on and nobody needs them: kubectl delete pvc --namespace %s %s",
		p.shard.Namespace, strings.Join(names, " "))
}

const reasonRefused = "Refused"

// recoveryCondition states what became of a recovery that was asked for.
func (p *pass) recoveryCondition() {
	st := p.status()
	rec := st.Recovery
	switch {
	case p.refusal != "":
		p.condition(v1.ConditionRecovery, false, reasonRefused, p.refusal)
	case rec == nil:
		meta.RemoveStatusCondition(&st.Conditions, v1.ConditionRecovery)
	case rec.Phase == v1.RecoveryDone:
		p.condition(v1.ConditionRecovery, false, string(rec.Phase), fmt.Sprintf("the shard went on from member %s; %s", rec.Survivor, p.keptClaims()))
	default:
		p.condition(v1.ConditionRecovery, true, string(rec.Phase), fmt.Sprintf("the shard goes on from member %s; %s are given up", rec.Survivor, strings.Join(rec.GivenUp, ", ")))
	}
}
