package replica

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// diskGuard watches the writes of the log and the stable store. A write that
// fails ends the node, because what the disk holds after a failed fsync is
// unknown. So does a write that takes too long: a leader whose disk hangs would
// otherwise keep its followers waiting while it answers nobody.
type diskGuard struct {
	timeout time.Duration
	fatal   func(error)
	metrics *metrics

	mu       sync.Mutex
	makeRoom func() bool            // frees space on a full disk and reports whether it could
	calls    map[uint64]guardedCall // under way, by serial
	next     uint64
	stop     chan struct{}
	done     sync.WaitGroup
}

type guardedCall struct {
	what  string
	start time.Time
}

func newDiskGuard(timeout time.Duration, fatal func(error), m *metrics) *diskGuard {
	g := &diskGuard{
		timeout: timeout, fatal: fatal, makeRoom: func() bool { return false }, metrics: m,
		calls: make(map[uint64]guardedCall), stop: make(chan struct{}),
	}
	g.done.Go(g.watch)
	return g
}

func (g *diskGuard) setMakeRoom(makeRoom func() bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.makeRoom = makeRoom
}

func (g *diskGuard) madeRoom() bool {
	g.mu.Lock()
	makeRoom := g.makeRoom
	g.mu.Unlock()
	return makeRoom()
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

// do runs one write.
func (g *diskGuard) do(what string, write func() error) error {
	start := time.Now()
	g.mu.Lock()
	serial := g.next
	g.next++
	g.calls[serial] = guardedCall{what, start}
	g.mu.Unlock()
	err := write()
	g.mu.Lock()
	delete(g.calls, serial)
	g.mu.Unlock()
	g.metrics.diskWrite.Observe(time.Since(start).Seconds())
	return err
}

// must is do for writes whose failure ends the node.
func (g *diskGuard) must(what string, write func() error) error {
	err := g.do(what, write)
	if err != nil {
		g.fatal(fmt.Errorf("%s: %w", what, err))
	}
	return err
}

// guardedLog is a log store whose writes are watched. It also knows the newest
// snapshot's last entry.
type guardedLog struct {
	raft.LogStore
	guard *diskGuard
	last  atomic.Pointer[entryID] // nil before the first snapshot
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
// stores what the first attempt did not.
func (l *guardedLog) StoreLogs(logs []*raft.Log) error {
	return l.guard.must("append to the log", func() error {
		err := l.LogStore.StoreLogs(logs)
		if !errors.Is(err, unix.ENOSPC) || !l.guard.madeRoom() {
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

// DeleteRange implements raft.LogStore.
func (l *guardedLog) DeleteRange(first, last uint64) error {
	return l.guard.must("shorten the log", func() error { return l.LogStore.DeleteRange(first, last) })
}

// guardedStable is a stable store whose writes are watched.
type guardedStable struct {
	raft.StableStore
	guard *diskGuard
}

// Set implements raft.StableStore.
func (s *guardedStable) Set(key, value []byte) error {
	return s.guard.must("write term or vote", func() error { return s.StableStore.Set(key, value) })
}

// SetUint64 implements raft.StableStore.
func (s *guardedStable) SetUint64(key []byte, value uint64) error {
	return s.guard.must("write term or vote", func() error { return s.StableStore.SetUint64(key, value) })
}
