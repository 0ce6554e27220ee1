package exchange

import (
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/exchange/rebuild"
)

var rewrite = flag.Bool("rewrite", false, "write the golden outbox anew")

const goldenOutbox = "testdata/outbox-v1"

// goldenConfig is that of a start with small segments.
func goldenConfig(t *testing.T, dir string) Config {
	t.Helper()
	c := testConfig(t, noStorage())
	c.OutboxDir, c.SegmentRecords, c.QuotaBytes, c.StateEvery = dir, 128, 4<<20, -1
	return c
}

func writeGoldenOutbox(t *testing.T) {
	t.Helper()
	err := errors.Join(os.RemoveAll(goldenOutbox), os.RemoveAll(statePath(goldenOutbox)), os.MkdirAll(filepath.Dir(goldenOutbox), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	x := open(t, storageless(goldenConfig(t, goldenOutbox)))
	fund(t, x)
	trade(x, rand.New(rand.NewPCG(1, 1)), 200)
	if _, err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

// An outbox and its state file that an earlier build of this version wrote are
// read, replayed to the state that was noted, delivered, and gone on with.
func TestGoldenOutbox(t *testing.T) {
	if *rewrite {
		writeGoldenOutbox(t)
	}
	dir := filepath.Join(t.TempDir(), "outbox")
	if err := os.CopyFS(dir, os.DirFS(goldenOutbox)); err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(statePath(goldenOutbox))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(statePath(dir), state, 0o644); err != nil {
		t.Fatal(err)
	}
	known, err := loadState(dir, "test")
	if err != nil || known.Global < 300 {
		t.Fatalf("%+v, %v", known, err)
	}
	if got := replayed(t, dir); got != known.Hash {
		t.Fatalf("the replay ends with %s, noted is %s", got, known.Hash)
	}
	storage := startStorage(t, 1)
	config := goldenConfig(t, dir)
	config.Shards = storage.Map()
	x := open(t, config)
	if r := x.Recovery(); !r.StateChecked || r.Cut != nil {
		t.Errorf("%+v", r)
	}
	trade(x, rand.New(rand.NewPCG(2, 2)), 200)
	mustRebuild(t, storage.Map(), closeDrained(t, x))
}

// replayed returns the hash of the state after all records of an outbox.
func replayed(t *testing.T, dir string) string {
	t.Helper()
	r, err := outbox.OpenReader(dir, "golden")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(r.Close(), outbox.RemoveCursor(dir, "golden")); err != nil {
			t.Error(err)
		}
	}()
	b := rebuild.New()
	for rs := r.Peek(); len(rs) > 0; rs = r.Peek() {
		for i := range rs {
			if err := b.Add(&rs[i]); err != nil {
				t.Fatal(err)
			}
		}
		r.Advance(len(rs))
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	state := b.State()
	return state.Hash()
}
