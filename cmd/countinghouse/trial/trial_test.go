package trial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/node"
)

// The test binary runs itself as a storage node.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "node" {
		os.Exit(node.Execute(context.Background(), os.Args[2:]))
	}
	os.Exit(m.Run())
}

// randomFlow submits limit orders around a price, and cancels some of them.
type randomFlow struct {
	rng   *rand.Rand
	steps uint64
	made  uint64
	syms  []record.Symbol
	mids  []int64
	live  []core.CancelOrder
}

const testAccounts = 20

func newRandomFlow(seed, steps uint64, set order.Set) *randomFlow {
	f := &randomFlow{rng: rand.New(rand.NewPCG(seed, 1)), steps: steps}
	for i := range set.Instruments {
		t := &set.Instruments[i]
		f.syms, f.mids = append(f.syms, t.Symbol), append(f.mids, (t.UpperLimit+t.LowerLimit)/2)
	}
	return f
}

func (f *randomFlow) Prepare(e *Entry) error {
	for id := uint64(1); id <= testAccounts; id++ {
		if r := e.OpenAccount(id); r.Reason != risk.OK {
			return fmt.Errorf("open account %d: %s", id, r.Reason)
		}
		if r := e.Deposit(id, 1e14, id); r.Reason != risk.OK {
			return fmt.Errorf("deposit to account %d: %s", id, r.Reason)
		}
	}
	return nil
}

func (f *randomFlow) Due() time.Duration { return time.Duration(f.made) * time.Second / 6000 }

func (f *randomFlow) Steps() uint64 { return f.steps }

func (f *randomFlow) Step(e *Entry) (bool, error) {
	if f.made == f.steps {
		return false, nil
	}
	f.made++
	if len(f.live) > 200 || len(f.live) > 0 && f.rng.IntN(4) == 0 {
		i := f.rng.IntN(len(f.live))
		c := f.live[i]
		f.live[i] = f.live[len(f.live)-1]
		f.live = f.live[:len(f.live)-1]
		e.Cancel(&c)
		return true, nil
	}
	i := f.rng.IntN(len(f.syms))
	o := core.NewOrder{
		Instrument: f.syms[i], Account: 1 + f.rng.Uint64N(testAccounts), Side: record.Buy, Offset: record.Open,
		Price: f.mids[i] + f.rng.Int64N(20) - 10, Volume: 1 + f.rng.Int64N(5),
	}
	if f.rng.IntN(2) == 0 {
		o.Side = record.Sell
	}
	if res := e.Submit(&o); res.Status == core.Resting || res.Status == core.PartlyFilled {
		f.live = append(f.live, core.CancelOrder{Instrument: o.Instrument, Account: o.Account, OrderID: res.OrderID})
	}
	return true, nil
}

func testConfig(t *testing.T, seed uint64) Config {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	set, err := order.DefaultSet()
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Seed: seed, Dir: t.TempDir(), Cluster: "trial", NodeCommand: []string{self, "node"},
		NodeArgs:    []string{"--heartbeat-timeout", "400ms", "--segment-bytes", "8388608", "--log-level", "warn"},
		Instruments: set, Flow: newRandomFlow(seed, 30_000, set), KillLeader: true,
		Shards: []localcluster.Shard{
			{Name: "s1", Instruments: []string{"IF2501", record.AccountStream}, Replicas: 3},
			{Name: "s2", Instruments: []string{"IC2501", "IH2501"}, Replicas: 3},
		},
		Progress: func(string, ...any) {}, Note: t.Logf,
	}
}

func TestTrialWithAKilledLeader(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	r, err := Run(ctx, testConfig(t, seed))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	if !r.OK || r.Killed == "" || r.Notifications.Persisted == 0 || r.Trades == 0 || r.FailoverMS == 0 {
		t.Errorf("seed %d: %v", seed, r.Findings)
	}
}

// Storage that refuses everything must not keep a trial waiting without a reason.
func TestStorageThatTakesNothingEndsTheTrial(t *testing.T) {
	c := testConfig(t, 1)
	c.NodeArgs = append(c.NodeArgs, "--disk-reserve-bytes", "1000000000000000")
	c.Flow = newRandomFlow(1, 90_000, c.Instruments)
	var mu sync.Mutex
	var lines []string
	c.Progress = func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, fmt.Sprintf(format, args...))
	}
	tr := &trial{Config: c, stallMax: 9 * time.Second}
	began := time.Now()
	_, err := tr.run(t.Context())
	const reason = "below the reserve"
	if err == nil || !strings.Contains(err.Error(), "has taken no records") || !strings.Contains(err.Error(), reason) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	if !strings.Contains(strings.Join(lines, "\n"), reason) {
		t.Errorf("the progress does not give the reason:\n%s", strings.Join(lines, "\n"))
	}
}

// An interrupted trial ends at once.
func TestInterruptedTrialEndsFast(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := testConfig(t, 1)
	interrupted := make(chan time.Time, 1)
	c.Progress = func(format string, _ ...any) {
		if strings.Contains(format, "requests") && ctx.Err() == nil { // it trades
			interrupted <- time.Now()
			cancel()
		}
	}
	_, err := Run(ctx, c)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(<-interrupted); took > 5*time.Second {
		t.Errorf("it went on for %s", took)
	}
}
