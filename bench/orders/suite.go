package orders

import (
	"context"
	"fmt"

	"github.com/countinghouse/countinghouse/bench/measure"
)

// Suite returns what measures orders, in process and over gRPC.
func Suite() measure.Suite {
	return measure.Suite{
		Name:  "orders",
		About: "from an order to its answer, with risk, accounts, matching and published records, in process and over gRPC",
		Run:   run,
	}
}

// sizes are the numbers of requests of one run.
type sizes struct {
	warm      int
	saturated int           // as fast as they are answered
	atRate    int           // at each fixed rate, at most, and at most a second
	rates     map[int][]int // requests per second, by the number of instruments
	calls     callSizes
}

func run(ctx context.Context, b *measure.Bench) error {
	s := sizes{
		warm: 300_000, saturated: 1_000_000, atRate: 1_000_000,
		rates: map[int][]int{3: {100_000, 500_000, 1_000_000}, 300: {500_000}},
		calls: callSizes{
			warm: 50_000, seconds: 1,
			unaryRates: []int{1_000, 5_000}, sessionRates: []int{10_000, 50_000},
			unaryCallers: []int{1, 64}, sessionWindows: []int{1, 256},
		},
	}
	if b.Quick {
		s.rates = map[int][]int{3: {1_000_000}}
		s.calls.unaryRates, s.calls.sessionRates = []int{1_000}, nil
		s.calls.unaryCallers, s.calls.sessionWindows = nil, []int{256}
	}
	return runSized(ctx, b, s)
}

func runSized(ctx context.Context, b *measure.Bench, s sizes) error {
	for _, instruments := range []int{3, 300} {
		f, err := drawFlow(instruments, s.warm, s.saturated)
		if err != nil {
			return fmt.Errorf("draw the flow: %w", err)
		}
		if err := compareSaturated(ctx, b, f, s); err != nil {
			return err
		}
		for _, rate := range s.rates[instruments] {
			if err := compareAtRate(ctx, b, f, s, rate); err != nil {
				return err
			}
		}
	}
	return compareCalls(ctx, b, s.calls)
}

const (
	exchangeNote    = "records in the outbox, which a reader empties"
	unpublishedNote = "records are filled in, but go nowhere"
	matchingNote    = "no checks, accounts or records"
)

func compareSaturated(ctx context.Context, b *measure.Bench, f *flow, s sizes) error {
	c := measure.Case{Name: fmt.Sprintf("in process, %d instruments, as fast as they are answered", len(f.terms)), Unit: "orders/s"}
	load := trial{flow: f, requests: s.saturated}
	return b.Compare(ctx, c,
		measure.Contestant{System: "exchange", Ours: true, Note: exchangeNote, Run: load.of(openExchange).run(b)},
		measure.Contestant{System: "without publish (part)", Note: unpublishedNote, Run: load.of(openUnpublished).run(b)},
		measure.Contestant{System: "matching alone (floor)", Note: matchingNote, Run: load.of(openMatching).run(b)},
	)
}

func compareAtRate(ctx context.Context, b *measure.Bench, f *flow, s sizes, rate int) error {
	c := measure.Case{Name: fmt.Sprintf("in process, %d instruments, %s orders/s: latency, p50", len(f.terms), measure.Number(float64(rate))), Unit: "ns", LowerIsBetter: true}
	load := trial{flow: f, requests: min(s.atRate, s.saturated, rate), rate: rate}
	return b.Compare(ctx, c,
		measure.Contestant{System: "exchange", Ours: true, Note: exchangeNote, Run: load.of(openExchange).run(b)},
		measure.Contestant{System: "without publish (part)", Note: unpublishedNote, Run: load.of(openUnpublished).run(b)},
		measure.Contestant{System: "nothing (floor)", Note: "the driver's clock, and the machine", Run: load.of(openNothing).run(b)},
	)
}

func (t trial) of(open opener) trial {
	t.open = open
	return t
}
