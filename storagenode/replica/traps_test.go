package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

// leaderOf returns a replica that leads a shard of itself and the given others.
func leaderOf(t *testing.T, change func(*Config), others ...*yesMan) *Replica {
	t.Helper()
	r, _, _ := single(t, func(c *Config) {
		c.HeartbeatTimeout, c.LeaderLease = 500*time.Millisecond, 500*time.Millisecond
		for i, y := range others {
			tr, _ := serve(t, TransportOptions{})
			answer(t, tr, y.respond)
			c.Peers = append(c.Peers, Peer{ID: fmt.Sprintf("m%d", i+1), Address: string(tr.LocalAddr())})
		}
		if change != nil {
			change(c)
		}
	})
	awaitOwner(t, r)
	return r
}

// A heartbeat that is handled beside the main loop takes the term away from a
// leader that does not notice: it writes its next entry in a term that another
// member may lead.
func TestPlainLeaderWritesInATermOfAnother(t *testing.T) {
	transport := func() *raft.NetworkTransport {
		tr, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, time.Minute, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tr.Close() })
		return tr
	}
	peer := transport()
	p := startPlain(t, transport(), peer, time.Minute)
	lead(t, peer, p.address, p.raft)
	if err := p.raft.Apply([]byte("x"), 0).Error(); err != nil {
		t.Fatal(err)
	}
	term := p.raft.CurrentTerm()
	if r := p.appendNoops(term+5, 0, 0, 1, 0, 0, 0); !r.Success {
		t.Fatalf("heartbeat: %+v", r)
	}
	p.raft.Apply([]byte("y"), 0).Error() // it says that leadership is lost, but
	last, err := p.logs.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := termAt(p.logs, last); err != nil || got != term+5 {
		t.Errorf("the last entry is of term %d (%v); the trap was an entry of term %d, in which the node never led", got, err, term+5)
	}
}

func TestALeaderWritesInItsOwnTermOnly(t *testing.T) {
	r, _, _ := single(t, func(c *Config) {
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLease = time.Minute, time.Minute, time.Minute
		c.Transport.HeartbeatTimeout = 10 * time.Second
	})
	other := newFakeLeader(t, r, 0)
	lead(t, other.tr, r.transport.LocalAddr(), r.raft())
	awaitOwner(t, r)
	seq := fill(t, r, 1, 1)
	term := r.raft().CurrentTerm()
	other.term = term + 5
	if a := other.appendNoops(0, 0, 1, 0, 0, 0); !a.Success {
		t.Fatalf("heartbeat: %+v", a)
	}
	if _, err := r.ProposeBatch(t.Context(), testBatch(t, 1, seq+1, 1)).Wait(); !errors.Is(err, refusal.ErrNotLeader) {
		t.Errorf("a deposed leader: %v", err)
	}
	last, err := r.logs.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := termAt(r.logs, last); err != nil || got != term {
		t.Errorf("the last entry is of term %d (%v), want %d", got, err, term)
	}
}

// A follower of the library commits entries of its own that no leader has vouched
// for: here, those of a deposed leader.
func TestPlainFollowerCommitsWhatItsLeaderNeverHad(t *testing.T) {
	p := plainFollower(t)
	if r := p.appendNoops(2, 1, 1, 2, 10, 2, 0); !r.Success {
		t.Fatalf("entries: %+v", r)
	}
	if r := p.appendNoops(3, 1, 1, 2, 1, 0, 10); !r.Success {
		t.Fatalf("entries: %+v", r)
	}
	if got := p.raft.CommitIndex(); got != 10 {
		t.Errorf("commit index %d; the trap was 10, of entries that the leader of term 3 does not have", got)
	}
}

func TestAFollowerCommitsWhatItsLeaderVouchesFor(t *testing.T) {
	follower, _, _, _ := followerAndDonor(t, LogStoreWAL)
	leader := newFakeLeader(t, follower, 2)
	if r := leader.appendNoops(1, 1, 2, 10, 2, 0); !r.Success {
		t.Fatalf("entries: %+v", r)
	}
	leader.term = 3
	for _, c := range []struct{ first, last, want uint64 }{{2, 1, 1}, {2, 4, 4}} {
		if r := leader.appendNoops(1, 1, c.first, c.last, 3, 10); !r.Success {
			t.Fatalf("entries: %+v", r)
		}
		if got := follower.raft().CommitIndex(); got != c.want {
			t.Errorf("commit index %d after entries up to %d, want %d", got, c.last, c.want)
		}
	}
}

// A follower of the library whose log disagrees with a snapshot keeps the log's
// end in memory: it rejects what follows the snapshot, and is sent it again, and
// again. TestSnapshotOverAConflictingLog is the same for a replica.
func TestPlainFollowerIsSentTheSnapshotForEver(t *testing.T) {
	p := plainFollower(t)
	if r := p.appendNoops(2, 1, 1, 2, 40, 2, 0); !r.Success {
		t.Fatalf("entries: %+v", r)
	}
	for round := range 3 {
		var resp raft.InstallSnapshotResponse
		err := p.peer.InstallSnapshot("m0", p.address, &raft.InstallSnapshotRequest{
			RPCHeader: headerOf("m1"), SnapshotVersion: 1, Term: 7, LastLogIndex: 20, LastLogTerm: 5,
			Configuration:      raft.EncodeConfiguration(raft.Configuration{Servers: append([]raft.Server{{ID: "m0", Address: "m0"}}, otherVoters...)}),
			ConfigurationIndex: 1, Size: 1,
		}, &resp, strings.NewReader("s"))
		if err != nil || !resp.Success {
			t.Fatalf("round %d: snapshot: %+v, %v", round, resp, err)
		}
		if r := p.appendNoops(7, 20, 5, 21, 21, 7, 21); r.Success {
			t.Errorf("round %d: the entry after the snapshot was taken; the trap was that it never is", round)
		}
	}
}

// Two transfers of leadership to a member that does not answer leave the library
// refusing every entry, though a quorum is there.
func TestPlainLeaderIsStuckInATransfer(t *testing.T) {
	m0, m1 := inmem()
	_, m2 := raft.NewInmemTransportWithTimeout("m2", time.Minute)
	m0.Connect("m2", m2)
	healthy, silent := new(yesMan), &yesMan{hang: true}
	healthy.serveInmem(t, m1)
	silent.serveInmem(t, m2)
	p := startPlain(t, m0, m1, time.Second, otherVoters...)
	t.Cleanup(silent.release) // before the instance ends, which waits for its answers
	lead(t, m1, "m0", p.raft)
	if err := p.raft.Apply([]byte("x"), 0).Error(); err != nil {
		t.Fatal(err)
	}
	await(t, "the silent member is sent an entry", func() bool { return silent.seen().appends > 0 })
	for attempts := 0; attempts < 2; {
		switch err := p.raft.LeadershipTransferToServer("m2", "m2").Error(); {
		case err == nil:
			t.Fatal("leadership was handed to a member that does not answer")
		case !errors.Is(err, raft.ErrLeadershipTransferInProgress): // which it is for a moment after the first
			attempts++
		}
	}
	for range 5 {
		healthy.awaitHeartbeats(t, 2)
		if err := p.raft.Apply([]byte("y"), 0).Error(); !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
			t.Errorf("an entry: %v; the trap was %v", err, raft.ErrLeadershipTransferInProgress)
		}
	}
}

func TestATransferToASilentMemberDoesNotGetStuck(t *testing.T) {
	silent := &yesMan{hang: true}
	r := leaderOf(t, nil, new(yesMan), silent)
	fill(t, r, 1, 1)
	await(t, "the silent member is sent an entry", func() bool { return silent.seen().appends > 0 })
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
		if _, err := r.TransferLeadership(ctx, "m2"); err == nil {
			t.Fatal("leadership was handed to a member that does not answer")
		}
		cancel()
	}
	fill(t, r, 2, 3)
	if got := r.raft().State(); got != raft.Leader {
		t.Errorf("state %s", got)
	}
}

// An instance that ends does not wait until a silent member's time is up: of two
// things that are ready, the end and an entry to be sent, its goroutines take
// either.
func TestTheEndDoesNotWaitForASilentMember(t *testing.T) {
	for range 4 {
		silent := &yesMan{hang: true}
		r := leaderOf(t, func(c *Config) {
			c.HeartbeatTimeout, c.LeaderLease, c.Transport.AppendTimeout = 100*time.Millisecond, 100*time.Millisecond, time.Hour
		}, new(yesMan), silent)
		await(t, "the silent member is sent an entry", func() bool { return silent.seen().appends > 0 })
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// AddVoter counts a member for the quorum before anybody has heard of it.
func TestPlainLeaderLosesItsQuorumToAnAbsentVoter(t *testing.T) {
	m0, m1 := inmem()
	p := startPlain(t, m0, m1, 100*time.Millisecond)
	lead(t, m1, "m0", p.raft)
	if err := p.raft.Apply([]byte("x"), 0).Error(); err != nil {
		t.Fatal(err)
	}
	if err := p.raft.AddVoter("m9", "m9", 0, 0).Error(); err != nil {
		t.Fatal(err)
	}
	if err := p.raft.Apply([]byte("y"), 0).Error(); err == nil {
		t.Error("an entry was committed; the trap was that none is")
	}
}

func TestAnAbsentLearnerDoesNotCount(t *testing.T) {
	r, _, _ := single(t, nil)
	awaitOwner(t, r)
	if _, err := r.AddLearner(t.Context(), "m9", "127.0.0.1:9", 0); err != nil {
		t.Fatal(err)
	}
	if got := fill(t, r, 1, 3); got != 30 {
		t.Errorf("last seq %d, want 30", got)
	}
}

const (
	largeEntries    = 12
	largeEntryBytes = 1 << 20
)

// MaxAppendEntries bounds the number of entries in a request, and nothing bounds
// its bytes.
func TestPlainLeaderSendsRequestsOfAnySize(t *testing.T) {
	m0, m1 := inmem()
	behind := new(yesMan)
	_, m2 := raft.NewInmemTransportWithTimeout("m2", time.Minute)
	new(yesMan).serveInmem(t, m1)
	p := startPlain(t, m0, m1, 10*time.Second, otherVoters...)
	lead(t, m1, "m0", p.raft)
	for range largeEntries {
		if err := p.raft.Apply(make([]byte, largeEntryBytes), 0).Error(); err != nil {
			t.Fatal(err)
		}
	}
	behind.serveInmem(t, m2)
	m0.Connect("m2", m2)
	await(t, "m2 catches up", func() bool { return behind.seen().last == p.raft.LastIndex() })
	if got := behind.seen().bytesMax; got < largeEntries/2*largeEntryBytes {
		t.Errorf("the largest request has %d bytes; the trap was nearly all of %d", got, largeEntries*largeEntryBytes)
	}
}

// The library's pipeline hands a request that failed on like one that was
// answered, and the leader takes that for a sign of life. TestPipeline asserts
// that ours does not.
func TestPlainPipelineHandsOnWhatFailed(t *testing.T) {
	tr, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, time.Minute, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // a member that is killed when it gets a request
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.Read(make([]byte, 1))
	}()
	pipe, err := tr.AppendEntriesPipeline("m1", raft.ServerAddress(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if _, err := pipe.AppendEntries(&raft.AppendEntriesRequest{Term: 2}, new(raft.AppendEntriesResponse)); err != nil {
		t.Fatal(err)
	}
	if err := (<-pipe.Consumer()).Error(); err == nil {
		t.Error("nobody has answered, but the request did not fail")
	}
}

// entryless is a log whose first write fails, as when power is lost there.
type entryless struct{ *raft.InmemStore }

func (entryless) StoreLog(*raft.Log) error { return errors.New("power failure") }

// A bootstrap that ended between its two writes can not be begun again, though
// the member knows of no members. TestPowerFailureAtEveryOperation covers the same
// for a replica.
func TestPlainBootstrapIsNotToBeRepeated(t *testing.T) {
	m0, _ := inmem()
	c := raft.DefaultConfig()
	c.LocalID, c.Logger = "m0", newRaftLogger(slog.New(slog.DiscardHandler))
	s, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	servers := raft.Configuration{Servers: []raft.Server{{ID: "m0", Address: "m0"}}}
	if err := raft.BootstrapCluster(c, entryless{s}, s, snapshots, m0, servers); err == nil {
		t.Fatal("the entry was not written, but the bootstrap succeeded")
	}
	if err := raft.BootstrapCluster(c, s, s, snapshots, m0, servers); !errors.Is(err, raft.ErrCantBootstrap) {
		t.Errorf("the second attempt: %v; the trap was %v", err, raft.ErrCantBootstrap)
	}
	if last, err := s.LastIndex(); err != nil || last != 0 {
		t.Errorf("last index %d, %v", last, err)
	}
}

// A leader tells followers of a commit with its next entries, or after
// CommitTimeout; heartbeats do not tell it. With a long one a quiet shard's
// followers never show the last records.
func TestCommitTimeoutTellsQuietFollowers(t *testing.T) {
	t.Run("default", func(t *testing.T) {
		follower := new(yesMan)
		r := leaderOf(t, nil, follower)
		fill(t, r, 1, 2)
		await(t, "the follower is told of the last commit", func() bool {
			return follower.seen().commit == r.raft().LastIndex()
		})
	})
	t.Run("an hour", func(t *testing.T) {
		follower := new(yesMan)
		r := leaderOf(t, func(c *Config) { c.CommitTimeout = time.Hour }, follower)
		fill(t, r, 1, 2)
		follower.awaitHeartbeats(t, 3)
		if got := follower.seen().commit; got >= r.raft().LastIndex() {
			t.Errorf("the follower was told of the commit of %d; the trap was that it is not", got)
		}
	})
}

// What a follower was sent stays as it was: Raft, the log's cache, and the store
// hold on to entries long after the request.
func TestEntriesStayWhenTheirRequestIsOver(t *testing.T) {
	const requests, each, size = 200, 3, 20 << 10
	content := func(index uint64) []byte { return bytes.Repeat([]byte{byte(index), byte(index >> 8), 7}, size/3) }
	leader, _ := serve(t, TransportOptions{MessageBytesMax: 2 * size})
	follower, _ := serve(t, TransportOptions{})
	var kept []*raft.Log // by the follower; read when all is answered
	answer(t, follower, func(c any) any {
		a := c.(*raft.AppendEntriesRequest)
		kept = append(kept, a.Entries...)
		return &raft.AppendEntriesResponse{Term: 2, Success: true}
	})
	pipe, err := leader.AppendEntriesPipeline("m1", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	var sent []*raft.Log
	send := func(first uint64) []*raft.Log {
		out := entries(first, each, 0)
		for _, e := range out {
			e.Data, e.Extensions = content(e.Index), bytes.Clone(batchExtensions)
		}
		sent = append(sent, out...)
		return out
	}
	go func() {
		for i := range uint64(requests) {
			args := &raft.AppendEntriesRequest{RPCHeader: header(leader), Term: 2, PrevLogEntry: i * each, Entries: send(i*each + 1)}
			if _, err := pipe.AppendEntries(args, new(raft.AppendEntriesResponse)); err != nil {
				t.Errorf("request %d: %v", i, err)
				return
			}
		}
	}()
	for range requests {
		if err := (<-pipe.Consumer()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	if len(kept) != requests*each || len(sent) != requests*each {
		t.Fatalf("%d entries sent, %d received", len(sent), len(kept))
	}
	for i := range kept {
		for who, e := range map[string]*raft.Log{"the leader's": sent[i], "the follower's": kept[i]} {
			if e.Index != uint64(i)+1 || !bytes.Equal(e.Data, content(e.Index)) || !bytes.Equal(e.Extensions, batchExtensions) {
				t.Fatalf("%s entry %d has changed", who, i+1)
			}
		}
	}
	t.Logf("%d entries", len(kept))
}
