package wal

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
)

// Bounds and defaults of Options.
const (
	DefaultSegmentBytes = 64 << 20
	DefaultCacheBytes   = 64 << 20
	DefaultRecycleFiles = 2

	segmentBytesLeast = 2 * frameStart
	segmentBytesMost  = 16 << 30 // offsets in units of frameAlign fit into 32 bits
)

// Options configure a WAL. The zero value means the defaults.
type Options struct {
	// SegmentBytes is the size of a segment file, a multiple of 4096 from 8192
	// to 16 GiB; 0 means DefaultSegmentBytes. It bounds the size of an entry, see
	// WAL.MaxEntryBytes. Segments of other sizes are read all the same.
	SegmentBytes int64
	// CacheBytes bounds the memory that recent entries are held in; 0 means
	// DefaultCacheBytes, a negative number no cache.
	CacheBytes int64
	// ReplayBytes bounds the memory in which Open keeps the newest of the entries that
	// it reads, until EndReplay: what follows a start reads all of them. 0 or less
	// than CacheBytes means CacheBytes.
	ReplayBytes int64
	// Recovered, if set, is shown each entry that Open keeps, after it was checked and
	// before anybody can ask for it, by one goroutine at a time. It may put equal
	// bytes in the place of Extensions, to mark the entry, and change nothing else.
	Recovered func(*raft.Log)
	// RecycleFiles bounds how many files of deleted segments are kept for reuse;
	// 0 means DefaultRecycleFiles, a negative number none.
	RecycleFiles int
	// OnFatal is called once, in its own goroutine, with the first error of a
	// write or an fsync. The process should end: the log takes nothing any more.
	OnFatal func(error)
	// MetricLabels are constant labels of every metric.
	MetricLabels prometheus.Labels

	zeroRate int64 // 0 means defaultZeroRate
}

func (o Options) withDefaults() (Options, error) {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	if o.SegmentBytes < segmentBytesLeast || o.SegmentBytes > segmentBytesMost || o.SegmentBytes%frameStart != 0 {
		return o, fmt.Errorf("wal: SegmentBytes %d is not a multiple of %d from %d to %d", o.SegmentBytes, frameStart, segmentBytesLeast, int64(segmentBytesMost))
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.RecycleFiles == 0 {
		o.RecycleFiles = DefaultRecycleFiles
	}
	if o.zeroRate == 0 {
		o.zeroRate = defaultZeroRate
	}
	if o.Recovered == nil {
		o.Recovered = func(*raft.Log) {}
	}
	if o.OnFatal == nil {
		o.OnFatal = func(error) {}
	}
	return o, nil
}

// Recovery is what Open found.
type Recovery struct {
	Segments     int
	Entries      uint64
	TornBytesCut int64 // bytes of an unfinished write that were cut off
	TornFile     string
	TornOffset   int64
}

// WAL is a raft.LogStore and raft.MonotonicLogStore. Its methods may be called
// from any goroutine; those that change the log run one after another.
//
// Invariant: every entry from first to last is on disk, synced, in exactly one
// segment of segs, and no other entry will be found there by a later Open.
type WAL struct {
	fs       vfs.FS
	dir      string
	opts     Options
	lock     io.Closer
	metrics  *metrics
	recycler *recycler
	recovery Recovery
	fatal    atomic.Pointer[error]

	writingSince atomic.Pointer[time.Time] // nil while no group is being written

	writing sync.Mutex // held by the one call that changes the log
	buf     []byte     // of the group being written; guarded by writing
	offsets []uint32   // of the group being written; guarded by writing
	dead    []*segment // to be recycled once the active segment is on disk; guarded by writing
	closed  bool       // changed under writing and mu, read under either

	mu    sync.RWMutex
	segs  []*segment // ascending by first index; the last one takes the next group
	first uint64     // 0 while the log is empty
	last  uint64
	cache cache
}

var (
	_ raft.LogStore          = (*WAL)(nil)
	_ raft.MonotonicLogStore = (*WAL)(nil)
	_ io.Closer              = (*WAL)(nil)
)

// Open opens the log in dir, which is made if it does not exist, and holds it
// exclusively until Close. It reads every frame. A write that a crash left
// unfinished is cut off; damage to entries that were acknowledged is a
// *CorruptError. Other errors match ErrVersion or ErrLocked, or are of the file
// system.
func Open(fs vfs.FS, dir string, opts Options) (*WAL, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("wal: %s: %w", dir, err)
	}
	lock, err := fs.Lock(fs.PathJoin(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("wal: %s: %w: another process has it open (%w)", dir, ErrLocked, err)
	}
	w := &WAL{fs: fs, dir: dir, opts: opts, lock: lock, metrics: newMetrics(opts.MetricLabels)}
	w.cache.bytesMax = max(opts.CacheBytes, opts.ReplayBytes)
	w.recycler = newRecycler(w)
	if err := w.recover(); err != nil {
		w.release()
		return nil, err
	}
	w.publishGauges()
	return w, nil
}

// EndReplay gives up the memory that ReplayBytes allows beyond CacheBytes.
func (w *WAL) EndReplay() {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	w.cache.shrink(w.opts.CacheBytes)
	w.mu.Unlock()
	w.publishGauges()
}

// Close releases the files and the directory. It waits for calls under way.
// It returns the error that took the log out of service, if one did.
func (w *WAL) Close() error {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	closed := w.closed
	w.closed = true
	w.mu.Unlock()
	if closed {
		return nil
	}
	w.release()
	return w.outOfService()
}

// release stops the recycler and closes what is open.
func (w *WAL) release() {
	w.recycler.stop()
	for _, s := range w.segs {
		s.close()
	}
	for _, s := range w.dead {
		s.close()
	}
	w.lock.Close()
}

// IsMonotonic is true: the log has no gaps, and hashicorp/raft deletes all of it
// before it goes on behind a snapshot.
func (w *WAL) IsMonotonic() bool { return true }

// FirstIndex returns the index of the first entry, 0 when there is none.
func (w *WAL) FirstIndex() (uint64, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.first, w.open()
}

// LastIndex returns the index of the last entry, 0 when there is none.
func (w *WAL) LastIndex() (uint64, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.last, w.open()
}

// MaxEntryBytes is the most that an entry's Data and Extensions may have
// together.
func (w *WAL) MaxEntryBytes() int64 { return w.opts.SegmentBytes - frameStart - frameHeaderSize }

// WritingFor returns how long the write and fdatasync under way have taken so
// far, 0 when there are none: a watchdog can tell a hung disk by it.
func (w *WAL) WritingFor() time.Duration {
	since := w.writingSince.Load()
	if since == nil {
		return 0
	}
	return time.Since(*since) // by the monotonic clock: the wall clock may jump
}

// Recovery tells what Open found.
func (w *WAL) Recovery() Recovery { return w.recovery }

// Metrics returns the log's collectors, to be registered by the caller.
func (w *WAL) Metrics() prometheus.Collector { return w.metrics }

// usable returns why the log can not be changed, if so. The caller holds writing
// or mu.
func (w *WAL) usable() error {
	if err := w.outOfService(); err != nil {
		return err
	}
	return w.open()
}

// open returns an error once the log is closed. Reads ask for no more: what was
// acknowledged before an I/O error is on disk, and a Raft library that can not read
// it panics before the error is told. The caller holds writing or mu.
func (w *WAL) open() error {
	if w.closed {
		return fmt.Errorf("wal: %s: %w", w.dir, ErrClosed)
	}
	return nil
}

func (w *WAL) outOfService() error {
	if p := w.fatal.Load(); p != nil {
		return *p
	}
	return nil
}

// fail takes the log out of service: what a failed write or fsync left on the
// disk is unknown, and a second fsync would report success for pages that the
// kernel has dropped. It returns the error that every change returns from here on.
func (w *WAL) fail(op, path string, cause error) error {
	err := fmt.Errorf("wal: %s: %s: %w: %w", path, op, ErrPoisoned, cause)
	if w.fatal.CompareAndSwap(nil, &err) {
		w.metrics.outOfService.Set(1)
		go w.opts.OnFatal(err)
	}
	return w.outOfService()
}

// publishGauges states the log's extent. The caller holds writing, or nobody
// else knows the log yet.
func (w *WAL) publishGauges() {
	w.metrics.firstIndex.Set(float64(w.first))
	w.metrics.lastIndex.Set(float64(w.last))
	w.metrics.segments.Set(float64(len(w.segs)))
	w.metrics.cacheBytes.Set(float64(w.cache.bytes))
}

// active returns the segment that takes the next group.
func (w *WAL) active() *segment { return w.segs[len(w.segs)-1] }
