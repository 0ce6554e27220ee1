package fire

import (
	"context"
	"errors"
	"time"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// changeMembers replaces members, one after the other, while the run lasts: a
// member with an empty disk joins as a learner and is promoted, then another is
// removed and its disk thrown away.
func (k *client) changeMembers() {
	defer k.close()
	for k.pause(1500 * time.Millisecond) {
		joining := k.c.addMember(nil)
		if err := k.c.begin(joining, k.c.random()); err != nil {
			k.c.find(err)
			return
		}
		if !k.until(func(ctx context.Context, m *member) error {
			_, err := k.admin(m).AddLearner(ctx, &storagepb.AddLearnerRequest{Id: joining.id, Address: joining.address})
			return err
		}) {
			return
		}
		k.c.count("learners added")
		if !k.until(func(ctx context.Context, m *member) error {
			_, err := k.admin(m).Promote(ctx, &storagepb.PromoteRequest{Id: joining.id})
			return err
		}) {
			return
		}
		k.c.count("learners promoted")
		if !k.removeOne(joining) {
			return
		}
	}
}

// until repeats a call, at whoever may lead, until it succeeds, and reports false
// if the run ends before.
func (k *client) until(do func(context.Context, *member) error) bool {
	for k.pause(40 * time.Millisecond) {
		m := k.pick()
		ctx, cancel := call(k.c.ctx)
		err := do(ctx, m)
		cancel()
		if err == nil {
			k.hint = m.id
			return true
		}
		if errors.Is(err, errGone) {
			return true
		}
		k.follow(m, refusalOf(err))
	}
	return false
}

var errGone = errors.New("the member is gone already")

// removeOne removes a member other than the one that has just joined.
func (k *client) removeOne(joined *member) bool {
	var victim *member
	for victim == nil || victim == joined {
		present := k.c.present()
		victim = present[k.rng.IntN(len(present))]
	}
	return k.until(func(ctx context.Context, m *member) error {
		if m == victim {
			// A leader is not removed: it hands over first, unless it is removed
			// already and only thinks that it leads.
			_, err := k.admin(m).TransferLeadership(ctx, &storagepb.TransferLeadershipRequest{})
			if err == nil {
				err = context.Canceled
			}
			return err
		}
		_, err := k.admin(m).Remove(ctx, &storagepb.RemoveRequest{Id: victim.id})
		if r := refusalOf(err); r != nil && r.Code == storagepb.Code_CODE_NOT_FOUND {
			err = nil // an earlier attempt whose answer was lost
		}
		if err != nil {
			return err
		}
		k.c.count("members removed")
		return victim.leave()
	})
}

// transfer asks a member to hand leadership over.
func (k *client) transfer(m *member) {
	ctx, cancel := call(k.c.ctx)
	defer cancel()
	_, err := k.admin(m).TransferLeadership(ctx, &storagepb.TransferLeadershipRequest{})
	if err == nil {
		k.c.count("leadership handed over")
	}
}
