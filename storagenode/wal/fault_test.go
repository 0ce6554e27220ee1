package wal

import (
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/diskfault"
)

// failNth fails the n-th operation, or write for a short one, and counts.
type failNth struct {
	mu     sync.Mutex
	n, ops int
	fault  diskfault.Fault
	failed diskfault.Op
	hit    bool
}

func (f *failNth) hook(op diskfault.Op) diskfault.Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault.Short && op.Kind != diskfault.Write {
		return diskfault.Fault{}
	}
	f.ops++
	if f.ops != f.n {
		return diskfault.Fault{}
	}
	f.failed, f.hit = op, true
	return f.fault
}

// faultWorkload goes on after errors that leave the log usable, and returns
// what was acknowledged. Its errors are all of the injected cause.
func faultWorkload(t *testing.T, fs vfs.FS, cause error, fatal chan error) []*raft.Log {
	t.Helper()
	opts := Options{SegmentBytes: 16 << 10, CacheBytes: -1, OnFatal: func(err error) { fatal <- err }}
	w, err := Open(fs, testDir, opts)
	if err != nil {
		if !errors.Is(err, cause) {
			t.Errorf("open: %v", err)
		}
		return nil
	}
	defer w.Close()
	var acked []*raft.Log
	check := func(err error) bool {
		if err != nil && !errors.Is(err, cause) {
			t.Errorf("not the cause: %v", err)
		}
		return err == nil
	}
	for i := range uint64(12) {
		from := uint64(len(acked)) + 1
		if run := makeRun(from, from+1, 1, 3000); check(w.StoreLogs(run)) {
			acked = append(acked, run...)
		}
		if n := uint64(len(acked)); i%4 == 3 && n > 3 && check(w.DeleteRange(n-1, n)) {
			acked = acked[:n-2]
		}
		if i == 6 {
			check(w.DeleteRange(1, 4))
		}
	}
	return acked
}

// At each operation a fault is injected once. The log may refuse the call, or
// every call from there on; nothing acknowledged is lost, and nothing that was
// refused and then overtaken comes back.
func TestFaultAtEveryOperation(t *testing.T) {
	for _, kind := range []struct {
		name  string
		fault diskfault.Fault
		cause error
		least int // faults
	}{
		{"EIO", diskfault.Fault{Err: syscall.EIO}, syscall.EIO, 60},
		{"ENOSPC", diskfault.Fault{Err: syscall.ENOSPC}, syscall.ENOSPC, 60},
		{"short write, then ENOSPC", diskfault.Fault{Err: syscall.ENOSPC, Short: true}, syscall.ENOSPC, 20},
		{"short write without an error", diskfault.Fault{Short: true}, io.ErrShortWrite, 20},
	} {
		faults, poisoned := 0, 0
		for n := 1; ; n++ {
			mem := vfs.NewCrashableMem()
			inj := &failNth{n: n, fault: kind.fault}
			fatal := make(chan error, 8)
			acked := faultWorkload(t, diskfault.Wrap(mem, inj.hook), kind.cause, fatal)
			if !inj.hit {
				break
			}
			faults++
			poisoned += len(fatal)
			checkAfterFault(t, mem.CrashClone(vfs.CrashCloneCfg{}), acked)
			if t.Failed() {
				t.Fatalf("%s at operation %d: %s", kind.name, n, inj.failed)
			}
		}
		t.Logf("%s: %d faults injected, %d took the log out of service", kind.name, faults, poisoned)
		if faults < kind.least {
			t.Errorf("only %d faults", faults)
		}
	}
}

// checkAfterFault opens what is on disk. Entries that follow acked were refused,
// yet may be there, as after a crash.
func checkAfterFault(t *testing.T, fs *vfs.MemFS, acked []*raft.Log) {
	t.Helper()
	w, err := Open(fs, testDir, smallOptions)
	if err != nil {
		t.Errorf("open after the fault: %v", err)
		return
	}
	defer w.Close()
	got, err := contents(w, true)
	if err != nil {
		t.Error(err)
		return
	}
	if len(got) > 0 && got[0].Index > 1 && len(acked) > 4 {
		acked = acked[got[0].Index-1:]
	}
	if len(got) < len(acked) {
		t.Errorf("the log holds %s, want %s", extentOf(got), extentOf(acked))
		return
	}
	if d := difference(got[:len(acked)], acked); d != "" {
		t.Error(d)
	}
}

func TestPoisonedByTheFirstFsyncError(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData} {
		var mu sync.Mutex
		armed, syncs := false, 0
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if !armed || op.Kind != kind {
				return nil
			}
			syncs++
			return syscall.EIO
		}))
		fatal := make(chan error, 8)
		w, err := Open(fs, testDir, Options{SegmentBytes: 16 << 10, OnFatal: func(err error) { fatal <- err }})
		if err != nil {
			t.Fatal(err)
		}
		mustStore(t, w, makeEntry(1, 1, 10))
		waitPrepared(w)
		mu.Lock()
		armed = true
		mu.Unlock()
		first := w.StoreLogs(makeRun(2, 3, 1, 10))
		if !errors.Is(first, ErrPoisoned) || !errors.Is(first, syscall.EIO) || !strings.Contains(first.Error(), ".wal") {
			t.Fatalf("store: %v", first)
		}
		if got := <-fatal; got.Error() != first.Error() {
			t.Fatalf("OnFatal was told %v", got)
		}
		for name, err := range everyCall(w) {
			if name == "GetLog" || name == "FirstIndex" || name == "LastIndex" {
				if err != nil {
					t.Errorf("%s of what was acknowledged before: %v", name, err)
				}
				continue
			}
			if err == nil || err.Error() != first.Error() {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := w.Close(); err == nil || err.Error() != first.Error() {
			t.Errorf("close: %v", err)
		}
		if syncs != 1 {
			t.Errorf("%d operations after the first that failed", syncs-1)
		}
		if len(fatal) != 0 {
			t.Error("OnFatal was called more than once")
		}
	}
}

// waitPrepared waits until the next segment is ready, so that the recycler is
// idle.
func waitPrepared(w *WAL) {
	p := <-w.recycler.result
	w.recycler.result <- p
}

// A full disk refuses the call that needs another segment, and no more: once
// there is room the log goes on.
func TestDiskFullWhilePreparing(t *testing.T) {
	var mu sync.Mutex
	full := false
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if full && op.Kind == errorfs.OpFilePreallocate {
			return syscall.ENOSPC
		}
		return nil
	}))
	setFull := func(v bool) {
		mu.Lock()
		defer mu.Unlock()
		full = v
	}
	w := mustOpen(t, fs, Options{SegmentBytes: 16 << 10})
	waitPrepared(w)
	setFull(true)
	var acked []*raft.Log
	refused := 0
	for i := 0; refused < 3; i++ {
		e := makeEntry(uint64(len(acked)+1), 1, 5000)
		switch err := w.StoreLog(e); {
		case err == nil:
			acked = append(acked, e)
		case errors.Is(err, syscall.ENOSPC) && !errors.Is(err, ErrPoisoned):
			refused++
		default:
			t.Fatal(err)
		}
	}
	checkContents(t, w, acked)
	setFull(false)
	for len(acked) < 20 {
		e := makeEntry(uint64(len(acked)+1), 1, 5000)
		mustStore(t, w, e)
		acked = append(acked, e)
	}
	checkContents(t, w, acked)
}

// Until the header that ends them is on disk, the segments that a truncation
// leaves behind are part of the log: none is handed to the recycler before. And
// a watchdog sees that the fdatasync is under way.
func TestDeadSegmentsOutliveTheFdatasync(t *testing.T) {
	var atSync atomic.Pointer[func()]
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if f := atSync.Load(); f != nil && op.Kind == errorfs.OpFileSyncData {
			(*f)()
		}
		return nil
	}))
	w := mustOpen(t, fs, Options{SegmentBytes: 16 << 10})
	mustStore(t, w, makeRun(1, 30, 1, 3000)...)
	waitPrepared(w)
	if w.WritingFor() != 0 {
		t.Error("a write is under way before the call")
	}
	calls := 0
	check := func() {
		calls++
		w.recycler.mu.Lock()
		defer w.recycler.mu.Unlock()
		if len(w.recycler.dead) != 0 || len(w.dead) < 5 {
			t.Errorf("%d segments were handed over, %d kept", len(w.recycler.dead), len(w.dead))
		}
		if w.WritingFor() == 0 {
			t.Error("no write is under way in the fdatasync")
		}
		atSync.Store(nil)
	}
	atSync.Store(&check)
	mustDelete(t, w, 4, 30)
	if calls != 1 || w.WritingFor() != 0 {
		t.Errorf("%d fdatasyncs", calls)
	}
	checkContents(t, w, makeRun(1, 3, 1, 3000))
}
