package growth

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"

	"github.com/countinghouse/countinghouse/bench/measure"
)

// Suite returns the suite "growth", which measures each thing in several numbers.
func Suite() measure.Suite {
	return measure.Suite{
		Name:  "growth",
		About: "the cost of one more instrument, shard, account, order, record: time and memory for one, at several numbers of them",
		Run:   run,
	}
}

// size is how many of each thing there are.
type size struct {
	instruments, shards, accounts, orders, records []int
	operations                                     int // of a run
	idleMillis                                     int
}

func sizeOf(b *measure.Bench) size {
	if b.Quick {
		return size{
			instruments: []int{1, 100}, shards: []int{1, 16}, accounts: []int{100, 100_000}, orders: []int{100, 100_000},
			records: []int{100_000, 1_000_000}, operations: 200_000, idleMillis: 500,
		}
	}
	return size{
		instruments: []int{1, 100, 1_000, 10_000}, shards: []int{1, 8, 64}, accounts: []int{100, 10_000, 1_000_000},
		orders: []int{100, 10_000, 1_000_000}, records: []int{1_000_000, 10_000_000}, operations: 1_000_000, idleMillis: 2000,
	}
}

func run(ctx context.Context, b *measure.Bench) error { return runSize(ctx, b, sizeOf(b)) }

func runSize(ctx context.Context, b *measure.Bench, z size) error {
	for _, cases := range []func(context.Context, *measure.Bench, size) error{instruments, shards, accounts, orders, histories} {
		if err := cases(ctx, b, z); err != nil {
			return err
		}
	}
	return nil
}

const (
	exponent     = "growth exponent"
	exponentNote = exponent + ": of the time of as many operations as there are things, from the row before to this one; 1 is linear, what no cache holds any more makes it up to 1.5, and 2 is an operation that walks through all things"
)

// row measures one number of things: the time for one operation, and further figures.
type row func(ctx context.Context, n int) (measure.Sample, error)

// rows makes a table of a case with a row for each number, of which each but the first
// says how the cost has grown since the one before.
func rows(ctx context.Context, b *measure.Bench, c measure.Case, things, note string, numbers []int, measureRow row) error {
	var who []measure.Contestant
	last := map[int]float64{} // by number, of the present run
	for i, n := range numbers {
		who = append(who, measure.Contestant{
			System: measure.Number(float64(n)) + " " + things, Ours: true, Note: note,
			Run: func(ctx context.Context) (measure.Sample, error) {
				s, err := measureRow(ctx, n)
				if err != nil {
					return s, err
				}
				last[n] = s.Value
				if i > 0 {
					s.More[exponent] = exponentOf(numbers[i-1], n, last[numbers[i-1]], s.Value)
				}
				return s, nil
			},
		})
	}
	return b.Compare(ctx, c, who...)
}

// exponentOf returns x where n operations take as long as n^x says, from the time of
// one among few things and among many.
func exponentOf(few, many int, ofFew, ofMany float64) float64 {
	return 1 + math.Log(ofMany/ofFew)/math.Log(float64(many)/float64(few))
}

// memory returns the bytes of the process that are in use: heap, without garbage, and
// stacks.
func memory() float64 {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}
