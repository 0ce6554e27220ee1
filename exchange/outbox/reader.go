package outbox

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
)

// Reader follows an outbox from a named, durable cursor. Its methods are for
// one goroutine, but for Published, which may be called from anywhere.
type Reader struct {
	dir      string
	control  *control
	h        *header
	cursor   *openCursor
	position uint64     // the last global that was read
	checked  uint64     // up to here PeekWhole has compared check words
	mapped   []*segment // ascending, from the cursor's up to the furthest read
	current  *segment   // the one that holds position+1, nil if not known
	err      error
}

// OpenReader opens the cursor of that name in the outbox in dir, and creates it
// before the oldest record kept if it does not exist. The reader's position is
// the cursor. It returns an error that wraps ErrNotFound while there is no
// outbox, and ErrCursorInUse while another reader has the cursor.
func OpenReader(dir, cursor string) (*Reader, error) {
	dir = filepath.Clean(dir)
	c, err := openControl(dir, unix.PROT_READ)
	if err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(dir, cursorLockName))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	// A writer that recovers holds the lock, and may have changed the base.
	if c.header, err = readHeader(c.data); err != nil {
		return nil, fmt.Errorf("outbox: %s: %w", c.path, err)
	}
	if err := ensureCursor(dir, cursor, &c.header); err != nil {
		return nil, err
	}
	f, err := holdCursor(dir, cursor)
	if err != nil {
		return nil, err
	}
	cur, err := mapCursor(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Reader{dir: dir, control: c, h: &c.header, cursor: cur, position: cur.value}, nil
}

// Peek returns published records after the position, in order, as they lie in
// mapped memory: all of them up to the end of a segment, or nil when there is
// none or Err returns an error. They must not be written to, and stay valid
// until the cursor passes them or the reader is closed. Voids are among them.
func (r *Reader) Peek() []record.Record {
	published := r.control.published.Load()
	if published <= r.position || r.err != nil {
		return nil
	}
	next := r.position + 1
	number := r.h.number(next)
	if r.current == nil || r.current.number != number {
		if r.current, r.err = r.segment(number); r.err != nil {
			return nil
		}
	}
	i := r.h.slot(next)
	return r.current.slots[i:min(r.h.segmentRecords, i+published-r.position)]
}

// PeekWhole is Peek for those who hand records on: it returns up to most of them,
// each compared with its check word, and ends before the first that is not what
// the writer left there. When that is the next one, Err returns an error that
// wraps ErrDamaged and names file and offset. It costs about 4 ns a record, once.
func (r *Reader) PeekWhole(most int) []record.Record {
	rs := r.Peek()
	rs = rs[:min(len(rs), most)]
	first := r.h.slot(r.position + 1)
	for i := r.checked - min(r.checked, r.position); i < uint64(len(rs)); i++ {
		g := r.position + 1 + i
		if err := r.current.checkWhole(first+i, g); err != nil {
			if i == 0 {
				r.err = r.damaged(r.current, err)
			}
			return rs[:i]
		}
		r.checked = g
	}
	return rs
}

func (r *Reader) damaged(s *segment, err error) error {
	return fmt.Errorf("outbox: %s: %w", segmentPath(r.dir, s.number), err)
}

// At returns the published record of that global if the reader's cursor has not
// passed it and it is whole; otherwise it reports false.
func (r *Reader) At(global uint64) (*record.Record, bool) {
	if global <= r.cursor.value || global > r.control.published.Load() || r.err != nil {
		return nil, false
	}
	s, err := r.segment(r.h.number(global))
	if err == nil {
		if damage := s.checkWhole(r.h.slot(global), global); damage != nil {
			err = r.damaged(s, damage)
		}
	}
	if err != nil {
		r.err = err
		return nil, false
	}
	return &s.slots[r.h.slot(global)], true
}

// segment returns a mapped segment at or after the cursor's.
func (r *Reader) segment(number uint64) (*segment, error) {
	at := len(r.mapped)
	for i, s := range r.mapped {
		if s.number == number {
			return s, nil
		}
		if s.number > number {
			at = i
			break
		}
	}
	s, err := mapSegment(r.dir, r.h, number, unix.PROT_READ, unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	r.mapped = append(r.mapped, nil)
	copy(r.mapped[at+1:], r.mapped[at:])
	r.mapped[at] = s
	return s, nil
}

// Err returns why Peek, PeekWhole and Wait have stopped, or nil. It stays.
func (r *Reader) Err() error { return r.err }

// Position returns the last global that was read.
func (r *Reader) Position() uint64 { return r.position }

// Published returns the last published global.
func (r *Reader) Published() uint64 { return r.control.published.Load() }

// Cursor returns the last global that is done with.
func (r *Reader) Cursor() uint64 { return r.cursor.value }

// Advance moves the position n records on; they must have been peeked.
func (r *Reader) Advance(n int) { r.position += uint64(n) }

// Seek sets the position, so that global+1 is read next. It must lie from the
// cursor up to what is published.
func (r *Reader) Seek(global uint64) error {
	if published := r.Published(); global < r.cursor.value || global > published {
		return fmt.Errorf("outbox %s: seek to %d: the cursor is at %d and %d is published", r.dir, global, r.cursor.value, published)
	}
	r.position, r.checked = global, global
	return nil
}

// SetCursor states that everything up to global is done with, and lets the
// segments before it go. It survives the process. Going back is not possible:
// a lower value, or one that is not published, changes nothing. The position
// follows if it was behind.
func (r *Reader) SetCursor(global uint64) {
	if global <= r.cursor.value || global > r.Published() {
		return
	}
	r.cursor.set(global)
	r.position = max(r.position, global)
	r.unmapBefore(r.h.number(global + 1))
}

func (r *Reader) unmapBefore(number uint64) {
	n := 0
	for n < len(r.mapped) && r.mapped[n].number < number {
		if r.mapped[n] == r.current {
			r.current = nil
		}
		unmap(r.mapped[n].data)
		n++
	}
	if n > 0 {
		r.mapped = append(r.mapped[:0], r.mapped[n:]...)
	}
}

const (
	waitSpins    = 200 // looks without a pause: about a microsecond
	waitYields   = 20  // looks with other goroutines let in between
	waitSleepMin = 20 * time.Microsecond
	waitSleepMax = time.Millisecond
)

// Wait returns when there is a record after the position, when ctx ends, or
// with Err. It looks at the counter about a microsecond long, then lets other
// goroutines run, and then sleeps for times that double from 20 µs to 1 ms: a
// busy outbox is followed within a microsecond, an idle one costs about 1000
// wake-ups a second. The writer is not involved and never pays for it.
func (r *Reader) Wait(ctx context.Context) error {
	sleep, look := waitSleepMin, 0
	var timer *time.Timer
	for {
		switch {
		case r.err != nil:
			return r.err
		case r.control.published.Load() > r.position:
			return nil
		case look < waitSpins:
			look++
			continue
		case look < waitSpins+waitYields:
			look++
			runtime.Gosched()
			continue
		}
		if timer == nil {
			timer = time.NewTimer(sleep)
			defer timer.Stop()
		} else {
			timer.Reset(sleep)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		sleep = min(2*sleep, waitSleepMax)
	}
}

// Close releases the cursor, which stays where it is, and the mapped records.
func (r *Reader) Close() error {
	if r.cursor == nil {
		return fmt.Errorf("outbox %s: reader: %w", r.dir, ErrClosed)
	}
	r.unmapBefore(^uint64(0))
	err := r.cursor.close()
	r.cursor = nil
	r.err = fmt.Errorf("outbox %s: reader: %w", r.dir, ErrClosed)
	return err
}
