package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

const (
	membershipTimeout = 10 * time.Second
	transferPause     = 5 * time.Millisecond
)

// IsLeader reports whether this node believes that it leads.
func (r *Replica) IsLeader() bool { return r.raft().State() == raft.Leader }

// Leader returns the leader's id and address, empty when none is known.
func (r *Replica) Leader() (id, address string) {
	a, i := r.raft().LeaderWithID()
	return string(i), string(a)
}

func invalid(format string, args ...any) *refusal.Error {
	return refusal.New(storagepb.Code_CODE_INVALID, format, args...)
}

// members returns the membership that is in force, and its Raft index.
func (r *Replica) members(ctx context.Context) ([]raft.Server, uint64, error) {
	if err := r.awaitLinearizable(ctx); err != nil {
		return nil, 0, err
	}
	// The index is read first. If a change comes in between, it is older than the
	// list, and the change that is based on it is refused.
	index := r.fsm.membershipIndex.Load()
	f := r.raft().GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, 0, r.refusalOf(err)
	}
	return f.Configuration().Servers, index, nil
}

func find(servers []raft.Server, id string) (raft.Server, bool) {
	for _, s := range servers {
		if string(s.ID) == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

// change makes one change to the membership, if it still is the one of index.
// prev, if not 0, is the index that the caller knows.
func (r *Replica) change(index, prev uint64, do func(prev uint64) raft.IndexFuture) (uint64, error) {
	if prev != 0 && prev != index {
		return 0, invalid("the membership has changed: its index is %d, not %d; look again and repeat", index, prev)
	}
	f := do(index)
	if err := f.Error(); err != nil {
		if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) {
			return 0, r.notLeader()
		}
		return 0, invalid("membership of shard %s: %v", r.cfg.Shard, err)
	}
	return f.Index(), nil
}

// AddLearner adds a member without a vote. Doing it twice is the same as once.
// It returns the index of the membership.
func (r *Replica) AddLearner(ctx context.Context, id, address string, prev uint64) (uint64, error) {
	if id == "" || address == "" {
		return 0, invalid("id %q, address %q: name both", id, address)
	}
	servers, index, err := r.members(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range servers {
		switch sameID, sameAddress := string(s.ID) == id, string(s.Address) == address; {
		case sameID && sameAddress:
			return index, nil
		case sameID && s.Suffrage == raft.Voter:
			return 0, invalid("member %s is a voter at %s: remove it first", id, s.Address)
		case sameAddress:
			return 0, invalid("address %s is that of member %s", address, s.ID)
		}
	}
	return r.change(index, prev, func(prev uint64) raft.IndexFuture {
		return r.raft().AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), prev, membershipTimeout)
	})
}

// Promote makes a learner a voter. It is refused until the learner has caught up:
// a voter that lags counts for the quorum, but can not help to reach it.
func (r *Replica) Promote(ctx context.Context, id string, prev uint64) (uint64, error) {
	servers, index, err := r.members(ctx)
	if err != nil {
		return 0, err
	}
	s, ok := find(servers, id)
	switch {
	case !ok:
		return 0, refusal.New(storagepb.Code_CODE_NOT_FOUND, "no member %s in shard %s: add it as a learner first", id, r.cfg.Shard)
	case s.Suffrage == raft.Voter:
		return index, nil
	}
	if why := r.behind(id); why != "" {
		if _, err := r.statusOf(ctx, string(s.Address)); err != nil {
			why += fmt.Sprintf(" (asked at %s: %v)", s.Address, err)
		}
		return 0, unavailable("learner %s has not caught up: %s", id, why)
	}
	return r.change(index, prev, func(prev uint64) raft.IndexFuture {
		return r.raft().AddVoter(s.ID, s.Address, prev, membershipTimeout)
	})
}

// Remove takes a member out of the shard. It is refused for the leader, and if
// those who stay could not reach a quorum at present.
func (r *Replica) Remove(ctx context.Context, id string, prev uint64) (uint64, error) {
	servers, index, err := r.members(ctx)
	if err != nil {
		return 0, err
	}
	s, ok := find(servers, id)
	switch {
	case !ok:
		return 0, refusal.New(storagepb.Code_CODE_NOT_FOUND, "no member %s in shard %s", id, r.cfg.Shard)
	case id == r.cfg.ID:
		return 0, invalid("member %s leads the shard: transfer leadership before it is removed", id)
	case s.Suffrage == raft.Voter:
		if why := r.quorumWithout(servers, id, true); why != "" {
			return 0, invalid("member %s stays: %s", id, why)
		}
	}
	return r.change(index, prev, func(prev uint64) raft.IndexFuture {
		return r.raft().RemoveServer(s.ID, prev, membershipTimeout)
	})
}

// behind says why a member has not caught up, or "".
func (r *Replica) behind(id string) string {
	if id == r.cfg.ID {
		return ""
	}
	p := r.transport.progress.of(raft.ServerID(id), r.raft().CurrentTerm())
	if silent := time.Since(p.Contact); p.Contact.IsZero() || silent > 2*r.cfg.HeartbeatTimeout {
		return "it does not answer"
	}
	if lag := lagOf(r.raft().LastIndex(), p.Match); lag > r.cfg.CaughtUpEntries {
		return fmt.Sprintf("it lacks %d entries of the log", lag)
	}
	return ""
}

func lagOf(last, match uint64) uint64 {
	if match >= last {
		return 0
	}
	return last - match
}

// quorumWithout says why the voters other than id could not reach a quorum, or
// "". With removed, id no longer counts as a voter.
func (r *Replica) quorumWithout(servers []raft.Server, id string, removed bool) string {
	voters, fit := 0, 0
	for _, s := range servers {
		if s.Suffrage != raft.Voter || removed && string(s.ID) == id {
			continue
		}
		voters++
		if string(s.ID) != id && r.behind(string(s.ID)) == "" {
			fit++
		}
	}
	if quorum := voters/2 + 1; fit < quorum {
		return fmt.Sprintf("without it %d of %d voters are there and up to date, and %d are needed", fit, voters, quorum)
	}
	return ""
}

// TransferLeadership hands leadership to the voter with the given id, or to the
// one that is furthest on if id is empty, and returns the leader's id once
// another member leads. ctx bounds the wait.
func (r *Replica) TransferLeadership(ctx context.Context, id string) (string, error) {
	// One at a time: the library can get stuck when a transfer is asked for while
	// the one before is not over.
	if !r.transferring.TryLock() {
		return "", unavailable("member %s is handing leadership over already", r.cfg.ID)
	}
	defer r.transferring.Unlock()
	servers, _, err := r.members(ctx)
	if err != nil {
		return "", err
	}
	target, err := r.successor(servers, id)
	if err != nil {
		return "", err
	}
	if err := r.awaitMatch(ctx, target); err != nil {
		return "", err
	}
	i := r.current.Load()
	if err := i.await(i.raft.LeadershipTransferToServer(target.ID, target.Address)); err != nil {
		return "", unavailable("leadership was not handed to %s: %v", target.ID, err)
	}
	return r.awaitOtherLeader(ctx)
}

func (r *Replica) successor(servers []raft.Server, id string) (raft.Server, error) {
	if id != "" {
		s, ok := find(servers, id)
		switch {
		case !ok:
			return s, refusal.New(storagepb.Code_CODE_NOT_FOUND, "no member %s in shard %s", id, r.cfg.Shard)
		case s.Suffrage != raft.Voter:
			return s, invalid("member %s is a learner: promote it first", id)
		case id == r.cfg.ID:
			return s, invalid("member %s leads already", id)
		}
		return s, nil
	}
	var best raft.Server
	var match uint64
	for _, s := range servers {
		if s.Suffrage != raft.Voter || string(s.ID) == r.cfg.ID || r.behind(string(s.ID)) != "" {
			continue
		}
		if p := r.transport.progress.of(s.ID, r.raft().CurrentTerm()); best.ID == "" || p.Match > match {
			best, match = s, p.Match
		}
	}
	if best.ID == "" {
		return best, unavailable("no other voter of shard %s is there and up to date", r.cfg.Shard)
	}
	return best, nil
}

// awaitMatch waits until the successor has nearly all of the log, so that the
// library, which takes no entries during a transfer, is quick about it; and all
// that the log holds now, which shows that it takes entries. Of one that does not,
// the library may wait for ever.
func (r *Replica) awaitMatch(ctx context.Context, s raft.Server) error {
	last := r.raft().LastIndex()
	for {
		why := r.behind(string(s.ID))
		if match := r.transport.progress.of(s.ID, r.raft().CurrentTerm()).Match; why == "" && match < last {
			why = fmt.Sprintf("it has taken entries up to %d of %d", match, last)
		}
		if why == "" {
			return nil
		}
		if err := r.pause(ctx); err != nil {
			return unavailable("leadership stays: member %s: %s", s.ID, why)
		}
	}
}

func (r *Replica) awaitOtherLeader(ctx context.Context) (string, error) {
	for {
		if id, _ := r.Leader(); id != "" && id != r.cfg.ID {
			return id, nil
		}
		if err := r.pause(ctx); err != nil {
			return "", unavailable("member %s gave leadership up, and no other leads yet", r.cfg.ID)
		}
	}
}

func (r *Replica) pause(ctx context.Context) error {
	timer := time.NewTimer(transferPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

// leaveFullDisk hands leadership to a voter whose disk has room. It is called again
// while the disk is full: who could not take over may be able to later, and a member
// that has stepped down for want of room may be elected again.
func (r *Replica) leaveFullDisk() {
	if !r.IsLeader() {
		r.stuckFull.Store(false)
	} else if !r.handOver() && r.IsLeader() && !r.stuckFull.Swap(true) {
		r.cfg.Logger.Warn("the disk is full, and no other voter can lead")
	}
}

// handOver hands leadership to a voter that says of itself that its disk has room
// and its data is whole, and reports whether there was one.
func (r *Replica) handOver() bool {
	ctx, cancel := context.WithTimeout(r.ctx, membershipTimeout)
	defer cancel()
	servers, _, err := r.members(ctx)
	if err != nil {
		return false
	}
	for _, s := range servers {
		if s.Suffrage != raft.Voter || string(s.ID) == r.cfg.ID || r.behind(string(s.ID)) != "" {
			continue
		}
		st, err := r.statusOf(ctx, string(s.Address))
		if err != nil || st.DiskFull || st.Damage != "" {
			continue
		}
		if _, err := r.TransferLeadership(ctx, string(s.ID)); err == nil {
			return true
		}
	}
	return false
}

// statusOf asks another member for its status.
func (r *Replica) statusOf(ctx context.Context, address string) (*storagepb.StatusResponse, error) {
	conn, err := r.transport.Conn(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(WithIdentity(ctx, r.cfg.Cluster, r.cfg.Shard), r.cfg.Transport.VoteTimeout)
	defer cancel()
	return storagepb.NewAdminClient(conn).Status(ctx, &storagepb.StatusRequest{})
}
