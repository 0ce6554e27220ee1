package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
)

// rollout replaces one pod that is not what the spec asks for: followers first,
// those that lag most before others, the leader last and not while it leads; each
// only when the shard says that it can do without.
func (p *pass) rollout(ctx context.Context) error {
	if p.raft == nil || !p.settled() {
		return nil
	}
	hash, err := resource.SpecHash(p.shard)
	if err != nil {
		return err
	}
	id, ok := nextRestart(p.raft, func(id string) bool {
		pod := p.pods[id]
		return pod != nil && pod.DeletionTimestamp.IsZero() && pod.Annotations[resource.AnnotationSpecHash] != hash
	})
	switch {
	case !ok:
		return nil
	case id == p.raft.leader && p.raft.voters() > 1:
		return p.step(ctx, fmt.Sprintf("leadership moves off member %s, whose pod is to be replaced", id), func(ctx context.Context) error {
			return p.admin.TransferLeadership(ctx, "")
		})
	}
	return p.restart(ctx, id)
}

func (p *pass) restart(ctx context.Context, id string) error {
	if p.raft.voters() > 1 {
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		safe, why, err := p.admin.SafeToRestart(asking, id)
		if err != nil || !safe {
			if err == nil {
				err = errors.New(why)
			}
			p.later("%s", p.refused(fmt.Sprintf("member %s can not be restarted", id), err))
			return nil
		}
		if away, err := p.away(ctx); err != nil || away != "" {
			p.later("member %s can not be restarted: the pod of %s ends, or is not ready", id, away)
			return err
		}
	}
	p.later("the pod of member %s is replaced", id)
	return p.delete(ctx, p.pods[id])
}

// away returns a voter whose pod is not there and ready, "" for none, past the cache: a
// pod that somebody has just begun to evict still runs, and takes part.
func (p *pass) away(ctx context.Context) (string, error) {
	var pods corev1.PodList
	if err := p.r.Uncached.List(ctx, &pods, p.own()...); err != nil {
		return "", err
	}
	there := make(map[string]bool)
	for i := range pods.Items {
		there[pods.Items[i].Name] = pods.Items[i].DeletionTimestamp.IsZero() && ready(&pods.Items[i])
	}
	for _, id := range slices.Sorted(maps.Keys(p.raft.members)) {
		if p.raft.members[id].Voter && !there[id] {
			return id, nil
		}
	}
	return "", nil
}

// remove deals with the volumes of a shard that is deleted. Pods go first: a volume
// that is in use would stay.
func (p *pass) remove(ctx context.Context) error {
	for _, pod := range p.pods {
		if !pod.DeletionTimestamp.IsZero() {
			continue
		}
		if err := p.delete(ctx, pod); err != nil {
			return err
		}
	}
	if len(p.pods) > 0 {
		p.later("pods end")
		return nil
	}
	if err := p.removeClaims(ctx); err != nil {
		return err
	}
	if err := p.dropCertificates(ctx); err != nil {
		return err
	}
	return p.release(ctx)
}

// removeClaims deletes the volumes that are not to be kept, past the cache: one that was
// made a moment ago would be left for a later shard of the same name. Those of first
// members that have never formed a shard hold nothing, and none can be formed on them
// again.
func (p *pass) removeClaims(ctx context.Context) error {
	if err := p.observeClaims(ctx, p.r.Uncached, p.own()...); err != nil {
		return err
	}
	empty := make(map[types.UID]bool)
	if !p.status().Bootstrapped && p.raft == nil {
		for _, m := range p.status().Members {
			empty[m.ClaimUID] = m.First
		}
	}
	for _, claim := range p.claims {
		if p.shard.Spec.Storage.Retention.WhenDeleted != v1.RetentionDelete && !empty[claim.UID] {
			continue
		}
		if err := p.delete(ctx, claim); err != nil {
			return err
		}
	}
	return nil
}
