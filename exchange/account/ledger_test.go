package account

import (
	"errors"
	"math"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// A tick is worth 10; margin is 10 % long and 20 % short; a lot costs 2 to open,
// 3 to close, 5 to close today's.
func testLedger(t *testing.T, deposits ...int64) (*Ledger, *order.Instrument) {
	t.Helper()
	terms := &order.Instrument{
		Symbol: record.MustSymbol("X"), TickValue: 10, TickSize: 1, PriceLimitBP: 1000,
		LongMarginPPM: 100_000, ShortMarginPPM: 200_000,
		FeeMode: record.FeeByLot, FeeOpen: 2, FeeClose: 3, FeeCloseToday: 5,
		LowerLimit: 900, UpperLimit: 1100, MaxOrderVolume: 100,
	}
	l := NewLedger()
	if l.AddInstrument(terms) != 0 {
		t.Fatal("the first instrument is not number 0")
	}
	for n, amount := range deposits {
		i, err := l.Open(uint64(n + 1))
		if err != nil || !l.Deposit(i, amount) {
			t.Fatalf("account %d: %v", n+1, err)
		}
	}
	return l, terms
}

// fill freezes an order and fills all of it.
func fill(l *Ledger, terms *order.Instrument, account uint32, side record.Side, offset record.Offset, price, volume int64) {
	o := &order.Order{AccountIndex: account, Side: side, Offset: offset, Price: price, Volume: volume, Remaining: volume}
	o.FrozenMargin = terms.LotMargin(side, offset, price) * volume
	o.FrozenFee = terms.LotFee(offset, price) * volume
	l.Freeze(0, o)
	l.Fill(0, o, volume, price, volume, terms.Fee(offset, price, volume))
}

func TestFreezeAndRelease(t *testing.T) {
	l, terms := testLedger(t, 10_000)
	o := &order.Order{Side: record.Sell, Offset: record.Open, Price: 1000, Volume: 4, Remaining: 4}
	o.FrozenMargin = terms.LotMargin(o.Side, o.Offset, o.Price) * 4 // 20 % of 10 × 1000, four times
	o.FrozenFee = terms.LotFee(o.Offset, o.Price) * 4
	l.Freeze(0, o)
	a, p := l.Account(0), l.Position(0, 0)
	if a.FrozenMargin != 8000 || a.FrozenFee != 8 || a.Available() != 1992 || p.Short.Opening != 4 {
		t.Fatalf("after freezing: %+v, opening %d", *a, p.Short.Opening)
	}
	if margin, fee := l.Release(0, o, 3); margin != 6000 || fee != 6 || o.FrozenMargin != 2000 || p.Short.Opening != 1 {
		t.Fatalf("released %d and %d, left %+v, opening %d", margin, fee, *o, p.Short.Opening)
	}
	o.Remaining = 1
	l.Release(0, o, 1)
	if a.Available() != 10_000 || o.FrozenMargin != 0 || o.FrozenFee != 0 || p.Short.Opening != 0 {
		t.Fatalf("after releasing all: %+v, %+v", *a, *o)
	}
}

func TestClosingFreezesThePosition(t *testing.T) {
	l, terms := testLedger(t, 100_000)
	fill(l, terms, 0, record.Buy, record.Open, 1000, 5)
	o := &order.Order{Side: record.Sell, Offset: record.CloseToday, Price: 1000, Volume: 3, Remaining: 3, FrozenFee: 15}
	l.Freeze(0, o)
	leg := &l.Position(0, 0).Long.Today
	if leg.Frozen != 3 || leg.Free() != 2 || l.Account(0).FrozenFee != 15 {
		t.Fatalf("%+v, %+v", *leg, *l.Account(0))
	}
	l.Fill(0, o, 3, 1010, 1, 5)
	if leg.Volume != 4 || leg.Frozen != 2 || o.FrozenFee != 10 || l.Account(0).FrozenFee != 10 {
		t.Fatalf("after one lot: %+v, order %+v", *leg, *o)
	}
}

// Over three days: money and positions as worked out by hand.
func TestSettlement(t *testing.T) {
	l, terms := testLedger(t, 100_000, 100_000)
	// Day 1: account 1 buys 3 at 1000 of account 2, and 2 more at 1020.
	fill(l, terms, 0, record.Buy, record.Open, 1000, 3)
	fill(l, terms, 1, record.Sell, record.Open, 1000, 3)
	fill(l, terms, 0, record.Buy, record.Open, 1020, 2)
	fill(l, terms, 1, record.Sell, record.Open, 1020, 2)
	// Cost 5040. Margin long 10 × 5040 × 10 % = 5040, short 10,080; fees 10.
	want(t, l, 0, Account{ID: 1, Balance: 99_990, Margin: 5040})
	want(t, l, 1, Account{ID: 2, Balance: 99_990, Margin: 10_080})
	// Marked to 1010: 5 × 1010 − 5040 = 10 ticks·lots, 100 of money.
	if got := l.Position(0, 0).Floating(1010); got != 10 {
		t.Errorf("floating %d", got)
	}
	l.Settle(0, 1010)
	want(t, l, 0, Account{ID: 1, Balance: 100_090, Margin: 5050})
	want(t, l, 1, Account{ID: 2, Balance: 99_890, Margin: 10_100})
	p := l.Position(0, 0)
	if p.Long.Today != (Leg{}) || p.Long.History != (Leg{Volume: 5, Cost: 5050}) || p.Realised != 100 {
		t.Errorf("position %+v", *p)
	}
	// Day 2: 1 lot of today's at 1050 beside 5 of history; 2 of history closed at
	// 1040: 2 × 1040 − 2020 = 60, that is 600; fee 6.
	fill(l, terms, 0, record.Buy, record.Open, 1050, 1)
	fill(l, terms, 1, record.Sell, record.Open, 1050, 1)
	fill(l, terms, 0, record.Sell, record.Close, 1040, 2)
	fill(l, terms, 1, record.Buy, record.Close, 1040, 2)
	// Margin: history 3 × 1010, today 1050: 4080.
	want(t, l, 0, Account{ID: 1, Balance: 100_090 - 2 + 600 - 6, Margin: 4080})
	want(t, l, 1, Account{ID: 2, Balance: 99_890 - 2 - 600 - 6, Margin: 8160})
	// Settled at 1030: 3 × 1030 − 3030 + 1030 − 1050 = 40.
	l.Settle(0, 1030)
	want(t, l, 0, Account{ID: 1, Balance: 100_682 + 400, Margin: 4120})
	want(t, l, 1, Account{ID: 2, Balance: 99_282 - 400, Margin: 8240})
	if ids := l.BelowZero(); ids != nil {
		t.Errorf("to be closed out: %v", ids)
	}
	// Day 3: the short side is ruined: 4 × (3000 − 1030) × 10 = 78,800 and a margin of
	// 4 × 3000 × 10 × 20 % = 24,000 leave less than nothing of 98,882.
	l.Settle(0, 3000)
	want(t, l, 1, Account{ID: 2, Balance: 20_082, Margin: 24_000})
	if ids := l.BelowZero(); len(ids) != 1 || ids[0] != 2 {
		t.Errorf("to be closed out: %v, want account 2", ids)
	}
}

// want compares an account, whose lots are all in the first instrument.
func want(t *testing.T, l *Ledger, i uint32, w Account) {
	t.Helper()
	w.Worth = l.Position(0, i).lots() * l.LotWorth(0)
	if got := *l.Account(i); got != w {
		t.Errorf("account %+v, want %+v", got, w)
	}
}

func TestWithdrawable(t *testing.T) {
	l, terms := testLedger(t, 10_000)
	fill(l, terms, 0, record.Buy, record.Open, 1000, 2)
	// 10,000 − 4 − margin 2000; at 990 a loss of 200 floats, at 1010 a profit that counts for nothing.
	if got := l.Withdrawable(0, []int64{990}); got != 7796 {
		t.Errorf("at a loss: %d", got)
	}
	if got := l.Withdrawable(0, []int64{1010}); got != 7996 {
		t.Errorf("at a profit: %d", got)
	}
}

func TestRemargin(t *testing.T) {
	l, terms := testLedger(t, 10_000)
	fill(l, terms, 0, record.Buy, record.Open, 1000, 2)
	terms.LongMarginPPM = 150_000
	l.Remargin(0)
	want(t, l, 0, Account{ID: 1, Balance: 9996, Margin: 3000})
}

func TestOpenRefusals(t *testing.T) {
	l, _ := testLedger(t, 5)
	if _, err := l.Open(1); !errors.Is(err, ErrExists) {
		t.Errorf("second opening: %v", err)
	}
	if _, err := l.Open(0); !errors.Is(err, ErrID) {
		t.Errorf("id 0: %v", err)
	}
	for _, amount := range []int64{0, -1, MaxBalance, MaxBalance + 1} {
		if l.Deposit(0, amount) {
			t.Errorf("deposit of %d was taken", amount)
		}
	}
	if !l.Deposit(0, MaxBalance-5) {
		t.Error("a deposit up to the highest balance was refused")
	}
}

// An instrument that is added later has positions for the accounts before it,
// and accounts opened later have positions in the instruments before them.
func TestDenseIndexes(t *testing.T) {
	l, terms := testLedger(t, 100_000, 100_000)
	second := *terms
	if i := l.AddInstrument(&second); i != 1 {
		t.Fatalf("index %d", i)
	}
	i, err := l.Open(77)
	if err != nil {
		t.Fatal(err)
	}
	for instrument := range 2 {
		for account := range i + 1 {
			if *l.Position(instrument, account) != (Position{}) {
				t.Errorf("position %d of account %d is not empty", instrument, account)
			}
		}
	}
	if found, ok := l.Find(77); !ok || found != i {
		t.Errorf("found %d, %t", found, ok)
	}
}

func TestQuotes(t *testing.T) {
	var p Position
	bids, asks := p.Quotes(record.Buy), p.Quotes(record.Sell)
	bids.Add(record.Buy, 10)
	bids.Add(record.Buy, 12)
	bids.Add(record.Buy, 11)
	asks.Add(record.Sell, 20)
	asks.Add(record.Sell, 18)
	if bids.Best != 12 || asks.Best != 18 || bids.Orders != 3 {
		t.Fatalf("%+v %+v", *bids, *asks)
	}
	for range 3 {
		bids.Remove()
	}
	bids.Add(record.Buy, 5)
	if bids.Best != 5 {
		t.Errorf("the bound outlives the orders: %+v", *bids)
	}
}

// What an account's lots are worth follows orders, fills and closings, and the
// limits: up at once, down with a settlement.
func TestWorth(t *testing.T) {
	l, terms := testLedger(t, 1_000_000)
	check := func(when string, lots, lotWorth int64) {
		t.Helper()
		if got := l.Account(0).Worth; got != lots*lotWorth {
			t.Errorf("%s: %d, want %d lots of %d", when, got, lots, lotWorth)
		}
		if limit := l.WorthLimit(0); lots > 0 && limit != order.MaxAmount/lots {
			t.Errorf("%s: limit %d", when, limit)
		}
	}
	fill(l, terms, 0, record.Buy, record.Open, 1000, 5)
	fill(l, terms, 0, record.Sell, record.Open, 1000, 2)
	o := &order.Order{Side: record.Buy, Offset: record.Open, Price: 1000, Volume: 4, Remaining: 4}
	l.Freeze(0, o)
	check("two positions and an order", 11, 11_000)
	l.Release(0, o, 3)
	o.Remaining = 1
	fill(l, terms, 0, record.Sell, record.CloseToday, 1000, 2)
	check("after a closing and a cancel of 3", 6, 11_000)
	terms.UpperLimit = 1000
	l.Remargin(0)
	check("a lower limit", 6, 11_000)
	terms.UpperLimit = 1200
	l.Remargin(0)
	check("a higher limit", 6, 12_000)
	terms.FeeClose = 90_000
	l.Remargin(0)
	check("a fee above the turnover", 6, 90_000)
	l.Release(0, o, 1)
	terms.FeeClose, terms.UpperLimit = 3, 1100
	l.Settle(0, 1000)
	check("a settlement", 5, 11_000)
}

// Sums that are only reported stop at the ends.
func TestTally(t *testing.T) {
	for _, c := range []struct{ sum, amount, want int64 }{
		{1, 2, 3}, {1, -2, -1}, {math.MaxInt64, 1, math.MaxInt64}, {math.MaxInt64 - 1, 1, math.MaxInt64},
		{math.MinInt64, -1, math.MinInt64}, {math.MaxInt64, -1, math.MaxInt64 - 1}, {-2, math.MinInt64, math.MinInt64},
	} {
		if got := tally(c.sum, c.amount); got != c.want {
			t.Errorf("%d and %d are %d", c.sum, c.amount, got)
		}
	}
}
