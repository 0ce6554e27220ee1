package replica

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/hashicorp/raft"
)

// instance is one Raft instance. A replica may go through several of them: see
// restartRaft.
type instance struct {
	raft   *raft.Raft
	notify chan bool
	stop   chan struct{}
}

// await returns a future's error, or that the instance has ended: what is asked of
// it in that instant may never be answered.
func (i *instance) await(f raft.Future) error {
	answered := make(chan error, 1)
	go func() { answered <- f.Error() }()
	select {
	case err := <-answered:
		return err
	case <-i.stop:
		return raft.ErrRaftShutdown
	}
}

const (
	notifyBacklog = 16
	drainGrace    = 500 * time.Millisecond
	drainPause    = time.Millisecond

	interruptPause = 20 * time.Millisecond
)

func (r *Replica) raft() *raft.Raft { return r.current.Load().raft }

func (r *Replica) startRaft() error {
	r.logs.forgetLoss()
	r.fsm.skipped = false
	if err := r.trimLog(); err != nil {
		return fmt.Errorf("raft log: %w", err)
	}
	i := &instance{notify: make(chan bool, notifyBacklog), stop: make(chan struct{})}
	ra, err := raft.NewRaft(r.cfg.raftConfig(i.notify), r.fsm, r.logs, r.stable, r.snapshots, r.transport)
	if err != nil {
		return fmt.Errorf("raft: %w", err)
	}
	i.raft = ra
	r.current.Store(i)
	r.callElectionIfAlone(ra)
	r.background.Go(func() { r.watchLeadership(i) })
	return nil
}

// stopRaft ends the present instance and waits for its goroutines.
func (r *Replica) stopRaft() {
	r.gate.Lock()
	defer r.gate.Unlock()
	r.endInstance()
}

func (r *Replica) endInstance() {
	// The instance drops the proposals it has not taken up yet without an
	// answer, so it is given the time to take them up.
	for deadline := time.Now().Add(drainGrace); r.pending.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(drainPause)
	}
	i := r.current.Load()
	shutdown := i.raft.Shutdown()
	ended := make(chan error, 1)
	go func() { ended <- shutdown.Error() }()
	if err := r.interruptUntil(ended); err != nil {
		r.cfg.Logger.Warn("raft shutdown", "error", err)
	}
	close(i.stop)
}

// interruptUntil ends outgoing calls until the instance has ended. Once is not
// enough: one of its goroutines may have one more entry to send before it sees the
// end, to a member that does not answer.
func (r *Replica) interruptUntil(ended <-chan error) error {
	ticker := time.NewTicker(interruptPause)
	defer ticker.Stop()
	for {
		r.transport.interrupt()
		select {
		case err := <-ended:
			return err
		case <-ticker.C:
		}
	}
}

// restartRaft replaces the Raft instance by one that begins from what is on
// disk. There are states that the library does not leave by itself:
//
//   - After a snapshot from a leader, a follower whose log went beyond the
//     snapshot, or disagreed with it, keeps the old last index and term in
//     memory. It then rejects all entries, and is sent the snapshot again and
//     again.
//   - A transfer of leadership that is interrupted at the wrong moment leaves the
//     flag "transfer in progress" set: when the node leads again, it refuses
//     every entry.
//   - Entries that the log had taken could not be written, because the disk is
//     full. The instance believes in them.
//
// In all of them, the state on disk is right or is made right by trimLog.
func (r *Replica) restartRaft(why string) {
	r.restarting.Lock()
	defer r.restarting.Unlock()
	if r.closed.Load() || r.broken.Load() {
		return
	}
	r.cfg.Logger.Warn("restarting raft", "reason", why)
	r.metrics.raftRestarts.Inc()
	r.gate.Lock()
	defer r.gate.Unlock()
	r.endInstance()
	if err := r.startRaft(); err != nil {
		r.fatal(fmt.Errorf("restart of raft (%s): %w", why, err))
	}
}

// trimLog drops the log's entries if they can not be followed by those after the
// newest snapshot: if they end before it, which leaves a hole, or if the one at
// its index has another term, which shows that it and all after it were never
// committed. It is called while no Raft instance runs.
func (r *Replica) trimLog() error {
	newest, err := r.snapshots.newest()
	if err != nil || newest == nil {
		return err
	}
	first, err := r.logs.FirstIndex()
	if err != nil {
		return err
	}
	last, err := r.logs.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	index, term := newest.Raft.Index, newest.Raft.Term
	if first > index+1 {
		return fmt.Errorf("entries %d to %d are missing between the newest snapshot and the log", index+1, first-1)
	}
	drop := last
	if last >= index && first <= index {
		switch held, err := termAt(r.logs.LogStore, index); {
		case errors.Is(err, raft.ErrLogNotFound):
			drop = index // a hole before the snapshot's index, in a log store that allows it
		case err != nil:
			return err
		case held == term:
			return nil
		}
	} else if first == index+1 {
		return nil
	}
	r.cfg.Logger.Warn("dropping log entries that disagree with the newest snapshot", "first", first, "last", drop, "snapshot", index)
	return r.logs.DeleteRange(first, drop)
}

func termAt(logs raft.LogStore, index uint64) (uint64, error) {
	var l raft.Log
	err := logs.GetLog(index, &l)
	return l.Term, err
}

// has implements snapshotReceiver. If the log holds the snapshot's last entry, it
// holds all of the snapshot, and the leader is told so: to take the snapshot would
// drop entries behind it that this node has acknowledged, and that a quorum may
// rest on.
func (r *Replica) has(index, term uint64) (bool, error) {
	if held, err := termAt(r.logs, index); err == nil && held == term {
		if err := r.isLive(index); err != nil {
			return false, err
		}
		if why, err := r.lostTrack(); err != nil || why != "" {
			r.restartRaft(why)
			return true, err
		}
		return true, nil
	}
	applied, _ := r.fsm.appliedIndex()
	if committed := max(applied, r.raft().CommitIndex()); index <= committed {
		return false, fmt.Errorf("member %s has committed entries up to %d: it can not go back to a snapshot at %d of term %d", r.cfg.ID, committed, index, term)
	}
	return false, nil
}

// isLive makes sure that a snapshot for whose last entry the log vouches is what
// the store shows. It waits while Raft is about to adopt one. When it does not,
// Raft could not read the snapshot, and has gone on with the store before: the next
// start adopts it.
func (r *Replica) isLive(index uint64) error {
	for end := time.Now().Add(r.cfg.HungDiskTimeout); ; {
		newest, err := r.snapshots.newest()
		if err != nil || newest == nil || newest.Raft.Index != index {
			return err
		}
		applied, _ := r.fsm.appliedIndex()
		if applied >= index {
			return nil
		}
		if time.Now().After(end) {
			err := fmt.Errorf("the snapshot at %d is there, and the store shows entries up to %d only: the next start adopts it", index, applied)
			r.fatal(err)
			return err
		}
		select {
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-time.After(interruptPause):
		}
	}
}

// lostTrack says how the Raft instance is wrong about where the log ends, or "".
func (r *Replica) lostTrack() (string, error) {
	last, err := r.logs.LastIndex()
	if err != nil {
		return "", err
	}
	if believed := r.believedLast(); believed > last && believed >= r.logs.snapshot().index {
		return fmt.Sprintf("raft believes in a last entry %d, the log ends at %d", believed, last), nil
	}
	return "", nil
}

// entriesLost is called when the log could not write entries that it had taken: the
// Raft instance is wrong about where the log ends. After an error other than a full
// disk the node is about to end.
func (r *Replica) entriesLost(err error) {
	if r.current.Load() == nil || !r.logs.noRoom(err) {
		return
	}
	r.background.Go(func() { r.restartRaft(err.Error()) })
}

// believedLast returns the index of the log's last entry as the Raft instance
// remembers it.
func (r *Replica) believedLast() uint64 {
	n, err := strconv.ParseUint(r.raft().Stats()["last_log_index"], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// stage implements snapshotReceiver.
func (r *Replica) stage(data io.Reader, size int64, want func([]heldFile, int64) error) ([]byte, func(), error) {
	return r.snapshots.staging.stage(data, size, want)
}

// installed implements snapshotReceiver. It looks for the first of the states
// that restartRaft describes, right when it comes about: after it took a snapshot,
// an instance whose log reached the snapshot's index or beyond is wrong about it.
func (r *Replica) installed(index, _ uint64) {
	if believed := r.believedLast(); believed >= index {
		r.restartRaft(fmt.Sprintf("raft believes in a last entry %d after a snapshot at %d", believed, index))
	}
}

// watchLeadership does what a leader has to do once when it begins to lead.
func (r *Replica) watchLeadership(i *instance) {
	for {
		select {
		case leads := <-i.notify:
			if leads {
				r.background.Go(r.beginToLead)
			} else {
				r.leadEnded()
			}
		case <-i.stop:
			r.leadEnded()
			return
		}
	}
}

// LeadEnds returns a channel that is closed when the node ceases to lead. Whoever
// relies on the lead takes the channel first and asks IsLeader then.
func (r *Replica) LeadEnds() <-chan struct{} {
	r.leadMu.Lock()
	defer r.leadMu.Unlock()
	return r.leadEnds
}

func (r *Replica) leadEnded() {
	r.leadMu.Lock()
	defer r.leadMu.Unlock()
	close(r.leadEnds)
	r.leadEnds = make(chan struct{})
}

func (r *Replica) beginToLead() {
	if err := r.confirmLead(r.ctx); err != nil {
		return // no longer the leader: not ours to do
	}
	r.cfg.Logger.Info("leading the shard", "term", r.raft().CurrentTerm())
	if len(r.cfg.Instruments) == 0 {
		return
	}
	for ends := r.LeadEnds(); r.IsLeader(); {
		err := r.setFirstInstruments()
		if err == nil {
			return
		}
		r.cfg.Logger.Warn("the shard's first instruments are not set yet", "error", err)
		select {
		case <-time.After(r.cfg.DiskCheckInterval):
		case <-ends:
		case <-r.ctx.Done():
			return
		}
	}
}

// setFirstInstruments proposes the configured instruments while the shard owns none.
// It may be refused, as by a full disk, and be worth another attempt.
func (r *Replica) setFirstInstruments() error {
	if view, err := r.Read(r.ctx, true); err == nil {
		owned := len(view.Shard.Owned())
		view.Release()
		if owned > 0 {
			return nil
		}
	}
	return r.SetOwned(r.ctx, r.cfg.Instruments)
}
