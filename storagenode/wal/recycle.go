package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/storagenode/directio"
)

const (
	// zeroChunkBytes is written at once when a file is filled with zeroes.
	zeroChunkBytes = 1 << 20
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
	wanted uint64     // id to prepare, 0 for none

	pool []string // paths of files fit for reuse; of the goroutine
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
func (r *recycler) request(id uint64) {
	r.mu.Lock()
	r.wanted = id
	r.mu.Unlock()
	r.poke()
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

// next returns the segment asked for, and waits for it if need be. When the
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
		r.mu.Lock()
		dead, wanted := r.dead, r.wanted
		r.dead, r.wanted = nil, 0
		r.mu.Unlock()
		for _, s := range dead {
			r.take(s)
		}
		if wanted != 0 {
			s, err := r.prepare(wanted)
			r.answer(prepared{wanted, s, err})
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

// prepare makes segment id ready: a file of its full size, every block of it
// written, with a header under a fresh salt, synced, under its name, the
// directory synced.
func (r *recycler) prepare(id uint64) (*segment, error) {
	s := &segment{
		header: segmentHeader{state: statePrepared, id: id, fileBytes: r.w.opts.SegmentBytes},
		path:   r.w.fs.PathJoin(r.w.dir, segmentName(id)),
		end:    frameStart,
	}
	var salt [8]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, fmt.Errorf("wal: %s: draw a salt: %w", s.path, err)
	}
	s.header.salt = binary.LittleEndian.Uint64(salt[:])
	var err error
	if s.file, err = r.openFile(s.path); err != nil {
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
func (r *recycler) openFile(path string) (vfs.File, error) {
	tmp := r.w.fs.PathJoin(r.w.dir, prepareName)
	if len(r.pool) == 0 {
		return r.createFile(tmp)
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
// reserved, for the first write to a reserved block changes metadata, which
// fdatasync would have to write, too.
func (r *recycler) createFile(path string) (vfs.File, error) {
	f, err := r.w.fs.Create(path, categoryWAL)
	if err != nil {
		return nil, fmt.Errorf("wal: create %s: %w", path, err)
	}
	if err := r.fill(f, path); err != nil {
		f.Close()
		_ = r.w.fs.Remove(path) // gives the space back; Open removes what is left
		return nil, err
	}
	return f, nil
}

func (r *recycler) fill(f vfs.File, path string) error {
	size := r.w.opts.SegmentBytes
	if err := f.Preallocate(0, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("wal: reserve %d bytes for %s: %w", size, path, err)
	}
	zeroes := directio.Buffer(int(min(size, zeroChunkBytes)))
	out := directio.NewWriter(f)
	defer out.Leave() // what follows is written through the cache, as frames are
	for at := int64(0); at < size; {
		select {
		case <-r.quit:
			return fmt.Errorf("wal: %s: %w", path, ErrClosed)
		default:
		}
		n := min(size-at, int64(len(zeroes)))
		if err := writeAt(&out, zeroes[:n], at); err != nil {
			return fmt.Errorf("wal: write %s: %w", path, err)
		}
		if at += n; at%zeroSyncBytes == 0 {
			if err := f.SyncData(); err != nil {
				return r.w.fail("fdatasync", path, err)
			}
		}
	}
	return nil
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
