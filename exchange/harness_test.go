package exchange

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/node"
)

// The test binary stands in for a storage node.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "storagenode" {
		os.Exit(node.Execute(context.Background(), os.Args[2:]))
	}
	os.Exit(m.Run())
}

// testShards are two shards, so that streams must be merged.
func testShards(replicas int) []localcluster.Shard {
	return []localcluster.Shard{
		{Name: "s1", Instruments: []string{"IF2501", record.AccountStream}, Replicas: replicas},
		{Name: "s2", Instruments: []string{"IC2501", "IH2501"}, Replicas: replicas},
	}
}

// startStorage starts storage nodes that elect fast, and waits for leaders.
func startStorage(t *testing.T, replicas int, args ...string) *localcluster.Cluster {
	t.Helper()
	return startShards(t, testShards(replicas), args...)
}

func startShards(t *testing.T, shards []localcluster.Shard, args ...string) *localcluster.Cluster {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c, err := localcluster.Start(t.Context(), localcluster.Options{
		Cluster: "test", Dir: filepath.Join(t.TempDir(), "nodes"), Command: []string{self, "storagenode"},
		Args: append([]string{
			"--heartbeat-timeout", "500ms", "--ballast-bytes", "-1", "--disk-reserve-bytes", "-1",
			"--segment-bytes", "4194304", "--log-cache-bytes", "8388608",
		}, args...),
		Shards: shards,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.AwaitLeaders(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// noStorage returns a shard map whose nodes nobody runs.
func noStorage() *client.Map {
	m := &client.Map{Cluster: "test"}
	for i, s := range testShards(1) {
		m.Shards = append(m.Shards, client.Shard{
			Name: s.Name, Instruments: s.Instruments,
			Members: []client.Member{{ID: s.Name + "-0", Address: []string{"127.0.0.1:1", "127.0.0.1:2"}[i]}},
		})
	}
	return m
}

// testConfig is a configuration with an outbox of its own and short waits.
func testConfig(t *testing.T, m *client.Map) Config {
	t.Helper()
	set, err := order.DefaultSet()
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Shards: m, Instruments: set, OutboxDir: filepath.Join(t.TempDir(), "outbox"),
		SegmentRecords: 4096, QuotaBytes: 64 << 20,
		StorageWait: 10 * time.Second, DrainWait: 5 * time.Second, CloseWait: 10 * time.Second,
		Client: client.Options{AttemptTimeout: 2 * time.Second},
	}
}

// storageless shortens the waits of a configuration for a start without storage.
func storageless(c Config) Config {
	c.Init, c.DrainWait, c.CloseWait, c.StorageWait = true, 50*time.Millisecond, time.Millisecond, 200*time.Millisecond
	return c
}

func open(t *testing.T, c Config) *Exchange {
	t.Helper()
	x, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func closeDrained(t *testing.T, x *Exchange) core.State {
	t.Helper()
	closed, err := x.Close()
	if err != nil || !closed.Drained {
		t.Fatalf("close: drained %t, %v; %+v", closed.Drained, err, x.Stats().Subscriber)
	}
	return closed.State
}

var symbols = []record.Symbol{record.MustSymbol("IF2501"), record.MustSymbol("IC2501"), record.MustSymbol("IH2501")}

const accounts = 20

// fund opens the accounts and gives them money.
func fund(t *testing.T, x *Exchange) {
	t.Helper()
	for id := uint64(1); id <= accounts; id++ {
		for _, r := range []core.Receipt{x.Router().OpenAccount(id), x.Router().Deposit(id, 1_000_000_000_00, id)} {
			if r.Reason != risk.OK {
				t.Fatalf("account %d: %s", id, r.Reason)
			}
		}
	}
}

// trade sends n random requests and returns how many were taken.
func trade(x *Exchange, rng *rand.Rand, n int) (taken int) {
	var live []core.CancelOrder
	for range n {
		res := request(x.Router(), rng, &live)
		if res.Reason == risk.OK {
			taken++
		}
	}
	return taken
}

// request sends a random order, cancel or amend near the middle of the limits.
func request(r *core.Router, rng *rand.Rand, live *[]core.CancelOrder) core.Result {
	sym := symbols[rng.IntN(len(symbols))]
	view, _ := r.Instrument(sym)
	middle := (view.Terms.UpperLimit + view.Terms.LowerLimit) / 2
	if k := len(*live); k > 0 && rng.IntN(4) == 0 {
		i := rng.IntN(k)
		c := (*live)[i]
		if rng.IntN(2) == 0 {
			return r.Amend(&core.AmendOrder{Instrument: c.Instrument, Account: c.Account, OrderID: c.OrderID, Price: middle + rng.Int64N(21) - 10, Volume: 1 + rng.Int64N(5)})
		}
		*live = append((*live)[:i], (*live)[i+1:]...)
		return r.Cancel(&c)
	}
	n := core.NewOrder{
		Instrument: sym, Account: 1 + rng.Uint64N(accounts), ClientOrderID: rng.Uint64(),
		Side: record.Side(1 + rng.IntN(2)), Offset: record.Offset(1 + rng.IntN(3)),
		Price: middle + rng.Int64N(21) - 10, Volume: 1 + rng.Int64N(10),
		TimeInForce: record.TimeInForce(rng.IntN(4)),
	}
	if rng.IntN(3) > 0 {
		n.Offset = record.Open
	}
	if rng.IntN(10) == 0 {
		n.Kind, n.TimeInForce = record.Market, 0
	}
	res := r.Submit(&n)
	if res.Status == core.Resting || res.Status == core.PartlyFilled {
		*live = append(*live, core.CancelOrder{Instrument: sym, Account: n.Account, OrderID: res.OrderID})
	}
	return res
}

func state(t *testing.T, x *Exchange) core.State {
	t.Helper()
	s, err := x.State()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustEqual(t *testing.T, what string, want, got core.State) {
	t.Helper()
	if want.Hash() != got.Hash() {
		t.Fatalf("%s differs:\n%v", what, want.Diff(got))
	}
}

// mustRebuild rebuilds from the leaders, and from every replica once it has
// caught up, and compares.
func mustRebuild(t *testing.T, m *client.Map, want core.State) {
	t.Helper()
	c, err := client.New(m, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	built, err := Rebuild(t.Context(), c, RebuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustEqual(t, "the leaders' rebuild", want, built.State)
	if built.Global != want.Global || built.Records != want.Global {
		t.Fatalf("rebuilt %d records up to global %d of %d", built.Records, built.Global, want.Global)
	}
	for i := range m.Shards[0].Members {
		awaitReplica(t, c, i, want)
	}
}

func awaitReplica(t *testing.T, c *client.Client, i int, want core.State) {
	t.Helper()
	from := func(shard string) client.Replica {
		for _, s := range c.Map().Shards {
			if s.Name == shard {
				return client.Replica{Member: s.Members[i].ID}
			}
		}
		return client.Replica{}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		built, err := Rebuild(t.Context(), c, RebuildOptions{From: from})
		if err == nil && built.Global == want.Global {
			mustEqual(t, "a replica's rebuild", want, built.State)
			return
		}
		if time.Now().After(end) {
			t.Fatalf("replica %d does not catch up: %v", i, err)
		}
	}
}
