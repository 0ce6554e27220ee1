package store

import (
	"fmt"
	"slices"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// OpenResult is what OpenStream found.
type OpenResult struct {
	Epoch      uint64
	LastSeq    uint64
	LastRecord *record.Record // the record at LastSeq, not to be changed; nil when LastSeq is 0
}

// OpenStream raises the instrument's epoch, which fences every writer with a
// lower one. Refusals: CODE_NOT_OWNER, and CODE_FENCED unless epoch is above the
// current one. FSM goroutine only.
func (s *Shard) OpenStream(index uint64, sym record.Symbol, epoch uint64) (OpenResult, error) {
	if err := s.writable(); err != nil {
		return OpenResult{}, err
	}
	defer s.noteApplied(index)
	in, err := s.find(sym)
	if err != nil {
		return OpenResult{}, err
	}
	res, err := in.openStream(index, epoch)
	s.metrics.refusedErr(err)
	return res, err
}

// Append adds a batch, whose bytes the shard keeps and the caller must never
// change, and returns the instrument's last seq. Refusals (*refusal.Error):
// CODE_NOT_OWNER, CODE_FENCED, CODE_DUPLICATE, CODE_GAP; any other error is
// fatal. One Raft entry carries one batch: an entry whose index the instrument
// has seen already is taken for a replay and skipped without an error, but the one
// that the instrument ends with must be the same again. Append waits while the memtables are at twice their bound, which on a
// full disk is until there is room, or Interrupt is called. FSM goroutine only.
//
// b must come from record.ParseBatch, or from record.TrustBatch of bytes that
// were checked before.
func (s *Shard) Append(index uint64, b record.Batch) (lastSeq uint64, err error) {
	if s.memBytes.Load() >= s.opts.memtablesMax() && !s.work.waitForRoom(s) {
		return 0, fmt.Errorf("store %s: append at index %d: %w", s.dir, index, ErrInterrupted)
	}
	if err := s.writable(); err != nil {
		return 0, err
	}
	if len(b.Records) == 0 || len(b.Bytes) != record.BatchHeaderSize+len(b.Records)*record.Size {
		return 0, fmt.Errorf("store %s: append at index %d: %d records in %d bytes are not a parsed batch", s.dir, index, len(b.Records), len(b.Bytes))
	}
	defer s.noteApplied(index)
	in, err := s.find(b.Instrument)
	if err != nil {
		return 0, err
	}
	before, after, err := in.append(index, &b)
	if err != nil {
		s.metrics.refusedErr(err)
		return before.lastSeq, err
	}
	if before == after {
		s.metrics.replayed.Add(1)
		return after.lastSeq, nil
	}
	in.wake()
	s.metrics.batches.Add(1)
	s.metrics.records.Add(uint64(len(b.Records)))
	total := s.memBytes.Add(after.memBytes - before.memBytes)
	if after.memBytes >= s.opts.MemtableBytesMax {
		s.work.flush(in)
	} else if total >= s.opts.MemtableTotalBytesMax {
		s.work.flushLargest()
	}
	return after.lastSeq, nil
}

// SetOwned makes the shard own exactly the given instruments and returns once
// that is durable. It is refused with CODE_INVALID if an instrument that holds
// records would be taken off the list. An instrument that is taken off loses its
// epoch. index is the Raft index of the entry; a replayed entry that is covered
// already changes nothing. FSM goroutine only.
//
// On a full disk SetOwned waits until there is room, or Interrupt is called.
//
// The list is written here and not with the next flush, because whether an entry
// is refused depends on what the instruments hold: a replay may see them further
// on than the entry did.
func (s *Shard) SetOwned(index uint64, instruments []record.Symbol) error {
	if err := s.writable(); err != nil {
		return err
	}
	defer s.noteApplied(index)
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	if index <= s.state.ownedIndex {
		return nil
	}
	wanted := slices.Clone(instruments)
	slices.SortFunc(wanted, compareSymbols)
	wanted = slices.Compact(wanted)
	set, removed, added, err := s.plan(index, wanted)
	if err != nil {
		s.metrics.refusedErr(err)
		return err
	}
	if len(removed) == 0 && !added {
		return nil
	}
	if err := s.writeStateWhenRoom(index, set); err != nil {
		return err
	}
	s.owned.Store(set)
	if err := s.discard(removed); err != nil {
		s.fail(err)
		return s.writable()
	}
	return nil
}

// writeStateWhenRoom is writeState for an entry, which must have its effect: while
// the disk is full it waits. The caller holds stateMu, which is given up meanwhile.
func (s *Shard) writeStateWhenRoom(ownedIndex uint64, set *ownedSet) error {
	for {
		err := s.failUnlessFull(s.writeState(ownedIndex, s.state.covered, set))
		if !noRoom(err) {
			return err
		}
		s.stateMu.Unlock()
		again := s.work.pause(s.opts.FullDiskRetry)
		s.stateMu.Lock()
		if !again {
			return fmt.Errorf("store %s: %w: %w", s.dir, ErrInterrupted, err)
		}
	}
}

// plan returns the set of the wanted instruments and those that leave it.
func (s *Shard) plan(index uint64, wanted []record.Symbol) (set *ownedSet, removed []*instrument, added bool, err error) {
	if len(wanted) > InstrumentsMax {
		return nil, nil, false, refusal.New(storagepb.Code_CODE_INVALID, "%d instruments; a shard owns at most %d, use more shards", len(wanted), InstrumentsMax)
	}
	old := s.owned.Load()
	set = &ownedSet{bySymbol: make(map[record.Symbol]*instrument, len(wanted))}
	for _, sym := range wanted {
		if err := sym.Check(); err != nil {
			return nil, nil, false, refusal.New(storagepb.Code_CODE_INVALID, "%v", err)
		}
		in := old.bySymbol[sym]
		if in == nil {
			in, added = newInstrument(instrumentPath(s.fs, s.dir, sym), sym, index), true
		}
		set.add(in)
	}
	for _, in := range old.sorted {
		if set.bySymbol[in.sym] != nil {
			continue
		}
		if n := in.view.Load().lastSeq; n > 0 {
			e := refusal.New(storagepb.Code_CODE_INVALID, "instrument %s holds %d records and can not be taken off the shard's list; keep it on the list", in.sym, n)
			e.Instrument, e.LastSeq = in.sym.String(), n
			return nil, nil, false, e
		}
		removed = append(removed, in)
	}
	return set, removed, added, nil
}

// discard removes what is stored of instruments that were taken off the list.
func (s *Shard) discard(removed []*instrument) error {
	for _, in := range removed {
		if err := s.discardOne(in); err != nil {
			return err
		}
		in.wake()
	}
	return nil
}

func (s *Shard) discardOne(in *instrument) error {
	in.diskMu.Lock()
	defer in.diskMu.Unlock()
	in.gone = true
	if !in.hasDir {
		return nil
	}
	if err := s.fs.RemoveAll(in.dir); err != nil {
		return fmt.Errorf("directory %s: remove: %w", in.dir, err)
	}
	return sstable.SyncDir(s.fs, s.fs.PathDir(in.dir))
}

// writeState replaces the file SHARD; the caller holds stateMu.
func (s *Shard) writeState(ownedIndex, covered uint64, set *ownedSet) error {
	state := &shardState{ownedIndex: ownedIndex, covered: covered, entries: make([]shardEntry, len(set.sorted))}
	for i, in := range set.sorted {
		state.entries[i] = shardEntry{instrument: in.sym, since: in.since, durableSeq: in.durableSeq.Load()}
	}
	if err := replaceFile(s.fs, s.dir, shardFile, state.encode()); err != nil {
		return fmt.Errorf("store %s: %w", s.dir, err)
	}
	s.state = state
	s.covered.Store(covered)
	return nil
}
