package replica

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/diskfault"
)

// drive has a shard of one member do everything that writes: appends, flushes,
// snapshots, the shortening of the log, and a restart. It ends at the first error,
// and returns the seq up to which records were acknowledged.
func drive(t *testing.T, cfg Config, fatal <-chan error) (acked uint64, err error) {
	t.Helper()
	for range 2 {
		r, err := Open(cfg)
		if err != nil {
			return acked, err
		}
		acked, err = driveOnce(t, r, acked, fatal)
		if err = errors.Join(err, r.Close()); err != nil {
			return acked, err
		}
	}
	return acked, nil
}

func driveOnce(t *testing.T, r *Replica, acked uint64, fatal <-chan error) (uint64, error) {
	t.Helper()
	if err := ownerOrFatal(t, r, fatal); err != nil {
		return acked, err
	}
	for range 2 {
		last, err := tryFill(t, r, 4)
		acked = max(acked, last)
		if err != nil {
			return acked, err
		}
		if _, err := r.Snapshot(t.Context()); err != nil {
			return acked, err
		}
	}
	last, err := tryFill(t, r, 2)
	return max(acked, last), err
}

// ownerOrFatal waits until the replica leads and owns its instrument, or can not.
func ownerOrFatal(t *testing.T, r *Replica, fatal <-chan error) (err error) {
	t.Helper()
	await(t, "the replica leads, or has ended", func() bool {
		select {
		case err = <-fatal:
			return true
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // a node that has ended applies nothing
		defer cancel()
		v, readErr := r.Read(ctx, false)
		if readErr != nil {
			return false
		}
		defer v.Release()
		return len(v.Shard.Owned()) > 0
	})
	return err
}

// testEpoch is the last epoch that a stream was opened with by tryFill.
var testEpoch atomic.Uint64

// tryFill appends n batches of ten records each and returns the seq of the last
// record that was acknowledged.
func tryFill(t *testing.T, r *Replica, n int) (acked uint64, err error) {
	t.Helper()
	epoch := testEpoch.Add(1)
	opened, err := r.OpenStream(t.Context(), record.MustSymbol("A"), epoch)
	if err != nil {
		return 0, err
	}
	acked = opened.LastSeq
	for range n {
		last, err := r.ProposeBatch(t.Context(), testBatch(t, epoch, acked+1, 10)).Wait()
		if err != nil {
			return acked, err
		}
		acked = last
	}
	return acked, nil
}

// script lets a test fail one operation of a kind that it picks.
type script struct {
	mu    sync.Mutex
	n     int                     // operation to fail, from 1; 0 for none
	count int                     // operations so far
	picks func(diskfault.Op) bool // which operations count
	fault diskfault.Fault
	hit   diskfault.Op
}

func (s *script) hook(op diskfault.Op) diskfault.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.picks(op) {
		return diskfault.Fault{}
	}
	if s.count++; s.count != s.n {
		return diskfault.Fault{}
	}
	s.hit = op
	return s.fault
}

func (s *script) struck() diskfault.Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hit
}

// loneMember returns the settings of a shard of one on the machine, behind fs, and
// where its end is told.
func loneMember(m *machine, fs vfs.FS) (Config, chan error) {
	fatal := make(chan error, 1)
	cfg := Config{
		Cluster: "test", Shard: "s1", ID: "m0", Address: "127.0.0.1:1", Peers: []Peer{{"m0", "127.0.0.1:1"}},
		Instruments: []record.Symbol{record.MustSymbol("A")}, SnapshotInterval: time.Hour, TrailingEntries: 1,
		DiskReserveBytes: -1, BallastBytes: -1, DiskCheckInterval: 5 * time.Millisecond,
		OnFatal: func(err error) { fatal <- err },
	}
	m.configure(&cfg, fs)
	cfg.HeartbeatTimeout, cfg.LeaderLease = 20*time.Millisecond, 20*time.Millisecond
	return cfg, fatal
}

// checkAcked opens what is on the disk and looks for everything acknowledged.
func checkAcked(t *testing.T, m *machine, acked uint64) {
	t.Helper()
	cfg, _ := loneMember(m, m)
	r, err := Open(cfg)
	if err != nil {
		t.Errorf("open again: %v", err)
		return
	}
	defer r.Close()
	awaitOwner(t, r)
	if got := lastSeq(t, r); got < acked {
		t.Errorf("last seq %d, %d was acknowledged", got, acked)
	}
	before := lastSeq(t, r)
	if got := fill(t, r, 1<<40, 1); got != before+10 {
		t.Errorf("after seq %d comes %d", before, got)
	}
}

// faultRun is one run of drive on a machine with one fault.
type faultRun struct {
	m     *machine
	op    diskfault.Op // that was struck; its Kind is "" if none was
	acked uint64
	err   error // of drive, or what OnFatal was told
	ended bool  // OnFatal was called
}

// run drives a member with the n-th of the picked operations failing.
func runWithFault(t *testing.T, n int, picks func(diskfault.Op) bool, fault diskfault.Fault, change func(*Config)) faultRun {
	t.Helper()
	out := faultRun{m: newMachine()}
	s := &script{n: n, picks: picks, fault: fault}
	cfg, fatal := loneMember(out.m, diskfault.Wrap(out.m, s.hook))
	told := make(chan error, 1)
	cfg.OnFatal = func(err error) { told <- err; fatal <- err }
	if change != nil {
		change(&cfg)
	}
	out.acked, out.err = drive(t, cfg, fatal)
	out.op = s.struck()
	select {
	case err := <-told:
		out.err, out.ended = err, true
	default:
	}
	return out
}

// atEveryFault counts the picked operations of a run without a fault, and runs
// check for a fault at each of them.
func atEveryFault(t *testing.T, picks func(diskfault.Op) bool, check func(t *testing.T, n int)) int {
	t.Helper()
	m := newMachine()
	s := &script{picks: picks}
	cfg, fatal := loneMember(m, diskfault.Wrap(m, s.hook))
	if _, err := drive(t, cfg, fatal); err != nil {
		t.Fatalf("without a fault: %v", err)
	}
	var g errgroup.Group
	g.SetLimit(8) // they wait for elections most of the time
	for n := 1; n <= s.count; n++ {
		g.Go(func() error {
			t.Run(fmt.Sprint(n), func(t *testing.T) { check(t, n) })
			return nil
		})
	}
	_ = g.Wait()
	return s.count
}

// counts is a set of counters.
type counts struct {
	mu sync.Mutex
	of map[string]int
}

func (c *counts) add(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]int{}
	}
	c.of[what]++
}

// Whichever sync fails, of a file or a directory: the node ends and names it, and
// what is on the disk has everything that was acknowledged.
func TestTheFirstFailedSyncEndsTheNode(t *testing.T) {
	var kinds counts
	syncs := func(op diskfault.Op) bool { return op.Kind == diskfault.Sync || op.Kind == diskfault.SyncDir }
	n := atEveryFault(t, syncs, func(t *testing.T, n int) {
		run := runWithFault(t, n, syncs, diskfault.Fault{Err: unix.EIO}, nil)
		if run.op.Kind == "" {
			return // fewer groups were written than in the run that was counted
		}
		kinds.add(kindOfFile(run.op.Path))
		if !run.ended || !errors.Is(run.err, unix.EIO) || !strings.Contains(run.err.Error(), run.op.Path) {
			t.Errorf("%s: the node has ended: %t, with %v", run.op, run.ended, run.err)
		}
		checkAcked(t, run.m.crash(0, nil), run.acked)
	})
	t.Logf("%d syncs, failed of %v", n, kinds.of)
	for _, kind := range []string{"wal", "META", "MANIFEST", "SHARD", "SNAPSHOT", "CURRENT", "IDENTITY", ".sst", "snapshots"} {
		if kinds.of[kind] == 0 {
			t.Errorf("no sync of %s was met", kind)
		}
	}
}

// kindOfFile names what a path is, by its last telling part.
func kindOfFile(path string) string {
	path = strings.TrimSuffix(path, ".tmp")
	for _, suffix := range []string{".wal", "prepare"} {
		if strings.HasSuffix(path, suffix) {
			return "wal"
		}
	}
	if strings.HasSuffix(path, ".sst") {
		return ".sst"
	}
	return path[strings.LastIndexByte(path, '/')+1:]
}

// A write or sync that hangs ends the node, whatever file it is of.
func TestAHangOfAnyFileEndsTheNode(t *testing.T) {
	for _, what := range []struct {
		kind diskfault.Kind
		file string
	}{
		{diskfault.Sync, ".wal"}, {diskfault.Write, ".wal"}, {diskfault.Sync, "prepare.tmp"},
		{diskfault.Sync, ".sst.tmp"}, {diskfault.Write, ".sst.tmp"}, {diskfault.Rename, ".sst"},
		{diskfault.Sync, "MANIFEST.tmp"}, {diskfault.Write, "MANIFEST.tmp"}, {diskfault.SyncDir, "instruments/A"},
		{diskfault.Sync, "SHARD.tmp"}, {diskfault.Sync, "SNAPSHOT.tmp"}, {diskfault.Link, ".sst"},
		{diskfault.Sync, "META"}, {diskfault.Write, "META"}, {diskfault.SyncDir, "snapshots"},
		{diskfault.Sync, "CURRENT.tmp"}, {diskfault.Sync, "IDENTITY.tmp"},
	} {
		t.Run(string(what.kind)+" "+what.file, func(t *testing.T) {
			t.Parallel()
			m := newMachine()
			release := make(chan struct{})
			var once sync.Once
			cfg, fatal := loneMember(m, diskfault.Wrap(m, func(op diskfault.Op) diskfault.Fault {
				if op.Kind == what.kind && strings.HasSuffix(op.Path, what.file) {
					once.Do(func() { <-release })
				}
				return diskfault.Fault{}
			}))
			told := make(chan error, 1)
			cfg.OnFatal = func(err error) { told <- err; fatal <- err }
			cfg.HungDiskTimeout = 300 * time.Millisecond
			done := make(chan struct{})
			go func() {
				defer close(done)
				drive(t, cfg, fatal)
			}()
			select {
			case err := <-told:
				if !strings.Contains(err.Error(), what.file) || !strings.Contains(err.Error(), "hangs") {
					// An append hangs as a whole; its file is not named.
					if !strings.Contains(err.Error(), "append to the log") || what.file != ".wal" {
						t.Errorf("the node ended with %v", err)
					}
				}
			case <-done:
				t.Error("it was not met")
			}
			close(release)
			<-done
		})
	}
}

// Whatever operation that changes the disk fails, and however: the node goes on or it
// ends and names the file, and a start finds everything that was acknowledged.
func TestFaultAtEveryOperation(t *testing.T) {
	changes := func(op diskfault.Op) bool { return op.Kind.Changes() }
	for name, fault := range map[string]diskfault.Fault{
		"EIO":                          {Err: unix.EIO},
		"ENOSPC":                       {Err: unix.ENOSPC},
		"short write, then ENOSPC":     {Err: unix.ENOSPC, Short: true},
		"short write without an error": {Short: true},
	} {
		picks := changes
		if fault.Short {
			picks = func(op diskfault.Op) bool { return op.Kind == diskfault.Write }
		}
		t.Run(name, func(t *testing.T) {
			var outcomes counts
			n := atEveryFault(t, picks, func(t *testing.T, n int) {
				run := runWithFault(t, n, picks, fault, nil)
				switch {
				case run.op.Kind == "":
					outcomes.add("not met")
				case run.ended:
					outcomes.add("ended")
					if !strings.Contains(run.err.Error(), run.op.Path) && !strings.Contains(run.err.Error(), renamedFrom(run.op.Path)) {
						t.Errorf("%s: the node ended with %v", run.op, run.err)
					}
				case run.err != nil:
					outcomes.add("a call failed")
				default:
					outcomes.add("survived")
				}
				checkAcked(t, run.m.crash(0, nil), run.acked)
				if t.Failed() {
					t.Logf("%s; %d acknowledged; ended %t with %v", run.op, run.acked, run.ended, run.err)
				}
			})
			t.Logf("%d operations: %v", n, outcomes.of)
		})
	}
}

// renamedFrom returns the name under which a log's segment is made.
func renamedFrom(path string) string {
	if strings.HasSuffix(path, ".tmp") && strings.Contains(path, "/wal/") {
		return "/wal/"
	}
	return path
}
