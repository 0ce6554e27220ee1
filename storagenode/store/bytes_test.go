package store

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// smallShard writes a closed shard of one instrument with two tables.
func smallShard(t testing.TB, fs vfs.FS) {
	t.Helper()
	s := opened(t, fs, "shard", smallOptions(t))
	for i := range uint64(2) {
		mustAppend(t, s, 3+i, 1+3*i, 3)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, s)
}

// Every byte of every file, flipped: Verify names the file, and a reader gets
// what was written or an error that names the file, never a changed record.
func TestEveryFlippedByteIsNoticed(t *testing.T) {
	fs := vfs.NewMem()
	smallShard(t, fs)
	for _, path := range []string{
		"shard/SHARD", "shard/instruments/IF2501/MANIFEST",
		"shard/instruments/IF2501/" + tableName(1, 3), "shard/instruments/IF2501/" + tableName(4, 6),
	} {
		good, err := readFile(fs, path, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for i := range good {
			bad := slices.Clone(good)
			bad[i] ^= byte(1 + i%255)
			if err := writeSynced(fs, path, bad); err != nil {
				t.Fatal(err)
			}
			named := false
			if _, err := Verify(fs, "shard", func(f Finding) { named = named || f.File == path }); err != nil || !named {
				t.Fatalf("%s, byte %d: Verify: %v, named %t", path, i, err, named)
			}
			checkFlipped(t, fs, path, i)
		}
		if err := writeSynced(fs, path, good); err != nil {
			t.Fatal(err)
		}
	}
	if sum, err := Verify(fs, "shard", func(f Finding) { t.Errorf("%+v", f) }); err != nil || sum != (Summary{Files: 4, Records: 6, Bytes: 6 * record.Size, Index: 4}) {
		t.Errorf("summary %+v, %v", sum, err)
	}
}

func checkFlipped(t *testing.T, fs vfs.FS, path string, i int) {
	t.Helper()
	note := func(err error) {
		t.Helper()
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, record.ErrVersion) || !strings.Contains(err.Error(), path) {
			t.Fatalf("%s, byte %d: %v", path, i, err)
		}
	}
	s, err := Open(fs, "shard", smallOptions(t))
	if err != nil {
		note(err)
		return
	}
	defer mustClose(t, s)
	it, err := s.Scan(sym, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	seq := uint64(0)
	for r := range it.All() {
		if seq++; *r != makeRecord(sym, seq) {
			t.Fatalf("%s, byte %d: a changed record was served", path, i)
		}
	}
	if it.Err() != nil {
		note(it.Err())
	} else if seq != 6 {
		t.Fatalf("%s, byte %d: a scan ended at seq %d without an error", path, i, seq)
	}
	found := 0
	err = s.Get(context.Background(), GetQuery{ID: record.ID{Kind: record.OrderID, Value: 2}}, func(rs []record.Record) error {
		found += len(rs)
		return nil
	})
	if err != nil {
		note(err)
	} else if want := countOrder(2, 6); found != want {
		t.Fatalf("%s, byte %d: %d records of the order, want %d", path, i, found, want)
	}
}

func countOrder(order, last uint64) (n int) {
	for seq := uint64(1); seq <= last; seq++ {
		r := makeRecord(sym, seq)
		if r.HasID(record.ID{Kind: record.OrderID, Value: order}) {
			n++
		}
	}
	return n
}

// What a live Verify finds in memory and on disk.
func TestVerifyLive(t *testing.T) {
	fs := vfs.NewMem()
	s := opened(t, fs, "shard", smallOptions(t))
	defer mustClose(t, s)
	mustAppend(t, s, 3, 1, 10)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	b := makeBatch(t, sym, 5, 11, 10)
	if _, err := s.Append(4, b); err != nil {
		t.Fatal(err)
	}
	progress := 0
	sum, err := s.Verify(context.Background(), func(f Finding) { t.Errorf("%+v", f) }, func(Summary) { progress++ })
	if err != nil || sum.Records != 20 || sum.Files != 2 || progress != 2 {
		t.Errorf("%+v, %v, progress told %d times", sum, err, progress)
	}
	b.Records[3].Body[0]++ // what a caller must never do, and bad memory may
	var found []Finding
	if _, err := s.Verify(context.Background(), func(f Finding) { found = append(found, f) }, nil); err != nil || len(found) != 1 || !strings.Contains(found[0].What, "in memory") {
		t.Errorf("%+v, %v", found, err)
	}
	fatal := make(chan error, 1)
	s.opts.OnFatal = func(err error) { fatal <- err }
	if err := s.Flush(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a record that changed in memory was flushed: %v", err)
	}
	if err := <-fatal; !strings.Contains(err.Error(), "changed in memory") {
		t.Errorf("OnFatal was told %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Verify(ctx, func(Finding) {}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s differs: the format of stored files would change\ngot:\n%s", path, got)
	}
}

func sampleManifest() *manifest {
	last := makeRecord(sym, 9)
	return &manifest{
		instrument: sym, index: 1, epoch: 2, lastSeq: 9, lastGlobal: last.Global, firstTime: 3, lastTime: last.Time, chain: 6, lastRecord: &last,
		tables: []tableMeta{{first: 1, last: 4, size: 7, minTime: -8, maxTime: 9, crc: 10, chain: 11}, {first: 5, last: 9, size: 12, minTime: 13, maxTime: 14, crc: 15, chain: 6}},
	}
}

func sampleShard() *shardState {
	return &shardState{ownedIndex: 1, covered: 2, entries: []shardEntry{{symbols[1], 3, 4}, {symbols[0], 5, 6}}}
}

func sampleListing() *Listing {
	return &Listing{Index: 7, Files: []ListedFile{{"SHARD", 8, 9}, {"instruments/IF2501/MANIFEST", 10, 0xfedcba98}}}
}

func TestGoldenFiles(t *testing.T) {
	golden(t, "manifest-v1.golden", []byte(hex.Dump(sampleManifest().encode())))
	golden(t, "shard-v1.golden", []byte(hex.Dump(sampleShard().encode())))
	golden(t, "snapshot-v1.golden", sampleListing().encode())
	m, err := parseManifest(sampleManifest().encode())
	if err != nil || !reflect.DeepEqual(m, sampleManifest()) {
		t.Errorf("manifest: %+v, %v", m, err)
	}
	s, err := parseShard(sampleShard().encode())
	if err != nil || !reflect.DeepEqual(s, sampleShard()) {
		t.Errorf("shard file: %+v, %v", s, err)
	}
	l, err := parseListing(sampleListing().encode())
	if err != nil || !reflect.DeepEqual(&l, sampleListing()) {
		t.Errorf("listing: %+v, %v", l, err)
	}
}

// A directory that an earlier build of this version wrote must open.
func TestGoldenDirectory(t *testing.T) {
	const archive = "testdata/shard-v1"
	if *rewrite {
		fs := vfs.NewMem()
		smallShard(t, fs)
		for _, path := range []string{"SHARD", "instruments/IF2501/MANIFEST", "instruments/IF2501/" + tableName(1, 3), "instruments/IF2501/" + tableName(4, 6)} {
			b, err := readFile(fs, "shard/"+path, 1<<20)
			if err == nil {
				err = os.MkdirAll(filepath.Dir(filepath.Join(archive, path)), 0o755)
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(archive, path), b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(archive)); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, vfs.Default, dir, smallOptions(t))
	defer mustClose(t, s)
	model{sym: {epoch: 5, lastSeq: 6}}.compare(t, s, "golden directory")
	if s.DurableIndex() != 4 {
		t.Errorf("durable index %d", s.DurableIndex())
	}
}

func TestEveryFlippedByteOfAListingIsNoticed(t *testing.T) {
	good := sampleListing().encode()
	for i := range good {
		for bit := range 8 {
			bad := slices.Clone(good)
			bad[i] ^= 1 << bit
			if _, err := parseListing(bad); !errors.Is(err, ErrCorrupt) && !errors.Is(err, record.ErrVersion) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
	for n := range good {
		if _, err := parseListing(good[:n]); !errors.Is(err, ErrCorrupt) && !errors.Is(err, record.ErrVersion) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
	}
	for _, path := range []string{"../x", "/etc/passwd", "a/../../b", "a//b", "", ".", `a\b`} {
		l := Listing{Files: []ListedFile{{path, 1, 1}}}
		if _, err := parseListing(l.encode()); err == nil {
			t.Errorf("path %q was accepted", path)
		}
	}
}

// sealed returns b with a right checksum at its end, so that fuzzing reaches
// what is behind the checksum.
func sealed(b []byte) []byte {
	if len(b) < 4 {
		return b
	}
	return appendCRC(slices.Clone(b[:len(b)-4]))
}

func FuzzManifest(f *testing.F) {
	f.Add(sampleManifest().encode())
	f.Add((&manifest{instrument: sym, index: 3, epoch: 1}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseManifest(b)
		m, err := parseManifest(sealed(b))
		if err != nil {
			return
		}
		again, err := parseManifest(m.encode())
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("an accepted manifest reads differently when written again: %v", err)
		}
	})
}

func FuzzShardFile(f *testing.F) {
	f.Add(sampleShard().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseShard(b)
		s, err := parseShard(sealed(b))
		if err != nil {
			return
		}
		again, err := parseShard(s.encode())
		if err != nil || !reflect.DeepEqual(s, again) {
			t.Fatalf("an accepted shard file reads differently when written again: %v", err)
		}
	})
}

func FuzzListing(f *testing.F) {
	f.Add(sampleListing().encode(), true)
	f.Add([]byte(listingHead+"\nindex 0\ncrc 00000000\n"), false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if i := strings.LastIndex(string(b), "crc "); seal && i >= 0 {
			sum := crc32.Checksum(b[:i], record.Castagnoli)
			b = append(slices.Clone(b[:i]), []byte("crc "+hex.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})+"\n")...)
		}
		l, err := parseListing(b)
		if err == nil && !slices.Equal(l.encode(), b) {
			t.Fatal("an accepted listing is written differently")
		}
	})
}

// What a read, a merge or Verify has met is remembered, so that the replica can
// leave its place to another.
func TestDamageIsRemembered(t *testing.T) {
	for name, meet := range map[string]func(*Shard){
		"scan": func(s *Shard) {
			it, err := s.Scan(sym, ScanOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for it.Next() {
			}
			it.Close()
		},
		"get": func(s *Shard) {
			_ = s.Get(context.Background(), GetQuery{ID: record.ID{Kind: record.OrderID, Value: 1}}, func([]record.Record) error { return nil })
		},
		"verify": func(s *Shard) { _, _ = s.Verify(context.Background(), func(Finding) {}, nil) },
		"merge": func(s *Shard) {
			in := s.owned.Load().bySymbol[sym]
			if _, err := s.mergeTables(in, in.view.Load().tables); err == nil {
				t.Error("merged")
			} else {
				s.gaveUp(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := opened(t, fs, "shard", smallOptions(t))
			defer mustClose(t, s)
			mustAppend(t, s, 3, 1, 10)
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			path := s.owned.Load().bySymbol[sym].view.Load().tables[0].path
			b, err := readFile(fs, path, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for i := range b {
				b[i] ^= 1
			}
			if err := writeSynced(fs, path, b); err != nil {
				t.Fatal(err)
			}
			if err := s.Damage(); err != nil {
				t.Fatalf("before: %v", err)
			}
			meet(s)
			if err := s.Damage(); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
				t.Errorf("after: %v", err)
			}
		})
	}
}
