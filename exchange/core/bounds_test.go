package core

import (
	"fmt"
	"math/big"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// vast is an exchange of instruments whose lots are worth up to 2^40, with
// accounts that have all the money an account can.
type vast struct {
	*Exchange
	t    *testing.T
	day  uint32
	sink *gateway.Memory
}

const vastVolume = 1 << 20 // lots of an order

func newVast(t *testing.T, instruments int, accounts uint64) *vast {
	t.Helper()
	sink := gateway.NewMemory(1<<14, 0)
	v := &vast{Exchange: New(gateway.New(sink, gateway.Options{HeadroomRecords: -1})), t: t, day: 20250101, sink: sink}
	for i := range instruments {
		terms := order.Instrument{
			Symbol: v.symbol(i), TickValue: 1 << 30, TickSize: 1, PriceLimitBP: 60000, LongMarginPPM: 1, ShortMarginPPM: 1,
			FeeMode: record.FeeByLot, LowerLimit: 1, UpperLimit: 1000, MaxOrderVolume: vastVolume,
		}
		if _, err := v.ListInstrument(1, terms); err != nil {
			t.Fatal(err)
		}
	}
	for id := range accounts {
		v.OpenAccount(1, id+1)
		if r := v.Deposit(1, id+1, account.MaxBalance, 0); r.Reason != risk.OK {
			t.Fatalf("%+v", r)
		}
	}
	return v
}

func (v *vast) symbol(i int) record.Symbol { return record.MustSymbol(fmt.Sprintf("X%d", i)) }

func (v *vast) order(i int, account uint64, side record.Side, offset record.Offset, price int64) Result {
	return v.Submit(1, &NewOrder{Instrument: v.symbol(i), Account: account, Side: side, Offset: offset, Price: price, Volume: vastVolume})
}

// trade lets buyer trade with seller, both to open or both to close.
func (v *vast) trade(i int, buyer, seller uint64, offset record.Offset, price int64) {
	v.t.Helper()
	v.order(i, seller, record.Sell, offset, price)
	if r := v.order(i, buyer, record.Buy, offset, price); r.Status != Filled {
		v.t.Fatalf("%+v", r)
	}
}

func (v *vast) settle(price int64) Settled {
	v.day++
	var prices []SettlementPrice
	for _, in := range v.Instruments() {
		prices = append(prices, SettlementPrice{in.Terms.Symbol, price})
	}
	return v.Settle(1, v.day, prices)
}

// An account's lots in all instruments together are bounded, so that no
// settlement takes a balance around the ends of an int64.
func TestWorthIsBoundedOverInstruments(t *testing.T) {
	v := newVast(t, 12, 2)
	taken := 0
	for i := range 12 {
		s, b := v.order(i, 1, record.Sell, record.Open, 1), v.order(i, 2, record.Buy, record.Open, 1)
		if s.Reason != b.Reason || s.Reason != risk.OK && s.Reason != risk.PositionLimit {
			t.Fatalf("%v and %v", s.Reason, b.Reason)
		}
		if s.Reason == risk.OK {
			taken++
		}
	}
	if r := v.settle(1000); r.Reason != risk.OK {
		t.Fatalf("%+v", r)
	}
	profit := new(big.Int).Mul(big.NewInt(int64(taken)*vastVolume*999), big.NewInt(1<<30))
	for id, sign := range map[uint64]int64{1: -1, 2: 1} {
		want := new(big.Int).Mul(profit, big.NewInt(sign))
		want.Add(want, big.NewInt(account.MaxBalance))
		if a, _ := v.Account(id); taken == 0 || want.Cmp(big.NewInt(a.Balance)) != 0 {
			t.Errorf("account %d has %d after %d trades, want %s", id, a.Balance, taken, want)
		}
	}
	replayed := NewReplayer()
	for i := range v.sink.Records() {
		if err := replayed.Apply(&v.sink.Records()[i]); err != nil {
			t.Fatal(err)
		}
	}
	if diff := v.State().Diff(replayed.State()); diff != nil {
		t.Errorf("replay: %q", diff)
	}
}

// A settlement after which a balance could not be reckoned with is refused as a
// whole, and says of which account.
func TestSettlementBoundsBalances(t *testing.T) {
	v := newVast(t, 1, 3)
	v.trade(0, 1, 2, record.Open, 1)
	if r := v.settle(1000); r.Reason != risk.OK {
		t.Fatalf("%+v", r)
	}
	v.trade(0, 2, 1, record.Close, 1000) // both are out; account 1 has won nearly 2^60
	v.trade(0, 1, 3, record.Open, 1)
	before := v.StateHash()
	r := v.settle(1000)
	if want := fmt.Sprintf("account 1 would have %d minor units; withdraw or deposit first", 1<<60+2*(999<<50)); r.Reason != risk.BadAmount || r.Detail != want {
		t.Errorf("%+v, want %q", r, want)
	}
	if v.StateHash() != before {
		t.Error("the refused settlement left a trace")
	}
	if r := v.Withdraw(1, 1, 1<<59, 0); r.Reason != risk.OK {
		t.Fatalf("%+v", r)
	}
	if r := v.Withdraw(1, 1, 1<<59, 0); r.Reason != risk.OK {
		t.Fatalf("%+v", r)
	}
	if r := v.settle(1000); r.Reason != risk.OK {
		t.Errorf("after a withdrawal: %+v", r)
	}
}

// A fee counts like a price: what is frozen for fees stays within an int64.
func TestFeesAreBounded(t *testing.T) {
	v := newVast(t, 0, 2)
	terms := testTerms(t, "X0")
	terms.MaxOrderVolume, terms.FeeClose, terms.FeeCloseToday = 1, order.MaxAmount/4, order.MaxAmount/4
	if _, err := v.ListInstrument(1, terms); err != nil {
		t.Fatal(err)
	}
	one := func(account uint64, side record.Side, offset record.Offset, price int64) risk.Reason {
		return v.Submit(1, &NewOrder{Instrument: terms.Symbol, Account: account, Side: side, Offset: offset, Price: price, Volume: 1}).Reason
	}
	for n := 0; n < 4; n++ {
		if s, b := one(1, record.Sell, record.Open, 1000), one(2, record.Buy, record.Open, 1000); s != risk.OK || b != risk.OK {
			t.Fatalf("lot %d: %v and %v", n, s, b)
		}
	}
	if r := one(1, record.Sell, record.Open, 1000); r != risk.PositionLimit {
		t.Errorf("a fifth lot: %v", r)
	}
	for n := int64(1); n <= 4; n++ {
		if r := one(2, record.Sell, record.CloseToday, 1100); r != risk.OK {
			t.Fatalf("closing lot %d: %v", n, r)
		}
		if a, _ := v.Account(2); a.Frozen != n*order.MaxAmount/4 {
			t.Errorf("%d frozen for %d lots", a.Frozen, n)
		}
	}
}
