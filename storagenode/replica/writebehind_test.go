package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"
)

// slowLog holds the next sync of the log up when it is told to, or has no room for
// another segment.
type slowLog struct {
	vfs.FS
	gate    atomic.Pointer[chan struct{}]
	entered chan struct{} // receives when a sync waits at the gate
	full    atomic.Bool
}

func newSlowLog(under vfs.FS) *slowLog {
	l := &slowLog{entered: make(chan struct{}, 1)}
	l.FS = errorfs.Wrap(under, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if filepath.Base(filepath.Dir(op.Path)) != walDir {
			return nil
		}
		switch {
		case op.Kind == errorfs.OpFileSyncData:
			if g := l.gate.Swap(nil); g != nil {
				l.entered <- struct{}{}
				<-*g
			}
		case op.Kind == errorfs.OpCreate && l.full.Load():
			return fmt.Errorf("create: %w", unix.ENOSPC)
		}
		return nil
	}))
	return l
}

// hold makes the next sync of the log wait until the returned function is called.
func (l *slowLog) hold(t *testing.T) (release func()) {
	gate := make(chan struct{})
	var once atomic.Bool
	release = func() {
		if !once.Swap(true) {
			close(gate)
		}
	}
	t.Cleanup(release)
	l.gate.Store(&gate)
	return release
}

// While a leader's disk writes an entry the followers have it already, and one of
// them suffices for the library to take it for committed. Nobody may see that: no
// answer, no reader, no follower.
func TestALeaderSendsAnEntryWhileItsDiskWritesIt(t *testing.T) {
	disk := newSlowLog(vfs.Default)
	others := []*yesMan{new(yesMan), new(yesMan)}
	r := leaderOf(t, func(c *Config) { c.FS = disk }, others...)
	seq := fill(t, r, 1, 2)
	last := r.raft().LastIndex()
	for _, y := range others {
		await(t, "the others know of all commits", func() bool { return y.seen().commit == last })
	}

	release := disk.hold(t)
	answered := make(chan error, 1)
	go func() {
		_, err := r.ProposeBatch(context.Background(), testBatch(t, 1, seq+1, 1)).Wait()
		answered <- err
	}()
	<-disk.entered
	for _, y := range others {
		await(t, "the others have the entry", func() bool { return y.seen().last > last })
	}
	await(t, "the library takes it for committed", func() bool { return r.raft().CommitIndex() > last })
	for _, y := range others {
		appends := y.seen().appends
		await(t, "more requests", func() bool { return y.seen().appends > appends+2 })
		if got := y.seen().commit; got > last {
			t.Errorf("a follower was told of the commit of %d before it was on the leader's disk", got)
		}
	}
	if got := lastSeq(t, r); got != seq {
		t.Errorf("a reader sees seq %d before it was on the leader's disk, want %d", got, seq)
	}
	if applied, _ := r.fsm.appliedIndex(); applied > last {
		t.Errorf("entry %d was applied before it was on the leader's disk", applied)
	}
	select {
	case err := <-answered:
		t.Fatalf("the batch was answered with %v before it was on the leader's disk", err)
	default:
	}
	release()
	if err := <-answered; err != nil {
		t.Error(err)
	}
	for _, y := range others {
		await(t, "the others are told of the commit", func() bool { return y.seen().commit > last })
	}
}

// sendCommand sends one entry and reports the answer on a channel.
func (f *fakeLeader) sendCommand(prev, prevTerm, index uint64, data []byte) <-chan error {
	result := make(chan error, 1)
	request := &raft.AppendEntriesRequest{
		RPCHeader: f.header(), Term: f.term, PrevLogEntry: prev, PrevLogTerm: prevTerm,
		Entries: []*raft.Log{{Index: index, Term: f.term, Type: raft.LogCommand, Data: data, Extensions: batchExtensions}},
	}
	pipe, err := f.tr.AppendEntriesPipeline("m0", f.target.transport.LocalAddr())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { pipe.Close() })
	future, err := pipe.AppendEntries(request, new(raft.AppendEntriesResponse))
	if err != nil {
		f.t.Fatal(err)
	}
	go func() {
		err := future.Error()
		if err == nil && !future.Response().Success {
			err = errors.New("rejected")
		}
		result <- err
	}()
	return result
}

// A follower hands the next request to Raft while its disk writes the one before,
// and answers each only when it is on the disk.
func TestAFollowerAcknowledgesWhatItsDiskHas(t *testing.T) {
	disk := newSlowLog(vfs.Default)
	r, _, _ := single(t, func(c *Config) {
		c.FS, c.Peers = disk, []Peer{{ID: "m0", Address: c.Address}, {ID: "m1", Address: "127.0.0.1:1"}, {ID: "m2", Address: "127.0.0.1:2"}}
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLease = time.Minute, time.Minute, time.Minute
	})
	leader := newFakeLeader(t, r, 5)
	leader.appendNoops(1, 1, 2, 2, 5, 0)
	release := disk.hold(t)
	first := leader.sendCommand(2, 5, 3, []byte("a"))
	<-disk.entered
	second := leader.sendCommand(3, 5, 4, []byte("b"))
	await(t, "Raft has the second entry", func() bool { return r.raft().LastIndex() == 4 })
	for _, answer := range []<-chan error{first, second} {
		select {
		case err := <-answer:
			t.Fatalf("answered with %v while the disk writes", err)
		default:
		}
	}
	release()
	for i, answer := range []<-chan error{first, second} {
		if err := <-answer; err != nil {
			t.Errorf("entry %d: %v", i+3, err)
		}
	}
}

// Entries that do not fit on the disk are not acknowledged, and when there is room
// the member takes them again, without a restart of the process.
func TestEntriesThatDoNotFitAreNotAcknowledged(t *testing.T) {
	disk := newSlowLog(vfs.Default)
	r, _, fatal := single(t, func(c *Config) {
		c.FS, c.Peers = disk, []Peer{{ID: "m0", Address: c.Address}, {ID: "m1", Address: "127.0.0.1:1"}, {ID: "m2", Address: "127.0.0.1:2"}}
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLease = time.Minute, time.Minute, time.Minute
		c.WAL.SegmentBytes, c.WAL.RecycleFiles = 16<<10, 1
	})
	leader := newFakeLeader(t, r, 5)
	leader.appendNoops(1, 1, 2, 2, 5, 0)
	disk.full.Store(true)
	data := make([]byte, 10_000) // one fits into a segment
	index, acknowledged := uint64(3), uint64(2)
	for ; ; index++ {
		if err := <-leader.sendCommand(index-1, 5, index, data); err != nil {
			break
		}
		if acknowledged = index; index > 10 {
			t.Fatal("the disk is not full")
		}
	}
	await(t, "Raft starts again", func() bool { return testutil.ToFloat64(r.metrics.raftRestarts) > 0 })
	disk.full.Store(false)
	await(t, "the entry is taken", func() bool {
		return <-leader.sendCommand(index-1, 5, index, data) == nil
	})
	if last, err := r.logs.guardedLog.LastIndex(); last != index || index != acknowledged+1 || err != nil {
		t.Errorf("the log ends at %d, %d was acknowledged last: %v", last, acknowledged, err)
	}
	select {
	case err := <-fatal:
		t.Error(err)
	default:
	}
}

// behind returns a writeBehind over a log in memory whose writes go through store.
func behind(t *testing.T, store func(*raft.InmemStore, []*raft.Log) error) (*writeBehind, *raft.InmemStore, chan error) {
	t.Helper()
	under, fatal := guarded(t, time.Minute, store)
	failed := make(chan error, 16)
	w := newWriteBehind(under, newMetrics(), func(err error) { failed <- err })
	t.Cleanup(func() {
		w.Close()
		select {
		case err := <-fatal:
			t.Error(err)
		default:
		}
	})
	return w, under.LogStore.(*faultyLog).InmemStore, failed
}

func command(index uint64, data string) *raft.Log {
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: []byte(data)}
}

// An acknowledgement may be looked at only after the log was forgiven its loss: it
// must not count then either.
func TestALossIsRememberedByThoseItConcerns(t *testing.T) {
	full := atomic.Bool{}
	w, _, failed := behind(t, func(s *raft.InmemStore, logs []*raft.Log) error {
		if !full.Load() {
			return s.StoreLogs(logs)
		}
		if err := s.StoreLogs(logs[:1]); err != nil {
			return err
		}
		return unix.ENOSPC
	})
	if err := w.StoreLogs([]*raft.Log{command(1, "a")}); err != nil {
		t.Fatal(err)
	}
	if err := w.awaitDurable(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	before := appendAnswer{index: 3, losses: w.losses()}
	if err := w.StoreLogs([]*raft.Log{command(2, "b"), command(3, "c")}); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, unix.ENOSPC) {
		t.Errorf("failed with %v", err)
	}
	if err := w.awaitDurable(t.Context(), 2); err != nil {
		t.Errorf("the entry that was stored in part of the group: %v", err)
	}
	if err := w.awaitDurable(t.Context(), 3); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the entry that was lost: %v", err)
	}
	if got := w.durable(); got != 2 {
		t.Errorf("durable up to %d, want 2", got)
	}
	if err := w.StoreLogs([]*raft.Log{command(4, "d")}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("an entry behind the gap: %v", err)
	}
	full.Store(false)
	w.forgetLoss()
	if err := before.await(t.Context(), w); err == nil {
		t.Error("the lost entry was acknowledged after all")
	}
	if last, err := w.LastIndex(); last != 2 || err != nil {
		t.Errorf("the log ends at %d, %v", last, err)
	}
	if err := w.StoreLogs([]*raft.Log{command(3, "C")}); err != nil {
		t.Error(err)
	}
	again := appendAnswer{index: 3, losses: w.losses()}
	if err := again.await(t.Context(), w); err != nil {
		t.Error(err)
	}
}

// A membership, a term's first entry and a barrier are on disk when StoreLogs returns,
// with all before them.
func TestOnlyCommandsAreWrittenBehind(t *testing.T) {
	for _, kind := range []raft.LogType{raft.LogNoop, raft.LogBarrier, raft.LogConfiguration} {
		w, under, _ := behind(t, func(s *raft.InmemStore, logs []*raft.Log) error { return s.StoreLogs(logs) })
		if err := w.StoreLogs([]*raft.Log{command(1, "a")}); err != nil {
			t.Fatal(err)
		}
		if err := w.StoreLogs([]*raft.Log{command(2, "b"), {Index: 3, Term: 1, Type: kind}}); err != nil {
			t.Fatal(err)
		}
		if last, _ := under.LastIndex(); last != 3 {
			t.Errorf("%s: the log below ends at %d", kind, last)
		}
	}
}

// What Raft has handed over must be read from there at once, as if it were stored.
func TestEntriesAreReadWhileTheyAreWritten(t *testing.T) {
	gate := make(chan struct{})
	w, _, _ := behind(t, func(s *raft.InmemStore, logs []*raft.Log) error { <-gate; return s.StoreLogs(logs) })
	entry := command(1, "a")
	if err := w.StoreLogs([]*raft.Log{entry}); err != nil {
		t.Fatal(err)
	}
	entry.Index = 99 // the library uses the struct elsewhere
	var got raft.Log
	if err := w.GetLog(1, &got); err != nil || !bytes.Equal(got.Data, []byte("a")) || got.Index != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if first, _ := w.FirstIndex(); first != 1 {
		t.Errorf("first index %d", first)
	}
	if last, _ := w.LastIndex(); last != 1 {
		t.Errorf("last index %d", last)
	}
	if got := w.durable(); got != 0 {
		t.Errorf("durable up to %d", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.awaitDurable(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(gate)
	if err := w.awaitDurable(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

// What waits is bounded: StoreLogs waits itself beyond that.
func TestWhatWaitsToBeWrittenIsBounded(t *testing.T) {
	gate := make(chan struct{})
	w, _, _ := behind(t, func(s *raft.InmemStore, logs []*raft.Log) error { <-gate; return s.StoreLogs(logs) })
	w.bytesMax = 10_000
	stored := make(chan uint64, 100)
	go func() {
		defer close(stored)
		for i := uint64(1); i <= 20; i++ {
			if err := w.StoreLogs([]*raft.Log{command(i, string(make([]byte, 2000)))}); err != nil {
				t.Error(err)
			}
			stored <- i
		}
	}()
	var taken uint64
	for w.bytesWaiting() <= w.bytesMax {
		taken = <-stored
	}
	if taken > 5 {
		t.Errorf("%d entries of 2000 bytes were taken, with a bound of 10000", taken)
	}
	close(gate)
	for taken = range stored {
	}
	if taken != 20 {
		t.Errorf("the last entry taken is %d", taken)
	}
}

func (w *writeBehind) bytesWaiting() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

// Random operations leave the same log as they leave without writeBehind, also when
// writes fail now and then: what was awaited is there, and nothing is there twice or
// out of order.
func TestWriteBehindAgainstALogWithout(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	failures := rand.New(rand.NewPCG(seed, 2)) // used by the writing goroutine alone
	w, under, _ := behind(t, func(s *raft.InmemStore, logs []*raft.Log) error {
		if failures.IntN(40) > 0 {
			return s.StoreLogs(logs)
		}
		if err := s.StoreLogs(logs[:failures.IntN(len(logs))]); err != nil {
			return err
		}
		return unix.ENOSPC
	})
	w.failed = func(error) {}
	model := raft.NewInmemStore()
	lost := 0
	awaited := uint64(0)
	for range 3000 {
		last, _ := model.LastIndex()
		switch rnd.IntN(10) {
		case 0: // a conflict: the end is replaced
			if last > awaited+1 {
				from := awaited + 1 + rnd.Uint64N(last-awaited)
				if w.DeleteRange(from, last) == nil {
					if err := model.DeleteRange(from, last); err != nil {
						t.Fatal(err)
					}
				}
			}
		case 1:
			if w.awaitDurable(t.Context(), last) == nil {
				awaited = last
			}
		default:
			var logs []*raft.Log
			for i := range uint64(1 + rnd.IntN(5)) {
				logs = append(logs, command(last+1+i, fmt.Sprint(rnd.Uint64())))
			}
			if rnd.IntN(20) == 0 {
				logs[len(logs)-1].Type = raft.LogNoop
			}
			if w.StoreLogs(logs) == nil {
				if err := model.StoreLogs(logs); err != nil {
					t.Fatal(err)
				}
			}
		}
		if w.losses() > uint64(lost) { // Raft starts again from what is there
			lost++
			w.forgetLoss()
			end, _ := under.LastIndex()
			if end < awaited {
				t.Fatalf("entry %d was awaited, the log ends at %d", awaited, end)
			}
			if last, _ := model.LastIndex(); last > end {
				if err := model.DeleteRange(end+1, last); err != nil {
					t.Fatal(err)
				}
			}
			// A part of a group whose StoreLogs failed may have been stored.
			if last, _ := model.LastIndex(); end > last {
				if err := under.DeleteRange(last+1, end); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	w.forgetLoss()
	want, _ := model.LastIndex()
	if got, _ := under.LastIndex(); got > want {
		t.Fatalf("the log ends at %d, without writeBehind at %d", got, want)
	}
	end, _ := under.LastIndex()
	for i := uint64(1); i <= end; i++ {
		var got, wanted raft.Log
		if err := errors.Join(w.GetLog(i, &got), model.GetLog(i, &wanted)); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if !bytes.Equal(got.Data, wanted.Data) || got.Index != i || got.Type != wanted.Type {
			t.Fatalf("entry %d differs", i)
		}
	}
	t.Logf("%d entries, %d losses", end, lost)
	if lost == 0 {
		t.Error("no write failed")
	}
}
