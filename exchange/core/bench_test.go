package core

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// endless is a sink whose reader keeps up: it reuses its memory.
type endless struct{ *gateway.Memory }

const endlessRecords = 1 << 15

func (s endless) Reserve(n int) bool {
	if !s.Memory.Reserve(n) {
		s.Discard()
	}
	return s.Memory.Reserve(n)
}

// market flow: three instruments whose middle price walks at random, quotes
// around it from many accounts, cancels, amends, and now and then a sweep.
type benchFlow struct {
	rng    *rand.Rand
	ex     *Exchange
	in     []record.Symbol
	middle []int64
	live   []CancelOrder // a ring of recent orders
	at     int
	reject [64]int
}

const benchAccounts = 300

func newBenchFlow(b testing.TB, seed uint64) *benchFlow {
	set, err := order.DefaultSet()
	if err != nil {
		b.Fatal(err)
	}
	f := &benchFlow{
		rng:  rand.New(rand.NewPCG(seed, 1)),
		ex:   New(gateway.New(endless{gateway.NewMemory(endlessRecords, 0)}, gateway.Options{})),
		live: make([]CancelOrder, 2048),
	}
	for _, terms := range set.Instruments {
		terms.PositionLimit = 0
		if _, err := f.ex.ListInstrument(0, terms); err != nil {
			b.Fatal(err)
		}
		f.in = append(f.in, terms.Symbol)
		f.middle = append(f.middle, (terms.LowerLimit+terms.UpperLimit)/2)
	}
	for id := range uint64(benchAccounts) {
		f.ex.OpenAccount(0, id+1)
		f.ex.Deposit(0, id+1, account1e15, 0)
	}
	for range 200_000 {
		f.step(0)
	}
	return f
}

// account1e15 is ten trillion yuan: nobody runs out of money in a benchmark.
const account1e15 = 1_000_000_000_000_000

// step sends one request: 50 % quotes, 38 % cancels, 5 % amends, 7 % takers.
func (f *benchFlow) step(now int64) {
	i := f.rng.IntN(len(f.in))
	f.middle[i] += int64(f.rng.IntN(3)) - 1
	view := &f.ex.markets[i].terms
	f.middle[i] = min(max(f.middle[i], view.LowerLimit+200), view.UpperLimit-200)
	n := NewOrder{
		Instrument: f.in[i], Account: 1 + f.rng.Uint64N(benchAccounts), Side: record.Buy, Offset: record.Open,
		Kind: record.Limit, TimeInForce: record.GFD, Volume: 1 + f.rng.Int64N(5), Price: f.middle[i],
	}
	away := 1 + int64(f.rng.ExpFloat64()*8)
	if f.rng.IntN(2) == 0 {
		n.Side, away = record.Sell, -away
	}
	switch k := f.rng.IntN(100); {
	case k < 50:
		n.Price -= away
		f.submitted(f.ex.Submit(now, &n), &n)
	case k < 88:
		c := &f.live[f.rng.IntN(len(f.live))]
		f.reject[f.ex.Cancel(now, c).Reason]++
	case k < 93:
		c := &f.live[f.rng.IntN(len(f.live))]
		f.reject[f.ex.Amend(now, &AmendOrder{Instrument: c.Instrument, Account: c.Account, OrderID: c.OrderID, Volume: 1}).Reason]++
	case k < 99:
		n.Price, n.TimeInForce = n.Price+away, record.IOC
		f.submitted(f.ex.Submit(now, &n), &n)
	default:
		n.Kind, n.TimeInForce, n.Volume = record.Market, record.IOC, 20
		f.submitted(f.ex.Submit(now, &n), &n)
	}
}

func (f *benchFlow) submitted(r Result, n *NewOrder) {
	f.reject[r.Reason]++
	if r.Status == Resting || r.Status == PartlyFilled {
		f.live[f.at%len(f.live)] = CancelOrder{Instrument: n.Instrument, Account: n.Account, OrderID: r.OrderID}
		f.at++
	}
}

// BenchmarkOrderToAck measures a request from the call to its answer, with all
// its records published to a sink in memory.
func BenchmarkOrderToAck(b *testing.B) {
	f := newBenchFlow(b, 1)
	hist := hdrhistogram.New(1, 1_000_000_000, 3)
	orders, trades := f.ex.LastOrderID(), f.ex.LastTradeID()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if i%8 != 0 { // the clock costs as much as a cancel: time one in eight
			f.step(int64(i))
			continue
		}
		start := time.Now()
		f.step(int64(i))
		_ = hist.RecordValue(time.Since(start).Nanoseconds())
	}
	b.StopTimer()
	b.ReportMetric(float64(hist.ValueAtQuantile(50)), "p50-ns")
	b.ReportMetric(float64(hist.ValueAtQuantile(99)), "p99-ns")
	b.ReportMetric(float64(hist.ValueAtQuantile(99.9)), "p99.9-ns")
	b.ReportMetric(float64(f.ex.LastTradeID()-trades)/float64(b.N), "trades/op")
	b.ReportMetric(float64(f.ex.LastOrderID()-orders)/float64(b.N), "orders/op")
}

// In the steady state no request allocates, whatever becomes of it.
func TestNoAllocations(t *testing.T) {
	f := newBenchFlow(t, 2)
	f.reject = [64]int{}
	if n := testing.AllocsPerRun(20_000, func() { f.step(1) }); n > 0 {
		t.Errorf("%v allocations per request", n)
	}
	t.Logf("orders %d, trades %d, refusals by reason %v", f.ex.LastOrderID(), f.ex.LastTradeID(), f.reject[:risk.Unavailable+1])
	if f.reject[risk.OK] < 10_000 {
		t.Errorf("only %d requests were carried out", f.reject[risk.OK])
	}
}

// The two ways into the core that docs/decisions/0002-core-entry.md compares.

// queue is the alternative to Router's lock: a bounded ring that many callers
// fill and one goroutine, which runs the core, empties. A caller waits for its
// answer on a channel of its own.
type queue struct {
	slots []queueSlot
	tail  atomic.Uint64
	_     [56]byte
	stop  atomic.Bool
	done  chan struct{}
}

type queueSlot struct {
	turn atomic.Uint64
	req  *queued
}

type queued struct {
	order  NewOrder
	res    Result
	answer chan struct{}
}

func newQueue(ex *Exchange, slots int) *queue {
	q := &queue{slots: make([]queueSlot, slots), done: make(chan struct{})}
	for i := range q.slots {
		q.slots[i].turn.Store(uint64(i))
	}
	go q.run(ex)
	return q
}

func (q *queue) run(ex *Exchange) {
	defer close(q.done)
	for at := uint64(0); ; {
		s := &q.slots[at%uint64(len(q.slots))]
		if s.turn.Load() != at+1 {
			if q.stop.Load() {
				return
			}
			runtime.Gosched()
			continue
		}
		req := s.req
		s.turn.Store(at + uint64(len(q.slots)))
		at++
		req.res = ex.Submit(time.Now().UnixNano(), &req.order)
		req.answer <- struct{}{}
	}
}

func (q *queue) submit(req *queued) Result {
	at := q.tail.Add(1) - 1
	s := &q.slots[at%uint64(len(q.slots))]
	for s.turn.Load() != at {
		runtime.Gosched()
	}
	s.req = req
	s.turn.Store(at + 1)
	<-req.answer
	return req.res
}

// BenchmarkEntry compares the lock with the queue for a growing number of callers.
func BenchmarkEntry(b *testing.B) {
	for _, callers := range []int{1, 2, 8, 64} {
		b.Run("lock/callers="+itoa(callers), func(b *testing.B) {
			f := newBenchFlow(b, 3)
			r := NewRouter(nil)
			r.Start(f.ex)
			benchCallers(b, f, callers, func() func(*NewOrder) Result { return r.Submit })
		})
		b.Run("queue/callers="+itoa(callers), func(b *testing.B) {
			f := newBenchFlow(b, 3)
			q := newQueue(f.ex, 1024)
			benchCallers(b, f, callers, func() func(*NewOrder) Result {
				req := &queued{answer: make(chan struct{}, 1)}
				return func(n *NewOrder) Result {
					req.order = *n
					return q.submit(req)
				}
			})
			q.stop.Store(true)
			<-q.done
		})
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

// benchCallers sends b.N IOC orders that do not trade from so many goroutines.

func benchCallers(b *testing.B, f *benchFlow, callers int, entry func() func(*NewOrder) Result) {
	var wg sync.WaitGroup
	hists := make([]*hdrhistogram.Histogram, callers)
	b.ReportAllocs()
	b.ResetTimer()
	for c := range callers {
		hists[c] = hdrhistogram.New(1, 10_000_000_000, 3)
		wg.Go(func() {
			submit := entry()
			n := NewOrder{
				Instrument: f.in[c%3], Account: uint64(1 + c), Side: record.Buy, Offset: record.Open,
				Kind: record.Limit, TimeInForce: record.IOC, Volume: 1, Price: f.ex.markets[c%3].terms.LowerLimit,
			}
			for range b.N / callers {
				start := time.Now()
				if r := submit(&n); r.Reason != risk.OK {
					b.Errorf("refused: %s", r.Reason)
					return
				}
				_ = hists[c].RecordValue(time.Since(start).Nanoseconds())
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	for _, h := range hists[1:] {
		hists[0].Merge(h)
	}
	b.ReportMetric(float64(hists[0].ValueAtQuantile(50)), "p50-ns")
	b.ReportMetric(float64(hists[0].ValueAtQuantile(99)), "p99-ns")
	b.ReportMetric(float64(hists[0].ValueAtQuantile(99.9)), "p99.9-ns")
}
