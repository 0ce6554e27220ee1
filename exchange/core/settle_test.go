package core

import (
	"math/big"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// A settlement of many orders and accounts comes in bounded transactions, each
// of which leaves a state that stands, and the whole replays.
func TestSettlementInPortions(t *testing.T) {
	s := newScript(t)
	s.list("X", nil)
	const accounts, orders = 600, 700
	for id := range uint64(accounts) {
		s.e.OpenAccount(1, id+1)
		s.e.Deposit(1, id+1, 1_000_000, 0)
	}
	x := symbol(t, "X")
	trade := func(id uint64, side record.Side, price int64) Result {
		return s.e.Submit(1, &NewOrder{Instrument: x, Account: id, Side: side, Offset: record.Open, Price: price, Volume: 1})
	}
	for id := range uint64(accounts / 2) {
		trade(2*id+1, record.Buy, 1000)
		trade(2*id+2, record.Sell, 1000)
	}
	for i := range uint64(orders) {
		if r := trade(1+i%accounts, record.Buy, 950-int64(i%20)); r.Status != Resting {
			t.Fatalf("%+v", r)
		}
	}
	from := len(s.sink.Records())
	r := s.e.Settle(2, 20250102, []SettlementPrice{{x, 1010}})
	if r.Reason != risk.OK || r.OrdersCanceled != orders || r.UpdatesSkipped != 0 {
		t.Fatalf("%+v", r)
	}
	length, cancels, updates := 0, 0, 0
	for i := range s.sink.Records()[from:] {
		rec := &s.sink.Records()[from+i]
		switch rec.Type {
		case record.TypeOrderCancel:
			cancels++
		case record.TypeAccountUpdate:
			updates++
		}
		if length++; length > settleChunk {
			t.Fatalf("a transaction of more than %d records at %s", settleChunk, rec)
		}
		if rec.Flags&record.FlagLast != 0 {
			length = 0
		}
	}
	if cancels != orders || updates != accounts || length != 0 {
		t.Errorf("%d cancels, %d updates, %d records without an end", cancels, updates, length)
	}
	s.checkReplay()
}

// A settlement that found no room can be repeated, and what was done stays.
func TestSettlementResumes(t *testing.T) {
	s := newScript(t)
	s.list("X", nil)
	s.e.OpenAccount(1, 1)
	s.e.Deposit(1, 1, 1_000_000_000, 0)
	x := symbol(t, "X")
	for range 300 {
		s.e.Submit(1, &NewOrder{Instrument: x, Account: 1, Side: record.Buy, Offset: record.Close, Price: 1000, Volume: 1})
		s.e.Submit(1, &NewOrder{Instrument: x, Account: 1, Side: record.Sell, Offset: record.Open, Price: 1000, Volume: 1})
	}
	live, _ := s.e.Instrument(x)
	if live.Orders != 150 {
		t.Fatalf("%d orders rest, want 150 by the position limit", live.Orders)
	}
	s.sink.last = s.sink.Published() + 100
	if r := s.e.Settle(2, 20250102, []SettlementPrice{{x, 1000}}); r.Reason != risk.BacklogFull || r.OrdersCanceled != 100 {
		t.Fatalf("%+v", r)
	}
	s.sink.last = 0
	if r := s.e.Settle(2, 20250102, []SettlementPrice{{x, 1000}}); r.Reason != risk.OK || r.OrdersCanceled != 50 {
		t.Fatalf("%+v", r)
	}
	s.checkReplay()
}

// A settlement fits itself to an outbox that takes few records at once.
func TestSettlementThroughSmallSegments(t *testing.T) {
	s := newScript(t)
	s.list("X", nil)
	x := symbol(t, "X")
	for id := range uint64(300) {
		s.e.OpenAccount(1, id+1)
		s.e.Deposit(1, id+1, 1_000_000, 0)
		side := record.Side(1 + id%2)
		for range 2 {
			s.e.Submit(1, &NewOrder{Instrument: x, Account: id + 1, Side: side, Offset: record.Open, Price: 1000, Volume: 1})
		}
		s.e.Submit(1, &NewOrder{Instrument: x, Account: id + 1, Side: record.Buy, Offset: record.Open, Price: 950, Volume: 1})
	}
	s.sink.room = 64
	r := s.e.Settle(2, 20250102, []SettlementPrice{{x, 1000}})
	if r.Reason != risk.OK || r.OrdersCanceled != 300 || r.UpdatesSkipped != 0 {
		t.Fatalf("%+v", r)
	}
	s.checkReplay()
}

// At the ends of what is kept exactly, against arithmetic without ends: an order
// worth 2^60 minor units, bought at the upper and settled at the lower limit.
func TestLargestAmounts(t *testing.T) {
	sink := gateway.NewMemory(1000, 0)
	e := New(gateway.New(sink, gateway.Options{HeadroomRecords: -1}))
	terms := testTerms(t, "X")
	terms.TickValue, terms.LongMarginPPM, terms.ShortMarginPPM, terms.PositionLimit = 7, 500_000, 1_000_000, 0
	terms.FeeMode, terms.FeeOpen = record.FeeByTurnover, 3
	terms.MaxOrderVolume = order.MaxAmount / terms.TickValue / terms.UpperLimit
	if _, err := e.ListInstrument(1, terms); err != nil {
		t.Fatal(err)
	}
	for id := range uint64(2) {
		e.OpenAccount(1, id+1)
		if r := e.Deposit(1, id+1, account.MaxBalance, 0); r.Reason != risk.OK {
			t.Fatalf("%+v", r)
		}
		if r := e.Deposit(1, id+1, 1, 0); r.Reason != risk.BadAmount {
			t.Fatalf("%+v", r)
		}
	}
	n := NewOrder{Instrument: terms.Symbol, Account: 1, Side: record.Buy, Offset: record.Open, Price: terms.UpperLimit, Volume: terms.MaxOrderVolume}
	if r := e.Submit(1, &n); r.Status != Resting {
		t.Fatalf("%+v", r)
	}
	if r := e.Submit(1, &n); r.Reason != risk.PositionLimit {
		t.Fatalf("a second one: %+v", r)
	}
	n.Account, n.Side = 2, record.Sell
	if r := e.Submit(1, &n); r.Reason != risk.InsufficientFunds {
		t.Fatalf("with margin and fee above the balance: %+v", r)
	}
	n.Volume = n.Volume / 10 * 9
	if r := e.Submit(1, &n); r.Status != Filled {
		t.Fatalf("%+v", r)
	}
	if r := e.Settle(2, 20250102, []SettlementPrice{{terms.Symbol, terms.LowerLimit}}); r.Reason != risk.OK {
		t.Fatalf("%+v", r)
	}
	turnover := new(big.Int).Mul(big.NewInt(n.Volume*terms.UpperLimit), big.NewInt(terms.TickValue))
	loss := new(big.Int).Mul(big.NewInt(n.Volume*(terms.UpperLimit-terms.LowerLimit)), big.NewInt(terms.TickValue))
	fee := new(big.Int).Div(new(big.Int).Add(new(big.Int).Mul(turnover, big.NewInt(3)), big.NewInt(500_000)), big.NewInt(1_000_000))
	for id, sign := range map[uint64]int64{1: -1, 2: 1} {
		balance := new(big.Int).Sub(big.NewInt(account.MaxBalance), fee)
		balance.Add(balance, new(big.Int).Mul(loss, big.NewInt(sign)))
		if a, _ := e.Account(id); balance.Cmp(big.NewInt(a.Balance)) != 0 {
			t.Errorf("account %d has %d, want %s", id, a.Balance, balance)
		}
	}
}
