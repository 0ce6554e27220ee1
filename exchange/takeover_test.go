package exchange

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// durable submits an order and waits until it is durable.
func durable(ctx context.Context, x *Exchange, sym record.Symbol, rng *rand.Rand) error {
	view, _ := x.Router().Instrument(sym)
	res := x.Router().Submit(&core.NewOrder{
		Instrument: sym, Account: 1 + rng.Uint64N(accounts), Side: record.Side(1 + rng.IntN(2)), Offset: record.Open,
		Price: (view.Terms.UpperLimit + view.Terms.LowerLimit) / 2, Volume: 1,
	})
	if res.Reason != risk.OK {
		return &risk.Error{Reason: res.Reason}
	}
	return x.WaitDurable(ctx, res.Global)
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// An exchange that starts beside another one, with an outbox of its own, takes
// every stream over before its first order: also those that neither writes just then.
func TestLaterExchangeFencesTheEarlier(t *testing.T) {
	storage := startStorage(t, 1)
	first := open(t, testConfig(t, storage.Map()))
	fund(t, first)
	trade(first, rand.New(rand.NewPCG(1, 1)), 200)
	if err := first.WaitDrained(bounded(t)); err != nil {
		t.Fatal(err)
	}
	config := testConfig(t, storage.Map())
	second := open(t, config)
	if !second.Recovery().Fenced {
		t.Errorf("%+v", second.Recovery())
	}
	mustEqual(t, "the state taken over", state(t, first), state(t, second))
	rng := rand.New(rand.NewPCG(2, 2))
	for i, sym := range symbols {
		if err := durable(bounded(t), second, sym, rng); err != nil {
			t.Errorf("the later one, %s: %v", sym, err)
		}
		if err := durable(bounded(t), first, symbols[(i+1)%3], rng); err == nil {
			t.Errorf("the earlier one has an order on %s that is durable", symbols[(i+1)%3])
		}
	}
	select {
	case <-first.Failed():
	case <-bounded(t).Done():
		t.Fatal("the earlier one goes on")
	}
	if err := first.Err(); !errors.Is(err, subscriber.ErrFenced) {
		t.Errorf("the earlier one ended with %v", err)
	}
	last := closeDrained(t, second)
	mustRebuild(t, storage.Map(), last)
	mustEqual(t, "the state after another start", last, state(t, open(t, config)))
}

// Whoever starts when, one of them writes at a time, and what is durable stays.
func TestExchangesThatStartAtOnce(t *testing.T) {
	storage := startStorage(t, 1)
	x := open(t, testConfig(t, storage.Map()))
	fund(t, x)
	closeDrained(t, x)
	const rivals = 4
	var mu sync.Mutex
	orders := map[uint64]int{}
	var running sync.WaitGroup
	for n := range uint64(rivals) {
		config := testConfig(t, storage.Map())
		running.Go(func() {
			rng := rand.New(rand.NewPCG(n, 9))
			x, err := Open(t.Context(), config)
			if err != nil {
				return // fenced, or what it compared with has moved on
			}
			defer x.Close()
			for i := range 30 {
				if durable(t.Context(), x, symbols[(uint64(i)+n)%3], rng) != nil {
					return
				}
				mu.Lock()
				orders[x.Router().Totals().Orders]++
				mu.Unlock()
			}
		})
	}
	running.Wait()
	for id, times := range orders {
		if times > 1 {
			t.Errorf("order %d is durable %d times", id, times)
		}
	}
	last := open(t, testConfig(t, storage.Map()))
	if err := durable(bounded(t), last, symbols[0], rand.New(rand.NewPCG(1, 9))); err != nil {
		t.Fatal(err)
	}
	mustRebuild(t, storage.Map(), closeDrained(t, last))
}

// down kills a shard's nodes; the returned function starts them.
func down(t *testing.T, storage *localcluster.Cluster, shard string) (up func()) {
	t.Helper()
	for _, m := range storage.Of(shard) {
		if err := storage.KillNode(m.ID); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		for _, m := range storage.Of(shard) {
			if err := storage.StartNode(t.Context(), m.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// delivered waits until a shard has what the outbox holds for it.
func delivered(t *testing.T, x *Exchange, lane int) {
	t.Helper()
	ctx := bounded(t)
	published := x.Stats().Outbox.Published
	for x.Stats().Lanes[lane].Cursor < published {
		if ctx.Err() != nil {
			t.Fatalf("%+v", x.Stats().Lanes[lane])
		}
		time.Sleep(time.Millisecond)
	}
}

// rebuildFails makes sure that the streams have a gap.
func rebuildFails(t *testing.T, m *client.Map) {
	t.Helper()
	c, err := client.New(m, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := Rebuild(t.Context(), c, RebuildOptions{}); err == nil {
		t.Error("streams that end unevenly were rebuilt from")
	}
}

// An outbox is lost while one shard had its records and the other one had not.
// What was durable is kept, the rest is given up when somebody says so, and the
// exchange goes on; also when that happens again.
func TestLostOutboxInFrontOfUnevenShards(t *testing.T) {
	storage := startStorage(t, 1)
	config := testConfig(t, storage.Map())
	config.StateEvery = -1
	x := open(t, config)
	fund(t, x)
	for round := range uint64(3) {
		rng := rand.New(rand.NewPCG(round, 4))
		trade(x, rng, 100)
		if err := x.WaitDrained(bounded(t)); err != nil {
			t.Fatal(err)
		}
		kept := x.Stats().Outbox.Published
		up := down(t, storage, "s2")
		trade(x, rng, 200)
		delivered(t, x, 0)
		if x.subscriber.Durable() >= x.Stats().Outbox.Published {
			t.Fatal("durable without its shard")
		}
		x.config.CloseWait = time.Millisecond
		x.Close()
		if err := errors.Join(os.RemoveAll(config.OutboxDir), os.Remove(statePath(config.OutboxDir))); err != nil {
			t.Fatal(err)
		}
		up()
		rebuildFails(t, storage.Map())
		config.AcceptLoss = false
		mustRefuse(t, config, ErrDiverged, "--accept-loss", "cannot be rebuilt from")
		config.AcceptLoss = true
		x = open(t, config)
		if cut := x.Recovery().Cut; cut == nil || cut.From < kept || cut.To <= cut.From || len(cut.Records) == 0 {
			t.Fatalf("round %d: durable up to %d, cut %+v", round, kept, cut)
		}
		config.AcceptLoss = false
	}
	trade(x, rand.New(rand.NewPCG(9, 4)), 100)
	last := closeDrained(t, x)
	x = open(t, config)
	mustEqual(t, "the state after another start", last, state(t, x))
	if x.Recovery().Cut != nil {
		t.Error("cut once more")
	}
}

// The machine went down: the outbox lost its end, one shard has records of that
// end, the other one lacks even what the outbox still holds. That is delivered first.
func TestOutboxBehindOneShardAndAheadOfTheOther(t *testing.T) {
	storage := startStorage(t, 1)
	config := testConfig(t, storage.Map())
	config.QuotaBytes = 6 << 20 // few enough files that no more are being made while they are copied
	x := open(t, config)
	fund(t, x)
	rng := rand.New(rand.NewPCG(3, 4))
	trade(x, rng, 100)
	up := down(t, storage, "s2")
	trade(x, rng, 100)
	delivered(t, x, 0)
	held := x.Stats().Outbox.Published
	behind := filepath.Join(t.TempDir(), "behind")
	if err := os.CopyFS(behind, os.DirFS(config.OutboxDir)); err != nil {
		t.Fatal(err)
	}
	trade(x, rng, 100)
	delivered(t, x, 0)
	x.config.CloseWait = time.Millisecond
	x.Close()
	up()
	known := knownState{Format: stateFormat, Cluster: "test", NeedsStores: true, path: statePath(behind)}
	if err := known.store(); err != nil {
		t.Fatal(err)
	}
	config.OutboxDir, config.AcceptLoss = behind, true
	x = open(t, config)
	if cut := x.Recovery().Cut; cut == nil || cut.From < held {
		t.Fatalf("the outbox held records up to %d, cut %+v", held, cut)
	}
	trade(x, rng, 100)
	last := closeDrained(t, x)
	config.AcceptLoss = false
	mustEqual(t, "the state after another start", last, state(t, open(t, config)))
}

// Shards that can be read and take nothing, as with full disks, do not keep an
// exchange with a whole outbox from starting; one without must wait for them.
func TestStartInFrontOfFullDisks(t *testing.T) {
	storage := startStorage(t, 1, "--disk-reserve-bytes", "1000000000000000")
	config := testConfig(t, storage.Map())
	config.Init, config.DrainWait, config.CloseWait = true, 300*time.Millisecond, time.Millisecond
	x := open(t, config)
	if r := x.Recovery(); r.Fenced || !r.FromOutbox {
		t.Errorf("%+v", r)
	}
	fund(t, x)
	if n := trade(x, rand.New(rand.NewPCG(1, 1)), 50); n == 0 {
		t.Error("no order was taken")
	}
	closed, err := x.Close()
	if err != nil {
		t.Fatal(err)
	}
	mustEqual(t, "the state after another start", closed.State, state(t, open(t, config)))
	config.OutboxDir, config.Init, config.StorageWait = filepath.Join(t.TempDir(), "lost"), false, time.Second
	mustRefuse(t, config, ErrStores, "fence", "below the reserve")
}

// A shard that has not been told all of its instruments, as one that is being
// formed, is waited for.
func TestShardLearnsItsInstrumentsDuringAStart(t *testing.T) {
	shards := testShards(1)
	whole := shards[1].Instruments
	shards[1].Instruments = whole[:1]
	storage := startShards(t, shards)
	m := storage.Map()
	m.Shards[1].Instruments = whole
	config := testConfig(t, m)
	config.StorageWait = 300 * time.Millisecond
	mustRefuse(t, config, ErrStores, "fence", whole[1], "not on this shard's list")
	c, err := client.New(m, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var assigning sync.WaitGroup
	config = testConfig(t, m)
	asked := false
	config.Progress = func(p Progress) { // the first of them, in the middle of the start
		if !asked {
			asked = true
			assigning.Go(func() {
				if _, err := c.AssignInstruments(bounded(t), "s2", whole); err != nil {
					t.Error(err)
				}
			})
		}
	}
	x := open(t, config)
	assigning.Wait()
	if !x.Recovery().Fenced {
		t.Errorf("%+v", x.Recovery())
	}
	fund(t, x)
	mustRebuild(t, m, closeDrained(t, x))
}

// What Follow makes of the client holds for the delivery: here nobody runs the
// members that the map begins with.
func TestFollowGivesTheMembers(t *testing.T) {
	storage := startStorage(t, 1)
	there := storage.Map()
	m := storage.Map()
	for i := range m.Shards {
		m.Shards[i].Members = []client.Member{{ID: m.Shards[i].Name + "-gone", Address: fmt.Sprintf("127.0.0.1:%d", i+1)}}
	}
	config := testConfig(t, m)
	ended := make(chan struct{})
	config.Follow = func(ctx context.Context, c *client.Client) {
		defer close(ended)
		for _, s := range there.Shards {
			if err := c.SetMembers(s.Name, s.Members); err != nil {
				t.Error(err)
			}
		}
		<-ctx.Done()
	}
	x := open(t, config)
	fund(t, x)
	mustRebuild(t, there, closeDrained(t, x))
	select {
	case <-ended:
	default:
		t.Error("Close returns before Follow does")
	}
}

// Two exchanges that started without the stores meet when these come: one
// delivers, the other one stops before it has written anything.
func TestTwoStartsWithoutStorage(t *testing.T) {
	storage := startStorage(t, 1)
	ups := []func(){down(t, storage, "s1"), down(t, storage, "s2")}
	var rivals [2]*Exchange
	var configs [2]Config
	for i := range rivals {
		configs[i] = storageless(testConfig(t, storage.Map()))
		configs[i].StorageWait = 10 * time.Second
		rivals[i] = open(t, configs[i])
		fund(t, rivals[i])
		trade(rivals[i], rand.New(rand.NewPCG(uint64(i), 5)), 300)
	}
	states := [2]core.State{state(t, rivals[0]), state(t, rivals[1])}
	for _, up := range ups {
		up()
	}
	select {
	case <-rivals[0].Failed():
	case <-rivals[1].Failed():
	case <-bounded(t).Done():
		t.Fatal("both go on")
	}
	// Each may have stopped the other one: whose outbox goes on then?
	for i, x := range rivals {
		x.Close()
		configs[i].Init, configs[i].DrainWait, configs[i].CloseWait = false, 10*time.Second, 10*time.Second
	}
	winner := 0
	x, err := Open(t.Context(), configs[0])
	if err != nil {
		winner = 1
		x = open(t, configs[1])
	}
	mustEqual(t, "the winner's state", states[winner], state(t, x))
	mustRebuild(t, storage.Map(), closeDrained(t, x))
	mustRefuse(t, configs[1-winner], ErrDiverged)
}

// What started without the stores, from an outbox that is not theirs, stops when
// they come, and leaves the exchange that is in the right alone.
func TestStaleExchangeDoesNotFence(t *testing.T) {
	for _, longer := range []bool{false, true} {
		t.Run(fmt.Sprintf("longer %t", longer), func(t *testing.T) {
			storage := startStorage(t, 1)
			right := open(t, testConfig(t, storage.Map()))
			fund(t, right)
			rng := rand.New(rand.NewPCG(1, 6))
			trade(right, rng, 500)
			if err := right.WaitDrained(bounded(t)); err != nil {
				t.Fatal(err)
			}
			ups := []func(){down(t, storage, "s1"), down(t, storage, "s2")}
			stale := open(t, storageless(testConfig(t, storage.Map())))
			fund(t, stale)
			n := 10
			if longer {
				n = 2000
			}
			trade(stale, rand.New(rand.NewPCG(2, 6)), n)
			if got := stale.Stats().Outbox.Published > right.Stats().Outbox.Published; got != longer {
				t.Fatalf("the stale outbox is longer: %t", got)
			}
			for _, up := range ups {
				up()
			}
			select {
			case <-stale.Failed():
			case <-bounded(t).Done():
				t.Fatal("the stale one goes on")
			}
			if err := stale.Err(); !errors.Is(err, ErrDiverged) || !strings.Contains(err.Error(), "move the outbox away") {
				t.Errorf("the stale one ended with %v", err)
			}
			for _, sym := range symbols {
				if err := durable(bounded(t), right, sym, rng); err != nil {
					t.Errorf("%s: %v", sym, err)
				}
			}
			mustRebuild(t, storage.Map(), closeDrained(t, right))
		})
	}
}

// resting submits an order that rests, and waits until it is durable.
func resting(ctx context.Context, x *Exchange, sym record.Symbol) error {
	view, _ := x.Router().Instrument(sym)
	res := x.Router().Submit(&core.NewOrder{
		Instrument: sym, Account: 1, Side: record.Buy, Offset: record.Open, Price: view.Terms.LowerLimit, Volume: 1,
	})
	if res.Reason != risk.OK {
		return &risk.Error{Reason: res.Reason}
	}
	return x.WaitDurable(ctx, res.Global)
}

// A machine goes down with records that were not delivered, another one goes on
// from the stores, and the first comes back: what it still holds must not get
// beside what has taken its numbers, in whichever stream. What is stored stays as
// it is, and whoever wrote it goes on.
func TestMachineThatComesBackLate(t *testing.T) {
	for _, c := range []struct {
		name     string
		running  bool // the other exchange, as the first comes back
		delivers bool // a record behind the one that was not, which must be given up
	}{{"running", true, false}, {"ended", false, false}, {"uneven", true, true}, {"uneven and ended", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			storage := startStorage(t, 1)
			config := testConfig(t, storage.Map())
			config.StateEvery = -1
			first := open(t, config)
			fund(t, first)
			if err := first.WaitDrained(bounded(t)); err != nil {
				t.Fatal(err)
			}
			up := down(t, storage, "s2") // which has IC2501 and IH2501
			quick, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := resting(quick, first, symbols[1]); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("durable without its shard: %v", err)
			}
			if c.delivers {
				_ = resting(quick, first, symbols[0]) // behind one that is not durable, it is not either
				delivered(t, first, 0)
			}
			first.config.CloseWait = time.Millisecond
			first.Close()
			up()
			if err := storage.AwaitLeaders(t.Context()); err != nil {
				t.Fatal(err)
			}
			next := testConfig(t, storage.Map())
			next.AcceptLoss = c.delivers
			second := open(t, next)
			for range 10 {
				if err := resting(bounded(t), second, symbols[2]); err != nil {
					t.Fatal(err)
				}
			}
			var want core.State
			if !c.running {
				want = closeDrained(t, second)
			}
			known := knownState{Format: stateFormat, Cluster: "test", NeedsStores: true, path: statePath(config.OutboxDir)}
			if err := known.store(); err != nil {
				t.Fatal(err)
			}
			mustRefuse(t, config, ErrDiverged, "another exchange", "move")
			if c.running {
				if err := resting(bounded(t), second, symbols[1]); err != nil {
					t.Errorf("the other one was stopped: %v", err)
				}
				want = closeDrained(t, second)
			}
			next.AcceptLoss = false
			last := open(t, next)
			mustEqual(t, "the other one's state", want, state(t, last))
		})
	}
}

// Another exchange writes at an instant between the looks of a start at what is
// stored: it is noticed, and nothing is accepted.
func TestAnotherWritesWhileAStartFences(t *testing.T) {
	for _, method := range []string{storagepb.Query_Instruments_FullMethodName, storagepb.Ingest_OpenStream_FullMethodName} {
		for calls := 1; calls <= 6; calls++ {
			t.Run(fmt.Sprintf("%s %d", filepath.Base(method), calls), func(t *testing.T) {
				storage := startStorage(t, 1)
				config := testConfig(t, storage.Map())
				config.StateEvery = -1
				x := open(t, config)
				fund(t, x)
				closeDrained(t, x)
				other := open(t, testConfig(t, storage.Map()))
				var seen atomic.Int64
				var written atomic.Bool
				config.Client.Dial = []grpc.DialOption{
					grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithUnaryInterceptor(func(ctx context.Context, called string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
						if called == method && seen.Add(1) == int64(calls) {
							for range 3 {
								if err := resting(ctx, other, symbols[1]); err != nil {
									return invoke(ctx, called, req, reply, cc, opts...) // fenced already
								}
							}
							written.Store(true)
						}
						return invoke(ctx, called, req, reply, cc, opts...)
					}),
				}
				started, err := Open(t.Context(), config)
				if err != nil {
					if !errors.Is(err, ErrDiverged) {
						t.Fatal(err)
					}
					return
				}
				defer started.Close()
				if written.Load() {
					t.Fatalf("it starts although another one has written: %+v", started.Recovery())
				}
				if err := resting(bounded(t), started, symbols[1]); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// Once outbox and stores were compared, that the machine went down is forgotten, on
// disk as well.
func TestComparisonIsNoted(t *testing.T) {
	storage := startStorage(t, 1)
	config := testConfig(t, storage.Map())
	config.StateEvery = -1
	known := knownState{Format: stateFormat, Cluster: "test", NeedsStores: true, path: statePath(config.OutboxDir)}
	if err := known.store(); err != nil {
		t.Fatal(err)
	}
	open(t, config)
	if noted, err := loadState(config.OutboxDir, "test"); err != nil || noted.NeedsStores {
		t.Errorf("%+v, %v", noted, err)
	}
}
