package exchange

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
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/record"
)

// What an exchange was at its end, it is at its next start, and so is what an
// independent replay makes of each replica.
func TestRestartRecoversTheState(t *testing.T) {
	storage := startStorage(t, 3)
	config := testConfig(t, storage.Map())
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	x := open(t, config)
	if r := x.Recovery(); r.FromOutbox || !r.Drained || r.Listed != 3 || r.Global != 3 || r.StateChecked {
		t.Errorf("first start: %+v", r)
	}
	fund(t, x)
	if taken := trade(x, rng, 5000); taken < 2000 {
		t.Fatalf("only %d requests were taken", taken)
	}
	if r := x.Router().Halt(symbols[2]); r.Reason != risk.OK {
		t.Fatal(r.Reason)
	}
	before := state(t, x)
	mustEqual(t, "the state at the end", before, closeDrained(t, x))
	mustRebuild(t, storage.Map(), before)

	x = open(t, config)
	if r := x.Recovery(); !r.StateChecked || r.Records != before.Global || r.Listed != 0 || r.FromOutbox {
		t.Errorf("second start: %+v", r)
	}
	mustEqual(t, "the recovered state", before, state(t, x))
	trade(x, rng, 1000)
	settle(t, x, 20250106)
	trade(x, rng, 1000)
	before = closeDrained(t, x)

	x = open(t, config)
	if r := x.Recovery(); r.Listed != 0 {
		t.Errorf("the limits of the settlement were taken for changed terms: %+v", r)
	}
	mustEqual(t, "the state after a settlement", before, state(t, x))
	mustRebuild(t, storage.Map(), before)
}

func settle(t *testing.T, x *Exchange, day uint32) {
	t.Helper()
	var prices []core.SettlementPrice
	for _, v := range x.Router().Instruments() {
		prices = append(prices, core.SettlementPrice{Instrument: v.Terms.Symbol, Price: max(v.Last, v.Terms.LowerLimit)})
	}
	if res := x.Router().Settle(day, prices); res.Reason != risk.OK {
		t.Fatalf("settle: %s %s", res.Reason, res.Detail)
	}
}

// With every storage node down from the first order to the last, trading goes
// on, over restarts; when the nodes come, they get everything.
func TestOrdersFlowWithoutStorage(t *testing.T) {
	storage := startStorage(t, 1)
	storage.Kill()
	config := testConfig(t, storage.Map())
	rng := rand.New(rand.NewPCG(1, 2))

	x := open(t, storageless(config))
	if r := x.Recovery(); !r.FromOutbox || r.Drained {
		t.Errorf("%+v", r)
	}
	fund(t, x)
	taken := trade(x, rng, 3000)
	closed, err := x.Close()
	if err != nil || closed.Drained || taken < 1000 {
		t.Fatalf("%d requests taken, drained %t, %v", taken, closed.Drained, err)
	}

	x = open(t, storageless(config))
	if r := x.Recovery(); !r.FromOutbox || !r.StateChecked || r.Global != closed.State.Global {
		t.Errorf("%+v", r)
	}
	mustEqual(t, "the state replayed from the outbox", closed.State, state(t, x))
	trade(x, rng, 1000)
	for _, m := range storage.Members() {
		if err := storage.StartNode(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := x.WaitDrained(ctx); err != nil {
		t.Fatalf("%v; %+v", err, x.Stats().Subscriber)
	}
	mustRebuild(t, storage.Map(), state(t, x))
}

// When the quota is used up, orders are refused before they are matched and
// leave no trace; cancels still get through, and what was taken is kept.
func TestQuotaReached(t *testing.T) {
	storage := startStorage(t, 1)
	storage.Kill()
	config := testConfig(t, storage.Map())
	config.SegmentRecords, config.HeadroomRecords = 1024, 64
	config.QuotaBytes = 4 * (1024*136 + 4096)
	x := open(t, storageless(config))
	fund(t, x)
	rng := rand.New(rand.NewPCG(3, 4))
	var live []core.CancelOrder
	small := core.NewOrder{Instrument: symbols[0], Account: 1, Side: record.Buy, Offset: record.Open, Price: lowest(x, symbols[0]), Volume: 1}
	for n := 0; x.Router().Submit(&small).Reason != risk.BacklogFull || x.Stats().Outbox.RefusedQuota == 0; n++ {
		if n > 100_000 {
			t.Fatalf("the quota is never reached: %+v", x.Stats().Outbox)
		}
		request(x.Router(), rng, &live)
	}
	before := state(t, x)
	for i := range 500 {
		n := core.NewOrder{
			Instrument: symbols[0], Account: uint64(1 + i%accounts), Side: record.Side(1 + i%2), Offset: record.Open,
			Price: lowest(x, symbols[0]) + int64(i), Volume: 1,
		}
		if res := x.Router().Submit(&n); res.Reason == risk.OK {
			t.Fatalf("order %d was taken: %+v", i, res)
		}
	}
	mustEqual(t, "the state after the refused orders", before, state(t, x))
	if x.Router().Refused(risk.BacklogFull) < 100 {
		t.Errorf("%d refused as backlog-full", x.Router().Refused(risk.BacklogFull))
	}
	if len(live) == 0 {
		t.Fatal("no order to cancel")
	}
	canceled := false
	for i := range live {
		canceled = canceled || x.Router().Cancel(&live[i]).Reason == risk.OK
	}
	if !canceled {
		t.Error("no cancel got through the headroom")
	}
	for _, m := range storage.Members() {
		if err := storage.StartNode(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := x.WaitDrained(ctx); err != nil {
		t.Fatalf("%v; %+v", err, x.Stats().Subscriber)
	}
	mustRebuild(t, storage.Map(), state(t, x))
	for x.Router().Deposit(1, 1, 0).Reason != risk.OK || trade(x, rng, 100) == 0 {
		select { // the outbox recycles its files in the background
		case <-ctx.Done():
			t.Fatalf("nothing is taken after the outbox was drained: %+v", x.Stats().Outbox)
		case <-time.After(time.Millisecond):
		}
	}
}

func lowest(x *Exchange, sym record.Symbol) int64 {
	v, _ := x.Router().Instrument(sym)
	return v.Terms.LowerLimit
}

// What is not delivered within DrainWait is replayed from the outbox, the rest
// from the stores.
func TestStartBeforeEverythingIsDelivered(t *testing.T) {
	storage := startStorage(t, 1)
	config := testConfig(t, storage.Map())
	config.SegmentRecords = 1024
	rng := rand.New(rand.NewPCG(5, 6))
	x := open(t, config)
	fund(t, x)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for x.Stats().Outbox.Recycled == 0 { // until the outbox alone is not enough
		trade(x, rng, 500)
		if err := x.WaitDrained(ctx); err != nil {
			t.Fatal(err)
		}
	}
	storage.Kill()
	trade(x, rng, 500)
	x.config.CloseWait = time.Millisecond
	closed, err := x.Close()
	if err != nil || closed.Drained {
		t.Fatalf("drained %t, %v", closed.Drained, err)
	}
	for _, m := range storage.Members() {
		if err := storage.StartNode(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	config.DrainWait = 1
	x = open(t, config)
	if r := x.Recovery(); r.FromOutbox || r.Drained || !r.StateChecked {
		t.Errorf("%+v", r)
	}
	mustEqual(t, "the state", closed.State, state(t, x))
	if err := x.WaitDrained(ctx); err != nil {
		t.Fatal(err)
	}
	mustRebuild(t, storage.Map(), closed.State)
}

// With the policy Drop orders go on when the quota is used up, and what is lost
// is counted and noted, at once and at the end. The next start is refused, until
// it is one from nothing.
func TestDropPolicy(t *testing.T) {
	config := storageless(testConfig(t, noStorage()))
	config.Policy = gateway.Drop
	config.SegmentRecords, config.QuotaBytes = 1024, 4*(1024*136+4096)
	x := open(t, config)
	fund(t, x)
	rng := rand.New(rand.NewPCG(7, 8))
	for n := 0; x.Stats().Subscriber.Lost == 0; n++ {
		if n > 1000 {
			t.Fatal("nothing is ever dropped")
		}
		trade(x, rng, 100)
	}
	if n := x.Router().Refused(risk.BacklogFull); n != 0 {
		t.Errorf("%d requests were refused as backlog-full", n)
	}
	noted := func() *knownState {
		t.Helper()
		known, err := loadState(config.OutboxDir, "test")
		if err != nil {
			t.Fatal(err)
		}
		return known
	}
	for deadline := time.Now().Add(20 * time.Second); noted().Dropped == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the drops are not noted while the exchange runs")
		}
	}
	trade(x, rng, 100)
	lost := x.Stats().Subscriber.Lost
	if _, err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if known := noted(); known.Global != 0 || known.Hash != "" || known.Dropped != lost {
		t.Errorf("noted: %+v, want %d dropped", known, lost)
	}
	config.Policy = gateway.Reject
	_, err := Open(t.Context(), config)
	for _, word := range []string{fmt.Sprint(lost), config.OutboxDir, "empty outbox", "empty cluster"} {
		if !errors.Is(err, ErrDropped) || !strings.Contains(err.Error(), word) {
			t.Errorf("restart: %v, want ErrDropped with %q", err, word)
		}
	}
	if err := errors.Join(os.RemoveAll(config.OutboxDir), os.Remove(statePath(config.OutboxDir))); err != nil {
		t.Fatal(err)
	}
	open(t, config)
}

func TestClosedExchange(t *testing.T) {
	x := open(t, storageless(testConfig(t, noStorage())))
	first, err := x.Close()
	if err != nil {
		t.Fatal(err)
	}
	second, err := x.Close()
	if err != nil || first.State.Hash() != second.State.Hash() {
		t.Errorf("the second Close: %v", err)
	}
	if _, err := x.State(); !errors.Is(err, ErrClosed) {
		t.Errorf("state: %v", err)
	}
	if r := x.Router().OpenAccount(1); r.Reason != risk.Unavailable {
		t.Errorf("request: %s", r.Reason)
	}
	if err := x.WaitDurable(t.Context(), 1); !errors.Is(err, subscriber.ErrStopped) {
		t.Errorf("wait: %v", err)
	}
	if s := x.Stats(); s.Outbox.Published != 3 || s.Subscriber.LagRecords != 3 {
		t.Errorf("stats: %+v", s)
	}
}

// A start that takes a while says what it waits for.
func TestProgress(t *testing.T) {
	config := storageless(testConfig(t, noStorage()))
	config.DrainWait = 250 * time.Millisecond
	var mu sync.Mutex
	told := map[Phase]int{}
	config.Progress = func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		told[p.Phase]++
	}
	if _, err := open(t, config).Close(); err != nil {
		t.Fatal(err)
	}
	if told[PhaseStores] < 2 || told[PhaseDrain] < 1 {
		t.Errorf("told: %v", told)
	}
}
