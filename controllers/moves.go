package controllers

import (
	"slices"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
)

// moveKind is a kind of change of a shard's membership.
type moveKind int

const (
	moveNone    moveKind = iota
	movePromote          // a learner becomes a voter, once it has caught up
	moveLearn            // a member with a pod becomes a learner
	moveRemove           // a member leaves, after the leadership if it has it
	moveEnlist           // a further member is recorded
)

// move is one change of the membership; id is empty for moveNone and moveEnlist.
type move struct {
	kind moveKind
	id   string
}

// nextMove returns the one change of the membership that is due: what was begun is
// ended first, then members that are lost are replaced, then there come more or
// fewer. It is a pure function, which Plan asks as well.
func nextMove(members []v1.MemberStatus, raft *raftView, replicas int32) move {
	for _, m := range members {
		if r := raft.members[m.ID]; r != nil && !r.Voter && stays(&m) {
			return move{movePromote, m.ID}
		}
	}
	for _, m := range members {
		if raft.members[m.ID] == nil && stays(&m) {
			return move{moveLearn, m.ID}
		}
	}
	joined := staying(members)
	for _, m := range members {
		if m.Role != v1.RoleLost || raft.members[m.ID] == nil {
			continue
		}
		// As soon as another has taken its place, or at once where none is to take it.
		if raft.voters() > replicas || joined >= replicas {
			return move{moveRemove, m.ID}
		}
	}
	if joined < replicas {
		return move{kind: moveEnlist}
	}
	if joined > replicas {
		for _, m := range slices.Backward(members) { // the youngest
			if stays(&m) && raft.members[m.ID] != nil {
				return move{moveRemove, m.ID}
			}
		}
	}
	return move{}
}

// stays reports whether a member takes part, or is on its way to.
func stays(m *v1.MemberStatus) bool { return m.Role != v1.RoleLost && m.Role != v1.RoleLeaving }

func staying(members []v1.MemberStatus) (n int32) {
	for i := range members {
		if stays(&members[i]) {
			n++
		}
	}
	return n
}

// enlisted returns the members with a further one.
func enlisted(shard string, members []v1.MemberStatus, next int32) ([]v1.MemberStatus, int32) {
	return append(members, v1.MemberStatus{ID: resource.MemberName(shard, next), Role: v1.RoleJoining}), next + 1
}

// nextRestart returns the member whose pod is to be replaced next: followers first,
// those that lag most before others, the leader last. outdated says whose pod is
// there and not what the spec asks for.
func nextRestart(raft *raftView, outdated func(id string) bool) (id string, ok bool) {
	for _, id := range append(raft.laggingFirst(), raft.leader) {
		if outdated(id) {
			return id, true
		}
	}
	return "", false
}
