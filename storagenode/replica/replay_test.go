package replica

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/wal"
)

// The only voter of a shard leads without waiting for a leader that can not be.
func TestTheOnlyVoterLeadsAtOnce(t *testing.T) {
	r, cfg, _ := single(t, func(c *Config) { c.HeartbeatTimeout, c.LeaderLease = time.Hour, time.Minute })
	awaitOwner(t, r)
	last := fill(t, r, 1, 3)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = reopen(t, cfg)
	await(t, "it leads again", r.IsLeader)
	if seq := lastSeqOfLeader(t, r); seq != last {
		t.Errorf("last seq %d, expected %d", seq, last)
	}
	r.restartRaft("test")
	await(t, "it leads after a restart of raft", r.IsLeader)
}

// lastSeqOfLeader waits until the replica shows what was acknowledged.
func lastSeqOfLeader(t *testing.T, r *Replica) uint64 {
	t.Helper()
	awaitOwner(t, r)
	return lastSeq(t, r)
}

func TestIsOnlyVoter(t *testing.T) {
	voter := func(id raft.ServerID) raft.Server { return raft.Server{ID: id, Suffrage: raft.Voter} }
	learner := func(id raft.ServerID) raft.Server { return raft.Server{ID: id, Suffrage: raft.Nonvoter} }
	for _, c := range []struct {
		servers []raft.Server
		want    bool
	}{
		{nil, false},
		{[]raft.Server{voter("m0")}, true},
		{[]raft.Server{voter("m1")}, false},
		{[]raft.Server{learner("m0")}, false},
		{[]raft.Server{voter("m0"), learner("m1")}, true},
		{[]raft.Server{learner("m0"), voter("m1")}, false},
		{[]raft.Server{voter("m0"), voter("m1")}, false},
		{[]raft.Server{voter("m1"), learner("m2"), voter("m0")}, false},
	} {
		if got := isOnlyVoter(raft.Configuration{Servers: c.servers}, "m0"); got != c.want {
			t.Errorf("%+v: %t", c.servers, got)
		}
	}
}

func TestBatchesAreCheckedAhead(t *testing.T) {
	good, bad := testBatch(t, 1, 1, 10), testBatch(t, 1, 1, 10)
	bad[len(bad)-1] ^= 1
	for _, c := range []struct {
		what    string
		log     raft.Log
		checked bool
	}{
		{"batch", raft.Log{Data: good, Extensions: []byte{1, 1}}, true},
		{"damaged batch", raft.Log{Data: bad, Extensions: []byte{1, 1}}, false},
		{"batch of another version", raft.Log{Data: good, Extensions: []byte{1, 2}}, false},
		{"other command", openCommand(record.MustSymbol("A"), 1), false},
		{"no command", raft.Log{Data: good, Extensions: []byte{1, 1}, Type: raft.LogConfiguration}, false},
		{"empty", raft.Log{}, false},
	} {
		if wasCheckedAhead(&c.log) {
			t.Errorf("%s: marked from the beginning", c.what)
		}
		checkAhead(&c.log)
		if wasCheckedAhead(&c.log) != c.checked {
			t.Errorf("%s: marked %t, expected %t", c.what, !c.checked, c.checked)
		}
	}
	if own := (raft.Log{Data: good, Extensions: batchExtensions}); wasCheckedAhead(&own) {
		t.Error("a proposal passes for checked")
	}
}

// A batch that was damaged before it came to the log has a good frame there. It is not
// applied after a restart either.
func TestADamagedBatchInAGoodFrameIsNotReplayed(t *testing.T) {
	r, cfg, fatal := single(t, nil)
	awaitOwner(t, r)
	last := fill(t, r, 1, 2)
	term := r.raft().CurrentTerm()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	batch := testBatch(t, 1, last+1, 10)
	batch[len(batch)/2] ^= 4
	appendToLog(t, cfg, raft.Log{Term: term, Data: batch, Extensions: batchExtensions})
	r = reopen(t, cfg)
	select {
	case err := <-fatal:
		if !errors.Is(err, record.ErrCorrupt) {
			t.Errorf("ended by %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the damaged batch was not noticed")
	}
	if seq := lastSeq(t, r); seq != last {
		t.Errorf("last seq %d, expected %d", seq, last)
	}
}

// appendToLog writes an entry behind the last one of a stopped member.
func appendToLog(t *testing.T, cfg Config, l raft.Log) {
	t.Helper()
	w, err := wal.Open(vfs.Default, vfs.Default.PathJoin(cfg.DataDir, walDir), cfg.WAL)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	last, err := w.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	l.Index = last + 1
	if err := w.StoreLog(&l); err != nil {
		t.Fatal(err)
	}
}

// The memory for the replay is given up when the replay is over, and at once where
// there is none.
func TestTheReplayEnds(t *testing.T) {
	r, cfg, _ := single(t, nil)
	awaitOwner(t, r)
	fill(t, r, 1, 5)
	for _, snapshot := range []bool{false, true} {
		if snapshot {
			if _, err := r.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		r = newReplica(cfg.withDefaults())
		if err := r.openFiles(); err != nil {
			t.Fatal(err)
		}
		r.endReplay = func() { close(ended) }
		if err := r.watchReplay(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ended:
			if !snapshot {
				t.Error("ended before it began")
			}
		default:
			if snapshot {
				t.Error("nothing to replay, and not ended")
			}
		}
		if err := r.startRaft(); err != nil {
			t.Fatal(err)
		}
		<-ended
		awaitOwner(t, r)
		fill(t, r, map[bool]uint64{false: 2, true: 3}[snapshot], 1)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReplayBytes(t *testing.T) {
	for _, c := range []struct{ memtables, limit, want int64 }{
		{512 << 20, math.MaxInt64, 512 << 20},
		{512 << 20, 1 << 30, 256 << 20},
		{64 << 20, 1 << 30, 64 << 20},
	} {
		if got := replayBytes(c.memtables, c.limit); got != c.want {
			t.Errorf("memtables of %d, a limit of %d: %d, want %d", c.memtables, c.limit, got, c.want)
		}
	}
}
