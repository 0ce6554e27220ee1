package store

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/diskfault"
)

// script drives a shard through everything that writes files: the list of
// instruments, flushes by size and by hand, merges, snapshots, taking an
// instrument off the list and on again, closing and opening. note is called with
// each entry before it is applied. It stops at the first error.
func script(t testing.TB, fs vfs.FS, note func(entry)) error {
	o := smallOptions(t)
	o.OnFatal = nil
	o.MemtableBytesMax, o.FullDiskRetry = 4<<10, time.Millisecond
	a, b, gone := symbols[0], symbols[2], symbols[3]
	s, err := Open(fs, "shard", o)
	if err != nil {
		return err
	}
	index, seqs := uint64(0), map[record.Symbol]uint64{}
	apply := func(e entry) error {
		index++
		e.index = index
		note(e)
		return e.apply(t, s)
	}
	batch := func(sym record.Symbol, n int) error {
		e := entry{sym: sym, epoch: 1, first: seqs[sym] + 1, n: n}
		seqs[sym] += uint64(n)
		return apply(e)
	}
	fill := func(flushes int) error {
		for range flushes {
			if err := errors.Join(batch(a, 7), batch(b, 3), s.Flush()); err != nil {
				return err
			}
		}
		return nil
	}
	steps := []func() error{
		func() error { return apply(entry{own: []record.Symbol{a, gone}}) },
		func() error { return apply(entry{sym: gone, epoch: 9}) },
		func() error { return s.Flush() }, // the epoch alone becomes durable
		func() error { return apply(entry{own: []record.Symbol{a, b}}) },
		func() error { return errors.Join(apply(entry{sym: a, epoch: 1}), apply(entry{sym: b, epoch: 1})) },
		func() error { return apply(entry{own: []record.Symbol{a, b, gone}}) },
		func() error { return fill(mergeTables + 1) },
		func() error { return errors.Join(batch(a, 50), batch(b, 2)) }, // one over the bound, one not
		func() error {
			c := s.Snapshot()
			defer c.Release()
			if err := batch(a, 5); err != nil {
				return err
			}
			_, err := c.Persist("snap1")
			return err
		},
		func() error {
			if err := s.Close(); err != nil {
				return err
			}
			s, err = Open(fs, "shard", o)
			return err
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			if s != nil {
				err = errors.Join(err, s.Close())
			}
			return err
		}
	}
	return s.Close()
}

// cloned keeps the methods of MemFS that take its own lock twice from running
// while it is cloned: they would wait for each other for ever.
type cloned struct {
	*vfs.MemFS
	cloning *sync.RWMutex
}

// Link implements vfs.FS.
func (c cloned) Link(from, to string) error {
	c.cloning.RLock()
	defer c.cloning.RUnlock()
	return c.MemFS.Link(from, to)
}

// Lock implements vfs.FS.
func (c cloned) Lock(name string) (io.Closer, error) {
	c.cloning.RLock()
	defer c.cloning.RUnlock()
	return c.MemFS.Lock(name)
}

// crashPoints runs script and calls crashed with the state of the disk, as a
// power loss may leave it, before every operation that changes it.
func crashPoints(t *testing.T, rng *rand.Rand, crashed func(op string, fs *vfs.MemFS, log []entry)) {
	mem := vfs.NewCrashableMem()
	var cloning sync.RWMutex
	var mu sync.Mutex
	var log []entry
	n := 0
	fs := errorfs.Wrap(cloned{mem, &cloning}, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		n++
		for _, percent := range []int{0, 50, 100} {
			cloning.Lock()
			clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
			cloning.Unlock()
			crashed(fmt.Sprintf("operation %d, kind %d on %s, %d %% of what was not synced", n, op.Kind, op.Path, percent), clone, log)
		}
		return nil
	}))
	err := script(t, fs, func(e entry) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, e)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d operations", n)
}

// Whatever instant the power fails at: the directory opens, the log from its
// DurableIndex on makes it whole, and a snapshot that has its listing is one.
func TestCrashAtEveryOperation(t *testing.T) {
	seed := rand.Uint64()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	crashPoints(t, rand.New(rand.NewPCG(seed, 2)), func(op string, fs *vfs.MemFS, log []entry) {
		recovered(t, fs, "shard", op, log)
		if _, err := fs.Stat("snap1/" + ListingName); err != nil {
			return
		}
		l, err := VerifyDir(fs, "snap1")
		if err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		n := slices.IndexFunc(log, func(e entry) bool { return e.index > l.Index })
		if n < 0 {
			n = len(log)
		}
		s := mustOpen(t, fs, "snap1", smallOptions(t))
		modelOf(log[:n]).compare(t, s, op+", snapshot")
		mustClose(t, s)
	})
}

// recovered opens what a crash left, replays the log, compares with the model,
// and checks that a second start finds the same.
func recovered(t *testing.T, fs vfs.FS, dir, op string, log []entry) {
	t.Helper()
	s, err := Open(fs, dir, smallOptions(t))
	if err != nil {
		t.Fatalf("%s: %v", op, err)
	}
	replay(t, s, log)
	modelOf(log).compare(t, s, op)
	if err := s.Flush(); err != nil {
		t.Fatalf("%s: %v", op, err)
	}
	mustClose(t, s)
	if _, err := Verify(fs, dir, func(f Finding) { t.Errorf("%s: finding %+v", op, f) }); err != nil {
		t.Errorf("%s: %v", op, err)
	}
	s = mustOpen(t, fs, dir, smallOptions(t))
	modelOf(log).compare(t, s, op+", opened again")
	mustClose(t, s)
}

// The durable index may never be ahead of what a crash leaves: the log is
// truncated up to it.
func TestDurableIndexIsNotAheadOfTheDisk(t *testing.T) {
	mem := vfs.NewCrashableMem()
	var cloning sync.RWMutex
	var s *Shard
	o := smallOptions(t)
	o.MemtableBytesMax = 4 << 10
	check := func(errorfs.Op) error {
		if s == nil {
			return nil
		}
		promised := s.DurableIndex()
		cloning.Lock()
		clone := mem.CrashClone(vfs.CrashCloneCfg{})
		cloning.Unlock()
		after := mustOpen(t, clone, "shard", smallOptions(t))
		defer mustClose(t, after)
		if after.DurableIndex() < promised {
			t.Errorf("durable index %d after a crash, %d was promised", after.DurableIndex(), promised)
		}
		return nil
	}
	s = mustOpen(t, errorfs.Wrap(mem, errorfs.InjectorFunc(check)), "shard", o)
	if err := s.SetOwned(1, symbols[:1]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenStream(2, symbols[0], 1); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(20) {
		if _, err := s.Append(3+i, makeBatch(t, symbols[0], 1, 1+10*i, 10)); err != nil {
			t.Fatal(err)
		}
		if i%5 == 4 {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustClose(t, s)
}

// Every file operation fails once, with an I/O error or a full disk. The shard
// says so, once, and refuses further writes; a start from the disk as it is then
// and the log make it whole.
func TestErrorAtEveryOperation(t *testing.T) {
	for name, fault := range map[string]diskfault.Fault{
		"EIO":                          {Err: syscall.EIO},
		"ENOSPC":                       {Err: syscall.ENOSPC},
		"short write, then ENOSPC":     {Err: syscall.ENOSPC, Short: true},
		"short write without an error": {Short: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := 1; ; at++ {
				if !errorAt(t, at, fault) {
					t.Logf("%d operations", at-1)
					return
				}
			}
		})
	}
}

// errorAt runs the script with the at-th operation failing, or the at-th write for a
// short one, and reports whether there were so many.
func errorAt(t *testing.T, at int, fault diskfault.Fault) bool {
	t.Helper()
	mem := vfs.NewCrashableMem()
	var cloning sync.RWMutex
	var mu sync.Mutex
	var log []entry
	n, where := 0, ""
	injected := fault.Err
	if injected == nil {
		injected = io.ErrShortWrite
	}
	fs := diskfault.Wrap(cloned{mem, &cloning}, func(op diskfault.Op) diskfault.Fault {
		mu.Lock()
		defer mu.Unlock()
		if fault.Short && op.Kind != diskfault.Write {
			return diskfault.Fault{}
		}
		if n++; n == at {
			where = fmt.Sprintf("operation %d, %s", at, op)
			return fault
		}
		return diskfault.Fault{}
	})
	err := script(t, fs, func(e entry) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, e)
	})
	if where == "" {
		if err != nil {
			t.Fatalf("nothing failed, yet: %v", err)
		}
		return false
	}
	if err != nil && !errors.Is(err, injected) && !errors.Is(err, ErrPoisoned) {
		t.Fatalf("%s: the error does not say what failed: %v", where, err)
	}
	cloning.Lock()
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	cloning.Unlock()
	if _, err := clone.Stat("shard"); oserror.IsNotExist(err) {
		return true // it failed before there was anything
	}
	recovered(t, clone, "shard", where, log)
	return true
}

// A failed flush ends all writing, is told once, and leaves the readers alone.
func TestPoison(t *testing.T) {
	toggle := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync && strings.HasSuffix(op.Path, tempSuffix) {
			return syscall.EIO
		}
		return nil
	})}
	fatal := make(chan error, 10)
	o := smallOptions(t)
	o.OnFatal = func(err error) { fatal <- err }
	s := mustOpen(t, errorfs.Wrap(vfs.NewMem(), toggle), "shard", o)
	sym := symbols[0]
	if err := s.SetOwned(1, []record.Symbol{sym}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenStream(2, sym, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(3, makeBatch(t, sym, 1, 1, 10)); err != nil {
		t.Fatal(err)
	}
	toggle.On()
	if err := s.Flush(); !errors.Is(err, ErrPoisoned) || !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), sym.String()) {
		t.Errorf("flush: %v", err)
	}
	toggle.Off()
	for name, err := range map[string]error{
		"flush": s.Flush(), "own": s.SetOwned(4, symbols),
		"open":   func() error { _, err := s.OpenStream(5, sym, 2); return err }(),
		"append": func() error { _, err := s.Append(6, makeBatch(t, sym, 1, 11, 1)); return err }(),
		"snapshot": func() error {
			c := s.Snapshot()
			defer c.Release()
			_, err := c.Persist("snap")
			return err
		}(),
	} {
		if !errors.Is(err, ErrPoisoned) {
			t.Errorf("%s after the failure: %v", name, err)
		}
	}
	if got := scan(t, s, sym, ScanOptions{}); len(got) != 10 {
		t.Errorf("%d records can be read, want 10", len(got))
	}
	mustClose(t, s)
	if err := <-fatal; !errors.Is(err, syscall.EIO) {
		t.Errorf("OnFatal was told %v", err)
	}
	if len(fatal) != 0 {
		t.Error("OnFatal was called again")
	}
}
