// Package codec is the wire form of the messages that carry records. It is that of
// protobuf, written from where the records lie and read to where they stay: one
// copy on the way in, aligned, none on the way out. All other messages go through
// grpc-go's own codec.
package codec

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that is wrapped
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Codec implements encoding.CodecV2. It is safe for concurrent use.
//
// What is sent must not change until the call, or the stream, is over. What is
// received is memory of its own, for each batch and each log entry alone, so that
// one that is kept keeps no other. It begins at a multiple of 8, so that record.View
// does not copy it.
type Codec struct{ encoding.CodecV2 }

// New returns a codec.
func New() Codec { return Codec{encoding.GetCodecV2("proto")} }

const (
	batchField   protowire.Number = 1 // of AppendRequest
	dataField    protowire.Number = 1 // of Records
	appliedField protowire.Number = 2 // of Records
)

// Marshal implements encoding.CodecV2.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *storagepb.AppendRequest:
		head := protowire.AppendTag(make([]byte, 0, 8), batchField, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(len(m.Batch)))
		return mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(m.Batch)}, nil
	case *storagepb.AppendEntriesRequest:
		return marshalEntries(m), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *storagepb.AppendRequest:
		return unmarshalBatch(data, m)
	case *storagepb.AppendEntriesRequest:
		return unmarshalEntries(data, m)
	case *storagepb.Records:
		return unmarshalRecords(data, m)
	}
	return c.CodecV2.Unmarshal(data, v)
}

func unmarshalBatch(data mem.BufferSlice, m *storagepb.AppendRequest) error {
	r := newReader(data)
	for r.left > 0 {
		num, typ := r.tag()
		if num == batchField && typ == protowire.BytesType {
			m.Batch = r.bytes()
		} else {
			r.skip(typ)
		}
	}
	return r.result("append request")
}

func unmarshalRecords(data mem.BufferSlice, m *storagepb.Records) error {
	r := newReader(data)
	for r.left > 0 {
		switch num, typ := r.tag(); {
		case num == dataField && typ == protowire.BytesType:
			m.Data = r.bytes()
		case num == appliedField && typ == protowire.VarintType:
			m.AppliedIndex = r.varint()
		default:
			r.skip(typ)
		}
	}
	return r.result("records")
}

// alignment is what record.View needs to do without a copy. It is that of every
// allocation of 8 bytes or more.
const alignment = 8

var _ = [1]struct{}{}[record.Size%alignment]
