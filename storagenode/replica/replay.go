package replica

import (
	"slices"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
)

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
	if f := ra.GetConfiguration(); f.Error() == nil && isOnlyVoter(f.Configuration(), id) {
		r.background.Go(func() { r.transport.campaign(r.ctx, id) })
	}
}

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
