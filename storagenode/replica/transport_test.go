package replica

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// serve runs a transport's server and returns the transport.
func serve(t *testing.T, o TransportOptions) (*Transport, *grpc.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Cluster, o.Shard, o.Address = "test", "s1", l.Addr().String()
	tr := NewTransport(o)
	s := grpc.NewServer(grpc.MaxRecvMsgSize(grpcMessageBytesMax))
	tr.Register(s)
	go s.Serve(l)
	t.Cleanup(func() { tr.Stop(); s.Stop() })
	return tr, s
}

// answer answers everything that arrives with what respond returns.
func answer(t *testing.T, tr *Transport, respond func(any) any) {
	t.Helper()
	go func() {
		for {
			select {
			case rpc := <-tr.Consumer():
				if r := respond(rpc.Command); r != nil {
					rpc.Respond(r, nil)
				}
			case <-tr.ctx.Done():
				return
			}
		}
	}()
}

func header(tr *Transport) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: 3, ID: []byte("m0"), Addr: []byte(tr.LocalAddr())}
}

func entries(first uint64, n, size int) []*raft.Log {
	out := make([]*raft.Log, n)
	for i := range out {
		out[i] = &raft.Log{
			Index: first + uint64(i), Term: 2, Type: raft.LogCommand, Data: make([]byte, size),
			Extensions: batchExtensions, AppendedAt: time.Unix(5, 7),
		}
	}
	return out
}

// Heartbeats that are handled beside the main loop can change the term under a
// leader's hands.
func TestHeartbeatsGoThroughTheMainLoop(t *testing.T) {
	leader, _ := serve(t, TransportOptions{})
	follower, _ := serve(t, TransportOptions{})
	follower.SetHeartbeatHandler(func(raft.RPC) { t.Error("the heartbeat handler was called") })
	seen := make(chan *raft.AppendEntriesRequest, 1)
	answer(t, follower, func(c any) any {
		seen <- c.(*raft.AppendEntriesRequest)
		return &raft.AppendEntriesResponse{Term: 4, Success: true}
	})
	var resp raft.AppendEntriesResponse
	args := &raft.AppendEntriesRequest{RPCHeader: header(leader), Term: 4}
	if err := leader.AppendEntries("m1", follower.LocalAddr(), args, &resp); err != nil || !resp.Success {
		t.Fatalf("heartbeat: %+v, %v", resp, err)
	}
	if got := <-seen; !isHeartbeat(got) || string(got.Addr) != string(leader.LocalAddr()) {
		t.Fatalf("the main loop got %+v", got)
	}
	if p := leader.progress.of("m1", 4); p.Contact.IsZero() || p.Match != 0 {
		t.Errorf("progress after a heartbeat: %+v", p)
	}
}

// A follower commits up to min(leader's commit index, its own last entry); entries
// of its own that the request did not vouch for must not be committed by that.
func TestCommitIndexIsClamped(t *testing.T) {
	for _, c := range []struct {
		prev, commit uint64
		n            int
		want         uint64
	}{{5, 100, 2, 7}, {5, 6, 2, 6}, {5, 100, 0, 5}, {0, 100, 0, 0}, {0, 3, 9, 3}} {
		m := &storagepb.AppendEntriesRequest{
			PrevLogEntry: c.prev, LeaderCommitIndex: c.commit, Entries: entriesToProto(entries(c.prev+1, c.n, 1)),
		}
		if got := appendFromProto(m).LeaderCommitIndex; got != c.want {
			t.Errorf("previous %d, %d entries, commit %d: got %d, want %d", c.prev, c.n, c.commit, got, c.want)
		}
	}
}

// MaxAppendEntries counts entries, not bytes: a request of large ones is sent in
// parts that the receiver takes one after another.
func TestLargeRequestsAreSplit(t *testing.T) {
	leader, _ := serve(t, TransportOptions{MessageBytesMax: 1 << 20})
	follower, _ := serve(t, TransportOptions{})
	next, parts, fail := uint64(8), 0, uint64(0)
	answer(t, follower, func(c any) any {
		a := c.(*raft.AppendEntriesRequest)
		parts++
		if a.PrevLogEntry+1 != next || len(a.Entries) == 0 || a.Entries[0].Index != next {
			t.Errorf("part after %d: previous %d, first %d", next-1, a.PrevLogEntry, a.Entries[0].Index)
		}
		if e := a.Entries[0]; len(e.Data) != 300<<10 || string(e.Extensions) != string(batchExtensions) || e.Term != 2 || !e.AppendedAt.Equal(time.Unix(5, 7)) {
			t.Errorf("entry %+v", e)
		}
		next += uint64(len(a.Entries))
		return &raft.AppendEntriesResponse{Term: 2, Success: a.PrevLogEntry+1 != fail, LastLog: next - 1}
	})
	args := &raft.AppendEntriesRequest{RPCHeader: header(leader), Term: 2, PrevLogEntry: 7, PrevLogTerm: 2, Entries: entries(8, 10, 300<<10)}
	var resp raft.AppendEntriesResponse
	if err := leader.AppendEntries("m1", follower.LocalAddr(), args, &resp); err != nil || !resp.Success || resp.LastLog != 17 {
		t.Fatalf("got %+v, %v", resp, err)
	}
	if parts != 4 || next != 18 {
		t.Fatalf("%d parts up to %d, want 4 up to 17", parts, next-1)
	}
	if p := leader.progress.of("m1", 2); p.Match != 17 {
		t.Errorf("progress %+v, want match 17", p)
	}
	next, fail = 8, 11 // the second part is refused: so is the whole
	if err := leader.AppendEntries("m1", follower.LocalAddr(), args, &resp); err != nil || resp.Success {
		t.Fatalf("got %+v, %v; want no success", resp, err)
	}
}

func TestPipeline(t *testing.T) {
	leader, _ := serve(t, TransportOptions{PipelineMax: 4, AppendTimeout: 200 * time.Millisecond})
	follower, _ := serve(t, TransportOptions{})
	hang := make(chan struct{})
	answer(t, follower, func(c any) any {
		a := c.(*raft.AppendEntriesRequest)
		if a.PrevLogEntry == 50 {
			<-hang
			return nil
		}
		return &raft.AppendEntriesResponse{Term: 2, Success: true, LastLog: a.PrevLogEntry + uint64(len(a.Entries))}
	})
	defer close(hang)
	pipe, err := leader.AppendEntriesPipeline("m1", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	go func() {
		for i := range 50 {
			args := &raft.AppendEntriesRequest{RPCHeader: header(leader), Term: 2, PrevLogEntry: uint64(i), Entries: entries(uint64(i)+1, 1, 10)}
			if _, err := pipe.AppendEntries(args, new(raft.AppendEntriesResponse)); err != nil {
				t.Errorf("request %d: %v", i, err)
				return
			}
		}
	}()
	for i := range 50 {
		f := <-pipe.Consumer()
		if err := f.Error(); err != nil || f.Response().LastLog != uint64(i)+1 || f.Request().PrevLogEntry != uint64(i) {
			t.Fatalf("answer %d: %+v, %v", i, f.Response(), err)
		}
	}
	// The peer hangs: the pipeline ends, and nothing is handed on that the library
	// would take for a sign of life.
	args := &raft.AppendEntriesRequest{RPCHeader: header(leader), Term: 2, PrevLogEntry: 50, Entries: entries(51, 1, 10)}
	f, err := pipe.AppendEntries(args, new(raft.AppendEntriesResponse))
	if err != nil {
		t.Fatal(err)
	}
	if f.Error() == nil {
		t.Fatal("a request without an answer must fail")
	}
	select {
	case got := <-pipe.Consumer():
		t.Fatalf("the failed request was handed on: %+v", got.Response())
	default:
	}
	for {
		if _, err := pipe.AppendEntries(args, new(raft.AppendEntriesResponse)); err != nil {
			break
		}
	}
}

func TestTransportReconnects(t *testing.T) {
	leader, _ := serve(t, TransportOptions{})
	follower, server := serve(t, TransportOptions{})
	respond := func(any) any { return &raft.AppendEntriesResponse{Term: 2, Success: true} }
	answer(t, follower, respond)
	args := &raft.AppendEntriesRequest{RPCHeader: header(leader), Term: 2, PrevLogEntry: 1, PrevLogTerm: 1}
	var resp raft.AppendEntriesResponse
	if err := leader.AppendEntries("m1", follower.LocalAddr(), args, &resp); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	if err := leader.AppendEntries("m1", follower.LocalAddr(), args, &resp); err == nil {
		t.Fatal("nobody listens, but the call succeeded")
	}
	l, err := net.Listen("tcp", string(follower.LocalAddr()))
	if err != nil {
		t.Fatal(err)
	}
	again := grpc.NewServer()
	follower.Register(again)
	go again.Serve(l)
	defer again.Stop()
	deadline := time.Now().Add(10 * time.Second)
	for leader.AppendEntries("m1", follower.LocalAddr(), args, &resp) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the peer is back, but the transport does not find it")
		}
	}
}

func TestVotesAndTimeoutNow(t *testing.T) {
	a, _ := serve(t, TransportOptions{VoteTimeout: 300 * time.Millisecond})
	b, _ := serve(t, TransportOptions{})
	answer(t, b, func(c any) any {
		switch m := c.(type) {
		case *raft.RequestVoteRequest:
			return &raft.RequestVoteResponse{Term: m.Term, Granted: m.LastLogIndex == 7 && m.LastLogTerm == 3 && m.LeadershipTransfer}
		case *raft.RequestPreVoteRequest:
			return &raft.RequestPreVoteResponse{Term: m.Term, Granted: m.LastLogIndex == 7 && m.LastLogTerm == 3}
		}
		return nil // TimeoutNow is never answered
	})
	var vote raft.RequestVoteResponse
	err := a.RequestVote("b", b.LocalAddr(), &raft.RequestVoteRequest{RPCHeader: header(a), Term: 4, LastLogIndex: 7, LastLogTerm: 3, LeadershipTransfer: true}, &vote)
	if err != nil || !vote.Granted || vote.Term != 4 {
		t.Errorf("vote %+v, %v", vote, err)
	}
	var pre raft.RequestPreVoteResponse
	err = a.RequestPreVote("b", b.LocalAddr(), &raft.RequestPreVoteRequest{RPCHeader: header(a), Term: 4, LastLogIndex: 7, LastLogTerm: 3}, &pre)
	if err != nil || !pre.Granted || pre.Term != 4 {
		t.Errorf("pre-vote %+v, %v", pre, err)
	}
	start := time.Now()
	err = a.TimeoutNow("b", b.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: header(a)}, new(raft.TimeoutNowResponse))
	if err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("TimeoutNow without an answer: %v after %s", err, time.Since(start))
	}
}

func TestErrorsOfTheReceiverArriveAsErrors(t *testing.T) {
	a, _ := serve(t, TransportOptions{})
	b, _ := serve(t, TransportOptions{})
	go func() {
		for {
			select {
			case rpc := <-b.Consumer():
				rpc.Respond(nil, fmt.Errorf("unsupported protocol"))
			case <-b.ctx.Done():
				return
			}
		}
	}()
	err := a.AppendEntries("b", b.LocalAddr(), &raft.AppendEntriesRequest{RPCHeader: header(a), Term: 1}, new(raft.AppendEntriesResponse))
	if err == nil || !strings.Contains(err.Error(), "unsupported protocol") {
		t.Errorf("append: %v", err)
	}
	err = a.RequestVote("b", b.LocalAddr(), &raft.RequestVoteRequest{RPCHeader: header(a), Term: 1}, new(raft.RequestVoteResponse))
	if err == nil || !strings.Contains(err.Error(), "unsupported protocol") {
		t.Errorf("vote: %v", err)
	}
	a.interrupt()
	if err := a.calls.Err(); err != nil {
		t.Errorf("calls after interrupt: %v", err)
	}
	a.Stop()
	err = a.RequestVote("b", b.LocalAddr(), &raft.RequestVoteRequest{}, new(raft.RequestVoteResponse))
	if !errors.Is(err, errTransportClosed) || context.Cause(a.ctx) == nil {
		t.Errorf("a closed transport: %v", err)
	}
}
