package torture

import (
	"context"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

const (
	downMax      = 3 * time.Second
	pauseMin     = 50 * time.Millisecond
	pauseMax     = 4 * time.Second // eight times the election timeout
	leaderWait   = 300 * time.Millisecond
	recoveryMax  = 150 * time.Millisecond
	severalTries = 4
)

// anyMember draws a member of the shard.
func (in *incident) anyMember() localcluster.Member {
	members := in.t.cluster.Of(in.s.name)
	return members[in.random.IntN(len(members))]
}

// leader asks all members and returns the one that leads, with the highest term
// if several believe so.
func (t *torture) leader(ctx context.Context, s *shard) (localcluster.Member, bool) {
	members := t.cluster.Of(s.name)
	terms := make([]uint64, len(members))
	c, err := client.New(t.cluster.Map(), client.Options{AttemptTimeout: leaderWait})
	if err != nil {
		return localcluster.Member{}, false
	}
	defer c.Close()
	var asking sync.WaitGroup
	for i, m := range members {
		asking.Go(func() {
			if st, err := c.Status(ctx, s.name, m.ID); err == nil && st.State == client.StateLeader {
				terms[i] = st.Term
			}
		})
	}
	asking.Wait()
	best := -1
	for i, term := range terms {
		if term > 0 && (best < 0 || term > terms[best]) {
			best = i
		}
	}
	if best < 0 {
		return localcluster.Member{}, false
	}
	return members[best], true
}

// follower draws a member that does not lead.
func (in *incident) follower(ctx context.Context) (localcluster.Member, bool) {
	leader, _ := in.t.leader(ctx, in.s)
	for range severalTries {
		if m := in.anyMember(); m.ID != leader.ID {
			return m, true
		}
	}
	return leader, false
}

// kill ends nodes that are claimed with SIGKILL, all at once, and starts them
// after a while.
func (in *incident) kill(ctx context.Context, ids []string) bool {
	var claimed []string
	for _, id := range ids {
		release, ok := in.t.nodes.claim(id)
		if !ok {
			continue
		}
		defer release()
		claimed = append(claimed, id)
	}
	if len(claimed) == 0 {
		return false
	}
	in.event("SIGKILL %v", claimed)
	in.each(claimed, func(id string) { _ = in.t.cluster.KillNode(id) }) // it is there: it is claimed
	pause(ctx, in.between(0, downMax))
	in.each(claimed, func(id string) { in.t.startNode(ctx, id) })
	in.event("%v run again", claimed)
	return true
}

func (in *incident) each(ids []string, do func(id string)) {
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() { do(id) })
	}
	wg.Wait()
}

func (in *incident) killOne(ctx context.Context) bool {
	return in.kill(ctx, []string{in.anyMember().ID})
}

func (in *incident) killLeader(ctx context.Context) bool {
	m, ok := in.t.leader(ctx, in.s)
	return ok && in.kill(ctx, []string{m.ID})
}

// killSeveral ends a majority.
func (in *incident) killSeveral(ctx context.Context) bool {
	members := in.t.cluster.Of(in.s.name)
	in.random.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	var ids []string
	for _, m := range members[:len(members)/2+1] {
		ids = append(ids, m.ID)
	}
	return in.kill(ctx, ids)
}

// killAll ends the nodes of all shards.
func (in *incident) killAll(ctx context.Context) bool {
	var ids []string
	for _, m := range in.t.cluster.Members() {
		ids = append(ids, m.ID)
	}
	return in.kill(ctx, ids)
}

// killTwice ends a node, and again while it recovers.
func (in *incident) killTwice(ctx context.Context) bool {
	m := in.anyMember()
	release, ok := in.t.nodes.claim(m.ID)
	if !ok {
		return false
	}
	defer release()
	in.event("SIGKILL %s, and again soon after its start", m.ID)
	_ = in.t.cluster.KillNode(m.ID)
	var starting sync.WaitGroup
	begun, cancel := context.WithCancel(context.WithoutCancel(ctx))
	starting.Go(func() { _ = in.t.cluster.StartNode(begun, m.ID) }) // it is meant to fail
	time.Sleep(in.between(0, recoveryMax))
	_ = in.t.cluster.KillNode(m.ID)
	cancel()
	starting.Wait()
	_ = in.t.cluster.KillNode(m.ID) // it may have begun only then
	pause(ctx, in.between(0, downMax))
	in.t.startNode(ctx, m.ID)
	in.event("%s runs again", m.ID)
	return true
}

// restart ends a node in good order.
func (in *incident) restart(ctx context.Context) bool {
	m := in.anyMember()
	release, ok := in.t.nodes.claim(m.ID)
	if !ok {
		return false
	}
	defer release()
	in.event("SIGTERM %s", m.ID)
	if err := in.t.cluster.StopNode(m.ID); err != nil {
		in.t.found.add(broken, 1, "%v", err)
	}
	pause(ctx, in.between(0, downMax/2))
	in.t.startNode(ctx, m.ID)
	in.event("%s runs again", m.ID)
	return true
}

func (in *incident) pauseOne(ctx context.Context) bool { return in.halt(ctx, in.anyMember()) }

func (in *incident) pauseLeader(ctx context.Context) bool {
	m, ok := in.t.leader(ctx, in.s)
	return ok && in.halt(ctx, m)
}

// halt stops a process for a while, which may be longer than an election takes.
func (in *incident) halt(ctx context.Context, m localcluster.Member) bool {
	release, ok := in.t.nodes.claim(m.ID)
	if !ok {
		return false
	}
	defer release()
	d := in.between(pauseMin, pauseMax)
	if !in.t.cluster.PauseNode(m.ID) {
		return false
	}
	in.event("SIGSTOP %s for %s", m.ID, d)
	pause(ctx, d)
	in.t.cluster.ResumeNode(m.ID)
	in.event("SIGCONT %s", m.ID)
	return true
}
