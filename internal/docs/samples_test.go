package docs

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
	"github.com/countinghouse/countinghouse/storagenode/stablestore"
)

// The golden files, and what the code writes, have the constants and checksums
// that the tables state.
func TestSamplesAreAsDescribed(t *testing.T) {
	box := filepath.Join(t.TempDir(), "outbox")
	writeOutbox(t, box)
	table := golden(t, "storagenode/sstable/testdata/table-v1.sst")
	samples := map[string][]byte{
		"Header, 48 bytes":          dump(t, "record/testdata/OrderInsert.golden"),
		"Batch header, 64 bytes":    dump(t, "record/testdata/batch.golden"),
		"Control file":              file(t, filepath.Join(box, "control")),
		"Outbox header, 256 bytes":  file(t, filepath.Join(box, "control"))[:256],
		"Segment":                   file(t, filepath.Join(box, "segment-00000000000000000000")),
		"Cursor":                    file(t, filepath.Join(box, "cursor-a")),
		"Term and vote, 40 bytes":   writeVote(t),
		"Segment header, 128 bytes": golden(t, "storagenode/wal/testdata/v1/0000000000000001.wal"),
		"SHARD file":                golden(t, "storagenode/store/testdata/shard-v1/SHARD"),
		"MANIFEST":                  golden(t, "storagenode/store/testdata/shard-v1/instruments/IF2501/MANIFEST"),
		"Footer, 256 bytes":         table[len(table)-sstable.FooterSize:],
	}
	met := map[string]bool{}
	for _, table := range byteTables(t) {
		for heading, b := range samples {
			if strings.HasPrefix(table.heading, heading) && (len(heading) > 10 || table.heading == heading) {
				met[heading] = true
				checkSample(t, table, b)
			}
		}
	}
	for heading := range samples {
		if !met[heading] {
			t.Errorf("%s: no table under %q", formats, heading)
		}
	}
}

func golden(t *testing.T, path string) []byte {
	t.Helper()
	return file(t, filepath.Join(root, path))
}

func file(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var dumpLine = regexp.MustCompile(`(?m)^[0-9a-f]{8}  ((?:[0-9a-f]{2} +){1,16})\|`)

// dump returns the bytes that a golden file of package record shows.
func dump(t *testing.T, path string) []byte {
	t.Helper()
	var out []byte
	for _, m := range dumpLine.FindAllStringSubmatch(string(golden(t, path)), -1) {
		b, err := hex.DecodeString(strings.ReplaceAll(m[1], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

// writeOutbox leaves an outbox with three records and the cursor "a".
func writeOutbox(t *testing.T, dir string) {
	t.Helper()
	w, err := outbox.Open(dir, outboxOptions())
	if err != nil {
		t.Fatal(err)
	}
	if !w.Reserve(3) {
		t.Fatal("no room in the outbox")
	}
	for i := range 3 {
		r := w.Next()
		r.Version, r.Type, r.Seq, r.Instrument = record.Version, record.TypeDeposit, uint64(i+1), record.MustSymbol(record.AccountStream)
	}
	w.Commit()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func outboxOptions() outbox.Options {
	return outbox.Options{Cluster: "demo", SegmentRecords: 64, Cursors: []string{"a"}}
}

const voteKey = "countinghouse.State"

// writeVote returns a vote as it is stored.
func writeVote(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stable.db")
	s, err := stablestore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetUint64([]byte("LastVoteTerm"), 7); err != nil {
		t.Fatal(err)
	}
	if err := s.Set([]byte("LastVoteCand"), []byte("127.0.0.1:7001")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return changeVote(t, path, nil)
}

// changeVote returns the vote stored at path, and puts another in its place.
func changeVote(t *testing.T, path string, change func([]byte) []byte) (vote []byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("conf"))
		vote = append(vote, b.Get([]byte(voteKey))...)
		if change == nil {
			return nil
		}
		return b.Put([]byte(voteKey), change(vote))
	})
	if err != nil {
		t.Fatal(err)
	}
	return vote
}

var (
	magicField    = regexp.MustCompile("^magic `([^`]+)`$")
	constantField = regexp.MustCompile(`^[a-z ]+, (\d+)$`)
	zeroField     = regexp.MustCompile(`^zero$`)
	rangeField    = regexp.MustCompile(`^CRC32C of bytes (\d+)–(\d+)(?:, (\d+)–(\d+) and the records)?$`)
)

// checkSample compares the rows of a table that state a constant, a checksum or
// zeroes with the bytes.
func checkSample(t *testing.T, table *byteTable, b []byte) {
	t.Helper()
	checked := 0
	for _, r := range table.rows {
		at, err := strconv.Atoi(r.offset)
		size, errSize := strconv.Atoi(r.size)
		if strings.HasPrefix(r.text, "CRC32C of all bytes before") || strings.HasPrefix(r.text, "CRC32C of the bytes before") {
			at, err, size, errSize = len(b)-4, nil, 4, nil
			r.text = "CRC32C of bytes 0–" + strconv.Itoa(at-1)
		}
		if err != nil || errSize != nil {
			continue
		}
		got, want := b[at:at+size], expected(b, r.text, size)
		if want == nil {
			continue
		}
		checked++
		if string(got) != string(want) {
			t.Errorf("%s:%d: %s: at %d is %x, the page says %x", formats, r.number, r.text, at, got, want)
		}
	}
	if checked == 0 {
		t.Errorf("%s:%d: nothing in the table could be checked", formats, table.line.number)
	}
}

// expected returns what a row's text says that its bytes are, nil if it does not.
func expected(b []byte, text string, size int) []byte {
	if m := magicField.FindStringSubmatch(text); m != nil {
		return []byte(m[1])
	}
	if zeroField.MatchString(text) {
		return make([]byte, size)
	}
	if m := constantField.FindStringSubmatch(text); m != nil {
		n, _ := strconv.ParseUint(m[1], 10, 64)
		return binary.LittleEndian.AppendUint64(nil, n)[:size]
	}
	m := rangeField.FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	bound := func(s string) int {
		n, _ := strconv.Atoi(s)
		return n
	}
	crc := crc32.Checksum(b[bound(m[1]):bound(m[2])+1], record.Castagnoli)
	if m[3] != "" {
		crc = crc32.Update(crc, record.Castagnoli, b[bound(m[3]):])
	}
	return binary.LittleEndian.AppendUint32(nil, crc)
}
