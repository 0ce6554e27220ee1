package growth

import (
	"io"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/bench/measure"
)

// Every case runs to its end with few of each thing.
func TestSuite(t *testing.T) {
	b := &measure.Bench{Runs: 2, Root: t.TempDir(), Progress: io.Discard}
	z := size{
		instruments: []int{1, 5}, shards: []int{1, 3}, accounts: []int{2, 20}, orders: []int{2, 20}, records: []int{800, 1600},
		operations: 1000, idleMillis: 20,
	}
	if err := runSize(t.Context(), b, z); err != nil {
		t.Fatal(err)
	}
	r := b.Report(Suite(), measure.Machine{}, time.Now())
	if len(r.Points) != 10 || len(r.Comparisons) != 0 {
		t.Errorf("%d points, %d comparisons", len(r.Points), len(r.Comparisons))
	}
	for i, p := range r.Points {
		if _, grown := p.More[exponent]; p.Value <= 0 || grown != (i%2 == 1) {
			t.Errorf("%s: %s: %v, %v", p.Case, p.System, p.Value, p.More)
		}
	}
	if left, err := filepath.Glob(filepath.Join(b.Root, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestExponent(t *testing.T) {
	for _, c := range []struct{ ofMany, want float64 }{{5, 1}, {50, 1.5}, {500, 2}, {0.05, 0}} {
		if got := exponentOf(10, 1000, 5, c.ofMany); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("5 ns among 10, %v ns among 1000: %v, expected %v", c.ofMany, got, c.want)
		}
	}
}
