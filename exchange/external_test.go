package exchange

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// carry carries an outbox's records as another process would, until stop is called
// or the test ends.
func carry(t *testing.T, config Config) (p *subscriber.Process, stop func() error) {
	t.Helper()
	c, err := client.New(config.Shards, config.Client)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	p, err = subscriber.NewProcess(subscriber.ProcessConfig{OutboxDir: config.OutboxDir, Shards: config.Shards, Storage: subscriber.FromClient(c)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	ended := false
	var result error
	stop = func() error {
		if !ended {
			cancel()
			result, ended = <-done, true
		}
		return result
	}
	t.Cleanup(func() { _ = stop() })
	return p, stop
}

func external(c Config) Config {
	c.ExternalSubscriber = true
	return c
}

// An exchange starts again and again while its records are under way, and each time
// it is what it was.
func TestExternalSubscriberThroughRestarts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	cluster := startStorage(t, 1)
	config := external(testConfig(t, cluster.Map()))
	_, stop := carry(t, config)
	for round := range 4 {
		x := open(t, config)
		if !x.Recovery().Fenced {
			t.Error("nobody is fenced")
		}
		if round == 0 {
			fund(t, x)
		}
		trade(x, rng, 3000)
		want := state(t, x)
		if round%2 == 0 {
			mustEqual(t, "the last state", want, closeDrained(t, x))
			mustRebuild(t, cluster.Map(), want)
			continue
		}
		abandon(t, x)
		again := open(t, config)
		mustEqual(t, "the state after a start amid deliveries", want, state(t, again))
		abandon(t, again)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// abandon ends an exchange with what it has not delivered.
func abandon(t *testing.T, x *Exchange) {
	t.Helper()
	x.config.CloseWait = time.Nanosecond
	if _, err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

// Durable orders of an exchange wait for what another process carries.
func TestExternalDurability(t *testing.T) {
	config := external(testConfig(t, startStorage(t, 1).Map()))
	x := open(t, config)
	fund(t, x)
	global := x.Stats().Outbox.Published
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := x.WaitDurable(short, global); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("nobody carries, and the wait ended with %v", err)
	}
	if s := x.Stats().Subscriber; s.State != subscriber.StateExternal || s.LagRecords != global {
		t.Errorf("statistics %+v", s)
	}
	told := make(chan error, 1)
	x.OnDurable(global, func(err error) { told <- err })
	carry(t, config)
	if err := <-told; err != nil {
		t.Error(err)
	}
	if err := x.WaitDurable(t.Context(), global); err != nil {
		t.Error(err)
	}
}

// An exchange that started without the stores fences the others once they are there,
// and only then anything is carried.
func TestExternalStartWithoutStores(t *testing.T) {
	cluster := startStorage(t, 1)
	for _, m := range cluster.Members() {
		if err := cluster.KillNode(m.ID); err != nil {
			t.Fatal(err)
		}
	}
	config := external(storageless(testConfig(t, cluster.Map())))
	config.StorageWait, config.CloseWait = 10*time.Second, 10*time.Second
	x := open(t, config)
	fund(t, x)
	p, _ := carry(t, config)
	if _, err := subscriber.ReadGrant(config.OutboxDir); err == nil {
		t.Error("there is a grant, and nobody is fenced")
	}
	for _, m := range cluster.Members() {
		if err := cluster.StartNode(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	want := closeDrained(t, x)
	mustRebuild(t, cluster.Map(), want)
	if p.Waits() != "" {
		t.Errorf("it waits for %q", p.Waits())
	}
}

// An exchange that started without the stores, whose history is another one, stops
// when they are back, and nothing of it is carried.
func TestExternalStartWithoutStoresThatDiverge(t *testing.T) {
	cluster := startStorage(t, 1)
	first := open(t, testConfig(t, cluster.Map()))
	fund(t, first)
	want := closeDrained(t, first)
	for _, m := range cluster.Members() {
		if err := cluster.KillNode(m.ID); err != nil {
			t.Fatal(err)
		}
	}
	config := external(storageless(testConfig(t, cluster.Map())))
	config.StorageWait = 10 * time.Second
	x := open(t, config)
	carry(t, config)
	for _, m := range cluster.Members() {
		if err := cluster.StartNode(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	<-x.Failed()
	if err := x.Err(); !errors.Is(err, ErrDiverged) {
		t.Errorf("it stopped with %v", err)
	}
	mustRebuild(t, cluster.Map(), want)
}

// While nobody carries, orders are taken until the quota is used up, and again when
// somebody has carried what there is.
func TestExternalQuota(t *testing.T) {
	cluster := startStorage(t, 1)
	config := external(testConfig(t, cluster.Map()))
	config.SegmentRecords, config.HeadroomRecords = 1024, 64
	config.QuotaBytes = 4 * (1024*136 + 4096)
	x := open(t, config)
	fund(t, x)
	rng := rand.New(rand.NewPCG(3, 4))
	for n := 0; x.Stats().Outbox.RefusedQuota == 0; n++ {
		if n > 100 {
			t.Fatalf("the quota is never reached: %+v", x.Stats().Outbox)
		}
		trade(x, rng, 1000)
	}
	if x.Router().Refused(risk.BacklogFull) == 0 {
		t.Error("nothing was refused as backlog-full")
	}
	carry(t, config)
	if err := x.WaitDrained(t.Context()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); trade(x, rng, 100) == 0; {
		if time.Now().After(end) {
			t.Fatalf("no order is taken again: %+v", x.Stats().Outbox)
		}
	}
	mustRebuild(t, cluster.Map(), closeDrained(t, x))
}

// Two exchanges share no outbox: the later one fences the earlier, which hears of it
// from the process that carries its records.
func TestExternalIsTakenOver(t *testing.T) {
	cluster := startStorage(t, 1)
	config := external(testConfig(t, cluster.Map()))
	x := open(t, config)
	carry(t, config)
	fund(t, x)
	if err := x.WaitDrained(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := open(t, testConfig(t, cluster.Map()))
	x.Router().Deposit(1, 1, 999)
	<-x.Failed()
	if err := x.Err(); !errors.Is(err, subscriber.ErrFenced) {
		t.Errorf("it stopped with %v", err)
	}
	trade(later, rand.New(rand.NewPCG(1, 1)), 200)
	mustRebuild(t, cluster.Map(), closeDrained(t, later))
}

// One of the two carries, never both.
func TestInternalBesideAnotherProcess(t *testing.T) {
	config := testConfig(t, startStorage(t, 1).Map())
	x := open(t, external(config))
	_, stop := carry(t, config)
	fund(t, x)
	closeDrained(t, x)
	if _, err := Open(t.Context(), config); !errors.Is(err, outbox.ErrSubscribed) {
		t.Fatalf("beside a subscriber it started with %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	open(t, config)
	p, err := subscriber.NewProcess(subscriber.ProcessConfig{OutboxDir: config.OutboxDir, Shards: config.Shards, Storage: subscriber.FromClient(x.Client())})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); !errors.Is(err, outbox.ErrSubscribed) {
		t.Errorf("beside an exchange that carries itself: %v", err)
	}
}

// A comparison is not misled by what another process delivers while it reads: the
// cursors may have passed what the stores held when they were asked.
func TestCompareWhileAnotherProcessDelivers(t *testing.T) {
	config := external(testConfig(t, startStorage(t, 1).Map()))
	config.CloseWait = time.Nanosecond
	x := open(t, config)
	fund(t, x)
	h, err := openHistory(config.OutboxDir, "test", config.Shards)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	before, err := readEnds(t.Context(), x.Client(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, stop := carry(t, config)
	if err := x.WaitDrained(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	trade(x, rand.New(rand.NewPCG(1, 1)), 500) // which waits for delivery
	if err := h.compare(t.Context(), x.Client(), before); err != nil {
		t.Error(err)
	}
}
