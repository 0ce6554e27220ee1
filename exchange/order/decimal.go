package order

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// ErrDecimal means that a text is not a plain decimal number such as "3921.4".
var ErrDecimal = errors.New("not a decimal number")

// maxDecimalDigits bounds a decimal's digits, so that its coefficient fits an int64.
const maxDecimalDigits = 18

// decimal is coef × 10^-scale, without trailing zeros behind the point.
type decimal struct {
	coef  int64
	scale int
}

// parseDecimal reads digits with at most one point and an optional minus sign.
// Exponents, blanks, plus signs and grouping are refused: what a price file
// says must read in one way only.
func parseDecimal(s string) (decimal, error) {
	body, negative := strings.CutPrefix(s, "-")
	whole, fraction, pointed := strings.Cut(body, ".")
	if whole == "" || pointed && fraction == "" {
		return decimal{}, fmt.Errorf("%q: %w; write it like \"12.5\"", s, ErrDecimal)
	}
	fraction = strings.TrimRight(fraction, "0")
	digits := whole + fraction
	if len(digits) > maxDecimalDigits {
		return decimal{}, fmt.Errorf("%q: %w of at most %d digits", s, ErrDecimal, maxDecimalDigits)
	}
	for _, c := range []byte(body) {
		if c != '.' && (c < '0' || c > '9') {
			return decimal{}, fmt.Errorf("%q: %w; write it like \"12.5\"", s, ErrDecimal)
		}
	}
	if strings.Contains(fraction, ".") {
		return decimal{}, fmt.Errorf("%q: %w; write it like \"12.5\"", s, ErrDecimal)
	}
	coef, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return decimal{}, fmt.Errorf("%q: %w", s, ErrDecimal)
	}
	if negative {
		coef = -coef
	}
	return decimal{coef: coef, scale: len(fraction)}, nil
}

// rat returns the decimal as an exact fraction.
func (d decimal) rat() *big.Rat {
	den := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(d.scale)), nil)
	return new(big.Rat).SetFrac(big.NewInt(d.coef), den)
}

// scaled returns d × 10^decimals when that is a whole number that fits an int64.
func (d decimal) scaled(decimals int) (int64, bool) {
	if d.scale > decimals {
		return 0, false
	}
	coef := d.coef
	for range decimals - d.scale {
		if coef > maxAmount/10 || coef < -maxAmount/10 {
			return 0, false
		}
		coef *= 10
	}
	return coef, true
}

// wholeNumber returns r when it is a whole number that fits an int64.
func wholeNumber(r *big.Rat) (int64, bool) {
	if !r.IsInt() || !r.Num().IsInt64() {
		return 0, false
	}
	return r.Num().Int64(), true
}

// formatScaled writes v × 10^-decimals with all its decimals.
func formatScaled(v int64, decimals int) string {
	if decimals == 0 {
		return strconv.FormatInt(v, 10)
	}
	sign, magnitude := "", uint64(v)
	if v < 0 {
		sign, magnitude = "-", -uint64(v)
	}
	digits := strconv.FormatUint(magnitude, 10)
	if missing := decimals + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	point := len(digits) - decimals
	return sign + digits[:point] + "." + digits[point:]
}
