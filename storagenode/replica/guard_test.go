package replica

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/storagenode/diskfault"
	"github.com/countinghouse/countinghouse/storagenode/wal"
)

// faultyLog is a log store whose writes fail or hang.
type faultyLog struct {
	*raft.InmemStore
	storeLogs func([]*raft.Log) error
}

func (f *faultyLog) StoreLogs(logs []*raft.Log) error { return f.storeLogs(logs) }

func guarded(t *testing.T, timeout time.Duration, storeLogs func(*raft.InmemStore, []*raft.Log) error) (*guardedLog, chan error) {
	t.Helper()
	fatal := make(chan error, 1)
	g := newDiskGuard(timeout, func(err error) {
		select {
		case fatal <- err:
		default:
		}
	}, newMetrics(), noRoomMaker{})
	t.Cleanup(g.close)
	store := raft.NewInmemStore()
	f := &faultyLog{InmemStore: store, storeLogs: func(l []*raft.Log) error { return storeLogs(store, l) }}
	return &guardedLog{LogStore: f, guard: g, noRoom: walIsFull}, fatal
}

// noRoomMaker has no ballast.
type noRoomMaker struct{}

func (noRoomMaker) makeRoom(int64) bool { return false }
func (noRoomMaker) isFull(error)        {}

// roomMakerFunc has some.
type roomMakerFunc func()

func (f roomMakerFunc) makeRoom(int64) bool { f(); return true }
func (roomMakerFunc) isFull(error)          {}

func TestAHungDiskEndsTheNode(t *testing.T) {
	release := make(chan struct{})
	log, fatal := guarded(t, 50*time.Millisecond, func(*raft.InmemStore, []*raft.Log) error { <-release; return nil })
	done := make(chan error, 1)
	go func() { done <- log.StoreLog(&raft.Log{Index: 1}) }()
	if err := <-fatal; !strings.Contains(err.Error(), "disk hangs") {
		t.Errorf("got %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the write itself: %v", err)
	}
}

func TestAFailedWriteEndsTheNode(t *testing.T) {
	log, fatal := guarded(t, time.Minute, func(*raft.InmemStore, []*raft.Log) error { return unix.EIO })
	if err := log.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
	if err := <-fatal; !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
}

func TestBallastGetsALogOverAFullDisk(t *testing.T) {
	full := true
	log, fatal := guarded(t, time.Minute, func(s *raft.InmemStore, logs []*raft.Log) error {
		if full { // the first two entries still fit
			if err := s.StoreLogs(logs[:2]); err != nil {
				return err
			}
			return fmt.Errorf("new segment: %w", unix.ENOSPC)
		}
		if logs[0].Index != 3 {
			t.Errorf("the second attempt begins at %d", logs[0].Index)
		}
		return s.StoreLogs(logs)
	})
	log.guard.room = roomMakerFunc(func() { full = false })
	if err := log.StoreLogs([]*raft.Log{{Index: 1}, {Index: 2}, {Index: 3}, {Index: 4}}); err != nil {
		t.Fatal(err)
	}
	if last, _ := log.LastIndex(); last != 4 {
		t.Errorf("last index %d, want 4", last)
	}
	select {
	case err := <-fatal:
		t.Errorf("the node ended: %v", err)
	default:
	}
}

// A log that can not be shortened, and a term that can not be written, for want of
// room get it from the ballast.
func TestBallastHelpsTruncationAndVotes(t *testing.T) {
	full := &os.PathError{Op: "write", Path: "stable.db", Err: unix.ENOSPC}
	log, fatal := guarded(t, time.Minute, (*raft.InmemStore).StoreLogs)
	if err := log.StoreLogs([]*raft.Log{{Index: 1}, {Index: 2}}); err != nil {
		t.Fatal(err)
	}
	var refuse error = full
	log.guard.room = roomMakerFunc(func() { refuse = nil })
	stable := &guardedStable{StableStore: refusingStable{raft.NewInmemStore(), &refuse}, guard: log.guard}
	if err := stable.SetUint64([]byte("CurrentTerm"), 7); err != nil {
		t.Errorf("term: %v", err)
	}
	refuse = full
	log.LogStore = &refusingLog{log.LogStore.(*faultyLog).InmemStore, &refuse}
	if err := log.DeleteRange(1, 1); err != nil {
		t.Errorf("truncation: %v", err)
	}
	if first, _ := log.FirstIndex(); first != 2 {
		t.Errorf("the log begins at %d", first)
	}
	neverFatal(t, fatal)
	// Without a ballast the log stays as it is, and the node goes on; a term that
	// can not be written ends it.
	log.guard.room = noRoomMaker{}
	refuse = full
	if err := log.DeleteRange(2, 2); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("truncation: %v", err)
	}
	neverFatal(t, fatal)
	if err := stable.Set([]byte("LastVoteCand"), []byte("m1")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("vote: %v", err)
	}
	if err := <-fatal; !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the node ended with %v", err)
	}
}

type refusingLog struct {
	*raft.InmemStore
	err *error
}

func (r refusingLog) DeleteRange(first, last uint64) error {
	if *r.err != nil {
		return *r.err
	}
	return r.InmemStore.DeleteRange(first, last)
}

type refusingStable struct {
	*raft.InmemStore
	err *error
}

func (r refusingStable) Set(key, value []byte) error {
	if *r.err != nil {
		return *r.err
	}
	return r.InmemStore.Set(key, value)
}

func (r refusingStable) SetUint64(key []byte, value uint64) error {
	if *r.err != nil {
		return *r.err
	}
	return r.InmemStore.SetUint64(key, value)
}

// A sync of bbolt's that fails for want of room is a failed sync.
func TestAFailedSyncOfBoltIsNotAFullDisk(t *testing.T) {
	if boltIsFull(unix.ENOSPC) || !boltIsFull(&os.PathError{Op: "write", Err: unix.ENOSPC}) {
		t.Error("the error of fdatasync and that of a write are not told apart")
	}
	if walIsFull(fmt.Errorf("%w: %w", errSyncFailed, unix.ENOSPC)) || walIsFull(fmt.Errorf("%w: %w", wal.ErrPoisoned, unix.ENOSPC)) {
		t.Error("a log out of service counts as one on a full disk")
	}
}

// Entries that the log takes in part, after it was shortened for them, leave the
// Raft instance wrong about where the log ends: it begins again.
func TestEntriesRefusedInPartRestartRaft(t *testing.T) {
	var full atomic.Bool
	follower, _, fatal := single(t, func(c *Config) {
		c.FS = diskfault.Wrap(vfs.Default, func(op diskfault.Op) diskfault.Fault {
			if full.Load() && op.Kind == diskfault.Preallocate {
				return diskfault.Fault{Err: unix.ENOSPC}
			}
			return diskfault.Fault{}
		})
		c.WAL.SegmentBytes, c.WAL.RecycleFiles = 32<<10, -1
		c.Peers = append(c.Peers, Peer{"m1", "127.0.0.1:1"}, Peer{"m2", "127.0.0.1:2"})
		c.HeartbeatTimeout, c.LeaderLease = time.Minute, time.Minute // it stays a follower
	})
	leader := newFakeLeader(t, follower, 9)
	if r := leader.appendNoops(1, 1, 2, 20, 1, 0); !r.Success {
		t.Fatalf("entries: %+v", r)
	}
	full.Store(true)
	// Entries of a later term replace 11 to 20. Each fills a segment, and there are one
	// or two.
	big := func(prevTerm uint64, first uint64) raft.AppendEntriesResponse {
		req := &raft.AppendEntriesRequest{RPCHeader: leader.header(), Term: 9, PrevLogEntry: first - 1, PrevLogTerm: prevTerm}
		for i := first; i <= 16; i++ {
			req.Entries = append(req.Entries, &raft.Log{Index: i, Term: 9, Type: raft.LogNoop, Data: make([]byte, 25<<10)})
		}
		var resp raft.AppendEntriesResponse
		if err := leader.tr.AppendEntries("m0", follower.transport.LocalAddr(), req, &resp); err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if r := big(1, 11); r.Success {
		t.Error("entries that did not fit were acknowledged")
	}
	last, err := follower.logs.LastIndex()
	if err != nil || last < 10 || last >= 16 {
		t.Fatalf("the log ends at %d, %v", last, err)
	}
	await(t, "raft begins again", func() bool { return follower.raft().LastIndex() == last })
	full.Store(false)
	prevTerm := uint64(1)
	if last > 10 {
		prevTerm = 9
	}
	if r := big(prevTerm, last+1); !r.Success {
		t.Errorf("entries after there is room: %+v", r)
	}
	if r := leader.appendNoops(16, 9, 17, 18, 9, 18); !r.Success {
		t.Errorf("entries after there is room: %+v", r)
	}
	if last, err := follower.logs.LastIndex(); last != 18 || err != nil {
		t.Errorf("the log ends at %d, %v", last, err)
	}
	t.Logf("the log ended at %d of 16", last)
	neverFatal(t, fatal)
}

// A heartbeat waits for the write before it, so writes that come near the
// heartbeat timeout are counted, and the log says so, but not each time.
func TestSlowWritesAreCountedAndReported(t *testing.T) {
	var said bytes.Buffer
	log, _ := guarded(t, time.Minute, func(*raft.InmemStore, []*raft.Log) error { return nil })
	g := log.guard
	g.slow, g.log = 500*time.Millisecond, slog.New(slog.NewTextHandler(&said, nil))
	for _, took := range []time.Duration{0, 500 * time.Millisecond, 501 * time.Millisecond, time.Second, time.Minute} {
		g.noteSlow("append to the log", took)
	}
	if got := testutil.ToFloat64(g.metrics.slowDiskWrites); got != 3 {
		t.Errorf("%v writes were counted, want 3", got)
	}
	if n := strings.Count(said.String(), "nearly too slow"); n != 1 || !strings.Contains(said.String(), "took=501ms") || !strings.Contains(said.String(), "heartbeatTimeout=1s") {
		t.Errorf("said %d times: %s", n, said.String())
	}
	g.warned = g.warned.Add(-slowWarningPause)
	g.noteSlow("append to the log", time.Second)
	if n := strings.Count(said.String(), "nearly too slow"); n != 2 {
		t.Errorf("said %d times", n)
	}
}

// The limit is half of the replica's heartbeat timeout, and its log's writes are
// held against it.
func TestAReplicaWatchesItsWrites(t *testing.T) {
	var stall atomic.Int64
	fs := errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			time.Sleep(time.Duration(stall.Load())) // a slow disk
		}
		return nil
	}))
	r, _, _ := single(t, func(c *Config) { c.FS = fs })
	awaitOwner(t, r)
	if r.guard.slow != r.cfg.HeartbeatTimeout/2 {
		t.Errorf("the limit is %s of %s", r.guard.slow, r.cfg.HeartbeatTimeout)
	}
	before := testutil.ToFloat64(r.metrics.slowDiskWrites)
	stall.Store(int64(r.cfg.HeartbeatTimeout))
	fill(t, r, 1, 1)
	stall.Store(0)
	if got := testutil.ToFloat64(r.metrics.slowDiskWrites); got <= before {
		t.Errorf("%v slow writes", got-before)
	}
}

// After a sync that failed nothing is written any more, and no second sync can
// report that all is well.
func TestNothingIsWrittenAfterAFailedSync(t *testing.T) {
	fails, touched := true, 0
	disk := &diskWatch{fs: vfs.NewMem()}
	g := newDiskGuard(time.Minute, func(error) {}, newMetrics(), disk)
	defer g.close()
	fs := &guardedFS{FS: diskfault.Wrap(vfs.NewMem(), func(op diskfault.Op) diskfault.Fault {
		touched++
		if fails && op.Kind == diskfault.Sync {
			return diskfault.Fault{Err: unix.EIO}
		}
		return diskfault.Fault{}
	}), guard: g}
	f, err := fs.Create("a", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	fails, touched = false, 0
	_, write := f.Write([]byte("x"))
	for what, err := range map[string]error{
		"write": write, "sync": f.Sync(), "sync of data": f.SyncData(), "rename": fs.Rename("a", "b"), "directory": fs.MkdirAll("d", 0o755), "remove": fs.Remove("a"),
	} {
		if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "nothing is written any more") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if touched != 0 {
		t.Errorf("the disk was touched %d times", touched)
	}
}
