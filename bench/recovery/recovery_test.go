package recovery

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/bench/child"
	"github.com/countinghouse/countinghouse/bench/measure"
)

func TestMain(m *testing.M) {
	child.Main()
	os.Exit(m.Run())
}

// Every case runs to its end with little data.
func TestSuite(t *testing.T) {
	b := &measure.Bench{Runs: 1, Root: t.TempDir(), Progress: io.Discard}
	z := size{restarts: []int64{4e6, 8e6}, tail: 2e6, replay: 4e6, snapshot: 4e6, window: 100 * time.Millisecond}
	if err := runSize(t.Context(), b, z); err != nil {
		t.Fatal(err)
	}
	r := b.Report(Suite(), measure.Machine{}, time.Now())
	if len(r.Points) != 14 || len(r.Comparisons) != 6 {
		t.Errorf("%d points, %d comparisons", len(r.Points), len(r.Comparisons))
	}
	for _, p := range r.Points {
		if p.Value <= 0 {
			t.Errorf("%s: %s: %v", p.Case, p.System, p.Value)
		}
	}
	if left, err := filepath.Glob(filepath.Join(b.Root, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestSizes(t *testing.T) {
	for value, want := range map[string][]int64{"": {1e9, 4e9}, "16,0.5": {5e8, 16e9}, "x": nil, "1,-1": nil} {
		t.Setenv(SizesVariable, value)
		z, err := sizeOf(&measure.Bench{})
		if (err != nil) != (want == nil) || err == nil && !slices.Equal(z.restarts, want) {
			t.Errorf("%q: %v, %v", value, z.restarts, err)
		}
	}
}

// A leader that lacks what was acknowledged is an error, not a slow restart.
func TestLostRecordsAreNoticed(t *testing.T) {
	m, err := start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.fill(t.Context(), 1e6); err != nil {
		t.Fatal(err)
	}
	m.acked[1]++
	if _, err := m.crash(t.Context()); err == nil {
		t.Error("a missing record was not noticed")
	}
}
