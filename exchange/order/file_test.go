package order

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

func TestDefaultSet(t *testing.T) {
	set, err := DefaultSet()
	if err != nil {
		t.Fatal(err)
	}
	if set.Currency != "CNY" || set.Decimals != 2 || len(set.Instruments) != 3 {
		t.Fatalf("%+v", set)
	}
	for name, want := range map[string]struct{ tickValue, positionLimit int64 }{
		"IF2501": {6000, 5000}, "IC2501": {4000, 1200}, "IH2501": {6000, 1200},
	} {
		in := defaultInstrument(t, name)
		if in.TickValue != want.tickValue || in.PositionLimit != want.positionLimit || in.LongMarginPPM != 120_000 || in.FeeOpen != 23 || in.FeeCloseToday != 230 || in.MaxOrderVolume != 20 {
			t.Errorf("%s: %+v", name, in)
		}
	}
}

func TestLoadSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "instruments.yaml")
	if _, err := LoadSet(path); !errors.Is(err, os.ErrNotExist) || !errors.Is(err, ErrFile) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, DefaultFile(), 0o600); err != nil {
		t.Fatal(err)
	}
	if set, err := LoadSet(path); err != nil || len(set.Instruments) != 3 {
		t.Errorf("%+v, %v", set, err)
	}
	if err := os.WriteFile(path, make([]byte, maxFileBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSet(path); !errors.Is(err, ErrFile) {
		t.Errorf("huge file: %v", err)
	}
}

func TestFeesByLot(t *testing.T) {
	text := strings.Replace(string(DefaultFile()), `{per: turnover, open: "0.000023", close: "0.000023", close_today: "0.00023"}`,
		`{per: lot, open: "1.5", close: "2", close_today: "0"}`, 1)
	set, err := ParseSet([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	in := set.Instruments[0]
	if in.FeeMode != record.FeeByLot || in.FeeOpen != 150 || in.FeeClose != 200 || in.FeeCloseToday != 0 {
		t.Errorf("%+v", in)
	}
}

// Every mistake is refused with the field's name and what would be right.
func TestFileErrors(t *testing.T) {
	for _, c := range []struct{ old, becomes, says string }{
		{`tick: "0.2"`, `tick: 0.2`, "tick: 0.2 is not text; write decimals in quotes"},
		{`tick: "0.2"`, `tick: "0,2"`, "tick: \"0,2\": not a decimal number"},
		{`tick: "0.2"`, `tick: "0"`, "tick: must be above zero"},
		{`tick: "0.2"`, ``, "tick: missing"},
		{`tick: "0.2"`, `tick: "0.0000000000001"`, "tick: must be above zero with at most 12 decimals"},
		{`tick: "0.2"`, "tick: \"0.2\"\n    tick: \"0.4\"", "already set"},
		{`tick: "0.2"`, "tick: \"0.2\"\n    colour: red", "unknown field \"colour\""},
		{`multiplier: "300"`, `multiplier: "300.0001"`, "choose a smaller minor_unit"},
		{`multiplier: "300"`, `multiplier: "-300"`, "multiplier:"},
		{`long_margin: "0.12"`, `long_margin: "1.2"`, "must not be above \"1\""},
		{`long_margin: "0.12"`, `long_margin: "0.1234567"`, "long_margin: must be a whole number of 1/1000000"},
		{`long_margin: "0.12"`, `long_margin: "-0.1"`, "long_margin:"},
		{`long_margin: "0.12"`, `long_margin: "0"`, "long margin must be above 0"},
		{`per: turnover`, `per: hand`, "fees.per: \"hand\" is neither"},
		{`open: "0.000023"`, `open: "0.0000005"`, "fees.open:"},
		{`reference_price: "3921.4"`, `reference_price: "3921.5"`, "reference_price: price 3921.5 of IF2501: price is not a multiple of the tick"},
		{`reference_price: "3921.4"`, `reference_price: "0"`, "reference_price: must be above zero"},
		{`price_limit: "0.10"`, `price_limit: "0"`, "price_limit: must be at least"},
		{`price_limit: "0.10"`, `price_limit: "7"`, "price_limit: must be at least"},
		{`max_order_volume: 20`, `max_order_volume: 0`, "max_order_volume: must be above zero"},
		{`max_order_volume: 20`, `max_order_volume: 9000000000000000000`, "max_order_volume: the largest order"},
		{`max_order_volume: 20`, `max_order_volume: "20"`, "max_order_volume"},
		{`position_limit: 5000`, `position_limit: -1`, "position limit must not be negative"},
		{`name: IC2501`, `name: IF2501`, "IF2501 is listed twice"},
		{`name: IC2501`, `name: IC 2501`, "name: instrument \"IC 2501\""},
		{`name: IC2501`, `name: __ACCOUNT__`, "reserved"},
		{`minor_unit: "0.01"`, `minor_unit: "0.05"`, "minor_unit: must be 1 or a one behind zeros"},
		{`minor_unit: "0.01"`, ``, "minor_unit: missing"},
		{`currency: CNY`, `currency: ""`, "currency:"},
		{`instruments:`, `things:`, "unknown field \"things\""},
	} {
		text := strings.Replace(string(DefaultFile()), c.old, c.becomes, 1)
		if _, err := ParseSet([]byte(text)); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s for %s: error %v; want one that says %q", c.becomes, c.old, err, c.says)
		}
	}
	second := string(DefaultFile()) + "---\n" + string(DefaultFile())
	for _, text := range []string{second, string(DefaultFile()) + "---\n", second + "\x00"} {
		if _, err := ParseSet([]byte(text)); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), "more than one YAML document") {
			t.Errorf("two documents: %v", err)
		}
	}
	if _, err := ParseSet([]byte("---\n" + string(DefaultFile()) + "...\n")); err != nil {
		t.Errorf("one document between its marks: %v", err)
	}
	for _, text := range []string{"", "currency: CNY\nminor_unit: \"1\"\ninstruments: []\n", "- 1", "\x00", "a: &a [*a]"} {
		if _, err := ParseSet([]byte(text)); !errors.Is(err, ErrFile) {
			t.Errorf("%q: %v, want ErrFile", text, err)
		}
	}
}

// FuzzParseSet: no text makes it panic, and terms that it takes are terms that
// can be traded on.
func FuzzParseSet(f *testing.F) {
	f.Add(DefaultFile())
	f.Add([]byte(bitcoinFile))
	f.Add([]byte("currency: X\nminor_unit: \"1\"\ninstruments: [{name: A, tick: \"1\"}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := ParseSet(text)
		if err != nil {
			if !errors.Is(err, ErrFile) {
				t.Fatalf("error %v does not wrap ErrFile", err)
			}
			return
		}
		for i := range set.Instruments {
			in := &set.Instruments[i]
			if err := in.Check(); err != nil {
				t.Fatalf("unusable terms were taken: %v", err)
			}
			if back, err := in.ParsePrice(in.FormatPrice(in.UpperLimit)); err == nil && back != in.UpperLimit {
				t.Fatalf("price %d reads back as %d", in.UpperLimit, back)
			}
		}
	})
}
