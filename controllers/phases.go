package controllers

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
)

// accept works out which instruments the shard may own: where two shards of one
// cluster name the same, the one that has it keeps it, with its records; of two that
// have it not, or both, the older gets it.
func (p *pass) accept(ctx context.Context) error {
	var all v1.InstrumentShardList
	// All shards are read for each: not copied, and not changed.
	if err := p.r.List(ctx, &all, client.InNamespace(p.shard.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	st := p.status()
	st.Instruments, st.RefusedInstruments = instrumentsOf(p.shard, all.Items)
	return nil
}

// instrumentsOf divides the instruments that a shard names into its own and those
// of other shards of the cluster. The shard may be among all.
func instrumentsOf(shard *v1.InstrumentShard, all []v1.InstrumentShard) (own []string, refused []v1.RefusedInstrument) {
	first := make(map[string]*v1.InstrumentShard, len(shard.Spec.Instruments)) // whose claim comes first, by instrument
	for _, name := range shard.Spec.Instruments {
		first[name] = shard
	}
	for i := range all {
		other := &all[i]
		if other.UID == shard.UID || other.Spec.Cluster != shard.Spec.Cluster {
			continue
		}
		for _, name := range other.Spec.Instruments {
			if by := first[name]; by != nil && comesFirst(other, by, name) {
				first[name] = other
			}
		}
	}
	for _, name := range slices.Sorted(slices.Values(shard.Spec.Instruments)) {
		if by := first[name]; by != shard {
			refused = append(refused, v1.RefusedInstrument{Name: name, Owner: by.Name})
			continue
		}
		own = append(own, name)
	}
	return own, refused
}

// comesFirst reports whether a's claim to an instrument, which both name, comes before b's.
func comesFirst(a, b *v1.InstrumentShard, name string) bool {
	if has := slices.Contains(a.Status.Instruments, name); has != slices.Contains(b.Status.Instruments, name) {
		return has
	}
	return older(a, b)
}

// older reports whether a was there before b.
func older(a, b *v1.InstrumentShard) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.UID < b.UID
}

// bootstrap records the first members, once. A shard whose status is empty
// although it has volumes has lost its status, and must not be formed again over
// data that is there. Which volumes there are is not left to the cache: what is
// decided here is decided for good.
func (p *pass) bootstrap(ctx context.Context) error {
	st := p.status()
	if st.NextMember > 0 {
		if !st.Bootstrapped && p.raft != nil {
			st.Bootstrapped = true
			return p.remember(ctx) // before it is given an instrument, and so records
		}
		return nil
	}
	if err := p.observeClaims(ctx, p.r.Uncached, p.own()...); err != nil {
		return err
	}
	switch {
	case len(p.claims) > 0 && p.claimsEnd():
		p.later("the volume claims of an earlier shard of this name end")
		return nil
	case len(p.claims) > 0 && len(p.adoptable()) == 0:
		p.later("the volume claims that are there are of members that a recovery gave up, or not the shard's: nothing of an earlier shard is left to go on from; delete them to have another one formed: %s",
			strings.Join(slices.Sorted(maps.Keys(p.claims)), ", "))
		return nil
	case len(p.claims) > 0:
		return p.adopt(ctx)
	}
	for n := range p.shard.Spec.Replicas {
		st.Members = append(st.Members, v1.MemberStatus{ID: resource.MemberName(p.shard.Name, n), Role: v1.RoleJoining, First: true})
	}
	st.NextMember = p.shard.Spec.Replicas
	return p.remember(ctx)
}

// claimsEnd reports whether every volume claim is about to go.
func (p *pass) claimsEnd() bool {
	for _, claim := range p.claims {
		if claim.DeletionTimestamp.IsZero() {
			return false
		}
	}
	return true
}

// adoptable returns the ids of the members whose volumes there are, but for those that
// were given up.
func (p *pass) adoptable() (ids []string) {
	for id, claim := range p.claims {
		if _, ok := resource.MemberNumber(p.shard.Name, id); ok && claim.Annotations[resource.AnnotationRecovery] == "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// adopt makes members of the volumes that there are.
func (p *pass) adopt(ctx context.Context) error {
	st := p.status()
	for id := range p.claims { // no number of those that were given up is used again either
		if n, ok := resource.MemberNumber(p.shard.Name, id); ok {
			st.NextMember = max(st.NextMember, n+1)
		}
	}
	for _, id := range p.adoptable() {
		st.Members = append(st.Members, v1.MemberStatus{ID: id, Role: v1.RoleJoining, ClaimUID: p.claims[id].UID})
	}
	p.sortMembers()
	st.Bootstrapped = true
	if err := p.remember(ctx); err != nil {
		return err
	}
	p.event(corev1.EventTypeWarning, "Adopted", "the status was empty: %d volumes are taken for the shard's members", len(st.Members))
	return nil
}

func (p *pass) sortMembers() {
	slices.SortFunc(p.status().Members, func(a, b v1.MemberStatus) int {
		x, _ := resource.MemberNumber(p.shard.Name, a.ID)
		y, _ := resource.MemberNumber(p.shard.Name, b.ID)
		return int(x - y)
	})
}

// storage gives every member its volume claim, once, and lets claims grow. It
// finds the members that have lost theirs.
func (p *pass) storage(ctx context.Context) error {
	changed := false
	var small []*corev1.PersistentVolumeClaim
	for i := range p.status().Members {
		m := &p.status().Members[i]
		claim := p.claims[m.ID]
		switch {
		case m.Role == v1.RoleLost || m.Role == v1.RoleLeaving:
		case m.ClaimUID == "" && claim == nil:
			claim = resource.Claim(p.shard, m.ID)
			if err := p.create(ctx, claim); err != nil {
				return err
			}
			if claim.UID == "" { // it was there already
				p.later("volume claim %s is looked at again", m.ID)
				continue
			}
			p.claims[m.ID], m.ClaimUID, changed = claim, claim.UID, true
		case m.ClaimUID == "":
			m.ClaimUID, changed = claim.UID, true
		case !keeps(claim, m):
			if lost, err := p.lost(ctx, m); err != nil || !lost {
				p.later("volume claim %s is looked at again", m.ID)
				if err != nil {
					return err
				}
				continue
			}
			m.Role, changed = v1.RoleLost, true
			p.event(corev1.EventTypeWarning, "MemberLost", "the volume of member %s is gone: another member takes its place", m.ID)
		case resource.ClaimGrows(p.shard, claim):
			small = append(small, claim)
		}
	}
	if err := p.growAll(ctx, small); err != nil {
		return err
	}
	if !changed {
		return nil
	}
	return p.remember(ctx)
}

// keeps reports whether a claim, nil for none, is the one with a member's data, and
// will be.
func keeps(claim *corev1.PersistentVolumeClaim, m *v1.MemberStatus) bool {
	return claim != nil && claim.UID == m.ClaimUID && claim.DeletionTimestamp.IsZero()
}

// lost reports whether a member's volume claim is gone, past the cache: a claim
// that was created a moment ago may not be in it.
func (p *pass) lost(ctx context.Context, m *v1.MemberStatus) (bool, error) {
	claim := new(corev1.PersistentVolumeClaim)
	err := p.r.Uncached.Get(ctx, client.ObjectKey{Namespace: p.shard.Namespace, Name: m.ID}, claim)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return err == nil && !keeps(claim, m), err
}

// growAll lets claims grow that ask for less than the spec does. What was refused is
// asked for again after a while, for the storage class may allow it by then, or when
// the spec has changed.
func (p *pass) growAll(ctx context.Context, small []*corev1.PersistentVolumeClaim) error {
	was := meta.FindStatusCondition(p.status().Conditions, v1.ConditionVolumesGrown)
	if len(small) > 0 && was != nil && was.ObservedGeneration == p.shard.Generation && p.now().Before(was.LastTransitionTime.Add(growAgain)) {
		return nil
	}
	why := ""
	for _, claim := range small {
		refusal, err := p.grow(ctx, claim)
		if err != nil {
			return err
		}
		if why == "" {
			why = refusal
		}
	}
	meta.RemoveStatusCondition(&p.status().Conditions, v1.ConditionVolumesGrown)
	if why == "" {
		return nil
	}
	meta.SetStatusCondition(&p.status().Conditions, metav1.Condition{
		Type: v1.ConditionVolumesGrown, Status: metav1.ConditionFalse, Reason: "Refused", Message: why,
		ObservedGeneration: p.shard.Generation, LastTransitionTime: metav1.NewTime(p.now().Truncate(time.Second)),
	})
	return nil
}

// grow asks for a larger volume, and returns why there is none.
func (p *pass) grow(ctx context.Context, claim *corev1.PersistentVolumeClaim) (refusal string, err error) {
	before := claim.DeepCopy()
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = p.shard.Spec.Storage.Size
	err = p.r.Patch(ctx, claim, client.MergeFrom(before))
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		refusal = fmt.Sprintf("volume claim %s can not grow: %v", claim.Name, err)
		p.event(corev1.EventTypeWarning, "VolumeStays", "%s", refusal)
		return refusal, nil
	}
	return "", err
}

// runPods gives a pod to every member that has its volume and is to run.
func (p *pass) runPods(ctx context.Context) error {
	for i := range p.status().Members {
		m := &p.status().Members[i]
		pod := p.pods[m.ID]
		switch {
		case m.Role == v1.RoleLost || m.Role == v1.RoleLeaving:
			if err := p.markLeaving(ctx, pod); err != nil {
				return err
			}
		case m.ClaimUID == "":
		case pod == nil:
			built, err := resource.Pod(p.shard, m.ID, p.formation(m), p.r.Defaults)
			if err != nil {
				return err
			}
			if err := p.create(ctx, built); err != nil {
				return err
			}
			p.later("member %s starts", m.ID)
		case !pod.DeletionTimestamp.IsZero():
			// It still runs, and counts for the quorum, for as long as it is given.
			p.later("the pod of member %s ends", m.ID)
		case pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded:
			if err := p.delete(ctx, pod); err != nil { // such as one that was evicted
				return err
			}
			p.later("the pod of member %s has ended", m.ID)
		case !ready(pod):
			if err := p.correct(ctx, pod); err != nil {
				return err
			}
			p.later("member %s is not ready", m.ID)
		}
	}
	return nil
}

// correct replaces a pod that does not run and is not what the spec asks for: it may
// never run, as with an image that there is not, so that no rollout, which waits for
// all members, would come to it. Nothing that works ends with it.
func (p *pass) correct(ctx context.Context, pod *corev1.Pod) error {
	hash, err := resource.SpecHash(p.shard)
	if err != nil || runs(pod) || pod.Annotations[resource.AnnotationSpecHash] == hash {
		return err
	}
	p.later("the pod of member %s, which does not run, is replaced", pod.Name)
	return p.delete(ctx, pod)
}

// runs reports whether a pod has a container that runs, or may have.
func runs(pod *corev1.Pod) bool {
	if pod.Status.Phase != corev1.PodRunning {
		return pod.Status.Phase != corev1.PodPending && pod.Status.Phase != ""
	}
	return len(pod.Status.ContainerStatuses) == 0 || slices.ContainsFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool {
		return c.State.Running != nil
	})
}

// markLeaving labels the pod, nil for none, of a member that goes: the scheduler then
// does not count it when it finds a node for the one that takes its place, which
// would otherwise land beside another member.
func (p *pass) markLeaving(ctx context.Context, pod *corev1.Pod) error {
	if pod == nil || pod.Labels[resource.LabelLeaving] != "" {
		return nil
	}
	before := pod.DeepCopy()
	pod.Labels[resource.LabelLeaving] = "true"
	return client.IgnoreNotFound(p.r.Patch(ctx, pod, client.MergeFrom(before)))
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// formation says how a member begins. What it says to one that has begun has no
// effect.
func (p *pass) formation(m *v1.MemberStatus) resource.Formation {
	f := resource.Formation{Recover: p.recoveryToken(m.ID)}
	if !m.First {
		return f
	}
	for _, other := range p.status().Members {
		if other.First {
			f.Peers = append(f.Peers, other.ID)
		}
	}
	return f
}

// assign tells the shard which instruments it owns.
func (p *pass) assign(ctx context.Context) error {
	if p.raft == nil || slices.Equal(p.raft.instruments, p.status().Instruments) {
		return nil
	}
	const what = "instruments are assigned"
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := p.admin.AssignInstruments(ctx, p.status().Instruments); err != nil {
		// One that holds records stays for good, and must not keep pods from being replaced.
		p.aside = p.refused(what, err)
		return nil
	}
	p.later(what)
	return nil
}

// step carries out a change of the shard. One that the shard refuses is made later,
// or is not needed any more by then.
func (p *pass) step(ctx context.Context, what string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := do(ctx); err != nil {
		p.later("%s", p.refused(what, err))
		return nil
	}
	p.later("%s", what)
	return nil
}

// membership makes one change to the shard's membership, if one is due.
func (p *pass) membership(ctx context.Context) error {
	if p.raft == nil {
		p.later("the shard has no leader")
		return nil
	}
	if p.raft.pending { // a member that it leaves out may be one again, and needs its volume
		p.later("a change of the membership is committed")
		return nil
	}
	if err := p.recognise(ctx); err != nil {
		return err
	}
	if err := p.forget(ctx); err != nil {
		return err
	}
	return p.move(ctx, nextMove(p.status().Members, p.raft, p.shard.Spec.Replicas))
}

// recognise takes up members that the shard has and the status does not know, as after
// the status was lost: they have no volume, count for the quorum, and are replaced. Their
// numbers are used, as are those that a recovery gave up.
func (p *pass) recognise(ctx context.Context) error {
	st := p.status()
	before, next := len(st.Members), st.NextMember
	for _, id := range append(slices.Sorted(maps.Keys(p.raft.members)), p.raft.givenUp...) {
		n, ok := resource.MemberNumber(p.shard.Name, id)
		if !ok {
			continue
		}
		st.NextMember = max(st.NextMember, n+1)
		if p.raft.members[id] != nil && !slices.ContainsFunc(st.Members, func(m v1.MemberStatus) bool { return m.ID == id }) {
			st.Members = append(st.Members, v1.MemberStatus{ID: id, Role: v1.RoleLost})
			p.event(corev1.EventTypeWarning, "MemberLost", "the shard has a member %s that has no volume: another member takes its place", id)
		}
	}
	if len(st.Members) == before && st.NextMember == next {
		return nil
	}
	p.sortMembers()
	return p.remember(ctx)
}

// move carries out a change of the membership.
func (p *pass) move(ctx context.Context, m move) error {
	switch m.kind {
	case movePromote:
		return p.step(ctx, fmt.Sprintf("learner %s catches up", m.id), func(ctx context.Context) error {
			return p.admin.Promote(ctx, m.id, p.raft.index)
		})
	case moveLearn:
		return p.learn(ctx, m.id)
	case moveRemove:
		return p.leave(ctx, m.id)
	case moveEnlist:
		return p.enlist(ctx)
	}
	return nil
}

// learn adds a member to the shard once its pod runs.
func (p *pass) learn(ctx context.Context, id string) error {
	if pod := p.pods[id]; pod == nil || pod.Status.Phase != corev1.PodRunning {
		p.later("member %s starts", id)
		return nil
	}
	return p.step(ctx, fmt.Sprintf("member %s joins", id), func(ctx context.Context) error {
		return p.admin.AddLearner(ctx, id, resource.Address(p.shard, id), p.raft.index)
	})
}

// leave takes a member out of the shard, after the leadership if it has it.
func (p *pass) leave(ctx context.Context, id string) error {
	if id == p.raft.leader {
		return p.step(ctx, fmt.Sprintf("leadership moves off member %s", id), func(ctx context.Context) error {
			return p.admin.TransferLeadership(ctx, "")
		})
	}
	return p.step(ctx, fmt.Sprintf("member %s leaves", id), func(ctx context.Context) error {
		return p.admin.Remove(ctx, id, p.raft.index)
	})
}

// enlist records a further member, which then gets a volume and a pod.
func (p *pass) enlist(ctx context.Context) error {
	st := p.status()
	st.Members, st.NextMember = enlisted(p.shard.Name, st.Members, st.NextMember)
	p.later("member %s gets a volume", st.Members[len(st.Members)-1].ID)
	return p.remember(ctx)
}

// forget removes pod and volume of members that the shard has let go of. A member
// that it never had is joining, unless it is lost.
func (p *pass) forget(ctx context.Context) error {
	for i := 0; i < len(p.status().Members); i++ {
		m := &p.status().Members[i]
		if p.raft.members[m.ID] != nil {
			continue
		}
		if m.Role == v1.RoleJoining {
			continue
		}
		gone, err := p.clear(ctx, m)
		if err != nil {
			return err
		}
		if gone {
			p.status().Members = slices.Delete(p.status().Members, i, i+1)
			i--
			if err := p.remember(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// clear removes what a member leaves behind, and reports whether all is gone.
func (p *pass) clear(ctx context.Context, m *v1.MemberStatus) (bool, error) {
	if m.Role != v1.RoleLeaving && m.Role != v1.RoleLost {
		m.Role = v1.RoleLeaving
		if err := p.remember(ctx); err != nil {
			return false, err
		}
	}
	if pod := p.pods[m.ID]; pod != nil {
		p.later("the pod of member %s ends", m.ID)
		if !pod.DeletionTimestamp.IsZero() {
			return false, nil // it may take long, as on a node that does not answer
		}
		return false, p.delete(ctx, pod)
	}
	claim := p.claims[m.ID]
	if claim == nil || claim.UID != m.ClaimUID || p.isGivenUp(m.ID) || p.shard.Spec.Storage.Retention.WhenScaled == v1.RetentionRetain {
		return true, nil
	}
	delete(p.claims, m.ID)
	return true, p.delete(ctx, claim)
}
