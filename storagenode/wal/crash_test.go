package wal

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"
)

// crashRecorder takes, at every operation that changes the file system, copies
// of what a power loss at that moment could leave, together with what the log
// had acknowledged by then.
type crashRecorder struct {
	fs       *vfs.MemFS
	percents []int // of unsynced blocks and names that survive
	rng      *rand.Rand

	mu     sync.Mutex
	acked  []*raft.Log
	states [][]*raft.Log // that the operation under way may lead to, acked included
	points []crashPoint
	ops    int
}

type crashPoint struct {
	fs     *vfs.MemFS
	states [][]*raft.Log
	what   string
}

func newCrashRecorder(seed uint64, percents ...int) *crashRecorder {
	return &crashRecorder{
		fs: vfs.NewCrashableMem(), percents: percents, rng: rand.New(rand.NewPCG(seed, 3)),
		states: [][]*raft.Log{nil},
	}
}

// String and MaybeError make the recorder an errorfs.Injector, which is asked
// before every operation.
func (c *crashRecorder) String() string { return "crash recorder" }

func (c *crashRecorder) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
		c.take(fmt.Sprintf("before an operation of kind %d on %s at %d", op.Kind, op.Path, op.Offset))
	}
	return nil
}

func (c *crashRecorder) take(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops++
	what = fmt.Sprintf("%d, %s", c.ops, what)
	for _, p := range c.percents {
		clone := c.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: p, RNG: c.rng})
		c.points = append(c.points, crashPoint{clone, c.states, fmt.Sprintf("%s, %d %% unsynced", what, p)})
	}
}

// run makes a call that leads from what is acknowledged to one of states. It
// is acknowledged to have led to the last of them.
func (c *crashRecorder) run(t *testing.T, call func() error, states ...[]*raft.Log) {
	t.Helper()
	c.mu.Lock()
	c.states = append([][]*raft.Log{c.acked}, states...)
	c.mu.Unlock()
	if err := call(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.acked = states[len(states)-1]
	c.states = [][]*raft.Log{c.acked}
	c.mu.Unlock()
	c.take("after an acknowledged call")
}

func (c *crashRecorder) store(t *testing.T, w *WAL, run ...*raft.Log) {
	t.Helper()
	var states [][]*raft.Log
	for i := range run { // a group may be kept in part, from its start
		states = append(states, append(append([]*raft.Log(nil), c.acked...), run[:i+1]...))
	}
	c.run(t, func() error { return w.StoreLogs(run) }, states...)
}

func (c *crashRecorder) delete(t *testing.T, w *WAL, lowest, highest uint64) {
	t.Helper()
	var left []*raft.Log
	for _, l := range c.acked {
		if l.Index < lowest || l.Index > highest {
			left = append(left, l)
		}
	}
	c.run(t, func() error { return w.DeleteRange(lowest, highest) }, left)
}

// crashWorkload appends, truncates at both ends, recycles segments, and opens
// the log again.
func crashWorkload(t *testing.T, c *crashRecorder, opts Options) {
	fs := errorfs.Wrap(c.fs, c)
	w := mustOpen(t, fs, opts)
	next := func() uint64 {
		if len(c.acked) == 0 {
			return 1
		}
		return c.acked[len(c.acked)-1].Index + 1
	}
	store := func(n, term uint64, size int) {
		from := next()
		c.store(t, w, makeRun(from, from+n-1, term, size)...)
	}
	store(1, 1, 100)
	store(3, 1, 6000)                  // several blocks
	store(4, 1, 3000)                  // rolls
	store(12, 1, 5000)                 // more than a segment
	c.delete(t, w, next()-2, next()-1) // conflict inside a segment
	store(3, 2, 6000)                  // over the same indexes
	c.delete(t, w, next()-9, next()-1) // conflict over segments
	store(2, 3, 100)
	c.delete(t, w, 1, 9) // snapshot
	store(10, 3, 3000)
	c.delete(t, w, 1, next()-3) // drops segments
	store(6, 3, 4500)           // on recycled ones
	c.delete(t, w, next()-1, next()-1)
	c.delete(t, w, next()-1, next()-1)
	store(1, 4, 9000)
	c.delete(t, w, 1, next()-1) // all: a snapshot was installed
	c.acked = nil
	c.store(t, w, makeRun(500, 502, 5, 5000)...) // goes on behind it
	mustClose(t, w)
	c.take("after close")
	w = mustOpen(t, fs, opts)
	store(5, 5, 3500)
	c.delete(t, w, 500, 503)
	mustClose(t, w)
	c.take("after close")
}

func TestCrashAtEveryOperation(t *testing.T) {
	const seeds = 2
	points, torn := 0, 0
	for seed := range uint64(seeds) {
		c := newCrashRecorder(seed, 0, 40, 75, 100)
		crashWorkload(t, c, Options{SegmentBytes: 32 << 10})
		points += len(c.points)
		for _, p := range c.points {
			if p.check(t) {
				torn++
			}
			if t.Failed() {
				t.Fatalf("seed %d, crash %s", seed, p.what)
			}
		}
	}
	if torn == 0 {
		t.Error("no crash left a torn write: the test does not test them")
	}
	t.Logf("%d crash points were opened again, %d of them with a torn write", points, torn)
}

// check opens what a crash left, goes on in it, crashes again with everything
// unsynced lost, and opens that. It reports whether there was a torn write.
func (p crashPoint) check(t *testing.T) bool {
	t.Helper()
	opts := Options{SegmentBytes: 32 << 10, CacheBytes: -1}
	if _, err := Verify(p.fs, testDir, func(f Finding) {
		if !f.Torn {
			t.Errorf("verify after the crash: %+v", f)
		}
	}); err != nil && len(p.states) > 1 {
		t.Errorf("verify after the crash: %v", err)
	}
	w, err := Open(p.fs, testDir, opts)
	if err != nil {
		t.Errorf("open after the crash: %v", err)
		return false
	}
	torn := w.Recovery().TornFile != ""
	got, err := contents(w, false)
	if err != nil {
		t.Error(err)
	}
	if !isOneOf(got, p.states) {
		t.Errorf("the log holds %s, %s", extentOf(got), differences(got, p.states))
		return torn
	}
	from := uint64(900)
	if len(got) > 0 {
		from = got[len(got)-1].Index + 1
	}
	more := makeRun(from, from+5, 9, 2500)
	for i := range more {
		if err := w.StoreLogs(more[i : i+1]); err != nil {
			t.Error(err)
		}
	}
	checkSecondCrash(t, p.fs.CrashClone(vfs.CrashCloneCfg{}), opts, append(got, more...))
	w.Close()
	return torn
}

func checkSecondCrash(t *testing.T, fs *vfs.MemFS, opts Options, want []*raft.Log) {
	t.Helper()
	w, err := Open(fs, testDir, opts)
	if err != nil {
		t.Errorf("open after the second crash: %v", err)
		return
	}
	defer w.Close()
	got, err := contents(w, false)
	if d := difference(got, want); err != nil || d != "" {
		t.Errorf("after the second crash the log holds %s, %v", d, err)
	}
}

func isOneOf(got []*raft.Log, states [][]*raft.Log) bool {
	for _, s := range states {
		if difference(got, s) == "" {
			return true
		}
	}
	return false
}

func differences(got []*raft.Log, states [][]*raft.Log) (out []string) {
	for _, s := range states {
		out = append(out, difference(got, s))
	}
	return out
}

// A process that is killed leaves the page cache: what it wrote and did not
// sync is read by the next one, which must not count it as durable unsynced.
func TestKilledBeforeSync(t *testing.T) {
	mem := vfs.NewCrashableMem()
	var armed atomic.Bool
	w, err := Open(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if armed.Load() && op.Kind == errorfs.OpFileSyncData {
			return errorfs.ErrInjected
		}
		return nil
	})), testDir, smallOptions)
	if err != nil {
		t.Fatal(err)
	}
	run := makeRun(1, 9, 1, 900)
	mustStore(t, w, run[:3]...)
	waitPrepared(w)
	armed.Store(true)
	if err := w.StoreLogs(run[3:]); err == nil {
		t.Fatal("stored without a sync")
	}
	w.Close()
	w = mustOpen(t, mem, smallOptions)
	checkContents(t, w, run)
	powerLoss := mem.CrashClone(vfs.CrashCloneCfg{})
	checkContents(t, mustOpen(t, powerLoss, smallOptions), run)
}
