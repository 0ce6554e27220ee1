package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/exchange"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

const (
	kills         = 20
	traders       = 3 // sessions at a time
	accountsTotal = 12
	inFlightMax   = 200 // requests of a session that are not answered
)

// ack is what a client was told about an order.
type ack struct {
	instrument string
	orderID    uint64
	seq        uint64
	durable    bool
}

// trader is one session that sends random orders until it breaks.
type trader struct {
	rng     *rand.Rand
	sent    map[uint64]string // instrument by request id
	slots   chan struct{}
	mu      sync.Mutex
	acks    []ack
	resting []ack
}

func (tr *trader) run(ctx context.Context, entry pb.OrderEntryClient) error {
	s, err := entry.Session(ctx)
	if err != nil {
		return err
	}
	tr.sent, tr.slots = map[uint64]string{}, make(chan struct{}, inFlightMax)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tr.receive(s) == nil {
		}
	}()
	for id := uint64(1); ; id++ {
		select {
		case tr.slots <- struct{}{}:
		case <-done:
			return nil
		}
		r := tr.request(id)
		if s.Send(r) != nil {
			<-done
			return nil
		}
	}
}

func (tr *trader) receive(s pb.OrderEntry_SessionClient) error {
	in, err := s.Recv()
	if err != nil {
		return err
	}
	<-tr.slots
	tr.mu.Lock()
	defer tr.mu.Unlock()
	out := in.Response
	instrument := tr.sent[in.RequestId]
	delete(tr.sent, in.RequestId)
	if out.State == pb.OrderState_ORDER_STATE_REJECTED {
		return nil
	}
	a := ack{instrument: instrument, orderID: out.OrderId, seq: out.Seq, durable: out.Durable}
	tr.acks = append(tr.acks, a)
	if out.State == pb.OrderState_ORDER_STATE_RESTING || out.State == pb.OrderState_ORDER_STATE_PARTLY_FILLED {
		tr.resting = append(tr.resting, a)
	}
	return nil
}

var middles = map[string]int64{"IF2501": 19607, "IC2501": 29000, "IH2501": 13250}

func (tr *trader) request(id uint64) *pb.SessionRequest {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	rng := tr.rng
	account := 1 + rng.Uint64N(accountsTotal)
	if n := len(tr.resting); n > 0 && rng.IntN(4) == 0 {
		i := rng.IntN(n)
		a := tr.resting[i]
		tr.resting[i] = tr.resting[n-1]
		tr.resting = tr.resting[:n-1]
		tr.sent[id] = a.instrument
		// Only the owner may cancel: some of these are refused.
		return &pb.SessionRequest{RequestId: id, Request: &pb.SessionRequest_Cancel{Cancel: &pb.CancelRequest{
			Instrument: a.instrument, Account: account, OrderId: a.orderID, Durable: rng.IntN(4) == 0,
		}}}
	}
	instrument := []string{"IF2501", "IC2501", "IH2501"}[rng.IntN(3)]
	tr.sent[id] = instrument
	return &pb.SessionRequest{RequestId: id, Request: &pb.SessionRequest_Submit{Submit: &pb.SubmitRequest{
		Instrument: instrument, Account: account, ClientOrderId: id, Side: pb.Side(1 + rng.IntN(2)), Offset: pb.Offset(1 + rng.IntN(3)%2*2),
		PriceTicks: middles[instrument] + rng.Int64N(9) - 4, Volume: 1 + rng.Int64N(4), Durable: rng.IntN(4) == 0,
	}}}
}

// Twenty times the exchange is killed in the middle of orders. After each start
// it is what an independent replay of the stores is, and everything that anybody
// was told is there: what was called durable even before the start.
func TestKilledTwentyTimes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	cluster, shards := storage(t)
	c, err := client.New(cluster.Map(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	args := []string{
		"--shards", shards, "--outbox", filepath.Join(t.TempDir(), "outbox"), "--segment-records", "4096", "--quota", "64MiB",
		"--state-every", "20ms", "--log-level", "warn", "--linger", "2ms", "--drain-wait", "20s",
	}
	var all []ack
	for round := range kills + 1 {
		if rng.IntN(3) == 0 { // the recovery is not spared either
			p, _ := begin(t, args...)
			time.Sleep(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
			p.kill()
		}
		p := mustStart(t, args...)
		mustEqualReplay(t, c, p)
		if round == kills {
			if code := p.terminate(t); code != exitOK {
				t.Errorf("exit code %d: %s", code, p.log)
			}
			break
		}
		if round == 0 {
			fund(t, p)
		}
		acks := tradeAndKill(t, p, rng)
		mustHaveDurable(t, c, acks)
		all = append(all, acks...)
	}
	mustHaveAll(t, c, all)
}

func fund(t *testing.T, p *program) {
	t.Helper()
	accounts := pb.NewAccountsClient(p.dial(t))
	for id := uint64(1); id <= accountsTotal; id++ {
		if _, err := accounts.OpenAccount(t.Context(), &pb.OpenAccountRequest{Account: id}); err != nil {
			t.Fatal(err)
		}
		if _, err := accounts.Deposit(t.Context(), &pb.CashRequest{Account: id, Amount: 1 << 50}); err != nil {
			t.Fatal(err)
		}
	}
}

// tradeAndKill lets traders loose on the exchange, kills it at a random instant,
// and returns what they were told.
func tradeAndKill(t *testing.T, p *program, rng *rand.Rand) []ack {
	t.Helper()
	instant := 20*time.Millisecond + time.Duration(rng.Int64N(int64(200*time.Millisecond)))
	entry := pb.NewOrderEntryClient(p.dial(t))
	list := make([]*trader, traders)
	var wg sync.WaitGroup
	for i := range list {
		list[i] = &trader{rng: rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))}
		wg.Go(func() {
			if err := list[i].run(t.Context(), entry); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(instant)
	p.kill()
	wg.Wait()
	var acks []ack
	for _, tr := range list {
		acks = append(acks, tr.acks...)
	}
	return acks
}

// mustEqualReplay compares an exchange that has just started with what an
// independent replay makes of the stores.
func mustEqualReplay(t *testing.T, c *client.Client, p *program) {
	t.Helper()
	st, err := pb.NewControlClient(p.dial(t)).State(t.Context(), &pb.StateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		built, err := exchange.Rebuild(t.Context(), c, exchange.RebuildOptions{})
		if err == nil && built.Global == st.Global { // the listings of the first start are on their way
			if hash := built.State.Hash(); hash != st.Hash {
				t.Fatalf("the exchange after its start is %s, the replay of %d records %s", st.Hash, built.Records, hash)
			}
			if built.Records != built.Global {
				t.Fatalf("%d records up to global %d", built.Records, built.Global)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the stores do not get up to record %d: %v", st.Global, err)
		}
	}
}

// stored returns the last seq of every stream.
func stored(t *testing.T, c *client.Client) map[string]uint64 {
	t.Helper()
	last := map[string]uint64{}
	for _, shard := range c.Map().Shards {
		answer, err := c.Instruments(t.Context(), shard.Name, client.Replica{})
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range answer.Instruments {
			last[st.Instrument] = st.LastSeq
		}
	}
	return last
}

// mustHaveDurable checks, while no exchange runs, what was called durable.
func mustHaveDurable(t *testing.T, c *client.Client, acks []ack) {
	t.Helper()
	last := stored(t, c)
	durable := 0
	for _, a := range acks {
		if a.durable {
			durable++
		}
		if a.durable && a.seq > last[a.instrument] {
			t.Fatalf("order %d was called durable at %s seq %d, but only %d are stored", a.orderID, a.instrument, a.seq, last[a.instrument])
		}
	}
	t.Logf("%d requests acknowledged, %d of them as durable", len(acks), durable)
}

// mustHaveAll checks that the stores hold the order of every answer, at or
// before the number it was answered with.
func mustHaveAll(t *testing.T, c *client.Client, acks []ack) {
	t.Helper()
	inserts := map[string]uint64{} // seq by instrument and order id
	for name, last := range stored(t, c) {
		next := uint64(1)
		err := c.Scan(t.Context(), record.MustSymbol(name), client.Range{}, client.Replica{}, func(rs []record.Record) error {
			for i := range rs {
				if rs[i].Seq != next {
					return fmt.Errorf("seq %d after %d", rs[i].Seq, next-1)
				}
				next++
				if rs[i].Type == record.TypeOrderInsert {
					key := fmt.Sprint(name, rs[i].OrderInsert().OrderID)
					if inserts[key] != 0 {
						return fmt.Errorf("order %d stands twice", rs[i].OrderInsert().OrderID)
					}
					inserts[key] = rs[i].Seq
				}
			}
			return nil
		})
		if err != nil || next != last+1 {
			t.Fatalf("%s: %v; %d records, last seq %d", name, err, next-1, last)
		}
	}
	for _, a := range acks {
		seq := inserts[fmt.Sprint(a.instrument, a.orderID)]
		if seq == 0 || seq > a.seq {
			t.Fatalf("order %d was acknowledged at %s seq %d, but is stored at seq %d", a.orderID, a.instrument, a.seq, seq)
		}
	}
	if len(acks) < 10*kills {
		t.Errorf("only %d requests were acknowledged", len(acks))
	}
	t.Logf("%d acknowledged requests, %d orders stored", len(acks), len(inserts))
}
