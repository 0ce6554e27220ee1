package replica

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/store"
)

// View is a pinned store. The caller must Release it, and should not hold it
// longer than it reads: a store that was replaced stays on disk until then.
type View struct {
	Shard *store.Shard
	// AppliedIndex is the Raft index up to which the view shows every entry.
	AppliedIndex uint64
	live         *liveStore
}

// Release lets go of the store.
func (v *View) Release() { v.live.release() }

// Read returns a view of the store. Unless stale is set it is linearizable: it
// shows everything that was acknowledged before the call, on the leader only;
// other members return CODE_NOT_LEADER. A stale view shows what this member has
// applied.
func (r *Replica) Read(ctx context.Context, stale bool) (*View, error) {
	if r.closed.Load() {
		return nil, unavailable("the node is stopping")
	}
	if !stale {
		if err := r.awaitLinearizable(ctx); err != nil {
			return nil, err
		}
	}
	for {
		applied, _ := r.fsm.appliedIndex()
		live := r.fsm.live.Load()
		if live.acquire() {
			return &View{Shard: live.shard, AppliedIndex: applied, live: live}, nil
		}
		if r.closed.Load() {
			return nil, unavailable("the node is stopping")
		}
	}
}

// awaitLinearizable returns once the node was the leader at some instant after
// the call, and has applied all that was committed at that instant.
func (r *Replica) awaitLinearizable(ctx context.Context) error {
	if r.raft().State() != raft.Leader {
		return r.notLeader()
	}
	if err := r.confirmLead(ctx); err != nil {
		return err
	}
	index, err := r.lastShown(r.raft().CommitIndex())
	if err != nil {
		return err
	}
	return r.awaitApplied(ctx, index)
}

// lastShown returns the index of the last entry up to index that Raft shows to
// the FSM, so that it makes sense to wait for it: the entries by which a leader
// begins its term are not shown.
func (r *Replica) lastShown(index uint64) (uint64, error) {
	for ; index > 0; index-- {
		var l raft.Log
		err := r.logs.GetLog(index, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			return 0, nil // covered by a snapshot, which the store is not behind
		}
		if err != nil {
			return 0, err
		}
		if l.Type == raft.LogCommand || l.Type == raft.LogConfiguration {
			return index, nil
		}
	}
	return 0, nil
}

func (r *Replica) awaitApplied(ctx context.Context, index uint64) error {
	for {
		applied, changed := r.fsm.appliedIndex()
		if applied >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.ctx.Done():
			return unavailable("the node is stopping")
		}
	}
}

// confirmLead asks a quorum whether this node leads. Calls that come while one is
// under way share the next.
func (r *Replica) confirmLead(ctx context.Context) error {
	return r.check.do(ctx, r.verifyLead)
}

// verifyLead begins each term with a barrier: before an entry of its own term is
// committed, a leader does not know how far its predecessors have committed.
func (r *Replica) verifyLead() error {
	r.gate.RLock()
	if r.closed.Load() {
		r.gate.RUnlock()
		return unavailable("the node is stopping")
	}
	i := r.current.Load()
	ra, term := i.raft, i.raft.CurrentTerm()
	var barrier raft.Future
	if r.check.term != term {
		barrier = ra.Barrier(r.cfg.ApplyTimeout)
		r.pending.Add(1)
	}
	r.gate.RUnlock()
	if barrier != nil {
		err := barrier.Error()
		r.pending.Add(-1)
		if err != nil {
			return r.refusalOf(err)
		}
		r.check.term = term
	}
	if err := i.await(ra.VerifyLeader()); err != nil {
		return r.refusalOf(err)
	}
	return nil
}

// leaderCheck lets concurrent callers share one check.
type leaderCheck struct {
	term uint64 // whose barrier is done; for the one goroutine that checks

	mu      sync.Mutex
	running bool
	waiting []chan error
}

// do returns the result of a check that began after the call.
func (c *leaderCheck) do(ctx context.Context, check func() error) error {
	result := make(chan error, 1)
	c.mu.Lock()
	c.waiting = append(c.waiting, result)
	if !c.running {
		c.running = true
		go c.run(check)
	}
	c.mu.Unlock()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *leaderCheck) run(check func() error) {
	for {
		c.mu.Lock()
		batch := c.waiting
		c.waiting = nil
		if len(batch) == 0 {
			c.running = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		err := check()
		for _, result := range batch {
			result <- err
		}
	}
}
