package replica

import (
	"context"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
)

// replayBytes returns how much of the log a start keeps in memory for the replay: as
// much as the memtables, to which it goes, may take, but no more than a quarter of the
// memory that the process is to live with, for what lies before it in the log is in
// the memtables beside it.
func replayBytes(memtables, limit int64) int64 { return min(memtables, limit/4) }

// checkedExtensions equal batchExtensions, and are the very slice that a batch's entry
// has if its data was checked in the memory where it is. The mark is the address: it
// goes where the entry goes within this process, and nowhere else.
var checkedExtensions = slices.Clone(batchExtensions)

// checkAhead checks the batch of an entry that the log has just read, while it reads
// on, and marks it. One that is not good is not marked: the FSM comes upon it when it
// is applied, if it ever is.
func checkAhead(l *raft.Log) {
	if l.Type != raft.LogCommand || !slices.Equal(l.Extensions, batchExtensions) {
		return
	}
	if _, err := record.ParseBatch(l.Data); err == nil {
		l.Extensions = checkedExtensions
	}
}

// wasCheckedAhead reports whether checkAhead has marked the entry.
func wasCheckedAhead(l *raft.Log) bool {
	return len(l.Extensions) > 0 && &l.Extensions[0] == &checkedExtensions[0]
}

// watchReplay makes the log give up the memory for the replay once it has come to its
// end, at once if there is nothing to replay.
func (r *Replica) watchReplay() error {
	last, err := r.logs.LastIndex()
	if err != nil {
		return err
	}
	if last, err = r.lastShown(last); err != nil {
		return err
	}
	if last <= r.logs.snapshot().index {
		r.endReplay()
		return nil
	}
	r.fsm.replayEnd, r.fsm.replayed = last, r.endReplay
	return nil
}

// noteReplay ends the replay if its last entry was handed over. FSM goroutine only.
func (f *fsm) noteReplay() {
	if f.replayed != nil && f.handed >= f.replayEnd {
		f.replayed()
		f.replayed = nil
	}
}

// callElectionIfAlone spares the only voter of a shard the wait for a leader's
// heartbeat: nobody else can lead, and nobody is troubled by its election.
func (r *Replica) callElectionIfAlone(ra *raft.Raft) {
	id := raft.ServerID(r.cfg.ID)
	if f := ra.GetConfiguration(); f.Error() != nil || !isOnlyVoter(f.Configuration(), id) {
		return
	}
	r.background.Go(func() {
		// Before the instance calls an election by itself: a leader would step down for it.
		ctx, cancel := context.WithTimeout(r.ctx, r.cfg.HeartbeatTimeout/2)
		defer cancel()
		r.transport.campaign(ctx, id)
	})
}

// isOnlyVoter reports whether id has a vote and nobody else has.
func isOnlyVoter(c raft.Configuration, id raft.ServerID) bool {
	votes := false
	for _, s := range c.Servers {
		switch {
		case s.Suffrage != raft.Voter:
		case s.ID != id:
			return false
		default:
			votes = true
		}
	}
	return votes
}
