package replica

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func headerToProto(h raft.RPCHeader) *storagepb.RPCHeader {
	return &storagepb.RPCHeader{ProtocolVersion: int64(h.ProtocolVersion), Id: h.ID, Addr: h.Addr}
}

func headerFromProto(h *storagepb.RPCHeader) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(h.GetProtocolVersion()), ID: h.GetId(), Addr: h.GetAddr()}
}

func entriesToProto(entries []*raft.Log) []*storagepb.LogEntry {
	slab := make([]storagepb.LogEntry, len(entries))
	out := make([]*storagepb.LogEntry, len(entries))
	for i, e := range entries {
		p := &slab[i]
		p.Index, p.Term, p.Type = e.Index, e.Term, uint32(e.Type)
		p.Data, p.Extensions = e.Data, e.Extensions
		if !e.AppendedAt.IsZero() {
			p.AppendedAtUnixNanos = e.AppendedAt.UnixNano()
		}
		out[i] = p
	}
	return out
}

// entriesFromProto returns entries that share the memory of in. Unmarshalling
// allocated it for this message alone, so nothing ever overwrites it.
func entriesFromProto(in []*storagepb.LogEntry) []*raft.Log {
	slab := make([]raft.Log, len(in))
	out := make([]*raft.Log, len(in))
	for i, p := range in {
		e := &slab[i]
		e.Index, e.Term, e.Type = p.Index, p.Term, raft.LogType(p.Type)
		e.Data, e.Extensions = p.Data, p.Extensions
		if p.AppendedAtUnixNanos != 0 {
			e.AppendedAt = time.Unix(0, p.AppendedAtUnixNanos)
		}
		out[i] = e
	}
	return out
}

// appendFromProto returns the request for the local Raft instance.
//
// A follower of the library commits up to min(leader's commit index, its own
// last index). Its own last entries may be ones that the leader never had, so
// the bound must be what this request vouches for: the entry it follows and the
// entries it carries.
func appendFromProto(m *storagepb.AppendEntriesRequest) *raft.AppendEntriesRequest {
	vouched := m.PrevLogEntry + uint64(len(m.Entries))
	header := headerFromProto(m.Header)
	return &raft.AppendEntriesRequest{
		RPCHeader:         header,
		Term:              m.Term,
		Leader:            header.Addr,
		PrevLogEntry:      m.PrevLogEntry,
		PrevLogTerm:       m.PrevLogTerm,
		LeaderCommitIndex: min(m.LeaderCommitIndex, vouched),
		Entries:           entriesFromProto(m.Entries),
	}
}

// splitAppend returns the messages for a request, with the given commit index: as few as hold at most
// bytesMax of entries each, and at least one entry. Each message is a whole
// request that follows the one before it, so that a receiver which gets only
// some of them has accepted a prefix.
func splitAppend(args *raft.AppendEntriesRequest, commit uint64, bytesMax int) []*storagepb.AppendEntriesRequest {
	message := func(prevIndex, prevTerm uint64, entries []*raft.Log) *storagepb.AppendEntriesRequest {
		return &storagepb.AppendEntriesRequest{
			Header: headerToProto(args.RPCHeader), Term: args.Term,
			PrevLogEntry: prevIndex, PrevLogTerm: prevTerm,
			LeaderCommitIndex: commit, Entries: entriesToProto(entries),
		}
	}
	var out []*storagepb.AppendEntriesRequest
	prevIndex, prevTerm, rest := args.PrevLogEntry, args.PrevLogTerm, args.Entries
	for len(rest) > 0 {
		n := prefixWithin(rest, bytesMax)
		out = append(out, message(prevIndex, prevTerm, rest[:n]))
		prevIndex, prevTerm, rest = rest[n-1].Index, rest[n-1].Term, rest[n:]
	}
	if out == nil {
		out = append(out, message(prevIndex, prevTerm, nil))
	}
	return out
}

func prefixWithin(entries []*raft.Log, bytesMax int) int {
	size := 0
	for i, e := range entries {
		size += len(e.Data) + len(e.Extensions) + entryOverheadBytes
		if size > bytesMax && i > 0 {
			return i
		}
	}
	return len(entries)
}

// isHeartbeat recognises the messages that the library sends as heartbeats.
func isHeartbeat(a *raft.AppendEntriesRequest) bool {
	return a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && a.LeaderCommitIndex == 0 && len(a.Entries) == 0
}

func responseFromProto(m *storagepb.AppendEntriesResponse, resp *raft.AppendEntriesResponse) {
	resp.RPCHeader = headerFromProto(m.Header)
	resp.Term, resp.LastLog = m.Term, m.LastLog
	resp.Success, resp.NoRetryBackoff = m.Success, m.NoRetryBackoff
}
