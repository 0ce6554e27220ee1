package controllers

import (
	"cmp"
	"slices"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// raftView is the membership as the shard's leader knows it.
type raftView struct {
	leader      string
	index       uint64 // of the membership, for compare-and-set
	pending     bool   // the membership is not committed yet
	members     map[string]*storagepb.Member
	instruments []string
	recovery    string   // token of the leader's last recovery from a lost quorum
	givenUp     []string // ids of the members that it left out
}

func viewOf(st *storagepb.StatusResponse) *raftView {
	v := &raftView{leader: st.Id, index: st.MembershipIndex, pending: st.MembershipPending, members: make(map[string]*storagepb.Member), instruments: st.Instruments, recovery: st.Recovery.GetToken()}
	for _, m := range st.Members {
		v.members[m.Id] = m
	}
	for _, m := range st.Recovery.GetGivenUp() {
		v.givenUp = append(v.givenUp, m.Id)
	}
	slices.Sort(v.instruments)
	return v
}

func (v *raftView) voters() (n int32) {
	for _, m := range v.members {
		if m.Voter {
			n++
		}
	}
	return n
}

// laggingFirst returns the members but the leader, those that lack most of the log
// first.
func (v *raftView) laggingFirst() []string {
	var ids []string
	for id := range v.members {
		if id != v.leader {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int {
		return cmp.Or(cmp.Compare(v.members[b].Lag, v.members[a].Lag), cmp.Compare(a, b))
	})
	return ids
}
