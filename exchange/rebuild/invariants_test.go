package rebuild

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

func mapsClone(m map[uint64]int64) map[uint64]int64 { return maps.Clone(m) }

// cloneRand returns a generator that goes on from a state drawn from f's.
func cloneRand(t *testing.T, f *flow) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(uint64(f.now), 99))
}

// Money, lots and frozen amounts add up after every command; what is refused
// leaves no trace; fills of opening orders take no available funds.
func TestInvariants(t *testing.T) {
	for _, seed := range seeds() {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			f := newFlow(t, seed+100)
			for i := range *stepsFlag / 3 {
				before, hash := f.available(), f.ex.StateHash()
				from := len(f.sink.Records())
				f.step()
				at := fmt.Sprintf("seed %d, command %d, %s", seed, i, f.said)
				if !f.ok && f.ex.StateHash() != hash {
					t.Fatalf("%s: refused, but the state changed", at)
				}
				if err := f.check(); err != nil {
					t.Fatalf("%s: %v", at, err)
				}
				if err := f.checkAvailable(before, f.sink.Records()[from:]); err != nil {
					t.Fatalf("%s: %v", at, err)
				}
			}
		})
	}
}

func (f *flow) available() map[uint64]int64 {
	all := make(map[uint64]int64)
	for _, id := range f.accounts {
		a, _ := f.ex.Account(id)
		all[id] = a.Available
	}
	return all
}

// checkAvailable: an accepted opening order leaves its account's available funds
// at or above zero, and no other account's fall but by a closing fill or the
// control of the exchange.
func (f *flow) checkAvailable(before map[uint64]int64, records []record.Record) error {
	if !f.opening || !f.ok {
		return nil
	}
	after := f.available()
	closed := make(map[uint64]bool)
	for i := range records {
		r := &records[i]
		switch {
		case r.Type == record.TypeOrderAmend && r.OrderAmend().KeptPriority != 0:
			return nil // it may free too little to lift funds that a settlement took
		case r.Type == record.TypeTradeExecuted:
			b := r.TradeExecuted()
			closed[b.MakerAccount] = closed[b.MakerAccount] || b.MakerOffset != record.Open
		}
	}
	if after[f.actor] < 0 && after[f.actor] < before[f.actor] {
		return fmt.Errorf("account %d has %d available after its opening order", f.actor, after[f.actor])
	}
	for id, had := range before {
		if id != f.actor && !closed[id] && after[id] < had {
			return fmt.Errorf("account %d had %d available and has %d after an opening fill", id, had, after[id])
		}
	}
	return nil
}

// sums is what the live orders of one account in one instrument add up to.
type sums struct {
	frozen        int64
	opening       [2]int64 // by side
	today, before [2]int64 // lots to be closed, by the order's side
	resting       [2]int64
}

func (f *flow) check() error {
	type key struct {
		account uint64
		in      record.Symbol
	}
	orders := make(map[key]*sums)
	for _, in := range f.symbols {
		for _, side := range []record.Side{record.Buy, record.Sell} {
			for _, o := range f.ex.Orders(in, side) {
				k := key{o.Account, in}
				if orders[k] == nil {
					orders[k] = &sums{}
				}
				orders[k].add(&o)
			}
		}
		if err := f.checkBook(in); err != nil {
			return err
		}
	}
	lots, profit := make(map[record.Symbol]int64), make(map[record.Symbol]int64)
	for _, id := range f.accounts {
		a, _ := f.ex.Account(id)
		balance, frozen, margin := f.owed[id], int64(0), int64(0)
		for _, p := range a.Positions {
			view, _ := f.ex.Instrument(p.Instrument)
			balance += p.Realised - p.Fees
			margin += view.Terms.Margin(record.Buy, p.Long.Cost()) + view.Terms.Margin(record.Sell, p.Short.Cost())
			lots[p.Instrument] += p.Long.Volume() - p.Short.Volume()
			profit[p.Instrument] += p.Realised - view.Terms.TickValue*(p.Long.Cost()-p.Short.Cost())
			s := orders[key{id, p.Instrument}]
			if s == nil {
				s = &sums{}
			}
			frozen += s.frozen
			if err := s.check(&p); err != nil {
				return fmt.Errorf("account %d in %s: %w", id, p.Instrument, err)
			}
		}
		if a.Balance != balance || a.Frozen != frozen || a.Margin != margin || a.Available != balance-frozen-margin {
			return fmt.Errorf("account %d: balance %d frozen %d margin %d, want %d %d %d", id, a.Balance, a.Frozen, a.Margin, balance, frozen, margin)
		}
	}
	for _, in := range f.symbols {
		if lots[in] != 0 || profit[in] != 0 {
			return fmt.Errorf("%s: long − short = %d lots, realised − cost = %d, want 0 and 0", in, lots[in], profit[in])
		}
	}
	return nil
}

func (f *flow) checkBook(in record.Symbol) error {
	b, _ := f.ex.Book(in, 1)
	if len(b.Bids) > 0 && len(b.Asks) > 0 && b.Bids[0].Price >= b.Asks[0].Price {
		return fmt.Errorf("%s: bid %d meets ask %d", in, b.Bids[0].Price, b.Asks[0].Price)
	}
	return nil
}

func (s *sums) add(o *order.Order) {
	side := o.Side - record.Buy
	s.frozen += o.FrozenMargin + o.FrozenFee
	s.resting[side]++
	switch o.Offset {
	case record.Open:
		s.opening[side] += o.Remaining
	case record.Close:
		s.before[side] += o.Remaining
	case record.CloseToday:
		s.today[side] += o.Remaining
	}
}

func (s *sums) check(p *core.PositionView) error {
	const buy, sell = 0, 1
	have := []int64{
		p.Long.Opening, p.Short.Opening, p.Long.Today.Frozen, p.Long.History.Frozen,
		p.Short.Today.Frozen, p.Short.History.Frozen, p.Bids.Orders, p.Asks.Orders,
	}
	want := []int64{
		s.opening[buy], s.opening[sell], s.today[sell], s.before[sell],
		s.today[buy], s.before[buy], s.resting[buy], s.resting[sell],
	}
	if fmt.Sprint(have) != fmt.Sprint(want) {
		return fmt.Errorf("on order: %v, want %v by the live orders", have, want)
	}
	for _, leg := range []struct{ volume, frozen, cost int64 }{
		{p.Long.Today.Volume, p.Long.Today.Frozen, p.Long.Today.Cost},
		{p.Long.History.Volume, p.Long.History.Frozen, p.Long.History.Cost},
		{p.Short.Today.Volume, p.Short.Today.Frozen, p.Short.Today.Cost},
		{p.Short.History.Volume, p.Short.History.Frozen, p.Short.History.Cost},
	} {
		if leg.volume < 0 || leg.frozen < 0 || leg.frozen > leg.volume || leg.volume == 0 && leg.cost != 0 {
			return fmt.Errorf("leg %+v", leg)
		}
	}
	return nil
}
