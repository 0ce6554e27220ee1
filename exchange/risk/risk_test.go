package risk

import (
	"errors"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// Every reason has a name of its own and a sentence.
func TestReasonsAreDocumented(t *testing.T) {
	seen := make(map[string]Reason)
	for _, r := range Reasons() {
		name := r.String()
		if name == "" || strings.ContainsAny(name, " _") || r.Message() == "" {
			t.Errorf("reason %d: name %q, message %q", r, name, r.Message())
		}
		if other, doubled := seen[name]; doubled {
			t.Errorf("reasons %d and %d are both named %q", other, r, name)
		}
		seen[name] = r
	}
	if OK.String() != "" || reasonLimit.String() == "" {
		t.Errorf("names of no reason %q and of an unknown one %q", OK, reasonLimit)
	}
	var err error = &Error{Reason: BadPrices, Detail: "IF2501 has no price"}
	var typed *Error
	if !errors.As(err, &typed) || !strings.Contains(err.Error(), "bad-prices: every listed") || !strings.Contains(err.Error(), "IF2501") {
		t.Errorf("error %v", err)
	}
}

func TestForm(t *testing.T) {
	for _, c := range []struct {
		side   record.Side
		offset record.Offset
		kind   record.Kind
		tif    record.TimeInForce
		want   Reason
	}{
		{record.Buy, record.Open, record.Limit, record.GFD, OK},
		{record.Sell, record.CloseToday, record.Market, record.FOK, OK},
		{record.Sell, record.Close, record.Market, record.IOC, OK},
		{record.Sell, record.Close, record.Market, record.GFD, Malformed},
		{0, record.Open, record.Limit, record.GFD, Malformed},
		{3, record.Open, record.Limit, record.GFD, Malformed},
		{record.Buy, 0, record.Limit, record.GFD, Malformed},
		{record.Buy, 4, record.Limit, record.GFD, Malformed},
		{record.Buy, record.Open, 0, record.GFD, Malformed},
		{record.Buy, record.Open, 3, record.GFD, Malformed},
		{record.Buy, record.Open, record.Limit, 0, Malformed},
		{record.Buy, record.Open, record.Limit, 4, Malformed},
	} {
		if got := Form(c.side, c.offset, c.kind, c.tif); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestTerms(t *testing.T) {
	terms := &order.Instrument{LowerLimit: 90, UpperLimit: 110, MaxOrderVolume: 5}
	for _, c := range []struct {
		volume, price int64
		want          Reason
	}{
		{1, 90, OK}, {5, 110, OK}, {0, 100, BadVolume}, {-1, 100, BadVolume}, {6, 100, BadVolume},
		{1, 89, OutsideLimits}, {1, 111, OutsideLimits}, {1, 0, OutsideLimits}, {0, 0, BadVolume},
	} {
		if got := Terms(terms, c.volume, c.price); got != c.want {
			t.Errorf("%d at %d: %q, want %q", c.volume, c.price, got, c.want)
		}
	}
}

func TestHoldings(t *testing.T) {
	terms := &order.Instrument{TickValue: 1, UpperLimit: 110, PositionLimit: 10}
	p := &account.Position{
		Long: account.Holding{
			Today: account.Leg{Volume: 3, Frozen: 1}, History: account.Leg{Volume: 4, Frozen: 4}, Opening: 2,
		},
		Short: account.Holding{Today: account.Leg{Volume: 10}},
	}
	for _, c := range []struct {
		side   record.Side
		offset record.Offset
		volume int64
		want   Reason
	}{
		{record.Buy, record.Open, 1, OK},
		{record.Buy, record.Open, 2, PositionLimit}, // 3 + 4 held, 2 on order
		{record.Buy, record.Open, 1 << 62, PositionLimit},
		{record.Sell, record.Open, 1, PositionLimit},
		{record.Sell, record.CloseToday, 2, OK},
		{record.Sell, record.CloseToday, 3, InsufficientToday},
		{record.Sell, record.Close, 1, InsufficientHistory},
		{record.Buy, record.CloseToday, 10, OK},
		{record.Buy, record.CloseToday, 11, InsufficientToday},
		{record.Buy, record.Close, 1, InsufficientHistory},
		{record.Buy, record.Close, 0, OK},
		{record.Buy, record.Close, -3, OK}, // an amend that asks for less
	} {
		if got := Holdings(terms, p, c.side, c.offset, c.volume); got != c.want {
			t.Errorf("%s %s %d: %q, want %q", c.side, c.offset, c.volume, got, c.want)
		}
	}
}

func TestFunds(t *testing.T) {
	a := &account.Account{Balance: 100, Margin: 30, FrozenMargin: 15, FrozenFee: 5}
	for _, c := range []struct {
		offset record.Offset
		freeze int64
		want   Reason
	}{
		{record.Open, 50, OK}, {record.Open, 51, InsufficientFunds}, {record.Open, -1, OK},
		{record.Close, 1000, OK}, {record.CloseToday, 1000, OK},
	} {
		if got := Funds(a, c.offset, c.freeze); got != c.want {
			t.Errorf("%s %d: %q, want %q", c.offset, c.freeze, got, c.want)
		}
	}
	a.Balance = 0
	if got := Funds(a, record.Open, 0); got != OK {
		t.Errorf("an amend that freezes no more: %q", got)
	}
}

// An account opens nothing while its balance is further from zero than is kept
// exactly; it can close.
func TestFundsBoundTheBalance(t *testing.T) {
	for balance, want := range map[int64]Reason{
		account.BalanceBound: OK, account.BalanceBound + 1: BadAmount, -account.BalanceBound: OK, -account.BalanceBound - 1: BadAmount,
	} {
		a := &account.Account{Balance: balance}
		if got := Funds(a, record.Open, 0); got != want {
			t.Errorf("opening with a balance of %d: %q", balance, got)
		}
		if got := Funds(a, record.Close, 0); got != OK {
			t.Errorf("closing with a balance of %d: %q", balance, got)
		}
	}
}

func TestWorth(t *testing.T) {
	a := &account.Account{Worth: order.MaxAmount - 100}
	for _, c := range []struct {
		offset           record.Offset
		lotWorth, volume int64
		want             Reason
	}{
		{record.Open, 10, 10, OK}, {record.Open, 10, 11, PositionLimit}, {record.Open, 1, 1 << 62, PositionLimit},
		{record.Open, 101, 1, PositionLimit}, {record.Open, 101, -1, OK}, {record.CloseToday, 10, 11, OK},
	} {
		if got := Worth(a, c.lotWorth, c.offset, c.volume); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestMayMeetItself(t *testing.T) {
	p := &account.Position{}
	if MayMeetItself(p, record.Buy, 1000) {
		t.Error("without orders")
	}
	p.Quotes(record.Sell).Add(record.Sell, 100)
	p.Quotes(record.Buy).Add(record.Buy, 90)
	for _, c := range []struct {
		side  record.Side
		price int64
		want  bool
	}{{record.Buy, 99, false}, {record.Buy, 100, true}, {record.Sell, 91, false}, {record.Sell, 90, true}} {
		if got := MayMeetItself(p, c.side, c.price); got != c.want {
			t.Errorf("%s at %d: %t", c.side, c.price, got)
		}
	}
}
