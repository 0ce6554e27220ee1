package orders

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/orderflow"
)

func TestSuite(t *testing.T) {
	b := &measure.Bench{Runs: 1, Root: t.TempDir(), Progress: io.Discard}
	s := sizes{
		warm: 20_000, saturated: 10_000, atRate: 5_000, rates: map[int][]int{3: {200_000}},
		calls: callSizes{
			warm: 2_000, seconds: 0.05, unaryRates: []int{2_000}, sessionRates: []int{5_000},
			unaryCallers: []int{4}, sessionWindows: []int{16}, requestsMax: 2_000,
		},
	}
	if err := runSized(t.Context(), b, s); err != nil {
		t.Fatal(err)
	}
	r := b.Report(Suite(), measure.Machine{}, time.Now())
	if len(r.Points) != 3*3+4*2 {
		t.Errorf("%d points", len(r.Points))
	}
	for _, p := range r.Points {
		if p.Value <= 0 {
			t.Errorf("%s: %s: %v", p.Case, p.System, p.Value)
		}
		if strings.HasPrefix(p.Case, "in process") && p.More["answered otherwise than drawn"] != 0 {
			t.Errorf("%s: %s: %v", p.Case, p.System, p.More)
		}
	}
}

// The flow holds what the suite is to measure, and every system carries it out
// with the results that it was drawn with.
func TestFlow(t *testing.T) {
	f, err := drawFlow(5, 20_000, 20_000)
	if err != nil {
		t.Fatal(err)
	}
	kinds, taken := map[orderflow.Kind]int{}, 0
	for _, r := range f.measured {
		kinds[r.kind]++
		if r.taken {
			taken++
		}
	}
	if kinds[orderflow.Submit] < 8_000 || kinds[orderflow.Cancel] < 4_000 || kinds[orderflow.Amend] < 500 || taken < 18_000 {
		t.Errorf("%v, %d taken", kinds, taken)
	}
	for name, open := range map[string]opener{"exchange": openExchange, "unpublished": openUnpublished, "matching": openMatching} {
		s, err := open(f, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		saturate(s, f.measured)
		if n := s.refused(); n != 0 {
			t.Errorf("%s: %d requests were answered otherwise", name, n)
		}
		if err := s.close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSchedule(t *testing.T) {
	s := schedule{start: time.Now(), perSecond: 300_000}
	for i, want := range map[int]time.Duration{0: 0, 3: 10 * time.Microsecond, 300_000: time.Second, 30_000_000: 100 * time.Second} {
		if got := s.due(i); got != want {
			t.Errorf("request %d is due after %v, not %v", i, got, want)
		}
	}
	s.await(600)
	if late := s.late(600); late < 0 {
		t.Errorf("await returned %v too early", -late)
	}
}

// stalling takes a while over its first request, and no time over the others.
type stalling struct {
	nothing
	took  time.Duration
	calls int
}

func (s *stalling) do(*request) {
	if s.calls++; s.calls == 1 {
		time.Sleep(s.took)
	}
}

// A stall counts for every request that was due while it lasted.
func TestAStallIsChargedToAllThatItDelays(t *testing.T) {
	const stall, rate = 20 * time.Millisecond, 10_000
	h := atRate(&stalling{took: stall}, make([]request, 400), rate)
	l := h.Latency()
	if l.Max < int64(stall) {
		t.Errorf("the stall of %v is not among the latencies: %v", stall, time.Duration(l.Max))
	}
	// 200 of the 400 were due while it lasted. Were they timed from when they are
	// sent, only the first would be late.
	if l.P99 < int64(stall*9/10) || l.Samples != 400 {
		t.Errorf("p99 of %d is %v", l.Samples, time.Duration(l.P99))
	}
}
