package exchange

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/replica"
)

// loseQuorum kills the members of shard s1 and deletes the data of all but the
// survivor, which it recovers and starts.
func loseQuorum(t *testing.T, c *localcluster.Cluster, survivor string) {
	t.Helper()
	for _, m := range c.Of("s1") {
		if err := c.KillNode(m.ID); err != nil {
			t.Fatal(err)
		}
		if m.ID == survivor {
			continue
		}
		if err := os.RemoveAll(m.DataDir); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.Of("s1") {
		if m.ID != survivor {
			continue
		}
		if _, err := replica.RecoverOffline(replica.Config{DataDir: m.DataDir, Recover: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.StartNode(t.Context(), survivor); err != nil {
		t.Fatal(err)
	}
}

// enlist makes an empty node a voter of shard s1.
func enlist(t *testing.T, c *localcluster.Cluster, x *Exchange, id string) {
	t.Helper()
	m, err := c.JoinNode(t.Context(), "s1", id)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := x.Client().AddLearner(ctx, "s1", id, m.Address, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Client().Promote(ctx, "s1", id, 0); err != nil {
		t.Fatal(err)
	}
}

// Two of three members of a shard are lost while the exchange trades. The third had
// everything that was acknowledged: it is recovered, two more join, and the exchange,
// which was never stopped, delivers what waited meanwhile. Nothing is lost or twice.
func TestALostQuorumIsRecoveredUnderAnExchange(t *testing.T) {
	storage := startStorage(t, 3)
	x := open(t, testConfig(t, storage.Map()))
	fund(t, x)
	rng := rand.New(rand.NewPCG(31, 1))
	trade(x, rng, 500)
	drained(t, x)
	survivor := follower(t, x, storage)
	awaitSame(t, x, survivor)
	loseQuorum(t, storage, survivor)
	if trade(x, rng, 500) == 0 {
		t.Fatal("the exchange does not trade")
	}
	enlist(t, storage, x, "s1-3")
	enlist(t, storage, x, "s1-4")
	trade(x, rng, 500)
	drained(t, x)
	last := closeDrained(t, x)
	mustRebuildFromLeaders(t, storage.Map(), last)
	again := open(t, testConfig(t, storage.Map()))
	mustEqual(t, "the state after a restart from the stores", last, state(t, again))
}

// The survivor lacks what the two others had acknowledged. The exchange notices,
// whether it goes on or is started again, and delivers nothing over the gap.
func TestASurvivorThatLacksRecordsIsNoticed(t *testing.T) {
	storage := startStorage(t, 3)
	config := testConfig(t, storage.Map())
	x := open(t, config)
	fund(t, x)
	rng := rand.New(rand.NewPCG(31, 2))
	trade(x, rng, 300)
	drained(t, x)
	survivor := follower(t, x, storage)
	awaitSame(t, x, survivor)
	if err := storage.KillNode(survivor); err != nil {
		t.Fatal(err)
	}
	trade(x, rng, 300)
	drained(t, x)
	loseQuorum(t, storage, survivor)
	trade(x, rng, 300)
	select {
	case <-x.Failed():
	case <-time.After(30 * time.Second):
		t.Fatalf("it goes on: %+v", x.Stats().Subscriber)
	}
	if err := x.Err(); !errors.Is(err, subscriber.ErrMissing) {
		t.Errorf("it ended with %v", err)
	}
	if _, err := x.Close(); err != nil {
		t.Log(err)
	}
	mustRefuse(t, config, ErrDiverged, "s1", "restore the shard's data")
}

func drained(t *testing.T, x *Exchange) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := x.WaitDrained(ctx); err != nil {
		t.Fatal(err)
	}
}

// follower returns a member of shard s1 that does not lead.
func follower(t *testing.T, x *Exchange, c *localcluster.Cluster) string {
	t.Helper()
	st, err := x.Client().Leader(t.Context(), "s1")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Of("s1") {
		if m.ID != st.Id {
			return m.ID
		}
	}
	return ""
}

// awaitSame waits until a member holds what the leader holds.
func awaitSame(t *testing.T, x *Exchange, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	leader, err := x.Client().Leader(ctx, "s1")
	if err != nil {
		t.Fatal(err)
	}
	for {
		st, err := x.Client().Status(ctx, "s1", id)
		if err == nil && st.AppliedIndex >= leader.LastIndex {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s does not catch up: %v, %v", id, st, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func mustRebuildFromLeaders(t *testing.T, m *client.Map, want core.State) {
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
		t.Errorf("rebuilt %d records up to global %d of %d", built.Records, built.Global, want.Global)
	}
}
