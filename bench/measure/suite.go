package measure

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
)

// Suite is a set of cases that can be run alone.
type Suite struct {
	Name  string // one word: the flag that selects it, and the name of its JSON file
	About string // one line: what is asked, and what the figures mean
	// MoreProcessors is added to GOMAXPROCS, unless the environment sets that, while the
	// suite runs.
	MoreProcessors int
	Run            func(ctx context.Context, b *Bench) error
}

// Bench runs the cases of one suite and keeps what they measure. It is not safe for
// concurrent use.
type Bench struct {
	// Quick asks for the few cases that show most, each about two seconds long.
	Quick bool
	// Runs is how often each contestant is measured, at least once.
	Runs int
	// Root is a directory on the disk that is measured.
	Root string
	// Progress receives a line for each thing that is begun.
	Progress io.Writer

	points []Point
}

// Case is what all contestants are asked for.
type Case struct {
	Name string // "batch 1000, 8 in flight"
	Unit string // of the figure: "records/s", "ns"
	// LowerIsBetter says so of the figure.
	LowerIsBetter bool
}

// Contestant is one system in one case.
type Contestant struct {
	System string
	// Ours marks the system that the others are compared with.
	Ours bool
	// Durable says what is on disk when an operation counts as done; empty: nothing
	// is written.
	Durable string
	Note    string
	// Run measures once, from a fresh state, and leaves nothing behind.
	Run func(ctx context.Context) (Sample, error)
}

// Sample is what one run measured.
type Sample struct {
	Value   float64    // in the case's unit
	Latency *Histogram // of single operations, or nil
	// More are further figures, by name and unit: "gc pause max µs".
	More map[string]float64
}

// Point is what came out for one contestant in one case.
type Point struct {
	Case          string             `json:"case"`
	System        string             `json:"system"`
	Ours          bool               `json:"ours"`
	Unit          string             `json:"unit"`
	LowerIsBetter bool               `json:"lower_is_better"`
	Value         float64            `json:"median"`
	Values        []float64          `json:"runs"`
	Latency       *Latency           `json:"latency,omitempty"` // of the run with the median
	Durable       string             `json:"durable"`
	Note          string             `json:"note,omitempty"`
	More          map[string]float64 `json:"more,omitempty"` // of the run with the median
}

// Min returns the lowest run, Max the highest.
func (p *Point) Min() float64 { return slices.Min(p.Values) }

// Max returns the highest run.
func (p *Point) Max() float64 { return slices.Max(p.Values) }

// Compare measures each contestant Runs times, in turns. The first error ends it.
func (b *Bench) Compare(ctx context.Context, c Case, contestants ...Contestant) error {
	samples := make([][]Sample, len(contestants))
	for run := range max(b.Runs, 1) {
		for i, who := range contestants {
			if err := ctx.Err(); err != nil {
				return err
			}
			_, _ = fmt.Fprintf(b.Progress, "%s: %s, run %d of %d\n", c.Name, who.System, run+1, max(b.Runs, 1))
			s, err := who.Run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", c.Name, who.System, err)
			}
			samples[i] = append(samples[i], s)
		}
	}
	for i, who := range contestants {
		b.points = append(b.points, pointOf(c, who, samples[i]))
	}
	return nil
}

// pointOf takes latency and further figures from the run that has the median.
func pointOf(c Case, who Contestant, samples []Sample) Point {
	p := Point{
		Case: c.Name, Unit: c.Unit, LowerIsBetter: c.LowerIsBetter,
		System: who.System, Ours: who.Ours, Durable: who.Durable, Note: who.Note,
	}
	for _, s := range samples {
		p.Values = append(p.Values, s.Value)
	}
	sorted := slices.Clone(samples)
	slices.SortFunc(sorted, func(x, y Sample) int {
		switch {
		case x.Value < y.Value:
			return -1
		case x.Value > y.Value:
			return 1
		}
		return 0
	})
	median := sorted[len(sorted)/2]
	p.Value, p.Latency, p.More = median.Value, median.Latency.Latency(), median.More
	return p
}

// Dir returns an empty directory on the disk that is measured, and what removes it.
func (b *Bench) Dir() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp(b.Root, "bench-")
	return dir, func() { _ = os.RemoveAll(dir) }, err
}
