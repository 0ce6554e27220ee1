package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

// transferStuckAfter times the election timeout is how long entries may be
// refused because of a transfer of leadership before the transfer counts as
// stuck. A transfer that works ends within two of them.
const transferStuckAfter = 6

// Proposal is an entry on its way through Raft.
type Proposal struct {
	r      *Replica
	future raft.ApplyFuture
	bytes  int64
	err    error // why there is no future
}

// wait returns the FSM's response. It must be called exactly once.
func (p *Proposal) wait() (any, error) {
	if p.err != nil {
		p.r.countRefusal(p.err)
		return nil, p.err
	}
	err := p.future.Error()
	p.r.answered(p.bytes)
	if err != nil {
		err = p.r.refusalOf(err)
		p.r.countRefusal(err)
		return nil, err
	}
	p.r.transferStuck.Store(nil)
	response := p.future.Response()
	if err, ok := response.(error); ok {
		p.r.countRefusal(err)
		return nil, err
	}
	return response, nil
}

// Wait returns the instrument's last seq once the batch is on the disks of a
// quorum and applied here, or why it is not. It must be called exactly once.
//
// After CODE_NOT_LEADER and CODE_UNAVAILABLE the batch may have been stored all
// the same; the writer learns that when it opens the stream again.
func (p *Proposal) Wait() (lastSeq uint64, err error) {
	response, err := p.wait()
	if err != nil {
		return 0, err
	}
	result, ok := response.(appendResult)
	if !ok {
		return 0, fmt.Errorf("response of type %T to a batch", response)
	}
	return result.lastSeq, nil
}

// ProposeBatch hands a batch to Raft and returns before it is stored, so that
// many can be on their way. Batches proposed one after another by one goroutine
// are applied in that order. batch must have passed record.ParseBatch and must
// never be changed. ProposeBatch waits while InFlightBytes are on their way, and
// no longer than ctx allows.
func (r *Replica) ProposeBatch(ctx context.Context, batch []byte) *Proposal {
	return r.propose(ctx, raft.Log{Data: batch, Extensions: batchExtensions})
}

// OpenStream raises the epoch of an instrument's stream and returns what the
// stream ends with.
func (r *Replica) OpenStream(ctx context.Context, sym record.Symbol, epoch uint64) (store.OpenResult, error) {
	response, err := r.propose(ctx, openCommand(sym, epoch)).wait()
	if err != nil {
		return store.OpenResult{}, err
	}
	result, ok := response.(store.OpenResult)
	if !ok {
		return store.OpenResult{}, fmt.Errorf("response of type %T to an opened stream", response)
	}
	return result, nil
}

// SetOwned replaces the list of instruments that the shard owns.
func (r *Replica) SetOwned(ctx context.Context, instruments []record.Symbol) error {
	_, err := r.propose(ctx, ownedCommand(instruments)).wait()
	return err
}

// proposalBytesMin is what a proposal counts for at least.
const proposalBytesMin = 1 << 10

func (r *Replica) propose(ctx context.Context, entry raft.Log) *Proposal {
	if err := r.mayPropose(); err != nil {
		return &Proposal{r: r, err: err}
	}
	// A batch larger than the whole budget is let through alone. What Raft keeps of
	// a small entry is more than its data.
	bytes := min(max(int64(len(entry.Data)), proposalBytesMin), r.budget)
	if err := r.inFlight.Acquire(ctx, bytes); err != nil {
		return &Proposal{r: r, err: err}
	}
	r.gate.RLock()
	defer r.gate.RUnlock()
	if r.closed.Load() {
		r.inFlight.Release(bytes)
		return &Proposal{r: r, err: unavailable("the node is stopping")}
	}
	r.pending.Add(1)
	r.metrics.proposals.Inc()
	r.metrics.inFlightBytes.Add(float64(bytes))
	return &Proposal{r: r, bytes: bytes, future: r.raft().ApplyLog(entry, r.cfg.ApplyTimeout)}
}

func (r *Replica) answered(bytes int64) {
	r.inFlight.Release(bytes)
	r.pending.Add(-1)
	r.metrics.proposals.Dec()
	r.metrics.inFlightBytes.Sub(float64(bytes))
}

// mayPropose refuses what can not succeed before it costs anything.
func (r *Replica) mayPropose() error {
	switch {
	case r.closed.Load() || r.broken.Load():
		return unavailable("the node is stopping")
	case r.raft().State() != raft.Leader:
		return r.notLeader()
	case r.disk.full.Load():
		return refusal.New(storagepb.Code_CODE_DISK_FULL,
			"member %s: %d bytes of disk space are left, below the reserve: free space or add a larger disk", r.cfg.ID, r.disk.free.Load())
	}
	if why := r.noRoom.Load(); why != nil && *why != "" {
		return refusal.New(storagepb.Code_CODE_DISK_FULL, "shard %s: %s: free space there or add larger disks", r.cfg.Shard, *why)
	}
	return nil
}

func unavailable(format string, args ...any) *refusal.Error {
	return refusal.New(storagepb.Code_CODE_UNAVAILABLE, format, args...)
}

// notLeader names the leader, if one is known.
func (r *Replica) notLeader() *refusal.Error {
	address, id := r.raft().LeaderWithID()
	e := refusal.New(storagepb.Code_CODE_NOT_LEADER, "member %s does not lead shard %s; no leader is known", r.cfg.ID, r.cfg.Shard)
	e.Term = r.raft().CurrentTerm()
	if id != "" && string(id) != r.cfg.ID {
		e.LeaderID, e.LeaderAddress = string(id), string(address)
		e.Message = fmt.Sprintf("member %s does not lead shard %s; %s at %s does", r.cfg.ID, r.cfg.Shard, id, address)
	}
	return e
}

// refusalOf turns an error of the Raft library into the refusal that tells the
// caller what to do.
func (r *Replica) refusalOf(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost):
		return r.notLeader()
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		r.noteTransferStuck()
		return unavailable("member %s is handing leadership over", r.cfg.ID)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return refusal.New(storagepb.Code_CODE_OVERLOADED, "member %s could not take the entry up within %s", r.cfg.ID, r.cfg.ApplyTimeout)
	}
	return unavailable("member %s: %v", r.cfg.ID, err)
}

// noteTransferStuck restarts Raft when a transfer of leadership seems never to
// end; see restartRaft.
func (r *Replica) noteTransferStuck() {
	since := r.transferStuck.Load()
	if since == nil {
		now := time.Now()
		r.transferStuck.CompareAndSwap(nil, &now)
		return
	}
	if time.Since(*since) < transferStuckAfter*r.cfg.ElectionTimeout {
		return
	}
	if r.transferStuck.CompareAndSwap(since, nil) {
		r.background.Go(func() { r.restartRaft("a transfer of leadership does not end") })
	}
}

func (r *Replica) countRefusal(err error) {
	code := storagepb.Code_CODE_UNSPECIFIED
	if e := refusal.FromError(err); e != nil {
		code = e.Code
	}
	r.metrics.refusals.WithLabelValues(code.String()).Inc()
}
