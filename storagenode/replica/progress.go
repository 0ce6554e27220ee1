package replica

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Progress is what a leader knows of one peer from the peer's own answers.
type Progress struct {
	// Match is the last log index known to be on the peer's disk.
	Match uint64
	// Contact is when the peer last answered; zero if it has not in this term.
	Contact time.Time
}

// progressTable holds the progress of peers. The library keeps it to itself, and
// without it nobody can tell whether a learner has caught up.
type progressTable struct {
	mu    sync.Mutex
	term  uint64 // of the requests that the entries below were learned from
	peers map[raft.ServerID]Progress
}

func (t *progressTable) answered(id raft.ServerID, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) {
	if resp.Term > args.Term {
		return
	}
	match := uint64(0)
	if resp.Success && !isHeartbeat(args) {
		match = args.PrevLogEntry
		if n := len(args.Entries); n > 0 {
			match = args.Entries[n-1].Index
		}
	}
	t.record(id, args.Term, match)
}

// record notes an answer within a term; answers of older terms are of no use.
func (t *progressTable) record(id raft.ServerID, term, match uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if term < t.term {
		return
	}
	if term > t.term || t.peers == nil {
		t.term, t.peers = term, make(map[raft.ServerID]Progress)
	}
	p := t.peers[id]
	p.Match, p.Contact = max(p.Match, match), time.Now()
	t.peers[id] = p
}

// of returns the progress of a peer within the given term.
func (t *progressTable) of(id raft.ServerID, term uint64) Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	if term != t.term {
		return Progress{}
	}
	return t.peers[id]
}
