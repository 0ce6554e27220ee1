package docs

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
	"github.com/countinghouse/countinghouse/storagenode/stablestore"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
	"github.com/countinghouse/countinghouse/storagenode/store"
	"github.com/countinghouse/countinghouse/storagenode/wal"
)

// refused checks that err says what docs/formats.md says of a later version: it
// names the version and, for a file, the file.
func refused(t *testing.T, err, want error, names ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("a later version was taken")
	}
	if want != nil && !errors.Is(err, want) {
		t.Errorf("got %v, not %v", err, want)
	}
	for _, name := range names {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%q is not in: %v", name, err)
		}
	}
}

// patch writes the file at path anew with one byte at an offset set to 2 and the
// checksum of the bytes before it at crcAt, which counts from the end if it is
// negative; 0: no checksum.
func patch(t *testing.T, path string, at, crcAt int) {
	t.Helper()
	b := file(t, path)
	b[at] = 2
	if crcAt < 0 {
		crcAt += len(b)
	}
	if crcAt > 0 {
		binary.LittleEndian.PutUint32(b[crcAt:], crc32.Checksum(b[:crcAt], record.Castagnoli))
	}
	write(t, path, b)
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// copied returns a copy of a golden directory.
func copied(t *testing.T, path string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, path))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLaterRecordAndBatch(t *testing.T) {
	var r record.Record
	copy(r.Bytes(), dump(t, "record/testdata/OrderInsert.golden"))
	r.Version = 2
	refused(t, r.Check(), record.ErrVersion, "version 2", "version 1")
	b := dump(t, "record/testdata/batch.golden")
	b[4] = 2
	_, err := record.ParseBatch(b)
	refused(t, err, record.ErrVersion, "version 2", "version 1")
}

func TestLaterOutbox(t *testing.T) {
	for name, c := range map[string]struct {
		file  string
		at    []int
		crcAt int
	}{
		"control": {"control", []int{8, 512 + 8}, 0}, // the version is looked at before the checksum
		"segment": {"segment-00000000000000000000", []int{8}, 32},
		"cursor":  {"cursor-a", []int{8}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "outbox")
			writeOutbox(t, dir)
			for _, at := range c.at {
				patch(t, filepath.Join(dir, c.file), at, c.crcAt)
			}
			_, err := outbox.Open(dir, outboxOptions())
			refused(t, err, outbox.ErrVersion, c.file, "version 2", "version 1")
		})
	}
}

func TestLaterStateFile(t *testing.T) {
	box := filepath.Join(t.TempDir(), "outbox")
	write(t, box+".state", []byte(`{"format":2,"cluster":"demo"}`))
	_, err := exchange.Open(t.Context(), exchangeConfig(t, box))
	refused(t, err, nil, box+".state", "format 2", "reads 1")
}

func TestLaterLog(t *testing.T) {
	dir := copied(t, "storagenode/wal/testdata/v1")
	names, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(names) == 0 {
		t.Fatal("no golden log")
	}
	for _, name := range names {
		b := file(t, name)
		b[8] = 2
		binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], record.Castagnoli))
		write(t, name, b)
	}
	_, err = wal.Open(vfs.Default, dir, wal.Options{SegmentBytes: 8 << 10})
	refused(t, err, wal.ErrVersion, ".wal", "version 2", "version 1")
}

func TestLaterVote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stable.db")
	s, err := stablestore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SetUint64([]byte("LastVoteTerm"), 7), s.Set([]byte("LastVoteCand"), []byte("m0")), s.Close()); err != nil {
		t.Fatal(err)
	}
	changeVote(t, path, func(vote []byte) []byte {
		later := slices.Clone(vote[:len(vote)-4])
		later[8] = 2
		return binary.LittleEndian.AppendUint32(later, crc32.Checksum(later, record.Castagnoli))
	})
	_, err = stablestore.Open(path)
	refused(t, err, stablestore.ErrCorrupt, "version 2", "version 1")
}

func TestLaterTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "later.sst")
	b := golden(t, "storagenode/sstable/testdata/table-v1.sst")
	foot := b[len(b)-sstable.FooterSize:]
	foot[8] = 2
	binary.LittleEndian.PutUint32(foot[252:], crc32.Checksum(foot[:252], record.Castagnoli))
	write(t, path, b)
	_, err := sstable.Open(vfs.Default, path)
	refused(t, err, record.ErrVersion, path, "version 2", "version 1")
}

func TestLaterStore(t *testing.T) {
	for _, name := range []string{"SHARD", "instruments/IF2501/MANIFEST"} {
		dir := copied(t, "storagenode/store/testdata/shard-v1")
		patch(t, filepath.Join(dir, name), 8, -4)
		_, err := store.Open(vfs.Default, dir, store.Options{})
		refused(t, err, record.ErrVersion, name, "version 2", "version 1")
	}
}

func TestLaterListing(t *testing.T) {
	dir := t.TempDir()
	body := []byte("countinghouse snapshot 2\nindex 4\n")
	path := filepath.Join(dir, store.ListingName)
	write(t, path, body)
	_, err := store.ReadListing(vfs.Default, dir)
	refused(t, err, record.ErrVersion, path, "snapshot 2")
}

func TestLaterIdentityAndMeta(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s1-0")
	r, err := oneNode(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	awaitLead(t, r)
	if _, err := r.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	metas, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "META"))
	if err != nil || len(metas) != 1 {
		t.Fatalf("META files: %q, %v", metas, err)
	}
	later := func(path, from, to string) (restore func()) {
		good := file(t, path)
		bad := bytes.Replace(good, []byte(from), []byte(to), 1)
		if sealed, _, ok := bytes.Cut(bad, []byte("\ncrc32c ")); ok {
			bad = fmt.Appendf(sealed, "\ncrc32c %08x\n", crc32.Checksum(sealed, record.Castagnoli))
		}
		if bytes.Equal(good, bad) {
			t.Fatalf("%s has no %s:\n%s", path, from, good)
		}
		write(t, path, bad)
		return func() { write(t, path, good) }
	}
	restore := later(metas[0], `"version": 1`, `"version": 2`)
	_, err = oneNode(t, dir)
	refused(t, err, record.ErrVersion, metas[0], "version 2", "version 1")
	restore()
	identity := filepath.Join(dir, "IDENTITY")
	later(identity, `"format": 1`, `"format": 2`)
	_, err = oneNode(t, dir)
	refused(t, err, replica.ErrFormat, identity, "2", "this build knows 1")
}

// awaitLead returns once the node leads and its instruments can be written.
func awaitLead(t *testing.T, r *replica.Replica) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-ticker.C {
		_, err := r.OpenStream(t.Context(), record.MustSymbol("IF2501"), 1)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestLaterSnapshotStream(t *testing.T) {
	r, err := oneNode(t, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	header, err := json.Marshal(map[string]any{"version": 2, "cluster": "demo", "shard": "s1", "id": "1-9-1"})
	if err != nil {
		t.Fatal(err)
	}
	stream := binary.LittleEndian.AppendUint32([]byte("CHSNAP1\n"), uint32(len(header)))
	stream = append(stream, header...)
	conn, err := grpc.NewClient(string(r.Transport().LocalAddr()), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call, err := storagepb.NewRaftTransportClient(conn).InstallSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*storagepb.InstallSnapshotRequest{
		{Snapshot: &storagepb.InstallSnapshotHeader{Term: 1 << 20, LastLogIndex: 1 << 20, LastLogTerm: 1 << 20, Size: int64(len(stream))}},
		{Data: stream},
	} {
		_ = call.Send(m) // an error is what Recv says
	}
	_, err = call.Recv()
	refused(t, err, nil, "version 2", "version 1")
}
