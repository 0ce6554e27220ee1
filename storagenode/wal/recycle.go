package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/storagenode/directio"
)

const (
	// zeroChunkBytes is written at once when a file is filled with zeroes.
	zeroChunkBytes = directio.BulkBytes
	// defaultZeroRate, in bytes a second, bounds how fast files are filled with zeroes ahead of use.
	// A log that grows faster takes its segments as far as they are filled, and does
	// not have the disk write everything twice just when that has most to do.
	defaultZeroRate = 64 << 20
	// zeroSyncBytes bounds what is dirty at a time while a file is filled, for
	// the appends' fdatasync would wait for all of it.
	zeroSyncBytes = 4 << 20

	categoryWAL = vfs.DiskWriteCategory("countinghouse-wal")
)

// recycler prepares the next segment ahead of use, in its own goroutine, and
// takes in the files of dead segments for that.
type recycler struct {
	w    *WAL
	wake chan struct{} // capacity 1
	quit chan struct{}
	done chan struct{}
	// result carries the answer to the one request that may be open.
	result chan prepared

	mu     sync.Mutex
	dead   []*segment // to be taken in
	wanted *request   // to be prepared, nil for none

	last *request // asked for; of the one call that changes the log
	pool []string // paths of files fit for reuse; of the goroutine
}

// request asks for a segment.
type request struct {
	id    uint64
	now   chan struct{} // closed when somebody waits for the segment
	whole bool          // all of it is to be filled, and at once
}

type prepared struct {
	id      uint64
	segment *segment
	err     error
}

// newRecycler starts the recycler of w, to be ended with stop.
func newRecycler(w *WAL) *recycler {
	r := &recycler{
		w:      w,
		wake:   make(chan struct{}, 1),
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
		result: make(chan prepared, 1),
	}
	go r.run()
	return r
}

// stop ends the goroutine and closes the files it has.
func (r *recycler) stop() {
	close(r.quit)
	<-r.done
	for _, s := range r.dead {
		s.close()
	}
	select {
	case p := <-r.result:
		if p.segment != nil {
			p.segment.close()
		}
	default:
	}
}

// request asks for segment id. No other request may be open.
func (r *recycler) request(id uint64) { r.ask(&request{id: id, now: make(chan struct{})}) }

func (r *recycler) ask(q *request) {
	r.last = q
	r.mu.Lock()
	r.wanted = q
	r.mu.Unlock()
	r.poke()
}

// first returns the segment that a log begins with, filled with zeroes: what is
// about to use the log waits for that now, and not with its first appends.
func (r *recycler) first() (*segment, error) {
	r.ask(&request{id: 1, whole: true})
	p := <-r.result
	return p.segment, p.err
}

// retire hands over segments that are out of the index and, by what is on disk,
// out of the log.
func (r *recycler) retire(dead []*segment) {
	if len(dead) == 0 {
		return
	}
	r.mu.Lock()
	r.dead = append(r.dead, dead...)
	r.mu.Unlock()
	r.poke()
}

func (r *recycler) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// next returns the segment asked for. If it is not ready, next waits, but not for
// what is left to be filled with zeroes. When the
// preparation failed ahead of the call it is tried again; when that fails, too,
// the same id is asked for once more, so that a later call may succeed.
func (r *recycler) next() (*segment, error) {
	select {
	case p := <-r.result:
		if p.err == nil {
			return p.segment, nil
		}
		r.request(p.id)
	default:
	}
	r.w.metrics.prepareWaits.Inc()
	close(r.last.now)
	p := <-r.result
	if p.err != nil {
		r.request(p.id)
	}
	return p.segment, p.err
}

func (r *recycler) run() {
	defer close(r.done)
	for {
		select {
		case <-r.quit:
			return
		case <-r.wake:
		}
		r.takeDead()
		r.mu.Lock()
		wanted := r.wanted
		r.wanted = nil
		r.mu.Unlock()
		if wanted != nil {
			s, err := r.prepare(wanted)
			r.answer(prepared{wanted.id, s, err})
		}
	}
}

// answer does not block: there is one open request at most.
func (r *recycler) answer(p prepared) {
	select {
	case r.result <- p:
	case <-r.quit:
		if p.segment != nil {
			p.segment.close()
		}
	}
}

// takeDead takes in what was handed over.
func (r *recycler) takeDead() {
	r.mu.Lock()
	dead := r.dead
	r.dead = nil
	r.mu.Unlock()
	for _, s := range dead {
		r.take(s)
	}
}

// take closes a dead segment, once its readers are done, and keeps its file for
// reuse or removes it.
func (r *recycler) take(s *segment) {
	s.close()
	r.keep(s.path)
}

// keep takes a file that is not of the log into the pool or removes it. A file
// that can not be removed is met again by the next Open.
func (r *recycler) keep(path string) {
	info, err := r.w.fs.Stat(path)
	if err == nil && info.Size() == r.w.opts.SegmentBytes && len(r.pool) < r.w.opts.RecycleFiles {
		r.pool = append(r.pool, path)
		return
	}
	_ = r.w.fs.Remove(path)
}

// prepare makes a segment ready: a file of its full size, every block of it
// reserved and, if there was time, written, with a header under a fresh salt,
// synced, under its name, the directory synced.
func (r *recycler) prepare(q *request) (*segment, error) {
	s := &segment{
		header: segmentHeader{state: statePrepared, id: q.id, fileBytes: r.w.opts.SegmentBytes},
		path:   r.w.fs.PathJoin(r.w.dir, segmentName(q.id)),
		end:    frameStart,
	}
	var salt [8]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, fmt.Errorf("wal: %s: draw a salt: %w", s.path, err)
	}
	s.header.salt = binary.LittleEndian.Uint64(salt[:])
	var err error
	if s.file, err = r.openFile(s.path, q); err != nil {
		return nil, err
	}
	if err := r.name(s); err != nil {
		s.file.Close()
		return nil, err
	}
	if s.out, err = openOutput(r.w.fs, s.path); err != nil {
		s.close()
		return nil, err
	}
	r.w.metrics.prepared.Inc()
	return s, nil
}

// openFile opens prepareName, later to be named path: a file from the pool if
// there is one, or one filled with zeroes. The directory is synced before a used file is changed:
// a file under a segment's name always has that segment's header.
func (r *recycler) openFile(path string, q *request) (vfs.File, error) {
	tmp := r.w.fs.PathJoin(r.w.dir, prepareName)
	if len(r.pool) == 0 {
		return r.createFile(tmp, q)
	}
	used := r.draw(path)
	if err := r.w.fs.Rename(used, tmp); err != nil {
		return nil, fmt.Errorf("wal: recycle %s: %w", used, err)
	}
	if err := r.w.syncDir(); err != nil {
		return nil, err
	}
	f, err := r.w.fs.OpenReadWrite(tmp, categoryWAL)
	if err != nil {
		return nil, fmt.Errorf("wal: recycle %s: %w", used, err)
	}
	r.w.metrics.recycled.Inc()
	return f, nil
}

// draw takes a file out of the pool: that at path if it is there, which a
// rename to path would take away.
func (r *recycler) draw(path string) string {
	i := max(slices.Index(r.pool, path), 0)
	used := r.pool[i]
	r.pool = slices.Delete(r.pool, i, i+1)
	return used
}

// createFile makes a file of SegmentBytes zeroes. They are written, not only
// reserved, as long as nobody waits: the first write to a reserved block changes
// metadata, which fdatasync has to write, too.
func (r *recycler) createFile(path string, q *request) (vfs.File, error) {
	f, err := r.w.fs.Create(path, categoryWAL)
	if err != nil {
		return nil, fmt.Errorf("wal: create %s: %w", path, err)
	}
	if err := r.fill(f, path, q); err != nil {
		f.Close()
		_ = r.w.fs.Remove(path) // gives the space back; Open removes what is left
		return nil, err
	}
	return f, nil
}

func (r *recycler) fill(f vfs.File, path string, q *request) error {
	size := r.w.opts.SegmentBytes
	reserved := f.Preallocate(0, size)
	if reserved != nil && !errors.Is(reserved, unix.EOPNOTSUPP) {
		return fmt.Errorf("wal: reserve %d bytes for %s: %w", size, path, reserved)
	}
	zeroes := directio.Buffer(int(min(size, zeroChunkBytes)))
	out := directio.NewWriter(f)
	defer out.Leave() // what follows is written through the cache, as frames are
	for at := int64(0); ; {
		n := min(size-at, int64(len(zeroes)))
		if err := writeAt(&out, zeroes[:n], at); err != nil {
			return fmt.Errorf("wal: write %s: %w", path, err)
		}
		if at += n; at%zeroSyncBytes == 0 {
			if err := f.SyncData(); err != nil {
				return r.w.fail("fdatasync", path, err)
			}
		}
		if at == size {
			return nil
		}
		hurried, err := r.pause(q, n)
		if err != nil {
			return fmt.Errorf("wal: %s: %w", path, err)
		}
		if hurried && reserved == nil {
			r.w.metrics.unfilled.Inc()
			if err := writeAt(&out, zeroes[:frameStart], size-frameStart); err != nil { // gives the file its size
				return fmt.Errorf("wal: write %s: %w", path, err)
			}
			return nil
		}
	}
}

// pause waits after a write of n zeroes, so that they are no more than
// opts.zeroRate, and reports whether somebody waits for the segment. Dead segments are
// taken in meanwhile: a disk may be short of the room that they give back.
func (r *recycler) pause(q *request, n int64) (hurried bool, err error) {
	wait := time.Duration(n) * time.Second / time.Duration(r.w.opts.zeroRate)
	if q.whole {
		wait = 0
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-r.quit:
			return false, ErrClosed
		case <-q.now:
			return true, nil
		case <-timer.C:
			return false, nil
		case <-r.wake:
			r.takeDead()
		}
	}
}

// name writes and syncs the header of s and gives the file its name.
func (r *recycler) name(s *segment) error {
	tmp := r.w.fs.PathJoin(r.w.dir, prepareName)
	page := make([]byte, frameStart)
	s.header.put(page)
	if err := writeAt(s.file, page, 0); err != nil {
		return fmt.Errorf("wal: write %s: %w", tmp, err)
	}
	if err := s.file.Sync(); err != nil {
		return r.w.fail("fsync", tmp, err)
	}
	if err := r.w.fs.Rename(tmp, s.path); err != nil {
		return fmt.Errorf("wal: rename %s to %s: %w", tmp, s.path, err)
	}
	return r.w.syncDir()
}

// syncDir makes the names in the log's directory durable.
func (w *WAL) syncDir() error { return w.syncNames(w.dir) }

func (w *WAL) syncNames(dir string) error {
	d, err := w.fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("wal: open directory %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return w.fail("fsync of the directory", dir, err)
	}
	return nil
}
