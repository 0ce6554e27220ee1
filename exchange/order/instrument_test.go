package order

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

func defaultInstrument(t testing.TB, name string) Instrument {
	t.Helper()
	set, err := DefaultSet()
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range set.Instruments {
		if in.Symbol.String() == name {
			return in
		}
	}
	t.Fatalf("no %s in the default set", name)
	return Instrument{}
}

// One lot of IF2501 at 3921.4: 19,607 ticks of 0.2 points, 60 yuan each.
func TestIndexFuture(t *testing.T) {
	in := defaultInstrument(t, "IF2501")
	price, err := in.ParsePrice("3921.4")
	if err != nil || price != 19_607 {
		t.Fatalf("price %d, %v", price, err)
	}
	if in.TickValue != 6000 {
		t.Errorf("a tick is worth %d fen, want 6000", in.TickValue)
	}
	// 3921.4 × 300 = 1,176,420.00 yuan.
	if got := in.Turnover(price); got != 117_642_000 {
		t.Errorf("turnover %d", got)
	}
	// 12 % of it.
	if got := in.Margin(record.Buy, price); got != 14_117_040 {
		t.Errorf("margin %d", got)
	}
	// 0.23 / 10,000: 27.05766 yuan; 2.3 / 10,000: 270.5766 yuan.
	if got := in.Fee(record.Open, price, 1); got != 2706 {
		t.Errorf("fee to open %d", got)
	}
	if got := in.Fee(record.CloseToday, price, 1); got != 27058 {
		t.Errorf("fee to close today's %d", got)
	}
	// ±10 %: 4313.54 and 3529.26, inwards to ticks of 0.2.
	if lower, upper := in.FormatPrice(in.LowerLimit), in.FormatPrice(in.UpperLimit); lower != "3529.4" || upper != "4313.4" {
		t.Errorf("limits %s … %s", lower, upper)
	}
	for _, s := range []string{"3921.5", "3921.41", "3921.39999"} {
		if _, err := in.ParsePrice(s); !errors.Is(err, ErrOffTick) {
			t.Errorf("price %s: %v, want ErrOffTick", s, err)
		}
	}
	if _, err := in.ParsePrice("1e3"); !errors.Is(err, ErrDecimal) {
		t.Errorf("1e3: %v", err)
	}
}

// BTC/USD as cash: ticks of 0.01 USD, lots of 1e-8 BTC, money in 1e-10 USD.
const bitcoinFile = `
currency: USD
minor_unit: "0.0000000001"
instruments:
  - name: BTC/USD
    tick: "0.01"
    multiplier: "0.00000001"
    long_margin: "1"
    short_margin: "1"
    fees: {per: turnover, open: "0.0025", close: "0.0025", close_today: "0.0025"}
    reference_price: "236.00"
    price_limit: "5"
    max_order_volume: 100000000000
    position_limit: 0
`

func TestTinyTickValue(t *testing.T) {
	set, err := ParseSet([]byte(bitcoinFile))
	if err != nil {
		t.Fatal(err)
	}
	in := set.Instruments[0]
	if in.TickValue != 1 || in.Decimals != 2 || in.LowerLimit != 1 || in.UpperLimit != 141_600 {
		t.Fatalf("%+v", in)
	}
	// Two bitcoins at 236.47 are 472.94 USD.
	if got := set.FormatMoney(in.Turnover(23_647 * 200_000_000)); got != "472.9400000000" {
		t.Errorf("turnover %s", got)
	}
	if got := set.FormatMoney(in.Margin(record.Buy, 23_647*200_000_000)); got != "472.9400000000" {
		t.Errorf("margin %s", got)
	}
	if amount, err := set.ParseMoney("472.94"); err != nil || amount != 4_729_400_000_000 {
		t.Errorf("amount %d, %v", amount, err)
	}
	if _, err := set.ParseMoney("0.00000000001"); !errors.Is(err, ErrDecimal) {
		t.Errorf("an amount below the minor unit: %v", err)
	}
}

// What an order freezes lot by lot covers every way its fills can be cut, at any
// price that is no worse than the one it was frozen at.
func TestFrozenCoversFills(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for range 2000 {
		in := Instrument{
			TickValue: 1 + rng.Int64N(50), LongMarginPPM: 1 + rng.Uint32N(million), FeeMode: record.FeeMode(1 + rng.IntN(2)),
			FeeOpen: rng.Int64N(5000),
		}
		price, volume := 1+rng.Int64N(5000), 1+rng.Int64N(40)
		margin, fee := in.LotMargin(record.Buy, record.Open, price), in.LotFee(record.Open, price)
		cost := rng.Int64N(100_000)
		for left := volume; left > 0; {
			lots, at := 1+rng.Int64N(left), 1+rng.Int64N(price)
			before := in.Margin(record.Buy, cost)
			cost += lots * at
			if more := in.Margin(record.Buy, cost) - before; more > margin*lots {
				t.Fatalf("%+v: %d lots at %d tie up %d, frozen %d", in, lots, at, more, margin*lots)
			}
			if f := in.Fee(record.Open, at, lots); f > fee*lots {
				t.Fatalf("%+v: %d lots at %d cost %d, frozen %d", in, lots, at, f, fee*lots)
			}
			left -= lots
		}
	}
}

func TestLimitsAround(t *testing.T) {
	in := Instrument{TickValue: 1, MaxOrderVolume: 1, PriceLimitBP: 1000}
	for _, c := range []struct{ reference, lower, upper int64 }{
		{1000, 900, 1100}, {1005, 905, 1105}, {1, 1, 1}, {9, 9, 9}, {11, 10, 12},
	} {
		if lower, upper := in.LimitsAround(c.reference); lower != c.lower || upper != c.upper {
			t.Errorf("around %d: %d … %d, want %d … %d", c.reference, lower, upper, c.lower, c.upper)
		}
	}
	in.PriceLimitBP = 20_000
	if lower, upper := in.LimitsAround(100); lower != 1 || upper != 300 {
		t.Errorf("width 200 %%: %d … %d", lower, upper)
	}
	in.MaxOrderVolume = MaxAmount / 150
	if _, upper := in.LimitsAround(100); upper != 150 {
		t.Errorf("upper limit %d, want 150 by the worth of the largest order", upper)
	}
}

func TestListedRoundTrip(t *testing.T) {
	in := defaultInstrument(t, "IC2501")
	var r record.Record
	r.Instrument = in.Symbol
	in.Listed(r.InstrumentListed())
	if got := FromListed(r.InstrumentListed()); got != in {
		t.Errorf("got %+v, want %+v", got, in)
	}
}

func TestCheckNamesTheRule(t *testing.T) {
	good := defaultInstrument(t, "IH2501")
	for name, spoil := range map[string]func(*Instrument){
		"symbol":          func(in *Instrument) { in.Symbol = record.Symbol{} },
		"account stream":  func(in *Instrument) { in.Symbol = record.MustSymbol(record.AccountStream) },
		"tick size":       func(in *Instrument) { in.TickSize = 0 },
		"tick value":      func(in *Instrument) { in.TickValue = 0 },
		"decimals":        func(in *Instrument) { in.Decimals = 13 },
		"long margin":     func(in *Instrument) { in.LongMarginPPM = 1_000_001 },
		"short margin":    func(in *Instrument) { in.ShortMarginPPM = 0 },
		"width":           func(in *Instrument) { in.PriceLimitBP = 0 },
		"limits":          func(in *Instrument) { in.LowerLimit = in.UpperLimit + 1 },
		"volume":          func(in *Instrument) { in.MaxOrderVolume = 0 },
		"position":        func(in *Instrument) { in.PositionLimit = -1 },
		"worth":           func(in *Instrument) { in.MaxOrderVolume = MaxAmount },
		"fee mode":        func(in *Instrument) { in.FeeMode = 0 },
		"negative fee":    func(in *Instrument) { in.FeeClose = -1 },
		"fee rate":        func(in *Instrument) { in.FeeOpen = million + 1 },
		"fee of all lots": func(in *Instrument) { in.FeeMode, in.FeeOpen = record.FeeByLot, MaxAmount },
	} {
		in := good
		spoil(&in)
		if err := in.Check(); !errors.Is(err, ErrTerms) {
			t.Errorf("%s: %v, want ErrTerms", name, err)
		}
	}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
}
