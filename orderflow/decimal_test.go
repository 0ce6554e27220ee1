package orderflow

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"testing"
)

func TestParseFixed(t *testing.T) {
	for _, c := range []struct {
		in       string
		decimals int
		exact    bool
		want     int64 // -1: refused
	}{
		{"236.47", 2, true, 23647}, {"236", 2, true, 23600}, {"236.470", 2, true, 23647}, {"0.01", 2, true, 1},
		{"0", 2, true, 0}, {"236.471", 2, true, -1}, {"236.61000000000001", 2, false, 23661},
		{"1.7885566900000001", 8, false, 178855669}, {"8.8351857299999992", 8, false, 883518573},
		{"9.9999", 2, false, 1000}, {"0.005", 2, false, 1}, {"0.00499", 2, false, 0},
		{"1152921504606846976", 0, true, 1 << 60}, {"1152921504606846977", 0, true, -1},
		{"11529215046068469769999", 0, true, -1}, {"99999999999", 12, true, -1},
		{"", 2, true, -1}, {".5", 2, true, -1}, {"5.", 2, true, -1}, {"1.2.3", 2, true, -1},
		{"-1", 2, true, -1}, {"+1", 2, true, -1}, {"1e3", 2, true, -1}, {" 1", 2, true, -1}, {"NaN", 2, true, -1},
	} {
		got, err := ParseFixed(c.in, c.decimals, c.exact)
		switch {
		case c.want < 0 && !errors.Is(err, ErrNumber):
			t.Errorf("%q with %d decimals: %d, %v", c.in, c.decimals, got, err)
		case c.want >= 0 && (err != nil || got != c.want):
			t.Errorf("%q with %d decimals: %d, %v; expected %d", c.in, c.decimals, got, err, c.want)
		}
	}
}

func TestParseUint(t *testing.T) {
	for _, s := range []string{"", "-1", "1.0", "99999999999999999999", "x"} {
		if v, err := ParseUint(s); !errors.Is(err, ErrNumber) {
			t.Errorf("%q: %d, %v", s, v, err)
		}
	}
	if v, err := ParseUint([]byte("1430438404518")); v != 1430438404518 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
}

func FuzzParseFixed(f *testing.F) {
	f.Add("236.47", uint8(2))
	f.Add("1.7885566900000001", uint8(8))
	f.Fuzz(func(t *testing.T, s string, decimals uint8) {
		n := int(decimals % 10)
		got, err := ParseFixed(s, n, false)
		if err != nil {
			return
		}
		want, ferr := strconv.ParseFloat(s, 64)
		scaled := want * math.Pow10(n)
		if ferr != nil || math.Abs(scaled-float64(got)) > 1+scaled*1e-12 {
			t.Errorf("%q with %d decimals is %d, as a float %v, %v", s, n, got, want, ferr)
		}
		back := fmt.Sprintf("%d.%0*d", got/int64(math.Pow10(n)), n, got%int64(math.Pow10(n)))
		if again, err := ParseFixed(back, n, true); n > 0 && got < 1<<60 && (err != nil || again != got) {
			t.Errorf("%q reads as %d, written %q reads as %d, %v", s, got, back, again, err)
		}
	})
}

func TestEventString(t *testing.T) {
	e := Event{Time: 5, Kind: Submit, Order: 7, Side: 1, Volume: 3, Price: 100, OrderKind: 1, TimeInForce: 1, Offset: 1}
	if got, want := e.String(), "5 submit #7 buy 3@100 limit GFD open"; got != want {
		t.Errorf("%q, expected %q", got, want)
	}
	if got := Kind(99).String(); got != "Kind(99)" {
		t.Error(got)
	}
}
