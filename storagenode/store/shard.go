package store

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// ErrCorrupt means that stored bytes are not what was written. It is never
// retried.
var ErrCorrupt = record.ErrCorrupt

// ErrPoisoned is wrapped by every write after the first fatal error.
var ErrPoisoned = errors.New("shard takes no more writes after an error")

// ErrInterrupted is returned by an Append or SetOwned whose wait Interrupt has ended. The
// entry has had no effect.
var ErrInterrupted = errors.New("interrupted while waiting for room")

// errClosed ends what is waiting when the shard is closed.
var errClosed = errors.New("shard is closed")

// Shard holds the instruments of one shard.
type Shard struct {
	fs      vfs.FS
	dir     string
	opts    Options
	lock    io.Closer
	cache   *tableCache
	metrics metrics

	owned    atomic.Pointer[ownedSet]
	applied  atomic.Uint64 // see AppliedIndex
	covered  atomic.Uint64 // state.covered, for readers
	poison   atomic.Pointer[error]
	damage   atomic.Pointer[error] // see Damage
	memBytes atomic.Int64          // of all memtables

	// stateMu guards the file SHARD. Lock order: stateMu before an
	// instrument's locks.
	stateMu sync.Mutex
	state   *shardState

	work work
}

// ownedSet is the list of instruments; it never changes once it is published.
type ownedSet struct {
	bySymbol map[record.Symbol]*instrument
	sorted   []*instrument
}

func (s *Shard) find(sym record.Symbol) (*instrument, error) {
	if in := s.owned.Load().bySymbol[sym]; in != nil {
		return in, nil
	}
	s.metrics.refused(storagepb.Code_CODE_NOT_OWNER)
	e := refusal.New(storagepb.Code_CODE_NOT_OWNER, "instrument %s is not on this shard's list; look it up in the shard map", sym)
	e.Instrument = sym.String()
	return nil, e
}

// AppliedIndex returns the highest Raft index that SetOwned, OpenStream, Append
// or Advance was called with; after Open it is DurableIndex. Until the log has
// been replayed to where it was before the restart, an instrument may be ahead
// of it.
func (s *Shard) AppliedIndex() uint64 { return s.applied.Load() }

// Advance raises AppliedIndex to that of an entry that concerns no instrument.
// FSM goroutine only.
func (s *Shard) Advance(index uint64) { s.noteApplied(index) }

// DurableIndex returns the Raft index up to which the directory alone, without
// the log, holds the effect of every entry, also after a crash right now. Log
// entries at or below it may be dropped. It advances by Flush and by
// Snapshot.Persist.
func (s *Shard) DurableIndex() uint64 { return s.covered.Load() }

// HighestIndex returns the Raft index of the latest entry that the shard shows the
// effect of. Right after Open it is the latest whose effect the directory holds,
// which may be above DurableIndex: instruments are flushed one by one. A log that
// ends before it has lost entries. FSM goroutine only, or before there is one.
func (s *Shard) HighestIndex() uint64 {
	s.stateMu.Lock()
	highest := max(s.applied.Load(), s.state.highestIndex())
	s.stateMu.Unlock()
	for _, in := range s.owned.Load().sorted {
		highest = max(highest, in.view.Load().index)
	}
	return highest
}

func (s *Shard) noteApplied(index uint64) {
	if index > s.applied.Load() { // only the FSM goroutine writes
		s.applied.Store(index)
	}
}

// fail ends all writing. The first error goes to OnFatal, on a goroutine of its
// own: the caller may hold locks that OnFatal's code needs.
func (s *Shard) fail(err error) {
	if errors.Is(err, errClosed) || !s.poison.CompareAndSwap(nil, &err) {
		return
	}
	s.work.wakeAll()
	go s.opts.OnFatal(err)
}

// writable returns an error once the shard is poisoned.
func (s *Shard) writable() error {
	if p := s.poison.Load(); p != nil {
		return fmt.Errorf("store %s: %w: %w", s.dir, ErrPoisoned, *p)
	}
	return nil
}

// Interrupt ends the waits of Append and SetOwned, now and in the future, and the
// background's attempts to flush to a full disk. It is the first step of an orderly
// end, and may be called from any goroutine.
func (s *Shard) Interrupt() { s.work.interrupt() }

// Close ends the background work and unlocks the directory. It flushes nothing:
// the log has what the memtables hold; call Flush before for a quick restart.
// Readers may go on with what they hold; no other method may be called.
func (s *Shard) Close() error {
	s.work.stop()
	for _, in := range s.owned.Load().sorted {
		in.wake()
	}
	s.cache.closeAll()
	if err := s.lock.Close(); err != nil {
		return fmt.Errorf("store %s: unlock: %w", s.dir, err)
	}
	return nil
}
