package order

import (
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

func TestParseDecimal(t *testing.T) {
	for s, want := range map[string]decimal{
		"0": {0, 0}, "12": {12, 0}, "12.5": {125, 1}, "12.50": {125, 1}, "-0.2": {-2, 1}, "000.0010": {1, 3},
		"0.0000000001": {1, 10}, "999999999999999999": {999999999999999999, 0}, "1.000000000000000000000000": {1, 0},
	} {
		if got, err := parseDecimal(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", "-", ".", "1.", ".5", "1.2.3", "1e5", "+1", " 1", "1 ", "1,000", "0x10", "NaN", "Inf", "--1", "1-", "１",
		"1234567890123456789", "0.1234567890123456789", "1..5", "1.-5",
	} {
		if got, err := parseDecimal(s); !errors.Is(err, ErrDecimal) {
			t.Errorf("%q: %+v, %v; want ErrDecimal", s, got, err)
		}
	}
}

func TestScaled(t *testing.T) {
	for _, c := range []struct {
		d        decimal
		decimals int
		want     int64
		ok       bool
	}{
		{decimal{125, 1}, 2, 1250, true},
		{decimal{125, 1}, 1, 125, true},
		{decimal{125, 1}, 0, 0, false},
		{decimal{-5, 0}, 3, -5000, true},
		{decimal{999_999_999_999_999_999, 0}, 2, 0, false},
		{decimal{-999_999_999_999_999_999, 0}, 2, 0, false},
	} {
		if got, ok := c.d.scaled(c.decimals); ok != c.ok || ok && got != c.want {
			t.Errorf("%+v to %d decimals: %d, %t", c.d, c.decimals, got, ok)
		}
	}
}

func TestFormatScaled(t *testing.T) {
	for _, c := range []struct {
		v        int64
		decimals int
		want     string
	}{
		{0, 0, "0"}, {0, 2, "0.00"}, {5, 2, "0.05"}, {-5, 2, "-0.05"}, {12345, 2, "123.45"}, {-12345, 0, "-12345"},
		{math.MinInt64, 4, "-922337203685477.5808"}, {math.MaxInt64, 10, "922337203.6854775807"},
	} {
		if got := formatScaled(c.v, c.decimals); got != c.want {
			t.Errorf("%d with %d decimals: %q, want %q", c.v, c.decimals, got, c.want)
		}
	}
}

// MulDiv against arithmetic that cannot overflow.
func TestMulDiv(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	draw := func() int64 { return rng.Int64() >> rng.IntN(63) }
	for range 50_000 {
		a, b, c := draw(), draw(), draw()
		if c == 0 {
			continue
		}
		product := new(big.Int).Mul(big.NewInt(a), big.NewInt(b))
		q, rem := new(big.Int).QuoRem(product, big.NewInt(c), new(big.Int))
		for _, r := range []Rounding{Down, Up, Nearest} {
			want := new(big.Int).Set(q)
			twice := new(big.Int).Lsh(rem, 1)
			if r == Up && rem.Sign() > 0 || r == Nearest && twice.Cmp(big.NewInt(c)) >= 0 {
				want.Add(want, big.NewInt(1))
			}
			got, ok := MulDiv(a, b, c, r)
			if ok != want.IsInt64() || ok && got != want.Int64() {
				t.Fatalf("%d × %d / %d rounded %d: %d, %t; want %s", a, b, c, r, got, ok, want)
			}
		}
	}
	for _, bad := range [][3]int64{{-1, 1, 1}, {1, -1, 1}, {1, 1, 0}, {1, 1, -1}} {
		if _, ok := MulDiv(bad[0], bad[1], bad[2], Down); ok {
			t.Errorf("MulDiv%v was taken", bad)
		}
	}
}
