package replica

import (
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// The tests of this file run the library as it comes, with its own transports and
// stores, and assert that the traps are there: a trap that is gone from a later
// release needs no guard. Beside each stands the same script for a replica.

// plainFSM remembers nothing.
type plainFSM struct{}

func (plainFSM) Apply(*raft.Log) any                 { return nil }
func (plainFSM) Snapshot() (raft.FSMSnapshot, error) { return plainFSM{}, nil }
func (plainFSM) Restore(r io.ReadCloser) error       { return r.Close() }
func (plainFSM) Persist(s raft.SnapshotSink) error   { return s.Close() }
func (plainFSM) Release()                            {}

// plain is an instance of the library, as member m0.
type plain struct {
	t    *testing.T
	raft *raft.Raft
	logs *raft.InmemStore
	// peer is the transport of another member, m1, that reaches it.
	peer    raft.Transport
	address raft.ServerAddress
}

// startPlain starts m0 of a shard of m0 and the others, with the given timeout
// for heartbeats, elections and the lease. transport is its own.
func startPlain(t *testing.T, transport, peer raft.Transport, timeout time.Duration, others ...raft.Server) *plain {
	t.Helper()
	c := raft.DefaultConfig()
	c.LocalID, c.Logger = "m0", newRaftLogger(slog.New(slog.DiscardHandler))
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = timeout, timeout, timeout
	logs := raft.NewInmemStore()
	snapshots := raft.NewInmemSnapshotStore()
	servers := append([]raft.Server{{ID: "m0", Address: transport.LocalAddr()}}, others...)
	if err := raft.BootstrapCluster(c, logs, logs, snapshots, transport, raft.Configuration{Servers: servers}); err != nil {
		t.Fatal(err)
	}
	ra, err := raft.NewRaft(c, plainFSM{}, logs, logs, snapshots, transport)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ra.Shutdown().Error() })
	return &plain{t: t, raft: ra, logs: logs, peer: peer, address: transport.LocalAddr()}
}

// inmem returns the library's transports in memory of m0 and of m1, which reach
// each other.
func inmem() (m0, m1 *raft.InmemTransport) {
	_, m0 = raft.NewInmemTransportWithTimeout("m0", time.Minute)
	_, m1 = raft.NewInmemTransportWithTimeout("m1", time.Minute)
	m0.Connect("m1", m1)
	m1.Connect("m0", m0)
	return m0, m1
}

var otherVoters = []raft.Server{{ID: "m1", Address: "m1"}, {ID: "m2", Address: "m2"}}

func plainFollower(t *testing.T) *plain {
	t.Helper()
	m0, m1 := inmem()
	return startPlain(t, m0, m1, time.Minute, otherVoters...)
}

func headerOf(id string) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(id), Addr: []byte(id)}
}

// appendNoops is fakeLeader.appendNoops for a plain follower.
func (p *plain) appendNoops(leaderTerm, prev, prevTerm, first, last, term, commit uint64) raft.AppendEntriesResponse {
	p.t.Helper()
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Type: raft.LogNoop})
	}
	var resp raft.AppendEntriesResponse
	err := p.peer.AppendEntries("m0", p.address, &raft.AppendEntriesRequest{
		RPCHeader: headerOf("m1"), Term: leaderTerm, PrevLogEntry: prev, PrevLogTerm: prevTerm, Entries: logs, LeaderCommitIndex: commit,
	}, &resp)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp
}

// lead makes a member lead at once, as a transfer of leadership does.
func lead(t *testing.T, from raft.Transport, to raft.ServerAddress, ra *raft.Raft) {
	t.Helper()
	if err := from.TimeoutNow("m0", to, &raft.TimeoutNowRequest{RPCHeader: headerOf("m1")}, new(raft.TimeoutNowResponse)); err != nil {
		t.Fatal(err)
	}
	await(t, "m0 leads", func() bool { return ra.State() == raft.Leader })
}

// yesMan is a member that votes for everybody and takes every entry, unless it is
// told to hang: then it answers heartbeats only.
type yesMan struct {
	mu         sync.Mutex
	hang       bool
	hung       []raft.RPC // by serveInmem
	last       uint64     // of the entries that it was sent
	commit     uint64     // the highest commit index that it was told
	appends    int
	heartbeats int
	bytesMax   int // of the entries of one request
}

// respond returns the answer to a command, nil for none.
func (y *yesMan) respond(command any) any {
	y.mu.Lock()
	defer y.mu.Unlock()
	switch m := command.(type) {
	case *raft.RequestPreVoteRequest:
		return &raft.RequestPreVoteResponse{Term: m.Term, Granted: true}
	case *raft.RequestVoteRequest:
		return &raft.RequestVoteResponse{Term: m.Term, Granted: true}
	case *raft.AppendEntriesRequest:
		if isHeartbeat(m) {
			y.heartbeats++
			return &raft.AppendEntriesResponse{Term: m.Term, LastLog: y.last, Success: true}
		}
		y.appends++
		bytes := 0
		for _, e := range m.Entries {
			y.last = max(y.last, e.Index)
			bytes += len(e.Data)
		}
		y.commit, y.bytesMax = max(y.commit, m.LeaderCommitIndex), max(y.bytesMax, bytes)
		if !y.hang {
			return &raft.AppendEntriesResponse{Term: m.Term, LastLog: y.last, Success: true}
		}
	}
	return nil
}

// seen is what a yesMan was sent.
type seen struct {
	last, commit                  uint64
	appends, heartbeats, bytesMax int
}

func (y *yesMan) seen() seen {
	y.mu.Lock()
	defer y.mu.Unlock()
	return seen{y.last, y.commit, y.appends, y.heartbeats, y.bytesMax}
}

// awaitHeartbeats waits for n more heartbeats.
func (y *yesMan) awaitHeartbeats(t *testing.T, n int) {
	t.Helper()
	before := y.seen().heartbeats
	await(t, "heartbeats", func() bool { return y.seen().heartbeats >= before+n })
}

// serveInmem lets a yesMan answer what arrives at one of the library's transports,
// to the end of the test.
func (y *yesMan) serveInmem(t *testing.T, tr *raft.InmemTransport) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case rpc := <-tr.Consumer():
				if a := y.respond(rpc.Command); a != nil {
					rpc.Respond(a, nil)
					continue
				}
				y.keepWaiting(rpc)
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
}

func (y *yesMan) keepWaiting(rpc raft.RPC) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if !y.hang { // any more
		rpc.Respond(nil, io.ErrUnexpectedEOF)
		return
	}
	y.hung = append(y.hung, rpc)
}

// release answers what hangs, and lets nothing hang any more.
func (y *yesMan) release() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.hang = false
	for _, rpc := range y.hung {
		rpc.Respond(nil, io.ErrUnexpectedEOF)
	}
}
