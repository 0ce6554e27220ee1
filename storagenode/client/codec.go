package client

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that is wrapped
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// codec is grpc-go's protobuf codec, but for the two messages that carry
// records: a batch is sent from where it lies, and records are received where
// they stay, aligned, so that record.View does not copy them.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

const (
	batchField   protowire.Number = 1 // of AppendRequest
	dataField    protowire.Number = 1 // of Records
	appliedField protowire.Number = 2 // of Records
)

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*storagepb.AppendRequest)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	head := protowire.AppendTag(make([]byte, 0, 8), batchField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(m.Batch)))
	return mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(m.Batch)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*storagepb.Records)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	return unmarshalRecords(data, m)
}

// recordAlignment is what record.View needs to do without a copy.
const recordAlignment = 8

func unmarshalRecords(data mem.BufferSlice, m *storagepb.Records) error {
	n := data.Len()
	pad := 0
	if n >= record.Size {
		// The data field comes first, behind a tag of one byte and its length.
		pad = (2*recordAlignment - 1 - protowire.SizeVarint(lengthIn(data))) % recordAlignment
	}
	b := make([]byte, pad+n)[pad:]
	data.CopyTo(b)
	for len(b) > 0 {
		num, typ, used := protowire.ConsumeTag(b)
		if used < 0 {
			return fmt.Errorf("records message: %w", protowire.ParseError(used))
		}
		b = b[used:]
		switch {
		case num == dataField && typ == protowire.BytesType:
			m.Data, used = protowire.ConsumeBytes(b)
		case num == appliedField && typ == protowire.VarintType:
			m.AppliedIndex, used = protowire.ConsumeVarint(b)
		default:
			used = protowire.ConsumeFieldValue(num, typ, b)
		}
		if used < 0 {
			return fmt.Errorf("records message: %w", protowire.ParseError(used))
		}
		b = b[used:]
	}
	return nil
}

// lengthIn returns the length that follows the first tag, as far as it can be
// seen; a wrong guess costs a copy later and nothing else.
func lengthIn(data mem.BufferSlice) uint64 {
	var head [11]byte
	n := data.CopyTo(head[:min(len(head), data.Len())])
	v, used := protowire.ConsumeVarint(head[1:max(n, 1)])
	if used < 0 {
		return 0
	}
	return v
}
