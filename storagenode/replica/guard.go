package replica

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/storagenode/wal"
)

// diskGuard watches what is written to the disk: through the file system, see
// guardedFS, and the log and the stable store where they do not use it.
//
// A failed sync ends the node, because what the disk holds after one is unknown,
// and the kernel may report success to the next. So does a write that takes too
// long: a leader whose disk hangs would otherwise keep its followers waiting while
// it answers nobody. A full disk does not: the ballast is given up, and if that
// does not help the call fails, and nothing else.
type diskGuard struct {
	timeout time.Duration
	fatal   func(error)
	metrics *metrics
	room    roomMaker

	slow   time.Duration // a write that takes longer is counted; 0: none is
	log    *slog.Logger
	warned time.Time // of such a write; guarded by mu

	failed atomic.Pointer[error] // a sync failed: nothing more is written through the file system

	mu    sync.Mutex
	calls map[uint64]guardedCall // under way, by serial
	next  uint64
	stop  chan struct{}
	done  sync.WaitGroup
}

// roomMaker is asked where the disk is full.
type roomMaker interface {
	// makeRoom frees space for a write of so many bytes, and reports whether it
	// could and the write is worth another attempt.
	makeRoom(bytes int64) bool
	// isFull is told of a write that the disk has no room for.
	isFull(error)
}

// slowWarningPause is how long the log is spared of further slow writes.
const slowWarningPause = 10 * time.Second

type guardedCall struct {
	what  string
	start time.Time
}

func newDiskGuard(timeout time.Duration, fatal func(error), m *metrics, room roomMaker) *diskGuard {
	g := &diskGuard{
		timeout: timeout, fatal: fatal, metrics: m, room: room, log: slog.New(slog.DiscardHandler),
		calls: make(map[uint64]guardedCall), stop: make(chan struct{}),
	}
	g.done.Go(g.watch)
	return g
}

func (g *diskGuard) close() {
	close(g.stop)
	g.done.Wait()
}

func (g *diskGuard) watch() {
	ticker := time.NewTicker(max(g.timeout/10, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if c, hung := g.oldest(); hung {
				g.fatal(fmt.Errorf("%s has taken %s: the disk hangs", c.what, time.Since(c.start).Round(time.Millisecond)))
				return
			}
		case <-g.stop:
			return
		}
	}
}

func (g *diskGuard) oldest() (guardedCall, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.calls {
		if time.Since(c.start) > g.timeout {
			return c, true
		}
	}
	return guardedCall{}, false
}

// do runs one write and sees to it that it does not hang.
func (g *diskGuard) do(what string, write func() error) error {
	g.mu.Lock()
	serial := g.next
	g.next++
	g.calls[serial] = guardedCall{what, time.Now()}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.calls, serial)
		g.mu.Unlock()
	}()
	return write()
}

// noteSlow counts a write that took more than half the heartbeat timeout, and now
// and then says so. A heartbeat waits for the write before it: slower ones, and
// the member calls an election though its leader is well.
func (g *diskGuard) noteSlow(what string, took time.Duration) {
	if g.slow == 0 || took <= g.slow {
		return
	}
	g.metrics.slowDiskWrites.Inc()
	g.mu.Lock()
	due := g.warned.IsZero() || time.Since(g.warned) >= slowWarningPause
	if due {
		g.warned = time.Now()
	}
	g.mu.Unlock()
	if due {
		g.log.Warn("the disk is nearly too slow for the heartbeat timeout: raise it, or use a faster disk",
			"write", what, "took", took, "heartbeatTimeout", 2*g.slow)
	}
}

// usable returns the error of the sync that failed, if one did.
func (g *diskGuard) usable() error {
	if p := g.failed.Load(); p != nil {
		return fmt.Errorf("nothing is written any more: %w", *p)
	}
	return nil
}

// change runs a write of so many bytes through the file system. Where the disk is
// full it makes room once and repeats the write, which goes on where it stopped.
func (g *diskGuard) change(op, name string, bytes int64, write func() error) error {
	if err := g.usable(); err != nil {
		return err
	}
	err := g.do(op+" "+name, func() error {
		err := write()
		if errors.Is(err, unix.ENOSPC) && g.room.makeRoom(bytes) {
			err = write()
		}
		return err
	})
	if errors.Is(err, unix.ENOSPC) {
		g.room.isFull(fmt.Errorf("%s %s: %w", op, name, err))
	}
	return err
}

// sync runs a sync of a file or directory, whose failure ends the node.
func (g *diskGuard) sync(name string, sync func() error) error {
	if err := g.usable(); err != nil {
		return err
	}
	err := g.do("sync of "+name, sync)
	if err != nil {
		err = fmt.Errorf("sync of %s: %w: %w", name, errSyncFailed, err)
		g.failed.CompareAndSwap(nil, &err)
		g.fatal(err)
	}
	return err
}

// errSyncFailed tells the error of a sync from others with the same cause.
var errSyncFailed = errors.New("what the disk holds is unknown")

// must runs a write of the log or the stable store. Its failure ends the node, but
// for one that mayFail allows.
func (g *diskGuard) must(what string, mayFail func(error) bool, write func() error) error {
	start := time.Now()
	err := g.do(what, write)
	took := time.Since(start)
	g.metrics.diskWrite.Observe(took.Seconds())
	g.noteSlow(what, took)
	switch {
	case err == nil:
	case mayFail(err):
		g.room.isFull(fmt.Errorf("%s: %w", what, err))
	default:
		g.fatal(fmt.Errorf("%s: %w", what, err))
	}
	return err
}

func never(error) bool { return false }

// guardedLog is a log store whose writes are watched. It also knows the newest
// snapshot's last entry.
type guardedLog struct {
	raft.LogStore
	guard *diskGuard
	// noRoom tells errors of a full disk, which leave the log as it was or with a
	// part of the entries, from those after which it must not be used.
	noRoom func(error) bool
	last   atomic.Pointer[entryID] // nil before the first snapshot
}

// entryID tells a log entry from all others.
type entryID struct{ index, term uint64 }

func (l *guardedLog) snapshot() entryID {
	if last := l.last.Load(); last != nil {
		return *last
	}
	return entryID{}
}

// GetLog implements raft.LogStore. It vouches for the index and term of the newest
// snapshot's last entry, by an entry without effect, when the log does not hold
// it. After a snapshot from a leader the log begins behind that entry, and the
// library looks for it there and nowhere else when a leader's request follows it:
// a follower with a suffix to be overwritten would be sent the snapshot for ever.
//
// The entry is never sent to anybody: a leader that sends it has looked for the
// one before it, which is not there. Only the first entry of all has none before
// it, and is left out here.
func (l *guardedLog) GetLog(index uint64, log *raft.Log) error {
	err := l.LogStore.GetLog(index, log)
	if last := l.snapshot(); errors.Is(err, raft.ErrLogNotFound) && index == last.index && index > 1 {
		*log = raft.Log{Index: last.index, Term: last.term, Type: raft.LogNoop}
		return nil
	}
	return err
}

// IsMonotonic implements raft.MonotonicLogStore.
func (l *guardedLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// StoreLog implements raft.LogStore.
func (l *guardedLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. On a full disk it makes room once and
// stores what the first attempt did not. Where that does not help, the entries are
// not stored, or only in part.
func (l *guardedLog) StoreLogs(logs []*raft.Log) error {
	return l.guard.must("append to the log", l.noRoom, func() error {
		err := l.LogStore.StoreLogs(logs)
		if err == nil || !l.noRoom(err) || !l.guard.room.makeRoom(bytesOf(logs)) {
			return err
		}
		last, lastErr := l.LogStore.LastIndex()
		if lastErr != nil {
			return errors.Join(err, lastErr)
		}
		for len(logs) > 0 && logs[0].Index <= last {
			logs = logs[1:]
		}
		return l.LogStore.StoreLogs(logs)
	})
}

func bytesOf(logs []*raft.Log) (n int64) {
	for _, l := range logs {
		n += int64(len(l.Data)) + int64(len(l.Extensions))
	}
	return n
}

// DeleteRange implements raft.LogStore. On a full disk it makes room once; where
// that does not help, the log stays as it is.
func (l *guardedLog) DeleteRange(first, last uint64) error {
	return l.guard.must("shorten the log", l.noRoom, func() error {
		err := l.LogStore.DeleteRange(first, last)
		if err != nil && l.noRoom(err) && l.guard.room.makeRoom(1) {
			err = l.LogStore.DeleteRange(first, last)
		}
		return err
	})
}

// walIsFull is the noRoom of a log of package wal.
func walIsFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) && !errors.Is(err, wal.ErrPoisoned) && !errors.Is(err, errSyncFailed)
}

// boltIsFull tells a write of bbolt's that did not fit, which its transaction takes
// back, from a sync that failed: only the former is a *PathError.
func boltIsFull(err error) bool {
	var own *os.PathError
	return errors.As(err, &own) && errors.Is(own.Err, unix.ENOSPC)
}

// guardedStable is a stable store whose writes are watched. Where the disk is full
// it makes room once. A write that fails in spite of that ends the node, for Raft
// can not go on without it.
type guardedStable struct {
	raft.StableStore
	guard *diskGuard
}

func (s *guardedStable) write(write func() error) error {
	return s.guard.must("write term or vote", never, func() error {
		err := write()
		if err != nil && boltIsFull(err) && s.guard.room.makeRoom(1) {
			err = write()
		}
		return err
	})
}

// Set implements raft.StableStore.
func (s *guardedStable) Set(key, value []byte) error {
	return s.write(func() error { return s.StableStore.Set(key, value) })
}

// SetUint64 implements raft.StableStore.
func (s *guardedStable) SetUint64(key []byte, value uint64) error {
	return s.write(func() error { return s.StableStore.SetUint64(key, value) })
}
