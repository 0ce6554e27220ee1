package replica

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Status states what the member knows of itself and its shard. What only a
// leader knows of the others is left out on other members.
func (r *Replica) Status() *storagepb.StatusResponse {
	ra := r.raft()
	leaderID, leaderAddress := r.Leader()
	applied, _ := r.fsm.appliedIndex()
	first, err := r.logs.FirstIndex()
	if err != nil {
		first = 0
	}
	out := &storagepb.StatusResponse{
		Cluster: r.cfg.Cluster, Shard: r.cfg.Shard, Id: r.cfg.ID, Address: r.cfg.Address,
		State: stateName(ra.State()), Term: ra.CurrentTerm(), LeaderId: leaderID, LeaderAddress: leaderAddress,
		LastIndex: ra.LastIndex(), CommitIndex: ra.CommitIndex(), AppliedIndex: applied, FirstIndex: first,
		MembershipIndex: r.fsm.membershipIndex.Load(),
		Receiving:       r.transport.transfers.incoming().proto(),
		DiskFreeBytes:   r.disk.free.Load(), DiskFull: r.disk.full.Load(),
	}
	out.Generation, out.Recovery = Generation(out.Term), r.recovered().proto()
	if err := r.damage(); err != nil {
		out.Damage = err.Error()
	}
	if newest, err := r.snapshots.newest(); err == nil && newest != nil {
		out.SnapshotIndex = newest.Raft.Index
	}
	if view, err := r.Read(context.Background(), true); err == nil {
		for _, sym := range view.Shard.Owned() {
			out.Instruments = append(out.Instruments, sym.String())
		}
		view.Release()
	}
	out.Members = r.memberStates(out)
	return out
}

func stateName(s raft.RaftState) string {
	if s == raft.Shutdown {
		return "stopped"
	}
	return strings.ToLower(s.String())
}

func (r *Replica) memberStates(st *storagepb.StatusResponse) []*storagepb.Member {
	f := r.raft().GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	st.MembershipPending = f.Index() > st.MembershipIndex
	leads := st.LeaderId == r.cfg.ID
	var out []*storagepb.Member
	for _, s := range f.Configuration().Servers {
		m := &storagepb.Member{
			Id: string(s.ID), Address: string(s.Address),
			Voter: s.Suffrage == raft.Voter, Leader: string(s.ID) == st.LeaderId,
		}
		if leads && m.Id != r.cfg.ID {
			p := r.transport.progress.of(s.ID, st.Term)
			m.Receiving = r.transport.transfers.peer(s.ID).proto()
			m.Lag, m.LastContactMs = lagOf(st.LastIndex, p.Match), -1
			if !p.Contact.IsZero() {
				m.LastContactMs = time.Since(p.Contact).Milliseconds()
			}
		}
		out = append(out, m)
	}
	return out
}

// SafeToRestart reports whether the shard keeps its quorum while this member is
// away: every voter is in contact and has nearly all of the log, and the others
// are enough. If it is not safe, why says so.
func (r *Replica) SafeToRestart(ctx context.Context) (safe bool, why string) {
	st := r.Status()
	if st.LeaderId == "" {
		return false, "the shard has no leader"
	}
	if st.LeaderId != r.cfg.ID {
		leader, err := r.statusOf(ctx, st.LeaderAddress)
		if err != nil {
			return false, fmt.Sprintf("the leader, %s, does not answer: %v", st.LeaderId, err)
		}
		if st = leader; st.State != "leader" {
			return false, "leadership is changing"
		}
	}
	return r.safeByStatus(st)
}

// safeByStatus judges by the leader's view.
func (r *Replica) safeByStatus(leader *storagepb.StatusResponse) (bool, string) {
	voters, own := 0, false
	for _, m := range leader.Members {
		if m.Id == r.cfg.ID {
			own = m.Voter
		}
		if !m.Voter {
			continue
		}
		voters++
		if m.Leader {
			continue
		}
		if m.LastContactMs < 0 || m.LastContactMs > 2*r.cfg.HeartbeatTimeout.Milliseconds() {
			return false, fmt.Sprintf("voter %s does not answer the leader", m.Id)
		}
		if m.Lag > r.cfg.CaughtUpEntries {
			return false, fmt.Sprintf("voter %s lacks %d entries of the log", m.Id, m.Lag)
		}
	}
	if quorum := voters/2 + 1; own && voters-1 < quorum {
		return false, fmt.Sprintf("the other %d of %d voters are no quorum", voters-1, voters)
	}
	return true, ""
}

// Ready reports whether a leader is known, this member has applied what it knows
// to be committed, and it has found no damage in its data.
func (r *Replica) Ready() bool {
	if r.broken.Load() || r.closed.Load() || r.damage() != nil {
		return false
	}
	if id, _ := r.Leader(); id == "" {
		return false
	}
	commit := r.raft().CommitIndex()
	index, err := r.lastShown(commit)
	applied, _ := r.fsm.appliedIndex()
	return err == nil && commit > 0 && lagOf(index, applied) <= r.cfg.CaughtUpEntries
}

// Snapshot takes a snapshot, shortens the log, and returns the snapshot's index
// and size in bytes. If nothing happened since the last one it returns that.
func (r *Replica) Snapshot(ctx context.Context) (*storagepb.SnapshotResponse, error) {
	if r.closed.Load() {
		return nil, unavailable("the node is stopping")
	}
	if err := r.raft().Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil, unavailable("snapshot: %v", err)
	}
	newest, err := r.snapshots.newest()
	if err != nil {
		return nil, err
	}
	if newest == nil {
		return nil, unavailable("there is nothing to take a snapshot of yet")
	}
	return &storagepb.SnapshotResponse{Index: newest.Raft.Index, Bytes: uint64(newest.Raft.Size)}, nil
}
