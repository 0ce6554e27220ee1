package replica

import (
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// givenUpAdvice takes the member's id, its generation and the shard's.
const givenUpAdvice = "the shard was recovered from a lost quorum without member %s: what it holds ends in generation %d, the shard is in generation %d; " +
	"keep its directory aside or delete it, and join under another id"

// generations keeps members of different generations of a shard apart; see
// Generation. All messages of Raft are asked for.
type generations interface {
	// admit refuses a message of another generation's term.
	admit(term uint64, from raft.RPCHeader) error
	// refused is told of every error of a peer.
	refused(err error)
}

// admit implements generations. Only a member that holds nothing yet may come into
// a later generation than its own: what any other holds may not be what the
// recovered shard holds at the same place, though Raft would take it for that.
func (r *Replica) admit(term uint64, from raft.RPCHeader) error {
	current := r.raft().CurrentTerm()
	own, theirs := Generation(current), Generation(term)
	if own == theirs || theirs > own && r.isEmpty() {
		return nil
	}
	if theirs > own {
		r.fatal(fmt.Errorf(givenUpAdvice, r.cfg.ID, own, theirs))
	} else {
		r.metrics.givenUp.Inc()
	}
	e := refusal.New(storagepb.Code_CODE_GIVEN_UP, "member %s is of generation %d of shard %s, the message of %s of generation %d",
		r.cfg.ID, own, r.cfg.Shard, from.ID, theirs)
	e.Term = current
	return e.GRPCStatus().Err()
}

// Generation returns how often the shard was recovered from a lost quorum, as far as
// this member knows.
func (r *Replica) Generation() uint64 { return Generation(r.raft().CurrentTerm()) }

// isEmpty reports whether the member has neither a log entry nor a snapshot.
func (r *Replica) isEmpty() bool {
	last, err := r.logs.LastIndex()
	return err == nil && last == 0 && r.logs.snapshot() == entryID{}
}

// refused implements generations. A refusal by a later generation ends the member:
// with others of its own it could still reach a quorum, and take records that the
// recovered shard will never have.
func (r *Replica) refused(err error) {
	e := refusal.FromError(err)
	if e == nil || e.Code != storagepb.Code_CODE_GIVEN_UP {
		return
	}
	if own, theirs := Generation(r.raft().CurrentTerm()), Generation(e.Term); theirs > own && !r.isEmpty() {
		r.fatal(fmt.Errorf(givenUpAdvice, r.cfg.ID, own, theirs))
	}
}

func (t *Transport) setGenerations(g generations) {
	t.receiverMu.Lock()
	defer t.receiverMu.Unlock()
	t.generations = g
}

// admit asks generations, if there are any to be kept apart.
func (t *Transport) admit(term uint64, from *storagepb.RPCHeader) error {
	if g := t.keeper(); g != nil {
		return g.admit(term, headerFromProto(from))
	}
	return nil
}

// noteRefused returns err.
func (t *Transport) noteRefused(err error) error {
	if g := t.keeper(); err != nil && g != nil {
		g.refused(err)
	}
	return err
}

func (t *Transport) keeper() generations {
	t.receiverMu.RLock()
	defer t.receiverMu.RUnlock()
	return t.generations
}
