package replica

import (
	"errors"
	"fmt"

	"github.com/countinghouse/countinghouse/record"
)

// logExtent says where a member's log begins and ends, and the newest snapshot.
//
// What the live store holds durably came from entries that were in the log first,
// or from a snapshot that was visible first. The log is shortened at its beginning
// only up to a snapshot, and at its end only where entries were never committed,
// and so never applied. So at every instant, a crash at any step of a snapshot or
// of its adoption included, the store holds the effect of no entry behind both.
// If it does, the log has lost entries that this member has acknowledged.
type logExtent struct {
	first, last uint64 // indices of the log's entries, 0 for an empty log
	snapshot    uint64 // index of the newest snapshot, 0 for none
}

// check compares the extent with the highest index whose effect the store holds.
func (e logExtent) check(applied uint64) error {
	switch {
	case e.first > e.snapshot+1:
		return fmt.Errorf("%w: the log begins at entry %d, and the newest snapshot is at %d: the entries between are lost, or the snapshot that covered them; replace the member",
			record.ErrCorrupt, e.first, e.snapshot)
	case applied > max(e.last, e.snapshot):
		return fmt.Errorf("%w: the log ends at entry %d and the newest snapshot at %d, but the store holds the effect of entry %d: entries that this member has acknowledged are lost, and with its vote a quorum could lose them; replace the member",
			record.ErrCorrupt, e.last, e.snapshot, applied)
	}
	return nil
}

// checkLog refuses a log that has lost entries; see logExtent.
func (r *Replica) checkLog(newest *snapshotMeta) error {
	first, firstErr := r.logs.FirstIndex()
	last, lastErr := r.logs.LastIndex()
	if err := errors.Join(firstErr, lastErr); err != nil {
		return err
	}
	e := logExtent{first: first, last: last}
	if newest != nil {
		e.snapshot = newest.Raft.Index
	}
	err := r.bolt.checkMissing(e.snapshot)
	if err == nil {
		err = e.check(r.fsm.live.Load().shard.HighestIndex())
	}
	if err == nil && last == 0 && newest == nil {
		err = r.checkNoVote()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.cfg.DataDir, err)
	}
	return nil
}

// checkNoVote refuses an empty log in which a vote was given: only a voter is asked
// for one, and a voter has its membership from its log or from a snapshot.
func (r *Replica) checkNoVote() error {
	term, err := r.stable.GetUint64([]byte("LastVoteTerm"))
	if notStored(err) || term == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: the log is empty and there is no snapshot, but this member has voted in term %d: its log is lost; replace the member",
		record.ErrCorrupt, term)
}

// notStored reports whether a stable store lacks the key; raft, too, goes by the text.
func notStored(err error) bool { return err != nil && err.Error() == "not found" }

// errReplaying refuses a snapshot until the store has been handed what it holds.
var errReplaying = errors.New("no snapshot: the log is still being replayed to where the store was")

// mayCut refuses a snapshot whose data would be ahead of its index. A member that
// is restored from it would have a log that ends before what its store holds, like
// one that has lost its end.
func (f *fsm) mayCut() error {
	if highest := f.live.Load().shard.HighestIndex(); f.handed < highest {
		return fmt.Errorf("%w: entry %d of %d", errReplaying, f.handed, highest)
	}
	return nil
}
