package fire

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/storagenode/replica"
)

// wire is two transports with the post between them. What arrives at the second
// is answered and noted.
type wire struct {
	c       *cluster
	sender  *replica.Transport
	arrived chan any
}

func newWire(t *testing.T, rates messageRates) *wire {
	t.Helper()
	c := &cluster{seed: 1, net: newNetwork(1), history: newHistory(), counts: map[string]int{}}
	c.ctx, c.stop = context.WithCancel(t.Context())
	c.post = newPost(c)
	c.net.inject(&fault{matches: func(from, to string) bool { return true }, effect: effect{messages: rates}})
	w := &wire{c: c, arrived: make(chan any, 16)}
	transport := func(id string) *replica.Transport {
		h := c.net.host(id)
		return replica.NewTransport(replica.TransportOptions{
			Cluster: clusterName, Shard: shardName, Address: memberAddress(id),
			DialOptions: append(dialOptions(h), c.post.dialOptions(id)...),
		})
	}
	w.sender = transport("m0")
	receiver, server := transport("m1"), grpc.NewServer()
	receiver.Register(server)
	l := c.net.host("m1").listen(memberAddress("m1"))
	c.background.Go(func() { _ = server.Serve(l) })
	c.background.Go(func() { w.answer(receiver) })
	t.Cleanup(func() {
		w.sender.Stop()
		server.Stop()
		c.stop()
		c.post.close()
		c.background.Wait()
	})
	return w
}

func (w *wire) answer(receiver *replica.Transport) {
	for {
		select {
		case rpc := <-receiver.Consumer():
			w.arrived <- rpc.Command
			switch m := rpc.Command.(type) {
			case *raft.AppendEntriesRequest:
				rpc.Respond(&raft.AppendEntriesResponse{Term: m.Term, Success: true}, nil)
			case *raft.RequestVoteRequest:
				rpc.Respond(&raft.RequestVoteResponse{Term: m.Term, Granted: true}, nil)
			}
		case <-w.c.ctx.Done():
			return
		}
	}
}

// calls are the kinds of calls that meet faults; each sends one message of a term.
var calls = map[string]func(*wire, uint64) error{
	"stream": func(w *wire, term uint64) error {
		return w.sender.AppendEntries("m1", "m1:1", &raft.AppendEntriesRequest{Term: term, PrevLogEntry: 1, PrevLogTerm: 1}, new(raft.AppendEntriesResponse))
	},
	"heartbeat": func(w *wire, term uint64) error {
		return w.sender.AppendEntries("m1", "m1:1", &raft.AppendEntriesRequest{Term: term}, new(raft.AppendEntriesResponse))
	},
	"vote": func(w *wire, term uint64) error {
		return w.sender.RequestVote("m1", "m1:1", &raft.RequestVoteRequest{Term: term}, new(raft.RequestVoteResponse))
	},
}

func termOf(command any) uint64 {
	switch m := command.(type) {
	case *raft.AppendEntriesRequest:
		return m.Term
	case *raft.RequestVoteRequest:
		return m.Term
	}
	return 0
}

// Each fault does to a message what it says: this is what the runs under fire
// rest on.
func TestMessageFaults(t *testing.T) {
	for fault, c := range map[messageFault]struct {
		fails    bool
		arrivals int
	}{
		requestLost:   {fails: true, arrivals: 0},
		answerLost:    {fails: true, arrivals: 1},
		requestSlow:   {fails: false, arrivals: 1},
		requestTwice:  {fails: false, arrivals: 2},
		requestLate:   {fails: true, arrivals: 1},
		messageFaults: {fails: false, arrivals: 1},
	} {
		name := "none"
		var rates messageRates
		if fault < messageFaults {
			name, rates[fault] = messageFaultNames[fault], 1000
		}
		for kind, call := range calls {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				w := newWire(t, rates)
				if err := call(w, 7); (err != nil) != c.fails {
					t.Fatalf("the call: %v", err)
				}
				for range c.arrivals {
					if got := termOf(<-w.arrived); got != 7 {
						t.Errorf("term %d arrived", got)
					}
				}
				if fault < messageFaults && w.c.occurred(name) != 1 {
					t.Errorf("counted %s", w.c.counted())
				}
				select {
				case m := <-w.arrived:
					t.Errorf("%+v arrived, too", m)
				default:
				}
			})
		}
	}
}

// A request that was held back arrives after a newer one, on which its sender had
// an answer.
func TestHeldBackRequestsArriveAfterNewerOnes(t *testing.T) {
	for kind, call := range calls {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, messageRates{})
			end := w.c.net.inject(&fault{
				matches: func(from, to string) bool { return true },
				effect:  effect{messages: messageRates{requestLate: 1000}},
			})
			for term := uint64(1); term < 5; term++ {
				if call(w, term) == nil {
					t.Fatal("the call that is held back succeeded")
				}
			}
			end()
			if err := call(w, 9); err != nil {
				t.Fatal(err)
			}
			seen, behind := map[uint64]bool{}, 0
			for range 5 {
				term := termOf(<-w.arrived)
				if seen[9] {
					behind++
				}
				seen[term] = true
			}
			if len(seen) != 5 || behind == 0 {
				t.Errorf("terms %v arrived, %d of them after the newest", seen, behind)
			}
			t.Logf("%d of 4 requests arrived after the newer one", behind)
		})
	}
}

// The pieces of a snapshot go by one stream or not at all.
func TestPiecesOfSnapshotsAreNotSentByAnotherStream(t *testing.T) {
	w := newWire(t, messageRates{requestTwice: 500, requestLate: 500})
	for range 100 {
		if f, _ := w.c.post.fate("m0", "m1:1", true); f != requestLost {
			t.Fatalf("fault %d", f)
		}
	}
	if n := w.c.occurred(messageFaultNames[requestLost]); n != 100 {
		t.Errorf("counted %s", w.c.counted())
	}
	w.c.stop()
	w.c.post.pause(t.Context(), w.c.random(), 1000*time.Hour) // ends with the run
}
