package replica

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"unsafe"

	"github.com/hashicorp/raft"
)

// writeBehind lets Raft go on while its entries are being written: StoreLogs takes
// commands into memory and returns, and one goroutine writes what has gathered, as
// one group, again and again. A leader thus sends an entry while its own disk
// writes it, and a follower takes the next request while its disk writes the one
// before.
//
// The library takes an entry for stored when StoreLogs has returned. That nothing
// rests on it before it is on the disk is up to those who ask here:
//
//   - The FSM waits for awaitDurable before it applies an entry, so neither an
//     answer nor a read shows what this member's disk may not have.
//   - The transport sends no commit index beyond durable, so no follower applies
//     what counts as committed because of the leader's own copy in memory.
//   - The transport sends no success of AppendEntries before awaitDurable, so a
//     leader counts what is on the follower's disk.
//
// What is in memory only can therefore be lost like the end of a log at a crash:
// nobody has counted it. Entries other than commands are written before StoreLogs
// returns. With the first of them, which begins its term, a leader's whole log is
// on its disk, so that no commit rests on entries of earlier terms in memory; and
// a membership is in force, and counted by, only when it is.
//
// It is safe for concurrent use.
type writeBehind struct {
	*guardedLog
	bytesMax int64
	// failed is called when entries that StoreLogs had taken could not be written,
	// without a lock held. The Raft instance believes in them, and must be replaced.
	failed  func(error)
	metrics *metrics

	mu      sync.Mutex
	waiting []*raft.Log   // not known to be on disk: a run that follows the log's last entry
	bytes   int64         // of waiting
	lost    error         // why entries from lostAt on were dropped; nil: none were
	lostAt  uint64        // meaningless while lost is nil
	drops   uint64        // how often entries were lost
	changed chan struct{} // closed when any of the above has changed, except by an addition
	closed  bool

	wake    chan struct{} // something was added, or closed
	stopped chan struct{}
}

// logWaitingBytesMax bounds the entries that wait to be written. A group of that
// size is written in well under the time that a heartbeat may take.
const logWaitingBytesMax = 8 << 20

const logEntryOverheadBytes = int64(unsafe.Sizeof(raft.Log{}))

var errLogClosed = errors.New("the log is closed")

func newWriteBehind(log *guardedLog, m *metrics, failed func(error)) *writeBehind {
	w := &writeBehind{
		guardedLog: log, bytesMax: logWaitingBytesMax, failed: failed, metrics: m,
		changed: make(chan struct{}), wake: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	go w.run()
	return w
}

// StoreLog implements raft.LogStore.
func (w *writeBehind) StoreLog(log *raft.Log) error { return w.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. If all entries are commands it returns before
// they are written, and waits only while more than bytesMax are on their way.
func (w *writeBehind) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	if err := w.add(logs); err != nil {
		return err
	}
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			return w.awaitDurable(context.Background(), logs[len(logs)-1].Index)
		}
	}
	return nil
}

func (w *writeBehind) add(logs []*raft.Log) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.bytes > w.bytesMax && w.lost == nil && !w.closed {
		w.waitChanged(context.Background())
	}
	switch {
	case w.lost != nil:
		return w.lost
	case w.closed:
		return errLogClosed
	}
	copies := make([]raft.Log, len(logs)) // the caller's structs may be in use elsewhere
	for i, l := range logs {
		copies[i] = *l
		w.waiting = append(w.waiting, &copies[i])
	}
	w.setBytes(w.bytes + bytesOf(logs) + int64(len(logs))*logEntryOverheadBytes)
	w.poke()
	return nil
}

// waitChanged gives mu up until something has changed or ctx ends.
// REQUIRES: mu held.
func (w *writeBehind) waitChanged(ctx context.Context) {
	changed := w.changed
	w.mu.Unlock()
	select {
	case <-changed:
	case <-ctx.Done():
	}
	w.mu.Lock()
}

// change wakes all that wait. REQUIRES: mu held.
func (w *writeBehind) change() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *writeBehind) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// setBytes is for the holder of mu.
func (w *writeBehind) setBytes(n int64) {
	w.bytes = n
	w.metrics.logWaitingBytes.Set(float64(n))
}

// run writes what has gathered until the log is closed and nothing is left.
func (w *writeBehind) run() {
	defer close(w.stopped)
	for range w.wake {
		for w.writeGroup() {
		}
		w.mu.Lock()
		done := w.closed && len(w.waiting) == 0
		w.mu.Unlock()
		if done {
			return
		}
	}
}

// writeGroup writes everything that waits. It returns false if nothing does.
func (w *writeBehind) writeGroup() bool {
	w.mu.Lock()
	group := w.waiting
	w.mu.Unlock()
	if len(group) == 0 {
		return false
	}
	if err := w.guardedLog.StoreLogs(group); err != nil {
		w.lose(err)
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = append([]*raft.Log(nil), w.waiting[len(group):]...) // lets go of what is written
	w.setBytes(w.bytes - bytesOf(group) - int64(len(group))*logEntryOverheadBytes)
	w.change()
	return true
}

// lose drops everything that waits but what was written in part.
func (w *writeBehind) lose(err error) {
	w.mu.Lock()
	last, lastErr := w.guardedLog.LastIndex()
	first := w.waiting[0].Index
	w.lostAt = first
	if lastErr == nil && last >= first {
		w.lostAt = last + 1
	}
	lost := fmt.Errorf("entries from %d on were not written: %w", w.lostAt, err)
	w.lost = lost
	w.waiting = nil
	w.drops++
	w.setBytes(0)
	w.change()
	w.mu.Unlock()
	w.failed(lost) // w.lost may be forgotten by now
}

// awaitDurable returns when the entry at index, and all before it, are on disk, or
// an error if they were dropped or ctx ended first. An index that the log does not
// hold, because a snapshot covers it or it was never stored, is not waited for.
func (w *writeBehind) awaitDurable(ctx context.Context, index uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.lost != nil && index >= w.lostAt:
			return w.lost
		case len(w.waiting) == 0 || index < w.waiting[0].Index:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		}
		w.waitChanged(ctx)
	}
}

// durable returns the index up to which no entry of the log is in memory only.
func (w *writeBehind) durable() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(w.waiting) > 0:
		return w.waiting[0].Index - 1
	case w.lost != nil:
		return w.lostAt - 1
	}
	return math.MaxUint64
}

// losses returns how often entries that StoreLogs had taken were dropped. If that has
// not changed while the index of an entry was awaited, the entry is on disk.
func (w *writeBehind) losses() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.drops
}

// forgetLoss takes entries again after some were dropped. It is called while no Raft
// instance runs, so that the next one begins from what is on disk; it waits until
// what the instance before has handed over is written or dropped.
func (w *writeBehind) forgetLoss() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.waiting) > 0 {
		w.waitChanged(context.Background())
	}
	w.lost, w.lostAt = nil, 0
}

// GetLog implements raft.LogStore.
func (w *writeBehind) GetLog(index uint64, log *raft.Log) error {
	w.mu.Lock()
	if n := len(w.waiting); n > 0 && index >= w.waiting[0].Index && index <= w.waiting[n-1].Index {
		*log = *w.waiting[index-w.waiting[0].Index]
		w.mu.Unlock()
		return nil
	}
	w.mu.Unlock()
	return w.guardedLog.GetLog(index, log)
}

// FirstIndex implements raft.LogStore.
func (w *writeBehind) FirstIndex() (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first, err := w.guardedLog.FirstIndex()
	if err == nil && first == 0 && len(w.waiting) > 0 {
		first = w.waiting[0].Index
	}
	return first, err
}

// LastIndex implements raft.LogStore.
func (w *writeBehind) LastIndex() (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.waiting); n > 0 {
		return w.waiting[n-1].Index, nil
	}
	return w.guardedLog.LastIndex()
}

// DeleteRange implements raft.LogStore. Entries that wait are written first if they
// are to be deleted.
func (w *writeBehind) DeleteRange(first, last uint64) error {
	if err := w.awaitDurable(context.Background(), last); err != nil {
		return err
	}
	return w.guardedLog.DeleteRange(first, last)
}

// Close writes what waits and stops the goroutine. The log below stays open.
func (w *writeBehind) Close() error {
	w.mu.Lock()
	w.closed = true
	w.change()
	w.mu.Unlock()
	w.poke()
	<-w.stopped
	return nil
}
