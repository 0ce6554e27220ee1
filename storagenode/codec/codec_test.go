package codec

import (
	"bytes"
	"strings"
	"testing"
	"unsafe"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

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

// pieces cuts b into pieces of n bytes, as a message comes in frames.
func pieces(b []byte, n int) (out mem.BufferSlice) {
	for len(b) > 0 {
		k := min(n, len(b))
		out = append(out, mem.SliceBuffer(b[:k]))
		b = b[k:]
	}
	return out
}

// requests are messages of all shapes that occur.
func requests() map[string]*storagepb.AppendEntriesRequest {
	header := &storagepb.RPCHeader{ProtocolVersion: 3, Id: []byte("m1"), Addr: []byte("127.0.0.1:7100")}
	entry := func(i uint64, size int) *storagepb.LogEntry {
		return &storagepb.LogEntry{
			Index: i, Term: 1 << 40, Type: uint32(i % 3), Data: bytes.Repeat([]byte{byte(i)}, size),
			Extensions: []byte{1, byte(i)}, AppendedAtUnixNanos: 1_700_000_000_000_000_000 + int64(i),
		}
	}
	return map[string]*storagepb.AppendEntriesRequest{
		"empty":     {},
		"heartbeat": {Header: header, Term: 7},
		"bare":      {Header: header, Entries: []*storagepb.LogEntry{{}, {Index: 1}, {AppendedAtUnixNanos: -5}}},
		"small":     {Header: header, Term: 7, PrevLogEntry: 300, PrevLogTerm: 6, LeaderCommitIndex: 299, Entries: []*storagepb.LogEntry{entry(301, 1), entry(302, 7), entry(303, 8), entry(304, 500)}},
		"large":     {Header: header, Term: 7, Entries: []*storagepb.LogEntry{entry(1, 128_000), entry(2, copyBytesMax), entry(3, copyBytesMax+1), entry(4, 0)}},
	}
}

func TestABatchIsSentWhereItLies(t *testing.T) {
	batch := bytes.Repeat([]byte{7}, 5000)
	parts, err := New().Marshal(&storagepb.AppendRequest{Batch: batch})
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

func TestEntriesAreWrittenAsProtobufWritesThem(t *testing.T) {
	for name, m := range requests() {
		parts, err := New().Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := parts.Materialize(), wire(t, m); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes %x, protobuf writes %d bytes %x", name, len(got), got[:min(80, len(got))], len(want), want[:min(80, len(want))])
		}
	}
	large := requests()["large"].Entries[0]
	parts, _ := New().Marshal(&storagepb.AppendEntriesRequest{Entries: []*storagepb.LogEntry{large}})
	if &parts[1].ReadOnlyData()[0] != &large.Data[0] {
		t.Error("the data of a large entry was copied")
	}
}

func TestEntriesAreReadFromPiecesOfAnySize(t *testing.T) {
	for name, m := range requests() {
		b := wire(t, m)
		for _, size := range []int{1, 2, 3, 7, 16, 1000, 16384, 1 << 20} {
			var got storagepb.AppendEntriesRequest
			if err := New().Unmarshal(pieces(b, size), &got); err != nil || !proto.Equal(&got, m) {
				t.Fatalf("%s in pieces of %d: %v", name, size, err)
			}
			for _, e := range got.Entries {
				checkAligned(t, e.Data)
			}
		}
	}
}

func TestRecordsAreReadFromPiecesOfAnySize(t *testing.T) {
	for _, n := range []int{0, 1, 2, 100, 2000} {
		sent := &storagepb.Records{Data: bytes.Repeat([]byte{9}, n*record.Size), AppliedIndex: 300}
		batch := &storagepb.AppendRequest{Batch: sent.Data}
		for _, size := range []int{1, 100, 16384, 1 << 20} {
			var got storagepb.Records
			if err := New().Unmarshal(pieces(wire(t, sent), size), &got); err != nil || !proto.Equal(&got, sent) {
				t.Fatalf("%d records: %v", n, err)
			}
			var gotBatch storagepb.AppendRequest
			if err := New().Unmarshal(pieces(wire(t, batch), size), &gotBatch); err != nil || !proto.Equal(&gotBatch, batch) {
				t.Fatalf("batch of %d records: %v", n, err)
			}
			checkAligned(t, got.Data)
			checkAligned(t, gotBatch.Batch)
		}
	}
}

func checkAligned(t *testing.T, b []byte) {
	t.Helper()
	if len(b) > 0 && uintptr(unsafe.Pointer(&b[0]))%alignment != 0 {
		t.Errorf("%d bytes are not aligned", len(b))
	}
}

// A batch that is kept must not keep the message it came in, nor the batches beside it.
func TestEntriesHaveMemoryOfTheirOwn(t *testing.T) {
	m := requests()["large"]
	b := wire(t, m)
	var got storagepb.AppendEntriesRequest
	if err := New().Unmarshal(pieces(b, 16384), &got); err != nil {
		t.Fatal(err)
	}
	clear(b)
	if !proto.Equal(&got, m) {
		t.Error("entries refer to the message")
	}
	if e := got.Entries[0]; cap(e.Data) != len(e.Data) {
		t.Errorf("%d bytes with room for %d", len(e.Data), cap(e.Data))
	}
}

func TestCutMessagesAreRefused(t *testing.T) {
	b := wire(t, requests()["small"])
	whole := map[int]bool{0: true} // where a top-level field ends, a shorter message is one, too
	for n := range b {
		if proto.Unmarshal(b[:n], &storagepb.AppendEntriesRequest{}) == nil {
			whole[n] = true
		}
	}
	for n := range b {
		var got storagepb.AppendEntriesRequest
		if err := New().Unmarshal(pieces(b[:n], 5), &got); (err == nil) != whole[n] {
			t.Errorf("%d of %d bytes: %v", n, len(b), err)
		}
	}
}

// compare reads the same bytes with the codec and with protobuf. Where protobuf
// refuses, the codec need not: it looks at less of what it does not know. Groups, which
// only the codec refuses, are left out.
func compare(t *testing.T, b []byte, size uint8, own, theirs proto.Message) {
	t.Helper()
	ownErr := New().Unmarshal(pieces(b, int(size)+1), own)
	if proto.Unmarshal(b, theirs) != nil || ownErr != nil && strings.Contains(ownErr.Error(), "wire type") {
		return
	}
	if ownErr != nil {
		t.Fatalf("%x: %v", b, ownErr)
	}
	for _, m := range []proto.Message{own, theirs} {
		dropUnknown(m.ProtoReflect())
	}
	if !proto.Equal(own, theirs) {
		t.Errorf("%x:\n%v\nprotobuf says\n%v", b, own, theirs)
	}
}

func dropUnknown(m protoreflect.Message) {
	m.SetUnknown(nil)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				dropUnknown(v.List().Get(i).Message())
			}
		case f.Message() != nil:
			dropUnknown(v.Message())
		}
		return true
	})
}

func FuzzUnmarshal(f *testing.F) {
	for _, m := range requests() {
		f.Add(wire(f, m)[:min(2000, proto.Size(m))], uint8(16))
	}
	f.Add(wire(f, &storagepb.Records{Data: make([]byte, 256), AppliedIndex: 1}), uint8(3))
	f.Add([]byte{0x10, 0x01, 0x0a, 0x80}, uint8(0))
	f.Add([]byte{}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		compare(t, b, size, &storagepb.AppendEntriesRequest{}, &storagepb.AppendEntriesRequest{})
		compare(t, b, size, &storagepb.AppendRequest{}, &storagepb.AppendRequest{})
		compare(t, b, size, &storagepb.Records{}, &storagepb.Records{})
	})
}
