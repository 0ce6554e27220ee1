package rebuild

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// flow sends random commands to an exchange: a few accounts, some of them poor,
// trade a narrow range of prices, so that orders meet and every refusal occurs.
type flow struct {
	t        *testing.T
	rng      *rand.Rand
	ex       *core.Exchange
	sink     *sink
	symbols  []record.Symbol
	accounts []uint64
	day      uint32
	now      int64
	owed     map[uint64]int64 // deposits − withdrawals
	refused  map[risk.Reason]int
	done     map[core.Status]int
	said     string // the last command and its answer
	opening  bool   // the last command was an opening order or an amend of one, by account actor
	actor    uint64
	ok       bool
}

// sink is a sink in memory that is now and then narrow.
type sink struct {
	*gateway.Memory
	room int // records, 0 for no limit
}

func (s *sink) Reserve(n int) bool { return (s.room == 0 || n <= s.room) && s.Memory.Reserve(n) }

func newSink(published uint64) *sink { return &sink{Memory: gateway.NewMemory(1<<17, published)} }

// liveOrdersMax is so low that books get full, now and then.
const liveOrdersMax = 8

func newFlow(t *testing.T, seed uint64) *flow {
	f := &flow{
		t: t, rng: rand.New(rand.NewPCG(seed, 7)), sink: newSink(0), day: 20250101,
		owed: make(map[uint64]int64), refused: make(map[risk.Reason]int), done: make(map[core.Status]int),
	}
	f.ex = core.New(gateway.New(f.sink, gateway.Options{HeadroomRecords: 8}))
	f.ex.SetLiveOrdersMax(liveOrdersMax)
	for i, terms := range flowTerms(t) {
		f.symbols = append(f.symbols, terms.Symbol)
		if _, err := f.ex.ListInstrument(int64(i), terms); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 12 {
		f.openAccount(uint64(100 - 7*i))
	}
	return f
}

// flowTerms: a plain one, one whose amounts are all odd, and one with fees by turnover.
func flowTerms(t *testing.T) []order.Instrument {
	plain := order.Instrument{
		Symbol: record.MustSymbol("PLAIN"), TickValue: 10, TickSize: 1, PriceLimitBP: 1000,
		LongMarginPPM: 100_000, ShortMarginPPM: 120_000,
		FeeMode: record.FeeByLot, FeeOpen: 2, FeeClose: 3, FeeCloseToday: 5,
		LowerLimit: 90, UpperLimit: 110, MaxOrderVolume: 40, PositionLimit: 60,
	}
	odd := plain
	odd.Symbol, odd.TickValue, odd.LongMarginPPM, odd.ShortMarginPPM = record.MustSymbol("ODD"), 7, 133_333, 77_777
	turnover := odd
	turnover.Symbol, turnover.FeeMode = record.MustSymbol("TURNOVER"), record.FeeByTurnover
	turnover.FeeOpen, turnover.FeeClose, turnover.FeeCloseToday = 1_234, 777, 12_345
	for _, terms := range []order.Instrument{plain, odd, turnover} {
		if err := terms.Check(); err != nil {
			t.Fatal(err)
		}
	}
	return []order.Instrument{plain, odd, turnover}
}

func (f *flow) openAccount(id uint64) {
	if r := f.ex.OpenAccount(f.now, id); r.Reason != risk.OK {
		return
	}
	f.accounts = append(f.accounts, id)
	amount := int64(f.rng.IntN(40_000) + 1_000)
	if r := f.ex.Deposit(f.now, id, amount, 0); r.Reason == risk.OK {
		f.owed[id] += amount
	}
}

func (f *flow) symbol() record.Symbol { return f.symbols[f.rng.IntN(len(f.symbols))] }
func (f *flow) account() uint64       { return f.accounts[f.rng.IntN(len(f.accounts))] }
func (f *flow) near(in record.Symbol) int64 {
	view, _ := f.ex.Instrument(in)
	middle := (view.Terms.LowerLimit + view.Terms.UpperLimit) / 2
	return middle + int64(f.rng.IntN(13)) - 6
}

// step sends one random command and notes whether it was carried out.
func (f *flow) step() {
	f.now += int64(f.rng.IntN(1000))
	f.opening, f.ok = false, true
	f.sink.room = 0
	if f.rng.IntN(20) == 0 {
		f.sink.room = f.rng.IntN(24) + 1
	}
	switch n := f.rng.IntN(1000); {
	case n < 620:
		f.submit()
	case n < 760:
		f.cancel()
	case n < 900:
		f.amend()
	case n < 940:
		f.move()
	case n < 970:
		f.halt()
	case n < 985:
		f.relist()
	case n < 990:
		f.openAccount(uint64(1000 + f.rng.IntN(50)))
	default:
		f.settle()
	}
}

func (f *flow) submit() {
	n := core.NewOrder{
		Instrument: f.symbol(), Account: f.account(), ClientOrderID: f.rng.Uint64N(1000),
		Side: record.Side(1 + f.rng.IntN(2)), Offset: record.Offset(1 + f.rng.IntN(3)),
		Kind: record.Limit, TimeInForce: record.TimeInForce(f.rng.IntN(4)), Volume: int64(1 + f.rng.IntN(12)),
	}
	if f.rng.IntN(5) > 1 {
		n.Offset = record.Open
	}
	if f.rng.IntN(3) > 0 {
		n.TimeInForce = record.GFD
	}
	n.Price = f.near(n.Instrument)
	switch f.rng.IntN(25) {
	case 0:
		n.Kind, n.TimeInForce = record.Market, record.IOC
	case 1:
		n.Volume = int64(f.rng.IntN(60)) - 10
	case 2:
		n.Price += int64(f.rng.IntN(40)) - 20
	case 3:
		n.Account = 5555
	}
	f.opening, f.actor = n.Offset == record.Open, n.Account
	f.note(n, f.ex.Submit(f.now, &n))
}

func (f *flow) note(command any, r core.Result) {
	f.said = fmt.Sprintf("%+v → %+v", command, r)
	f.ok = r.Reason == risk.OK
	f.refused[r.Reason]++
	f.done[r.Status]++
}

// live returns a random live order, or a made-up one.
func (f *flow) live() (record.Symbol, order.Order) {
	in := f.symbol()
	orders := append(f.ex.Orders(in, record.Buy), f.ex.Orders(in, record.Sell)...)
	if len(orders) == 0 || f.rng.IntN(15) == 0 {
		return in, order.Order{ID: f.rng.Uint64N(300), Account: f.account(), Price: f.near(in)}
	}
	return in, orders[f.rng.IntN(len(orders))]
}

func (f *flow) cancel() {
	in, o := f.live()
	c := core.CancelOrder{Instrument: in, Account: o.Account, OrderID: o.ID}
	f.note(c, f.ex.Cancel(f.now, &c))
}

func (f *flow) amend() {
	in, o := f.live()
	a := core.AmendOrder{Instrument: in, Account: o.Account, OrderID: o.ID}
	if f.rng.IntN(2) == 0 {
		a.Price = o.Price + int64(f.rng.IntN(9)) - 4
	}
	if f.rng.IntN(2) == 0 {
		a.Volume = int64(f.rng.IntN(14))
	}
	f.opening, f.actor = o.Offset == record.Open, o.Account
	f.note(a, f.ex.Amend(f.now, &a))
}

func (f *flow) move() {
	id, amount := f.account(), int64(f.rng.IntN(20_000))-2_000
	var r core.Receipt
	if f.rng.IntN(2) == 0 {
		r = f.ex.Deposit(f.now, id, amount, 9)
	} else {
		amount = -amount
		r = f.ex.Withdraw(f.now, id, -amount, 9)
	}
	if f.ok = r.Reason == risk.OK; f.ok {
		f.owed[id] += amount
	}
	f.refused[r.Reason]++
	f.said = fmt.Sprintf("move %d of %d → %+v", amount, id, r)
}

func (f *flow) halt() {
	in := f.symbol()
	r := f.ex.Resume(f.now, in)
	if f.rng.IntN(8) == 0 {
		r = f.ex.Halt(f.now, in)
	}
	f.said = fmt.Sprintf("halt or resume %s → %+v", in, r)
}

// relist changes margins and fees of an instrument.
func (f *flow) relist() {
	view, _ := f.ex.Instrument(f.symbol())
	terms := view.Terms
	switch f.rng.IntN(4) {
	case 0:
		terms.TickValue++
	case 1:
		terms.PositionLimit = int64(30 + f.rng.IntN(40))
		terms.UpperLimit += int64(f.rng.IntN(9)) - 4
		terms.LowerLimit += int64(f.rng.IntN(9)) - 4
	default:
		terms.LongMarginPPM = uint32(50_000 + f.rng.IntN(150_000))
		terms.FeeOpen = int64(f.rng.IntN(9))
	}
	res, err := f.ex.ListInstrument(f.now, terms)
	f.ok = err == nil
	f.refused[res.Reason]++
	f.said = fmt.Sprintf("list %+v → %v", terms, err)
}

func (f *flow) settle() {
	var prices []core.SettlementPrice
	for _, in := range f.symbols {
		view, _ := f.ex.Instrument(in)
		span := int(view.Terms.UpperLimit - view.Terms.LowerLimit + 1)
		price := view.Terms.LowerLimit + int64((f.rng.IntN(span)+span)/3)
		prices = append(prices, core.SettlementPrice{Instrument: in, Price: price})
	}
	f.sink.room = 0
	f.day++
	if f.day%100 > 28 {
		f.day += 100 - 28
	}
	r := f.ex.Settle(f.now, f.day, prices)
	f.refused[r.Reason]++
	if f.rng.IntN(2) == 0 {
		f.relist() // while no order is live
		f.ok = true
	}
	f.said = fmt.Sprintf("settle %d %v → %+v", f.day, prices, r)
}
