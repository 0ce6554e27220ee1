package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

const (
	adminTimeout    = 5 * time.Second
	adminPause      = 50 * time.Millisecond
	transferTimeout = 10 * time.Second
	// changeWait bounds a change of members once all faults are healed.
	changeWait = 60 * time.Second
	lingerMax  = 2 * time.Second // of a member that was removed
)

// transfer moves the leadership to a member that may or may not be fit for it.
func (in *incident) transfer(ctx context.Context) bool {
	id := ""
	if in.random.IntN(2) == 0 {
		id = in.anyMember().ID
	}
	return in.once(ctx, transferTimeout, func(ctx context.Context, c *client.Client) error {
		to, err := c.TransferLeadership(ctx, in.s.name, id)
		in.event("to %q: %s, %v", id, to, err)
		return err
	})
}

// snapshot makes a member take a snapshot, which shortens its log.
func (in *incident) snapshot(ctx context.Context) bool {
	m := in.anyMember()
	return in.once(ctx, transferTimeout, func(ctx context.Context, c *client.Client) error {
		_, err := c.Snapshot(ctx, in.s.name, m.ID)
		in.event("of %s: %v", m.ID, err)
		return err
	})
}

// once makes one call that may fail, and reports whether it did not. The client
// is no host of the network: its calls meet no faults but those of the nodes.
func (in *incident) once(ctx context.Context, timeout time.Duration, call func(context.Context, *client.Client) error) bool {
	c, err := client.New(in.t.cluster.Map(), client.Options{AttemptTimeout: attemptTimeout})
	if err != nil {
		in.t.found.add(broken, 1, "%s: %v", in.kind, err)
		return false
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return call(ctx, c) == nil
}

// insist repeats a call until it succeeds. What has begun has to be brought to
// an end: it goes on when the faults are over, for a bounded time.
func (in *incident) insist(ctx context.Context, what string, call func(context.Context, *client.Client) error) bool {
	var calm <-chan time.Time
	for {
		var last error
		if in.once(context.WithoutCancel(ctx), adminTimeout, func(ctx context.Context, c *client.Client) error {
			last = call(ctx, c)
			return last
		}) {
			in.event("%s: done", what)
			return true
		}
		if ctx.Err() != nil && calm == nil {
			calm = time.After(changeWait)
		}
		select {
		case <-calm:
			in.t.found.add(broken, 1, "%s of shard %s: %s is not done %s after all faults were healed: %v", in.kind, in.s.name, what, changeWait, last)
			return false
		case <-in.t.aborted:
			return false
		case <-time.After(adminPause):
		}
	}
}

// join starts a node under an id that was never used and makes it a learner.
func (in *incident) join(ctx context.Context) (localcluster.Member, bool) {
	id := fmt.Sprintf("%s-%d", in.s.name, in.s.ids.Add(1)-1)
	release, ok := in.t.nodes.claim(id)
	if !ok {
		return localcluster.Member{}, false
	}
	m, err := in.t.cluster.JoinNode(context.WithoutCancel(ctx), in.s.name, id)
	release()
	if err != nil {
		in.t.found.add(broken, 1, "%s does not start: %v", id, err)
		return m, false
	}
	in.t.members.Add(1)
	in.event("%s joins", id)
	return m, in.insist(ctx, "add learner "+id, func(ctx context.Context, c *client.Client) error {
		_, err := c.AddLearner(ctx, in.s.name, m.ID, m.Address, 0)
		return err
	})
}

// expel takes a member out of the shard, from the lead first if need be.
func (in *incident) expel(ctx context.Context, id string) bool {
	return in.insist(ctx, "remove "+id, func(ctx context.Context, c *client.Client) error {
		if st, err := c.Leader(ctx, in.s.name); err == nil && st.Id == id {
			if _, err := c.TransferLeadership(ctx, in.s.name, ""); err != nil {
				return err
			}
		}
		_, err := c.Remove(ctx, in.s.name, id, 0)
		if errors.Is(err, refusal.ErrNotFound) {
			return nil // an attempt whose answer was lost
		}
		return err
	})
}

// forget ends the process of a member that was removed, a while later, and drops
// its data.
func (in *incident) forget(ctx context.Context, m localcluster.Member) {
	pause(ctx, in.between(0, lingerMax))
	release := in.claimWhenFree(m.ID)
	defer release()
	in.dispose(m)
}

// dispose is forget at once, for a node that is claimed.
func (in *incident) dispose(m localcluster.Member) {
	if err := in.t.cluster.ForgetNode(m.ID); err != nil {
		in.t.found.add(broken, 1, "%v", err)
		return
	}
	in.t.net.Leave(m.ID)
	in.t.members.Add(1)
	if err := os.RemoveAll(m.DataDir); err != nil {
		in.t.note("%v", err)
	}
	in.event("%s is gone", m.ID)
}

func (in *incident) claimWhenFree(id string) (release func()) {
	for {
		if release, ok := in.t.nodes.claim(id); ok {
			return release
		}
		time.Sleep(adminPause)
	}
}

// learner adds a learner and takes it away again.
func (in *incident) learner(ctx context.Context) bool {
	if !in.s.replacing.TryLock() {
		return false
	}
	defer in.s.replacing.Unlock()
	m, ok := in.join(ctx)
	if !ok {
		return false
	}
	pause(ctx, in.between(0, downMax))
	if !in.expel(ctx, m.ID) {
		return false
	}
	in.forget(ctx, m)
	return true
}

// replace adds a member, makes it a voter, and removes another one.
func (in *incident) replace(ctx context.Context) bool {
	if !in.s.replacing.TryLock() {
		return false
	}
	defer in.s.replacing.Unlock()
	old := in.anyMember()
	if !in.admit(ctx) || !in.expel(ctx, old.ID) {
		return false
	}
	in.forget(ctx, old)
	return true
}

// replaceLostDisk replaces a member that was killed and whose disk is lost. Only
// one disk of a shard is ever lost at a time.
func (in *incident) replaceLostDisk(ctx context.Context) bool {
	if len(in.t.cluster.Of(in.s.name)) < 3 || !in.s.replacing.TryLock() {
		return false
	}
	defer in.s.replacing.Unlock()
	old := in.anyMember()
	release, ok := in.t.nodes.claim(old.ID)
	if !ok {
		return false
	}
	defer release()
	in.event("SIGKILL %s, its disk is lost", old.ID)
	_ = in.t.cluster.KillNode(old.ID)
	if err := os.RemoveAll(old.DataDir); err != nil {
		in.t.note("%v", err)
	}
	// Whatever comes of it: what has lost its disk must not be started again.
	defer in.dispose(old)
	return in.admit(ctx) && in.expel(ctx, old.ID)
}

// admit adds a member and makes it a voter.
func (in *incident) admit(ctx context.Context) bool {
	m, ok := in.join(ctx)
	return ok && in.insist(ctx, "promote "+m.ID, func(ctx context.Context, c *client.Client) error {
		_, err := c.Promote(ctx, in.s.name, m.ID, 0)
		return err
	})
}
