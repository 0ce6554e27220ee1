package store

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// instrument is one stream of records.
type instrument struct {
	sym   record.Symbol
	dir   string
	since uint64 // see shardEntry

	// mu orders those that replace the view: the FSM goroutine, flushes and
	// merges. It is held for moments only, never over I/O.
	mu   sync.Mutex
	view atomic.Pointer[view]

	// diskMu orders those that write the instrument's files. Lock order:
	// diskMu, then mu.
	diskMu sync.Mutex
	// disk is the manifest that is in force. Invariant: its tables are those
	// of view. Guarded by diskMu.
	disk   *manifest
	hasDir bool // guarded by diskMu
	gone   bool // taken off the list; guarded by diskMu

	durableSeq atomic.Uint64 // disk.lastSeq
	durable    atomic.Uint64 // disk.index
	queued     atomic.Bool   // waits for a flush
	watch      atomic.Pointer[chan struct{}]
}

func newInstrument(dir string, sym record.Symbol, since uint64) *instrument {
	in := &instrument{sym: sym, dir: dir, since: since, disk: &manifest{instrument: sym, index: since}}
	in.view.Store(&view{index: since})
	in.durable.Store(since)
	return in
}

// publish makes v the current view; the caller holds mu.
func (in *instrument) publish(v *view) { in.view.Store(v) }

// capture returns the current view with all batches in runs.
func (in *instrument) capture() *view {
	in.mu.Lock()
	defer in.mu.Unlock()
	v := in.view.Load().seal()
	in.publish(v)
	return v
}

// wake closes the channel that watchers wait on.
func (in *instrument) wake() {
	if in.watch.Load() == nil {
		return
	}
	if c := in.watch.Swap(nil); c != nil {
		close(*c)
	}
}

// watched returns a channel that the next wake closes.
func (in *instrument) watched() <-chan struct{} {
	for {
		if c := in.watch.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if in.watch.CompareAndSwap(nil, &c) {
			return c
		}
	}
}

// openStream is OpenStream for one instrument.
func (in *instrument) openStream(index, epoch uint64) (OpenResult, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	v := in.view.Load()
	if index == v.index && index > in.since && epoch != v.epoch {
		return OpenResult{}, in.otherEntry(v, "one that opens epoch %d", epoch)
	}
	if index > v.index { // else a replay of what is covered
		if epoch <= v.epoch {
			return OpenResult{}, in.fenced(v, "open with epoch %d: epoch %d is open already; use a higher one", epoch, v.epoch)
		}
		next := *v
		next.index, next.epoch = index, epoch
		v = &next
		in.publish(v)
	}
	return OpenResult{Epoch: v.epoch, LastSeq: v.lastSeq, LastRecord: v.lastRecord}, nil
}

// append is Append for one instrument. It returns the view before and after;
// they are the same if the batch was replayed.
func (in *instrument) append(index uint64, b *record.Batch) (before, after *view, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	v := in.view.Load()
	switch last := &b.Records[len(b.Records)-1]; {
	case index == v.index && (v.lastRecord == nil || *v.lastRecord != *last || v.epoch != b.Epoch):
		return v, v, in.otherEntry(v, "a batch of epoch %d, seq %d to %d", b.Epoch, b.FirstSeq, last.Seq)
	case index <= v.index:
		return v, v, nil
	}
	if err := in.check(v, b); err != nil {
		return v, v, err
	}
	next := v.withBatch(index, b)
	in.publish(next)
	return v, next, nil
}

// otherEntry is the error for a replay that hands over, at the index of the entry
// that v ends with, an entry that did not make v: the log is another than the one
// that the records came from. To skip the entry, as a replay is skipped, would
// leave this replica different from the others.
func (in *instrument) otherEntry(v *view, format string, args ...any) error {
	return fmt.Errorf("instrument %s: %w: the log's entry %d is %s, but the store holds the effect of another one there, of epoch %d up to seq %d: replace the member",
		in.sym, ErrCorrupt, v.index, fmt.Sprintf(format, args...), v.epoch, v.lastSeq)
}

// withBatch returns the view with b at its end.
func (v *view) withBatch(index uint64, b *record.Batch) *view {
	next := *v
	last := &b.Records[len(b.Records)-1]
	next.index, next.lastSeq, next.lastGlobal, next.lastTime, next.lastRecord = index, last.Seq, last.Global, last.Time, last
	if v.lastSeq == 0 {
		next.firstTime = b.Records[0].Time
	}
	next.chain = sstable.ChainBatch(v.chain, b)
	next.open = append(v.open, b.Records) // in spare room that no earlier view sees
	next.openRecords += len(b.Records)
	next.memBytes += int64(len(b.Records))*record.Size + record.BatchHeaderSize + batchOverhead
	if next.openRecords >= runRecords {
		return next.seal()
	}
	return &next
}

// check refuses what must not be stored after v.
func (in *instrument) check(v *view, b *record.Batch) error {
	last := b.LastSeq()
	switch {
	case b.Epoch < v.epoch:
		return in.fenced(v, "a writer with epoch %d has opened the stream; epoch %d may not append any more", v.epoch, b.Epoch)
	case b.Epoch > v.epoch:
		return in.fenced(v, "epoch %d is not open, epoch %d is; open the stream first", b.Epoch, v.epoch)
	case last <= v.lastSeq:
		e := refusal.New(storagepb.Code_CODE_DUPLICATE, "instrument %s: seq %d to %d are stored already, up to %d; go on from %d", in.sym, b.FirstSeq, last, v.lastSeq, v.lastSeq+1)
		e.Instrument, e.LastSeq, e.Epoch, e.ExpectedSeq = in.sym.String(), v.lastSeq, v.epoch, v.lastSeq+1
		return e
	case b.FirstSeq != v.lastSeq+1:
		what := "records before it are missing"
		if b.FirstSeq <= v.lastSeq {
			what = "a part of it is stored already"
		}
		e := refusal.New(storagepb.Code_CODE_GAP, "instrument %s: batch of seq %d to %d after seq %d: %s; send a batch that starts at %d", in.sym, b.FirstSeq, last, v.lastSeq, what, v.lastSeq+1)
		e.Instrument, e.ExpectedSeq, e.LastSeq, e.Epoch = in.sym.String(), v.lastSeq+1, v.lastSeq, v.epoch
		return e
	}
	return nil
}

func (in *instrument) fenced(v *view, format string, args ...any) error {
	e := refusal.New(storagepb.Code_CODE_FENCED, "instrument %s: %s", in.sym, fmt.Sprintf(format, args...))
	e.Instrument, e.Epoch, e.LastSeq = in.sym.String(), v.epoch, v.lastSeq
	return e
}
