package controllers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
)

// annotationBuilt holds the hash of an object as it was built, before the API
// server filled it in: while it is the same there is nothing to write.
const annotationBuilt = "countinghouse.io/built"

// surroundings creates and updates what is around the members.
func (p *pass) surroundings(ctx context.Context) error {
	voters, others := p.electorate()
	if p.leaves() { // then its pod is one of the others
		if after := others + 1; resource.Quorum(voters-1)+after > resource.Quorum(voters)+others {
			voters, others = voters-1, after
		}
	}
	for _, o := range []struct{ want, have client.Object }{
		{resource.Peers(p.shard), new(corev1.Service)},
		{resource.Service(p.shard), new(corev1.Service)},
		{resource.DisruptionBudget(p.shard, voters, others), new(policyv1.PodDisruptionBudget)},
		{resource.NetworkPolicy(p.shard, p.r.Namespace), new(networkingv1.NetworkPolicy)},
	} {
		if err := p.apply(ctx, o.want, o.have); err != nil {
			return err
		}
	}
	return nil
}

// electorate returns how many members have a vote, and how many pods are or will soon
// be ready that have none. While no leader says so, it is what was last known of
// the members, and not what the spec asks for, which they may be far from.
func (p *pass) electorate() (voters, others int32) {
	votes := make(map[string]bool)
	known := false
	for _, m := range p.status().Members {
		switch {
		case p.raft != nil:
			r := p.raft.members[m.ID]
			votes[m.ID] = r != nil && r.Voter
		default:
			known = known || m.Role == v1.RoleLeader || m.Role == v1.RoleFollower
			votes[m.ID] = m.Role == v1.RoleLeader || m.Role == v1.RoleFollower || m.Role == v1.RoleLost
		}
	}
	switch {
	case p.raft != nil:
		voters = p.raft.voters()
	case !known:
		return max(p.shard.Spec.Replicas, int32(len(p.status().Members))), 0
	}
	for id, is := range votes {
		if is && p.raft == nil {
			voters++
		}
		// One that ends, or has no node, is not ready for a while yet.
		if pod := p.pods[id]; !is && pod != nil && pod.DeletionTimestamp.IsZero() && (pod.Spec.NodeName != "" || pod.Status.Phase == corev1.PodRunning) {
			others++
		}
	}
	return voters, others
}

// leaves reports whether a voter that has a pod is to leave next.
func (p *pass) leaves() bool {
	if p.raft == nil {
		return false
	}
	m := nextMove(p.status().Members, p.raft, p.shard.Spec.Replicas)
	pod := p.pods[m.id]
	return m.kind == moveRemove && p.raft.members[m.id].Voter && pod != nil && pod.DeletionTimestamp.IsZero()
}

// apply makes an object what was built, unless it is that already or somebody
// else's. have is an empty object of the same type.
func (p *pass) apply(ctx context.Context, want, have client.Object) error {
	b, err := json.Marshal(want)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	built := hex.EncodeToString(sum[:8])
	want.SetAnnotations(map[string]string{annotationBuilt: built})
	err = p.r.Get(ctx, client.ObjectKeyFromObject(want), have)
	switch {
	case apierrors.IsNotFound(err):
		err := p.r.Create(ctx, want)
		if apierrors.IsAlreadyExists(err) { // not seen yet, or one without the shard's labels
			p.later("%T %s is there, and not as the shard's; if it stays so, remove it", want, want.GetName())
			return nil
		}
		return err
	case err != nil || have.GetAnnotations()[annotationBuilt] == built:
		return err
	}
	if have.GetLabels()[resource.LabelShard] != p.shard.Name {
		p.later("%T %s is there already and not the shard's: rename one of them", have, have.GetName())
		return nil
	}
	want.SetResourceVersion(have.GetResourceVersion())
	if service, ok := want.(*corev1.Service); ok {
		service.Spec.ClusterIP = have.(*corev1.Service).Spec.ClusterIP
	}
	return p.r.Update(ctx, want)
}
