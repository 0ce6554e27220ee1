package client

import (
	"bytes"
	"testing"
	"unsafe"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func wire(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCodecSendsABatchWhereItLies(t *testing.T) {
	batch := bytes.Repeat([]byte{7}, 5000)
	parts, err := newCodec().Marshal(&storagepb.AppendRequest{Batch: batch})
	if err != nil {
		t.Fatal(err)
	}
	if &parts[1].ReadOnlyData()[0] != &batch[0] {
		t.Error("the batch was copied")
	}
	if want := wire(t, &storagepb.AppendRequest{Batch: batch}); !bytes.Equal(parts.Materialize(), want) {
		t.Error("not what protobuf writes")
	}
}

func TestCodecReceivesRecordsAligned(t *testing.T) {
	for _, n := range []int{0, 1, 2, 100, 2000} {
		sent := &storagepb.Records{Data: bytes.Repeat([]byte{9}, n*record.Size), AppliedIndex: 300}
		b := wire(t, sent)
		var got storagepb.Records
		split := mem.BufferSlice{mem.SliceBuffer(b[:1]), mem.SliceBuffer(b[1:])}
		if err := newCodec().Unmarshal(split, &got); err != nil || !proto.Equal(&got, sent) {
			t.Fatalf("%d records: %v", n, err)
		}
		if n > 0 && uintptr(unsafe.Pointer(&got.Data[0]))%recordAlignment != 0 {
			t.Errorf("%d records: not aligned", n)
		}
	}
}

func FuzzUnmarshalRecords(f *testing.F) {
	f.Add(wire(f, &storagepb.Records{Data: make([]byte, 256), AppliedIndex: 1}))
	f.Add([]byte{0x10, 0x01, 0x0a, 0x80})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var own, theirs storagepb.Records
		ownErr := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, &own)
		theirErr := proto.Unmarshal(b, &theirs)
		if theirErr != nil {
			return // ours looks at less of what it does not know
		}
		if ownErr != nil || !bytes.Equal(own.Data, theirs.Data) || own.AppliedIndex != theirs.AppliedIndex {
			t.Errorf("%x: %v, %d bytes %d; protobuf says %d bytes %d", b, ownErr, len(own.Data), own.AppliedIndex, len(theirs.Data), theirs.AppliedIndex)
		}
	})
}
