package replica

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/countinghouse/countinghouse/storagenode/stablestore"

	"github.com/countinghouse/countinghouse/record"
)

// machine is a file system that can lose power, with a stable store beside it
// whose writes are atomic and on disk when they return, as bbolt's are.
type machine struct {
	*vfs.MemFS
	// clone keeps the methods below, which take MemFS's own lock twice, from running
	// while MemFS is cloned: they would wait for each other for ever.
	clone sync.RWMutex

	mu     sync.Mutex
	stable map[string][]byte
}

func newMachine() *machine {
	return &machine{MemFS: vfs.NewCrashableMem(), stable: map[string][]byte{}}
}

// Link implements vfs.FS.
func (m *machine) Link(from, to string) error {
	m.clone.RLock()
	defer m.clone.RUnlock()
	return m.MemFS.Link(from, to)
}

// ReuseForWrite implements vfs.FS.
func (m *machine) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	m.clone.RLock()
	defer m.clone.RUnlock()
	return m.MemFS.ReuseForWrite(from, to, c)
}

// Lock implements vfs.FS.
func (m *machine) Lock(name string) (io.Closer, error) {
	m.clone.RLock()
	defer m.clone.RUnlock()
	return m.MemFS.Lock(name)
}

// crash returns what a power failure at this instant leaves.
func (m *machine) crash(keepPercent int, rng *rand.Rand) *machine {
	m.clone.Lock()
	defer m.clone.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	return &machine{
		MemFS:  m.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keepPercent, RNG: rng}),
		stable: maps.Clone(m.stable),
	}
}

// openStable is the Config.OpenStable of a machine.
func (m *machine) openStable(vfs.FS, string) (StableStore, error) {
	return stablestore.New(stableOf{m}), nil
}

// stableOf implements raft.StableStore.
type stableOf struct{ m *machine }

func (s stableOf) Set(key, value []byte) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.stable[string(key)] = append([]byte(nil), value...)
	return nil
}

func (s stableOf) Get(key []byte) ([]byte, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if v, ok := s.m.stable[string(key)]; ok {
		return v, nil
	}
	return nil, raftboltdb.ErrKeyNotFound
}

func (s stableOf) SetUint64([]byte, uint64) error { panic("package stablestore stores one value only") }

func (s stableOf) GetUint64([]byte) (uint64, error) { return 0, raftboltdb.ErrKeyNotFound }

// powerFailures takes, at every operation that changes the file system, what a
// power failure just then would leave, and what was acknowledged before.
type powerFailures struct {
	m   *machine
	rng *rand.Rand

	mu     sync.Mutex
	acked  uint64 // seq of the last acknowledged record
	points []powerFailure
}

type powerFailure struct {
	m     *machine
	acked uint64
	what  string
}

// keepPercents take turns: what is kept of unsynced blocks and names.
var keepPercents = []int{0, 50, 0, 100, 25, 75}

func newPowerFailures(seed uint64) *powerFailures {
	return &powerFailures{m: newMachine(), rng: rand.New(rand.NewPCG(seed, 17))}
}

// String and MaybeError make it an errorfs.Injector, which is asked before every
// operation.
func (p *powerFailures) String() string { return "power failures" }

func (p *powerFailures) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	keep := keepPercents[len(p.points)%len(keepPercents)]
	what := fmt.Sprintf("%d: before an operation of kind %d on %s, %d %% of what is unsynced kept", len(p.points), op.Kind, op.Path, keep)
	p.points = append(p.points, powerFailure{p.m.crash(keep, p.rng), p.acked, what})
	return nil
}

func (p *powerFailures) ack(seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acked = seq
}

// configure puts the replica on the machine, with limits that let a short
// workload use everything.
func (m *machine) configure(c *Config, fs vfs.FS) {
	c.FS, c.OpenStable, c.DataDir = fs, m.openStable, "data"
	c.HeartbeatTimeout, c.LeaderLease = 40*time.Millisecond, 40*time.Millisecond
	c.WAL.SegmentBytes = 32 << 10
	c.Store.MemtableBytesMax = 8 << 10
}

// A shard of one member appends, flushes, takes snapshots and drops the log
// behind them. Whatever instant the power fails at, everything acknowledged is there
// after the next start, the directory is whole, and the member goes on.
func TestPowerFailureAtEveryOperation(t *testing.T) {
	p := newPowerFailures(1)
	r, cfg, _ := single(t, func(c *Config) { p.m.configure(c, errorfs.Wrap(p.m, p)) })
	awaitOwner(t, r)
	for epoch := range uint64(3) {
		for i := range uint64(4) {
			p.ack(fill(t, r, epoch<<8+i+1, 3))
		}
		if _, err := r.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p.ack(fill(t, r, 1<<16, 2))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	p.check(t, func(t *testing.T, f powerFailure) {
		cfg := cfg
		f.m.configure(&cfg, f.m)
		again, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		awaitOwner(t, again)
		if got := lastSeq(t, again); got < f.acked {
			t.Fatalf("last seq %d, %d was acknowledged", got, f.acked)
		}
		before := lastSeq(t, again)
		if got := fill(t, again, 1<<20, 1); got != before+10 {
			t.Fatalf("after seq %d comes %d", before, got)
		}
		f.verify(t, again)
	})
}

// A follower takes entries of a leader that is deposed, a snapshot over them,
// and entries after it. Whatever instant the power fails at, it has what it
// acknowledged, or the snapshot that replaced it.
func TestPowerFailureWhileASnapshotIsInstalled(t *testing.T) {
	donor, _, _ := single(t, nil)
	awaitOwner(t, donor)
	fill(t, donor, 1, 10)
	if _, err := donor.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := newPowerFailures(2)
	member := func(c *Config, m *machine, fs vfs.FS) {
		m.configure(c, fs)
		c.Peers = []Peer{{"m0", c.Address}, {"m1", "127.0.0.1:1"}, {"m2", "127.0.0.1:2"}}
		c.HeartbeatTimeout, c.LeaderLease = time.Minute, time.Minute // it stays a follower
		c.TrailingEntries = 1000
	}
	follower, cfg, _ := single(t, func(c *Config) { member(c, p.m, errorfs.Wrap(p.m, p)) })
	leader := newFakeLeader(t, follower, 9)
	if resp := leader.appendNoops(1, 1, 2, 20, 1, 0); !resp.Success {
		t.Fatalf("entries: %+v", resp)
	}
	_, source := sourceOf(t, donor, -1, nil)
	for part := range int64(3) {
		if _, err := leader.install(donor, int64(len(source.data))*(part+1)/4, nil); err == nil {
			t.Fatal("a part of a snapshot was taken")
		}
	}
	for range 2 { // the second time its answer was lost
		meta, err := leader.install(donor, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.ack(100)
		k := meta.Raft.Index
		if resp := leader.appendNoops(k, meta.Raft.Term, k+1, k+5, leader.term, k); !resp.Success {
			t.Fatalf("entries after the snapshot: %+v", resp)
		}
	}
	if err := follower.Close(); err != nil {
		t.Fatal(err)
	}
	p.check(t, func(t *testing.T, f powerFailure) {
		cfg := cfg
		member(&cfg, f.m, f.m)
		again, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if got := lastSeq(t, again); got != 0 && got != 100 || got < f.acked {
			t.Fatalf("last seq %d, %d was acknowledged", got, f.acked)
		}
		stageAgain(t, again, donor)
		f.verify(t, again)
	})
}

// stageAgain makes sure that what an interrupted transfer has left is of use, or
// found out and dropped.
func stageAgain(t *testing.T, r, donor *Replica) {
	t.Helper()
	for try := 1; ; try++ {
		_, source := sourceOf(t, donor, -1, nil)
		_, release, err := stageAll(r, source)
		if err == nil {
			release()
			return
		}
		if !errors.Is(err, record.ErrCorrupt) || try == 3 {
			t.Fatalf("attempt %d: %v", try, err)
		}
	}
}

// verify closes the member and looks at everything that it leaves.
func (f powerFailure) verify(t *testing.T, r *Replica) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := VerifyDataDir(f.m, "data", func(found Finding) {
		if !found.Harmless {
			t.Errorf("%s at %d: %s", found.File, found.Offset, found.What)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// check opens what every power failure left.
func (p *powerFailures) check(t *testing.T, open func(*testing.T, powerFailure)) {
	t.Helper()
	if len(p.points) < 100 {
		t.Fatalf("%d power failures only", len(p.points))
	}
	t.Run("points", func(t *testing.T) {
		for i := range p.points {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				defer func() {
					if t.Failed() {
						t.Log(p.points[i].what)
					}
					p.points[i].m = nil
				}()
				open(t, p.points[i])
			})
		}
	})
	t.Logf("%d power failures", len(p.points))
}
