package outbox

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/countinghouse/countinghouse/record"
)

const (
	lockName           = "LOCK"
	subscriberLockName = "LOCK.subscriber"
)

// Writer publishes records. Reserve, ReserveUrgent, Next and Commit belong to
// one goroutine and neither allocate nor enter the kernel; the other methods
// may be called from anywhere.
type Writer struct {
	// Invariant: committed ≤ global ≤ room, and slots[at] is the slot of
	// global+1 unless at == len(slots): then that is in segment current+1.
	slots     []record.Record // of the segment being written
	checks    []uint64
	at        int
	global    uint64 // last handed out by Next
	room      uint64 // last global that has a slot ready, as last seen
	headroom  uint64
	committed uint64
	txAt      int // slot of the open transaction's first record in slots
	published *atomic.Uint64
	earlier   []part // the open transaction's slots in segments before this one
	current   uint64 // number of the segment being written

	refusedQuota, refusedRoom atomic.Uint64

	dir     string
	options Options
	control *control
	keeper  *keeper
	lock    *os.File
	report  RecoveryReport
	closed  atomic.Bool
}

// part is a run of slots that ends with its segment.
type part struct {
	slots  []record.Record
	checks []uint64
}

// Open creates the outbox in dir or recovers it, and returns its only writer.
// The parent of dir must exist. It returns an error that wraps ErrLocked while
// another Writer, here or in another process, has it open.
func Open(dir string, opts Options) (*Writer, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	dir = filepath.Clean(dir)
	if err := opts.checkFresh(dir); err != nil {
		return nil, err
	}
	w, err := openWriter(dir, opts)
	if err != nil {
		return nil, err
	}
	go w.keeper.run()
	return w, nil
}

// openWriter opens an outbox whose keeper does not run yet.
func openWriter(dir string, opts Options) (*Writer, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockWriter(dir)
	if err != nil {
		return nil, err
	}
	w := &Writer{dir: dir, options: opts, lock: lock}
	if err := w.open(); err != nil {
		lock.Close()
		return nil, err
	}
	return w, nil
}

func (w *Writer) open() error {
	rec, err := recoverDir(w.dir, &w.options)
	if err != nil {
		return err
	}
	w.control, w.report = rec.control, rec.report
	w.keeper, err = newKeeper(w.dir, &w.options, rec)
	if err != nil {
		return err
	}
	h := &w.control.header
	w.published = w.control.published
	w.committed = w.published.Load()
	w.global, w.headroom = w.committed, uint64(max(w.options.HeadroomRecords, 0))
	w.current = h.number(w.global+1) - 1 // wraps before segment 0
	if at := int(h.slot(w.global + 1)); at > 0 {
		seg := w.keeper.ready(w.current + 1)
		w.slots, w.checks, w.at, w.txAt = seg.slots, seg.checks, at, at
		w.current++
	}
	w.room = w.keeper.room.Load()
	return nil
}

// lockWriter takes the writer's lock.
func lockWriter(dir string) (*os.File, error) {
	f, err := lockSigned(filepath.Join(dir, lockName), ErrLocked)
	if err != nil {
		return nil, fmt.Errorf("outbox %s: %w", dir, err)
	}
	return f, nil
}

// signLock writes into the lock who has it.
func signLock(f *os.File) error {
	if err := calling(stepTruncate, f.Name()); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := calling(stepWrite, f.Name()); err != nil {
		return err
	}
	_, err := fmt.Fprintln(f, os.Getpid())
	return err
}

// Reserve reports whether the next n calls of Next will return a slot, with the
// headroom left over. It returns false when the quota is used up or the next
// segment is not ready yet; Stats tells which. It never blocks. A reservation
// is not taken up by calling Reserve again: n counts from the last Next.
func (w *Writer) Reserve(n int) bool {
	need := w.global + uint64(n) + w.headroom
	return need <= w.room || w.look(need)
}

// ReserveUrgent is Reserve for records that must get through when orders no
// longer do, such as cancels: it may use the headroom.
func (w *Writer) ReserveUrgent(n int) bool {
	need := w.global + uint64(n)
	return need <= w.room || w.look(need)
}

// look takes in what the keeper has made ready since the last time.
func (w *Writer) look(need uint64) bool {
	w.room = w.keeper.room.Load()
	if need <= w.room {
		return true
	}
	if w.keeper.full.Load() {
		w.refusedQuota.Add(1)
	} else {
		w.refusedRoom.Add(1)
	}
	w.keeper.wake()
	return false
}

// Next returns the next slot, a zero record but for Global, in mapped memory,
// invisible until Commit. It may be filled up to then, also after further calls
// of Next. Beyond what Reserve granted it returns nil when there is no slot.
func (w *Writer) Next() *record.Record {
	if w.at == len(w.slots) && !w.turn() {
		return nil
	}
	r := &w.slots[w.at]
	w.at++
	w.global++
	storing(stepRecord)
	r.Global = w.global
	return r
}

// turn goes on to the next segment, if that is ready.
func (w *Writer) turn() bool {
	seg := w.keeper.ready(w.current + 1)
	if seg == nil {
		return false
	}
	if w.txAt < w.at {
		w.earlier = append(w.earlier, part{w.slots[w.txAt:], w.checks[w.txAt:]})
	}
	w.current++
	w.slots, w.checks, w.at, w.txAt = seg.slots, seg.checks, 0, 0
	w.keeper.writing.Store(w.current)
	return true
}

// Commit publishes, in one step, every slot handed out since the last Commit,
// as one transaction: its last record gets FlagLast. Without any it does nothing.
func (w *Writer) Commit() {
	if w.global == w.committed {
		return
	}
	if len(w.earlier) > 0 {
		w.sealEarlier()
	}
	if w.at > 0 {
		storing(stepLast)
		w.slots[w.at-1].SetLast()
	}
	for i := w.txAt; i < w.at; i++ {
		storing(stepCheck)
		w.checks[i] = checkWord(&w.slots[i])
	}
	n := w.at - w.txAt
	w.txAt = w.at
	w.committed = w.global
	storing(stepPublish)
	release(w.published, w.global, w.ahead(n), min(n, claimAhead))
}

// claimAhead is how many slots before it is used a slot is fetched into the cache.
// It comes from that of the keeper, which cleared it, and the hardware, which would
// fetch ahead too, stops at every page.
const claimAhead = 16

// ahead returns the address of the first of n slots that are to be fetched when as
// many were published.
func (w *Writer) ahead(n int) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(w.slots))) + uintptr(w.at+claimAhead-min(n, claimAhead))*record.Size
}

func (w *Writer) sealEarlier() {
	for _, p := range w.earlier {
		for i := range p.slots {
			storing(stepCheck)
			p.checks[i] = checkWord(&p.slots[i])
		}
	}
	clear(w.earlier)
	w.earlier = w.earlier[:0]
}

// Published returns the global of the last published record.
func (w *Writer) Published() uint64 { return w.published.Load() }

// Incarnation returns how many times the outbox was opened, this time included;
// it is higher than at any Open before, also when the machine went down.
func (w *Writer) Incarnation() uint64 { return w.control.header.incarnation }

// Recovery returns what Open found.
func (w *Writer) Recovery() RecoveryReport { return w.report }

// Dir returns the outbox's directory.
func (w *Writer) Dir() string { return w.dir }

// Close stops the writer and releases the outbox. What was not committed is
// gone. The slots that Next returned must not be touched any more.
func (w *Writer) Close() error {
	if w.closed.Swap(true) {
		return fmt.Errorf("outbox %s: %w", w.dir, ErrClosed)
	}
	w.keeper.close()
	return w.lock.Close()
}

// Stats describe an outbox at one instant.
type Stats struct {
	Published    uint64 // last published global
	OldestCursor Cursor // zero when there is none: then nothing is recycled
	// FreeRecords may be published until the quota is used up; the headroom is
	// part of it.
	FreeRecords   uint64
	Segments      int // files, those ready ahead included
	SegmentBytes  int64
	QuotaSegments int
	RefusedQuota  uint64 // times Reserve returned false because of the quota
	RefusedRoom   uint64 // times it did because the next segment was not ready
	Created       uint64 // segments
	Recycled      uint64 // segments
	LastError     error  // why the last segment could not be prepared, nil if it could
}

// Stats reads the cursors' files; it is meant for a metrics scrape.
func (w *Writer) Stats() Stats {
	s := Stats{
		Published:     w.published.Load(),
		QuotaSegments: w.options.quotaSegments(),
		RefusedQuota:  w.refusedQuota.Load(),
		RefusedRoom:   w.refusedRoom.Load(),
		Created:       w.keeper.created.Load(),
		Recycled:      w.keeper.recycled.Load(),
		Segments:      int(w.keeper.segments.Load()),
		LastError:     w.keeper.lastError(),
	}
	s.SegmentBytes = int64(s.Segments) * w.options.segmentBytes()
	oldest, err := oldestCursor(w.dir)
	if err != nil {
		s.LastError = err
	}
	s.OldestCursor = oldest
	s.FreeRecords = w.keeper.free(oldest, s.Published)
	return s
}
