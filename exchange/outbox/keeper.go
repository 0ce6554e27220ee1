package outbox

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

const (
	keeperTickMin   = 500 * time.Microsecond // while records are published
	keeperTickMax   = 5 * time.Millisecond   // while none are
	keeperTrimEvery = 200 * time.Millisecond
	keeperRetry     = 100 * time.Millisecond // after an error
	spareSegments   = 2                      // kept for recycling beyond those ahead

	// freshRecords is how many slots before the writer are kept writable: what is
	// published within some milliseconds at the most.
	freshRecords = 1 << 15
	// freshFor is how long they stay so: the kernel writes a page back when it has
	// been dirty for many seconds.
	freshFor = time.Second
)

// keeper has segments ready before the writer needs them. Everything that waits
// for the kernel is done in its goroutine.
type keeper struct {
	dir    string
	h      *header
	ahead  uint64
	quota  int
	live   []*segment // by number without gaps; only run and newKeeper touch it
	ring   []atomic.Pointer[segment]
	public *atomic.Uint64 // published

	freshAt    uint64 // published when the slots after it were last made writable
	freshSince time.Time

	room    atomic.Uint64 // last global whose segment is in ring
	writing atomic.Uint64 // number of the segment being written
	full    atomic.Bool   // the quota stands in the way of the next segment

	created, recycled atomic.Uint64
	segments          atomic.Int64

	mu         sync.Mutex
	prepareErr error
	freshErr   error
	trimErr    error

	kick chan struct{}
	stop chan struct{}
	done chan struct{}
}

func newKeeper(dir string, o *Options, rec *recovered) (*keeper, error) {
	k := &keeper{
		dir: dir, h: &rec.control.header, ahead: uint64(o.AheadSegments), quota: o.quotaSegments(),
		live: rec.segments, public: rec.control.published, freshAt: rec.control.published.Load(),
		ring: make([]atomic.Pointer[segment], o.AheadSegments+2),
		kick: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	current := k.h.number(k.public.Load() + 1)
	k.writing.Store(current)
	k.room.Store(k.public.Load())
	if n := len(k.live); n > 0 && k.live[n-1].number == current {
		k.offer(k.live[n-1])
	}
	k.segments.Store(int64(len(k.live)))
	if !k.prepareUpTo(min(k.ahead, AheadMin)) && k.lastError() != nil {
		k.unmapAll()
		return nil, k.lastError()
	}
	if !k.freshen(k.public.Load()) { // recovery may have mapped the first of them only
		k.unmapAll()
		return nil, k.lastError()
	}
	return k, nil
}

// ready returns the segment of that number, or nil when it is not ready.
func (k *keeper) ready(number uint64) *segment {
	s := k.ring[number%uint64(len(k.ring))].Load()
	if s == nil || s.number != number {
		return nil
	}
	return s
}

func (k *keeper) offer(s *segment) {
	k.ring[s.number%uint64(len(k.ring))].Store(s)
	k.room.Store(k.h.last(s.number))
}

func (k *keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

func (k *keeper) run() {
	defer close(k.done)
	tick, last, trimmed := keeperTickMin, k.public.Load(), time.Now()
	timer := time.NewTimer(tick)
	defer timer.Stop()
	for {
		select {
		case <-k.stop:
			return
		case <-k.kick:
			time.Sleep(keeperTickMin) // refused orders may come by the million
		case <-timer.C:
		}
		ok := k.refresh()
		ok = k.prepare() && ok
		if now := time.Now(); now.Sub(trimmed) >= keeperTrimEvery {
			k.trim()
			trimmed = now
		}
		tick, last = k.nextTick(tick, last, ok)
		timer.Reset(tick)
	}
}

func (k *keeper) nextTick(tick time.Duration, last uint64, ok bool) (time.Duration, uint64) {
	p := k.public.Load()
	switch {
	case !ok && k.lastError() != nil:
		return keeperRetry, p
	case p != last:
		return keeperTickMin, p
	}
	return min(2*tick, keeperTickMax), p
}

// prepare makes segments until enough lie ahead. It reports whether they do.
func (k *keeper) prepare() bool { return k.prepareUpTo(k.ahead) }

// prepareUpTo makes segments until as many lie ahead, or the keeper is to stop. In
// between it looks after the pages that the writer comes to meanwhile.
func (k *keeper) prepareUpTo(ahead uint64) bool {
	for !k.stopping() {
		next := k.writing.Load()
		if n := len(k.live); n > 0 {
			next = max(next, k.live[n-1].number+1)
		}
		if next > k.writing.Load()+ahead {
			k.full.Store(false)
			return true
		}
		s, err := k.obtain(next)
		k.setError(&k.prepareErr, err)
		if s == nil {
			k.full.Store(err == nil)
			return false
		}
		k.live = append(k.live, s)
		k.segments.Store(int64(len(k.live)))
		k.offer(s)
		k.refresh()
	}
	return false
}

func (k *keeper) stopping() bool {
	select {
	case <-k.stop:
		return true
	default:
		return false
	}
}

// obtain recycles the oldest segment if every cursor has passed it, or makes
// one if the quota allows. It returns nil, nil if neither is possible.
func (k *keeper) obtain(number uint64) (*segment, error) {
	s, err := k.recycle(number)
	if s != nil || err != nil {
		return s, err
	}
	if len(k.live) >= k.quota {
		return nil, nil
	}
	s, err = createSegment(k.dir, k.h, number)
	if err == nil {
		k.created.Add(1)
	}
	return s, err
}

func (k *keeper) recycle(number uint64) (*segment, error) {
	if len(k.live) == 0 || k.live[0].number >= k.writing.Load() {
		return nil, nil
	}
	lock, err := lockFile(filepath.Join(k.dir, cursorLockName))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	passed, err := k.passed()
	if err != nil || passed == 0 {
		return nil, err
	}
	s, err := k.live[0].recycle(k.dir, k.h, number)
	switch {
	case err == nil:
		k.drop(1)
		k.recycled.Add(1)
	case errors.Is(err, errGone):
		unmap(k.live[0].data)
		k.drop(1)
	}
	return s, err
}

// refresh makes the writer's next slots writable again, if some were used since the
// last time and that was long ago or many. It reports whether they are.
func (k *keeper) refresh() bool {
	p := k.public.Load()
	if p == k.freshAt || p < k.freshAt+freshRecords/2 && time.Since(k.freshSince) < freshFor {
		return true
	}
	return k.freshen(p)
}

// freshen makes the pages of the slots after published writable. They were when
// their segment was prepared, but the kernel takes that away when it writes them
// back: the writer's next store would enter the kernel, and wait there for a file
// system that is busy.
func (k *keeper) freshen(published uint64) bool {
	var err error
	for g, last := published+1, published+freshRecords; g <= last && err == nil; g = k.h.last(k.h.number(g)) + 1 {
		s := k.ready(k.h.number(g))
		if s == nil {
			break
		}
		first := k.h.slot(g)
		err = s.prefault(k.dir, first, min(first+last-g+1, k.h.segmentRecords))
	}
	k.setError(&k.freshErr, err)
	if err == nil {
		k.freshAt, k.freshSince = published, time.Now()
	}
	return err == nil
}

// passed returns how many of the oldest segments no reader needs. Without a
// cursor all are needed. The caller holds the cursor lock.
func (k *keeper) passed() (int, error) {
	oldest, err := oldestCursor(k.dir)
	if err != nil || oldest.Name == "" {
		return 0, err
	}
	done, writing := min(oldest.Global, k.public.Load()), k.writing.Load()
	n := 0
	for n < len(k.live) && k.live[n].number < writing && k.h.last(k.live[n].number) <= done {
		n++
	}
	return n, nil
}

// trim deletes the passed segments that are more than recycling will need, so
// that a backlog gives its disk space back.
func (k *keeper) trim() {
	if len(k.live) <= int(k.ahead)+1+spareSegments {
		return
	}
	lock, err := lockFile(filepath.Join(k.dir, cursorLockName))
	if err != nil {
		k.setError(&k.trimErr, err)
		return
	}
	defer lock.Close()
	n, err := k.passed()
	gone := 0
	for ; err == nil && gone < n-spareSegments; gone++ {
		err = remove(segmentPath(k.dir, k.live[gone].number))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("outbox: %w", err)
			break // it still takes up space: the next trim tries again
		}
		err = nil
		unmap(k.live[gone].data)
	}
	k.drop(gone)
	k.setError(&k.trimErr, err)
}

func (k *keeper) drop(n int) {
	rest := copy(k.live, k.live[n:])
	clear(k.live[rest:])
	k.live = k.live[:rest]
	k.segments.Store(int64(rest))
}

func (k *keeper) setError(which *error, err error) {
	k.mu.Lock()
	*which = err
	k.mu.Unlock()
}

func (k *keeper) lastError() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return cmp.Or(k.prepareErr, k.freshErr, k.trimErr)
}

// free returns how many records fit before the quota is used up.
func (k *keeper) free(oldest Cursor, published uint64) uint64 {
	kept := k.h.base + 1 // the first global that is still needed
	if oldest.Name != "" {
		kept = max(kept, oldest.Global+1)
	}
	kept = min(kept, published+1)
	end := k.h.last(k.h.number(kept) + uint64(k.quota) - 1)
	return end - min(end, published)
}

func (k *keeper) close() {
	close(k.stop)
	<-k.done
	k.unmapAll()
}

func (k *keeper) unmapAll() {
	for _, s := range k.live {
		unmap(s.data)
	}
	k.live = nil
}

// oldestCursor returns the cursor that is furthest behind, or a zero Cursor.
func oldestCursor(dir string) (Cursor, error) {
	cursors, err := ListCursors(dir)
	if err != nil {
		return Cursor{}, err
	}
	var oldest Cursor
	for _, c := range cursors {
		if oldest.Name == "" || c.Global < oldest.Global {
			oldest = c
		}
	}
	return oldest, nil
}
