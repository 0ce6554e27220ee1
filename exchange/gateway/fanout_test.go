package gateway

import (
	"context"
	"errors"
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

// publish writes n orders of one record each.
func publish(g *Gateway, s *Stream, n int) {
	for range n {
		g.Begin(1, Urgent)
		g.Inserted(s, 1, someOrder(s.Seq+1))
		g.End()
	}
}

func newFanned() (*Gateway, *Stream) {
	return New(NewMemory(1<<16, 0), Options{}), &Stream{Symbol: symbol}
}

func TestSubscribersSeeTheirTopics(t *testing.T) {
	g, s := newFanned()
	publish(g, s, 1) // before anyone subscribed
	copies, market := g.Fanout().Subscribe(Executions, 16), g.Fanout().Subscribe(MarketData, 16)
	g.Begin(2, Urgent)
	g.Inserted(s, 1, someOrder(2))
	g.Traded(s, 1, &Trade{ID: 1, Maker: someOrder(1), Taker: someOrder(2), Price: 10, Volume: 1})
	var e Event
	if copies.TryNext(&e) || market.TryNext(&e) {
		t.Fatal("an event was seen before the transaction's end")
	}
	g.End()
	g.Fanout().Reject(&Rejected{Account: 5, Reason: 3})
	g.Fanout().Top(&Top{Instrument: symbol, Seq: s.Seq, BidPrice: 10, BidVolume: 2})
	for _, want := range []record.Type{record.TypeOrderInsert, record.TypeTradeExecuted} {
		if !copies.TryNext(&e) || e.Kind != RecordEvent || e.Record.Type != want {
			t.Fatalf("drop copy: %d %s, want %s", e.Kind, &e.Record, want)
		}
	}
	if !copies.TryNext(&e) || e.Kind != RejectEvent || e.Reject.Account != 5 || e.Reject.Reason != 3 {
		t.Fatalf("drop copy: %+v, want the refusal", e)
	}
	if !market.TryNext(&e) || e.Kind != RecordEvent || e.Record.TradeExecuted().TradeID != 1 {
		t.Fatalf("market data: %+v, want the trade", e)
	}
	if !market.TryNext(&e) || e.Kind != TopEvent || e.Top.BidPrice != 10 || e.Top.Seq != 3 {
		t.Fatalf("market data: %+v, want the best prices", e)
	}
	if copies.TryNext(&e) || market.TryNext(&e) {
		t.Fatalf("one event too many: %+v", e)
	}
}

// Who lags is told by how much, with the first event that fits again.
func TestLaggard(t *testing.T) {
	g, s := newFanned()
	sub := g.Fanout().Subscribe(Executions, 4)
	publish(g, s, 7)
	var e Event
	for want := uint64(1); want <= 4; want++ {
		if !sub.TryNext(&e) || e.Record.Seq != want || e.Missed != 0 {
			t.Fatalf("seq %d missed %d, want %d and 0", e.Record.Seq, e.Missed, want)
		}
	}
	publish(g, s, 1)
	if !sub.TryNext(&e) || e.Record.Seq != 8 || e.Missed != 3 || sub.Lost() != 3 {
		t.Fatalf("seq %d missed %d lost %d, want 8, 3, 3", e.Record.Seq, e.Missed, sub.Lost())
	}
	publish(g, s, 1)
	if !sub.TryNext(&e) || e.Missed != 0 {
		t.Fatalf("missed %d is told twice", e.Missed)
	}
}

// A reader that waits gets every event in order, or is told what it missed.
func TestConcurrentReader(t *testing.T) {
	g, s := newFanned()
	sub := g.Fanout().Subscribe(Executions, 8)
	const n = 20_000
	go func() {
		publish(g, s, n)
		for !sub.drained() {
			publish(g, s, 1) // a last event that fits tells what was missed
		}
	}()
	var e Event
	for at := uint64(0); at < n; {
		if err := sub.Next(t.Context(), &e); err != nil {
			t.Fatal(err)
		}
		if e.Record.Seq != at+e.Missed+1 {
			t.Fatalf("seq %d after %d with %d missed", e.Record.Seq, at, e.Missed)
		}
		at = e.Record.Seq
	}
	sub.Close()
}

func (s *Subscription) drained() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

func TestNextEnds(t *testing.T) {
	g, _ := newFanned()
	sub := g.Fanout().Subscribe(Executions, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var e Event
	if err := sub.Next(ctx, &e); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
	done := make(chan error, 1)
	go func() { done <- sub.Next(t.Context(), &e) }()
	sub.Close()
	sub.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("error %v, want ErrClosed", err)
	}
	if g.Fanout().Wanted(Executions | MarketData) {
		t.Error("a closed subscription is still wanted")
	}
}

func TestPushCostsNothingAlone(t *testing.T) {
	g, s := newFanned()
	if n := testing.AllocsPerRun(100, func() { publish(g, s, 1) }); n > 0 {
		t.Errorf("%v allocations per transaction", n)
	}
	g.Fanout().Subscribe(Executions, 64)
	if n := testing.AllocsPerRun(100, func() { publish(g, s, 1) }); n > 0 {
		t.Errorf("%v allocations per transaction with a subscriber", n)
	}
}
