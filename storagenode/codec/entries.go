package codec

import (
	"errors"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Fields of AppendEntriesRequest and of LogEntry.
const (
	entriesField protowire.Number = 6

	indexField      protowire.Number = 1
	termField       protowire.Number = 2
	typeField       protowire.Number = 3
	entryDataField  protowire.Number = 4
	extensionsField protowire.Number = 5
	appendedAtField protowire.Number = 6
)

var errPastEnd = errors.New("a field goes beyond the end of its entry")

// copyBytesMax is the size up to which an entry's data is copied on its way out:
// below it, a piece of its own costs more than the copy.
const copyBytesMax = 1 << 10

// marshalEntries writes everything but the data of larger entries into one buffer,
// and refers to those from between its pieces.
func marshalEntries(m *storagepb.AppendEntriesRequest) mem.BufferSlice {
	head := &storagepb.AppendEntriesRequest{
		Header: m.Header, Term: m.Term, PrevLogEntry: m.PrevLogEntry, PrevLogTerm: m.PrevLogTerm,
		LeaderCommitIndex: m.LeaderCommitIndex,
	}
	w := writer{buf: make([]byte, 0, ownBytes(head, m.Entries))}
	w.buf, _ = proto.MarshalOptions{}.MarshalAppend(w.buf, head) // fails for required fields and bad strings only; it has none
	for _, e := range m.Entries {
		w.entry(e)
	}
	return w.end()
}

// ownBytes returns how much of the message is not referred to, or a little more, so
// that the buffer never moves.
func ownBytes(head *storagepb.AppendEntriesRequest, entries []*storagepb.LogEntry) int {
	n := proto.Size(head)
	for _, e := range entries {
		n += entryHeadBytesMax + len(e.Extensions)
		if len(e.Data) <= copyBytesMax {
			n += len(e.Data)
		}
	}
	return n
}

// entryHeadBytesMax is what an entry takes at most besides its data and extensions:
// seven tags of one byte, and seven numbers.
const entryHeadBytesMax = 7 * (1 + 10)

// writer gathers the pieces of a message.
type writer struct {
	buf  []byte // never moves
	sent int    // of buf, in parts
	out  mem.BufferSlice
}

func (w *writer) number(num protowire.Number, v uint64) {
	if v == 0 {
		return
	}
	w.buf = protowire.AppendTag(w.buf, num, protowire.VarintType)
	w.buf = protowire.AppendVarint(w.buf, v)
}

func (w *writer) entry(e *storagepb.LogEntry) {
	w.buf = protowire.AppendTag(w.buf, entriesField, protowire.BytesType)
	w.buf = protowire.AppendVarint(w.buf, uint64(entrySize(e)))
	w.number(indexField, e.Index)
	w.number(termField, e.Term)
	w.number(typeField, uint64(e.Type))
	if len(e.Data) > 0 {
		w.buf = protowire.AppendTag(w.buf, entryDataField, protowire.BytesType)
		w.buf = protowire.AppendVarint(w.buf, uint64(len(e.Data)))
		w.data(e.Data)
	}
	if len(e.Extensions) > 0 {
		w.buf = protowire.AppendTag(w.buf, extensionsField, protowire.BytesType)
		w.buf = protowire.AppendBytes(w.buf, e.Extensions)
	}
	w.number(appendedAtField, uint64(e.AppendedAtUnixNanos))
}

func (w *writer) data(b []byte) {
	if len(b) <= copyBytesMax {
		w.buf = append(w.buf, b...)
		return
	}
	w.flush()
	w.out = append(w.out, mem.SliceBuffer(b))
}

// flush makes what was written since the last piece a piece.
func (w *writer) flush() {
	if part := w.buf[w.sent:]; len(part) > 0 {
		w.out = append(w.out, mem.SliceBuffer(part))
		w.sent = len(w.buf)
	}
}

func (w *writer) end() mem.BufferSlice {
	w.flush()
	return w.out
}

func entrySize(e *storagepb.LogEntry) int {
	number := func(v uint64) int {
		if v == 0 {
			return 0
		}
		return 1 + protowire.SizeVarint(v)
	}
	n := number(e.Index) + number(e.Term) + number(uint64(e.Type)) + number(uint64(e.AppendedAtUnixNanos))
	if len(e.Data) > 0 {
		n += 1 + protowire.SizeBytes(len(e.Data))
	}
	if len(e.Extensions) > 0 {
		n += 1 + protowire.SizeBytes(len(e.Extensions))
	}
	return n
}

// unmarshalEntries reads the entries itself and leaves the rest, a few bytes, to
// protobuf.
func unmarshalEntries(data mem.BufferSlice, m *storagepb.AppendEntriesRequest) error {
	r := newReader(data)
	var others []byte
	for r.left > 0 {
		num, typ := r.tag()
		if num == entriesField && typ == protowire.BytesType {
			m.Entries = append(m.Entries, r.entry())
		} else {
			others = r.appendField(others, num, typ)
		}
	}
	if err := r.result("append entries"); err != nil {
		return err
	}
	return proto.UnmarshalOptions{Merge: true}.Unmarshal(others, m)
}

// appendField appends a field as it is.
func (r *reader) appendField(to []byte, num protowire.Number, typ protowire.Type) []byte {
	to = protowire.AppendTag(to, num, typ)
	switch typ {
	case protowire.VarintType:
		return protowire.AppendVarint(to, r.varint())
	case protowire.BytesType:
		return protowire.AppendBytes(to, r.bytes())
	}
	r.skip(typ)
	return to[:len(to)-protowire.SizeTag(num)]
}

func (r *reader) entry() *storagepb.LogEntry {
	e := &storagepb.LogEntry{}
	n := r.length()
	end := r.left - n
	for r.left > end && r.err == nil {
		switch num, typ := r.tag(); {
		case typ == protowire.VarintType && num == indexField:
			e.Index = r.varint()
		case typ == protowire.VarintType && num == termField:
			e.Term = r.varint()
		case typ == protowire.VarintType && num == typeField:
			e.Type = uint32(r.varint())
		case typ == protowire.VarintType && num == appendedAtField:
			e.AppendedAtUnixNanos = int64(r.varint())
		case typ == protowire.BytesType && num == entryDataField:
			e.Data = r.bytes()
		case typ == protowire.BytesType && num == extensionsField:
			e.Extensions = r.bytes()
		default:
			r.skip(typ)
		}
	}
	if r.err == nil && r.left != end {
		r.fail(errPastEnd)
	}
	return e
}
