package replica

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/countinghouse/countinghouse/record"
)

// damageTables flips a bit in the middle of every table below dir. Files of a
// snapshot are those of the live store.
func damageTables(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "instruments", "*", "*"+tableSuffix))
	if err != nil || len(names) == 0 {
		t.Fatalf("tables in %s: %v, %v", dir, names, err)
	}
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, 200); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, 200); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

// A snapshot with a damaged table would be refused by whoever receives it, again
// and again. The sender notices, says so, and does not read it a second time.
func TestADamagedSnapshotIsNotSentAgain(t *testing.T) {
	r, _, _ := single(t, nil)
	awaitOwner(t, r)
	fill(t, r, 1, 5)
	if _, err := r.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the node is ready", r.Ready)
	newest, err := r.snapshots.newest()
	if err != nil {
		t.Fatal(err)
	}
	damageTables(t, r.snapshots.path(newest.Raft.ID, dataDir))
	for _, c := range []struct {
		what string
		some bool // bytes come before the error
	}{{"first", true}, {"second", false}} {
		_, data, err := r.snapshots.Open(newest.Raft.ID)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, data)
		data.Close()
		if !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), tableSuffix) || (n > 0) != c.some {
			t.Errorf("%s read: %d bytes, %v", c.what, n, err)
		}
	}
	if r.Status().Damage == "" || r.Ready() {
		t.Errorf("status %q, ready %t", r.Status().Damage, r.Ready())
	}
	if n := testutil.CollectAndCount(r, "storagenode_raft_damaged"); n != 1 {
		t.Errorf("%d metrics of the damage", n)
	}
	// The next snapshot is another one; what is wrong with the store, reads will find.
	fill(t, r, 2, 1)
	if _, err := r.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.snapshots.damage(); err != nil {
		t.Errorf("of a snapshot that is gone: %v", err)
	}
}
