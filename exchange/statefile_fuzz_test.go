package exchange

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A state file, whatever it holds, is read or refused with its name; one that is
// read can be written and read again.
func FuzzStateFile(f *testing.F) {
	dir := f.TempDir()
	known := knownState{Format: stateFormat, Cluster: "c", Global: 7, Hash: "ab", Incarnation: 3, path: filepath.Join(dir, "seed")}
	if err := known.store(); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(known.path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"format":2,"cluster":"c"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		outbox := filepath.Join(dir, "outbox")
		if err := os.WriteFile(statePath(outbox), b, 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := loadState(outbox, "c")
		if err != nil {
			if !strings.Contains(err.Error(), statePath(outbox)) {
				t.Fatalf("the error does not name the file: %v", err)
			}
			return
		}
		if err := s.store(); err != nil {
			t.Fatal(err)
		}
		again, err := loadState(outbox, "c")
		if err != nil || again.Global != s.Global || again.Hash != s.Hash || again.Incarnation != s.Incarnation {
			t.Fatalf("written and read again: %v, %+v, %+v", err, again, s)
		}
	})
}

// A flipped bit of the state file is noticed, or changes nothing: what it says of
// the machine decides whether a start asks the stores.
func TestEveryFlipOfTheStateFileIsNoticed(t *testing.T) {
	outbox := filepath.Join(t.TempDir(), "outbox")
	known := knownState{
		Format: stateFormat, Cluster: "c", Global: 7, Hash: strings.Repeat("ab", 32), Incarnation: 3, NeedsStores: true, Dropped: 5,
		Time: time.Now().In(time.FixedZone("", 3600)), path: statePath(outbox),
	}
	if err := known.store(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(known.path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := loadState(outbox, "c")
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range 8 * len(good) {
		b := slices.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		if err := os.WriteFile(known.path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := loadState(outbox, "c")
		switch {
		case err != nil && !strings.Contains(err.Error(), known.path):
			t.Errorf("bit %d: the error does not name the file: %v", i, err)
		case err != nil:
			refused++
		case got.CRC32C != want.CRC32C || got.Global != want.Global || got.NeedsStores != want.NeedsStores:
			t.Errorf("bit %d: %+v, want %+v", i, got, want)
		}
	}
	t.Logf("%d of %d flipped bits refused", refused, 8*len(good))
}
