package measure

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"
)

// runs returns a contestant that measures the given values one after another.
func runs(system string, ours bool, values ...float64) Contestant {
	next := 0
	return Contestant{System: system, Ours: ours, Run: func(context.Context) (Sample, error) {
		h := NewHistogram()
		h.Record(time.Duration(values[next]))
		next++
		return Sample{Value: values[next-1], Latency: h}, nil
	}}
}

func report(t *testing.T, c Case, contestants ...Contestant) Report {
	t.Helper()
	b := &Bench{Runs: 3, Progress: io.Discard}
	if err := b.Compare(t.Context(), c, contestants...); err != nil {
		t.Fatal(err)
	}
	return b.Report(Suite{Name: "s"}, Machine{}, time.Now())
}

func TestAFigureIsTheMedianOfItsRuns(t *testing.T) {
	r := report(t, Case{Name: "c", Unit: "records/s"}, runs("ours", true, 30, 10, 20), runs("floor", false, 40, 80, 50))
	ours := r.Points[0]
	if ours.Value != 20 || ours.Min() != 10 || ours.Max() != 30 || ours.Latency.P50 != 20 {
		t.Errorf("median %v of %v, latency %+v", ours.Value, ours.Values, ours.Latency)
	}
	if len(r.Comparisons) != 1 {
		t.Fatalf("%d comparisons", len(r.Comparisons))
	}
	if c := r.Comparisons[0]; c.Ratio != 0.4 || !c.Decided || c.Better() || c.Name != "s: c: ours / floor" {
		t.Errorf("%+v", c)
	}
}

func TestADifferenceWithinTheSpreadIsNotDecided(t *testing.T) {
	r := report(t, Case{Name: "c", Unit: "ns", LowerIsBetter: true}, runs("ours", true, 1, 2, 6), runs("peer", false, 5, 5, 7))
	c := r.Comparisons[0]
	if c.Decided || !c.Better() {
		t.Errorf("%+v", c)
	}
	var out strings.Builder
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "~0.40") {
		t.Errorf("no mark:\n%s", out.String())
	}
}

func TestCasesOfOtherUnitsAreNotCompared(t *testing.T) {
	b := &Bench{Runs: 1, Progress: io.Discard}
	for _, unit := range []string{"ns", "records/s"} {
		if err := b.Compare(t.Context(), Case{Name: "c", Unit: unit}, runs(unit, unit == "ns", 1)); err != nil {
			t.Fatal(err)
		}
	}
	if r := b.Report(Suite{}, Machine{}, time.Now()); len(r.Comparisons) != 0 {
		t.Errorf("%+v", r.Comparisons)
	}
}

func TestNumbers(t *testing.T) {
	for want, v := range map[string]float64{"0": 0, "1.50": 1.5, "12.3": 12.34, "999": 999, "1.00k": 999.6, "1.23M": 1.234e6, "3G": 3e9, "0.05": 0.05} {
		if got := Number(v); got != want {
			t.Errorf("Number(%v) = %s, want %s", v, got, want)
		}
	}
	for want, ns := range map[string]int64{"17ns": 17, "1.50µs": 1500, "12.3ms": 12.34e6, "2s": 2e9} {
		if got := span(ns); got != want {
			t.Errorf("span(%d) = %s, want %s", ns, got, want)
		}
	}
}

func TestWhatIsToBeKnownOfASystemIsPrintedOnce(t *testing.T) {
	b := &Bench{Runs: 1, Progress: io.Discard}
	who := func() Contestant {
		c := runs("log", true, 1)
		c.Durable, c.Note = "fdatasync returned", strings.Repeat("many words ", 20)
		return c
	}
	for _, name := range []string{"a", "b"} {
		if err := b.Compare(t.Context(), Case{Name: name, Unit: "ns"}, who()); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	r := b.Report(Suite{Name: "s"}, Machine{}, time.Now())
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "fdatasync returned"); n != 1 {
		t.Errorf("printed %d times:\n%s", n, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if len(strings.TrimRight(line, "\n")) > lineWidth {
			t.Errorf("line of %d: %s", len(line), line)
		}
	}
}
