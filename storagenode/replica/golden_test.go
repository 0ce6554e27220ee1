package replica

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

var rewrite = flag.Bool("rewrite", false, "write the golden data directories anew")

// goldenBatches is how many batches of ten records a golden directory holds: in
// tables, in the newest snapshot, and in the log alone.
const goldenBatches = 60

func goldenDir(logStore LogStore) string {
	return filepath.Join("testdata", "datadir-"+string(logStore)+"-v1")
}

// goldenConfig is that of a member that needs nobody else.
func goldenConfig(dir string, logStore LogStore) Config {
	c := Config{
		Cluster: "golden", Shard: "s1", ID: "m0", Address: "127.0.0.1:1", DataDir: dir, LogStore: logStore,
		Peers: []Peer{{"m0", "127.0.0.1:1"}}, Instruments: []record.Symbol{record.MustSymbol("A")},
		HeartbeatTimeout: 50 * time.Millisecond, LeaderLease: 50 * time.Millisecond,
		SnapshotInterval: time.Hour, TrailingEntries: 4, DiskReserveBytes: -1, BallastBytes: -1,
	}
	c.WAL.SegmentBytes = 16 << 10
	c.Store.MemtableBytesMax, c.Store.TableBytesMax = 8<<10, 32<<10
	return c
}

func writeGolden(t *testing.T, logStore LogStore) {
	t.Helper()
	dir := goldenDir(logStore)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	r := reopen(t, goldenConfig(dir, logStore))
	awaitOwner(t, r)
	for epoch := range uint64(3) {
		fill(t, r, epoch+1, goldenBatches/3)
		if epoch < 2 {
			if _, err := r.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// stored reads all records of A.
func stored(t *testing.T, r *Replica) ([]record.Record, error) {
	t.Helper()
	v, err := r.Read(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release()
	it, err := v.Shard.Scan(record.MustSymbol("A"), store.ScanOptions{})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var rs []record.Record
	for it.Next() {
		rs = append(rs, it.Records()...)
	}
	return rs, it.Err()
}

// wantGolden returns the records that a golden directory holds.
func wantGolden(t *testing.T) []record.Record {
	t.Helper()
	var rs []record.Record
	for k := range uint64(goldenBatches) {
		b, err := record.ParseBatch(testBatch(t, 1, 10*k+1, 10))
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, b.Records...)
	}
	return rs
}

// A data directory that an earlier build of this version wrote is read, whole,
// and gone on with.
func TestGoldenDataDirectory(t *testing.T) {
	for _, logStore := range []LogStore{LogStoreWAL, LogStoreBolt} {
		t.Run(string(logStore), func(t *testing.T) {
			if *rewrite {
				writeGolden(t, logStore)
			}
			dir := filepath.Join(t.TempDir(), "m0")
			if err := os.CopyFS(dir, os.DirFS(goldenDir(logStore))); err != nil {
				t.Fatal(err)
			}
			if damage := damageOf(t, dir); damage != "" {
				t.Fatal(damage)
			}
			for round := range uint64(2) {
				r := reopen(t, goldenConfig(dir, logStore))
				awaitOwner(t, r)
				got, err := stored(t, r)
				want := wantGolden(t)
				if err != nil || len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
					t.Fatalf("%d records, want %d, %v", len(got), len(want), err)
				}
				if last := fill(t, r, 9+round, 5); last != uint64(len(got))+50 {
					t.Fatalf("last seq %d", last)
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if damage := damageOf(t, dir); damage != "" {
				t.Fatal(damage)
			}
		})
	}
}

// outcome counts what became of flipped bits.
type outcome struct {
	mu                           sync.Mutex
	named, harmless, torn, stops int
}

func (o *outcome) count(n *int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	*n++
}

// A flipped bit anywhere in a data directory is named by a check of it, or it
// changes nothing that is read. With and without that check, a member that starts
// on it serves the records that were written, or an error. The one exception is
// the last write of the log: damage there looks as if that write had been torn.
func TestEveryFlipIsNamedOrHarmless(t *testing.T) {
	const seed, flips = 20250102, 160
	want := wantGolden(t)
	for _, logStore := range []LogStore{LogStoreWAL, LogStoreBolt} {
		t.Run(string(logStore), func(t *testing.T) {
			var o outcome
			rng := rand.New(rand.NewPCG(seed, uint64(len(logStore))))
			files := filesOf(t, goldenDir(logStore))
			t.Run("flips", func(t *testing.T) {
				for n := range flips {
					f := pick(rng, files, n%2 == 0)
					at, mask := rng.Int64N(f.size), byte(1)<<rng.IntN(8)
					t.Run(fmt.Sprintf("%d", n), func(t *testing.T) {
						t.Parallel()
						flip(t, logStore, f.name, at, mask, want, &o)
					})
				}
			})
			t.Logf("seed %d: %d flipped bits: %d named, %d harmless, %d in the log's last write; %d starts refused",
				seed, flips, o.named, o.harmless, o.torn, o.stops)
			if o.named < flips/4 || o.torn > flips/10 {
				t.Errorf("%+v", &o)
			}
		})
	}
}

type goldenFile struct {
	name string
	size int64
}

func filesOf(t *testing.T, dir string) (files []goldenFile) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > 0 {
			files = append(files, goldenFile{name, info.Size()})
		}
		return err
	})
	if err != nil || len(files) < 5 {
		t.Fatalf("%v, %v", files, err)
	}
	return files
}

// pick returns each file as likely as any other, or in proportion to its size.
func pick(rng *rand.Rand, files []goldenFile, alike bool) goldenFile {
	if alike {
		return files[rng.IntN(len(files))]
	}
	total := int64(0)
	for _, f := range files {
		total += f.size
	}
	at := rng.Int64N(total)
	for _, f := range files {
		if at -= f.size; at < 0 {
			return f
		}
	}
	return files[0]
}

func flip(t *testing.T, logStore LogStore, name string, at int64, mask byte, want []record.Record, o *outcome) {
	t.Helper()
	where := fmt.Sprintf("%s, byte %d, mask %#02x", name, at, mask)
	dir := filepath.Join(t.TempDir(), "m0")
	if err := os.CopyFS(dir, os.DirFS(goldenDir(logStore))); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, filepath.FromSlash(name))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= mask
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	damage, torn := checked(t, dir)
	got, err := started(t, goldenConfig(dir, logStore))
	switch {
	case damage != "":
		o.count(&o.named)
		if err != nil {
			o.count(&o.stops)
			return
		}
	case err != nil:
		t.Fatalf("%s: the check finds nothing, a start ends with: %v", where, err)
	case torn && len(got) < len(want):
		o.count(&o.torn)
		want = want[:len(got)]
	default:
		o.count(&o.harmless)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%s: %d of %d records are served, without an error; the check says %q", where, len(got), len(want), damage)
	}
}

// checked returns the damage that a check of the directory names, and whether it
// takes something for a torn write.
func checked(t *testing.T, dir string) (damage string, torn bool) {
	t.Helper()
	var named bytes.Buffer
	_, err := VerifyDataDir(vfs.Default, dir, func(f Finding) {
		if f.Harmless {
			torn = torn || strings.Contains(f.What, "unfinished write")
			return
		}
		fmt.Fprintf(&named, "%s at %d: %s\n", f.File, f.Offset, f.What)
	})
	if err != nil {
		fmt.Fprintln(&named, err)
	}
	return named.String(), torn
}

// started opens a member and returns what it serves once it leads.
func started(t *testing.T, cfg Config) ([]record.Record, error) {
	t.Helper()
	fatal := make(chan error, 1)
	cfg.OnFatal = func(err error) {
		select {
		case fatal <- err:
		default:
		}
	}
	r, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		select {
		case err := <-fatal:
			return nil, err
		case <-time.After(time.Millisecond):
		}
		v, err := r.Read(t.Context(), false)
		if err != nil {
			continue
		}
		owned := len(v.Shard.Owned())
		v.Release()
		if owned > 0 {
			return stored(t, r)
		}
	}
}
