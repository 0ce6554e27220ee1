package growth

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/matching"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

const seed = 1

// accounts measures orders of accounts that are chosen at random.
func accounts(ctx context.Context, b *measure.Bench, z size) error {
	c := measure.Case{Name: "accounts of an exchange: an order that rests, and its cancel", Unit: "ns", LowerIsBetter: true}
	return rows(ctx, b, c, "accounts", "exchange/core with a sink in memory that is emptied; account at random; "+exponentNote, z.accounts,
		func(_ context.Context, n int) (measure.Sample, error) { return trade(n, z.operations) })
}

// endless is a sink whose reader keeps up: it reuses its memory.
type endless struct{ *gateway.Memory }

func (s endless) Reserve(n int) bool {
	if !s.Memory.Reserve(n) {
		s.Discard()
	}
	return s.Memory.Reserve(n)
}

func trade(accounts, orders int) (out measure.Sample, err error) {
	const sinkRecords, deposit = 1 << 15, 1_000_000_000_000
	set, err := order.DefaultSet()
	if err != nil {
		return out, err
	}
	terms := set.Instruments[0]
	ex := core.New(gateway.New(endless{gateway.NewMemory(sinkRecords, 0)}, gateway.Options{}))
	if _, err := ex.ListInstrument(0, terms); err != nil {
		return out, err
	}
	before := memory()
	for id := range uint64(accounts) {
		ex.OpenAccount(0, id+1)
		ex.Deposit(0, id+1, deposit, 0)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	each := func(account uint64) error {
		n := core.NewOrder{
			Instrument: terms.Symbol, Account: account, Side: record.Buy, Offset: record.Open,
			Kind: record.Limit, TimeInForce: record.GFD, Volume: 1, Price: terms.LowerLimit + int64(rng.IntN(50)),
		}
		r := ex.Submit(0, &n)
		if r.Reason != risk.OK {
			return fmt.Errorf("order of account %d refused: %s", account, r.Reason)
		}
		if r = ex.Cancel(0, &core.CancelOrder{Instrument: n.Instrument, Account: account, OrderID: r.OrderID}); r.Reason != risk.OK {
			return fmt.Errorf("cancel of account %d refused: %s", account, r.Reason)
		}
		return nil
	}
	for id := range uint64(accounts) { // every account has a position's place then
		if err := each(id + 1); err != nil {
			return out, err
		}
	}
	bytes := memory() - before
	begin := time.Now()
	for range orders {
		if err := each(1 + rng.Uint64N(uint64(accounts))); err != nil {
			return out, err
		}
	}
	took := time.Since(begin)
	runtime.KeepAlive(ex)
	return measure.Sample{Value: float64(took) / float64(orders), More: map[string]float64{"bytes an account": bytes / float64(accounts)}}, nil
}

// orders measures a book with many orders in it.
func orders(ctx context.Context, b *measure.Bench, z size) error {
	c := measure.Case{Name: "open orders of a book: one rests, and one at random is taken out", Unit: "ns", LowerIsBetter: true}
	return rows(ctx, b, c, "orders", "exchange/matching; prices within 1000 ticks; "+exponentNote, z.orders,
		func(_ context.Context, n int) (measure.Sample, error) { return rest(n, z.operations), nil })
}

func rest(open, operations int) measure.Sample {
	rng := rand.New(rand.NewPCG(seed, 2))
	before := memory()
	book := matching.New()
	orders := make([]*order.Order, open)
	add := func(slot int) {
		o := book.Acquire()
		o.Side, o.Kind, o.TimeInForce, o.Price = record.Buy, record.Limit, record.GFD, 20_000-rng.Int64N(1000)
		o.Volume, o.Remaining = 1, 1
		book.Rest(o)
		orders[slot] = o
	}
	for i := range orders {
		add(i)
	}
	bytes := memory() - before
	begin := time.Now()
	for range operations {
		slot := rng.IntN(open)
		book.Remove(orders[slot])
		book.Release(orders[slot])
		add(slot)
	}
	took := time.Since(begin)
	runtime.KeepAlive(book)
	return measure.Sample{Value: float64(took) / float64(operations), More: map[string]float64{"bytes an order": bytes / float64(open)}}
}

// shards measures an exchange's subscriber that has nothing to do.
func shards(ctx context.Context, b *measure.Bench, z size) error {
	c := measure.Case{Name: "shards of an exchange: processor time of an idle lane", Unit: "µs/s of a lane", LowerIsBetter: true}
	return rows(ctx, b, c, "shards", "exchange/subscriber and its outbox, with storage that answers at once; the process's own background is in it; "+exponentNote, z.shards,
		func(ctx context.Context, n int) (s measure.Sample, err error) {
			dir, remove, err := b.Dir()
			if err != nil {
				return s, err
			}
			defer remove()
			return idle(ctx, filepath.Join(dir, "outbox"), n, time.Duration(z.idleMillis)*time.Millisecond)
		})
}

// still is storage in which nothing happens.
type still struct{}

func (still) OpenStream(_ context.Context, _ record.Symbol, epoch uint64) (client.OpenResult, error) {
	return client.OpenResult{Epoch: epoch}, nil
}

func (still) Append(ctx context.Context, _ string) (subscriber.Stream, error) {
	return stillStream{ctx}, nil
}

type stillStream struct{ ctx context.Context }

func (s stillStream) Send([]byte) error { return nil }
func (s stillStream) Close()            {}

func (s stillStream) Recv() (client.Ack, error) {
	<-s.ctx.Done()
	return client.Ack{}, s.ctx.Err()
}

func shardMap(n int) *client.Map {
	m := &client.Map{Cluster: "bench"}
	for i := range n {
		m.Shards = append(m.Shards, client.Shard{
			Name: fmt.Sprintf("s%d", i), Instruments: []string{fmt.Sprintf("I%d", i)},
			Members: []client.Member{{ID: fmt.Sprintf("s%d-0", i), Address: fmt.Sprintf("127.0.0.1:%d", i+1)}},
		})
	}
	return m
}

func idle(ctx context.Context, dir string, shards int, d time.Duration) (out measure.Sample, err error) {
	m := shardMap(shards)
	w, err := outbox.Open(dir, outbox.Options{Cluster: "bench", Cursors: subscriber.CursorNames(m)})
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	before := memory()
	s, err := subscriber.New(subscriber.Config{OutboxDir: dir, Incarnation: 1, Shards: m, Storage: still{}})
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if runErr := <-ended; !errors.Is(runErr, context.Canceled) {
			err = errors.Join(err, runErr)
		}
	}()
	if err := s.WaitDrained(ctx); err != nil {
		return out, err
	}
	time.Sleep(d / 10) // the lanes settle
	bytes := memory() - before
	cpu, err := processorTime()
	if err != nil {
		return out, err
	}
	time.Sleep(d)
	after, err := processorTime()
	if err != nil {
		return out, err
	}
	return measure.Sample{
		Value: max(float64((after-cpu).Microseconds()), 1) / d.Seconds() / float64(shards),
		More:  map[string]float64{"bytes a lane": bytes / float64(shards)},
	}, nil
}

// processorTime returns what this process has used.
func processorTime() (time.Duration, error) {
	var r syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), err
}
