package orderflow

import (
	"errors"
	"fmt"
)

// ErrNumber means that a field of a recorded flow is not the number it should be.
var ErrNumber = errors.New("not a number in range")

// maxNumber bounds the numbers that are read.
const maxNumber = 1 << 60

// ParseFixed reads an unsigned plain decimal such as "236.47" as a count of
// 10^-decimals, at most 2^60. With exact it refuses digits beyond those decimals
// other than zeros; otherwise it rounds half up, for sources that print binary
// fractions ("1.7885566900000001"). Errors wrap ErrNumber.
func ParseFixed[T ~string | ~[]byte](s T, decimals int, exact bool) (int64, error) {
	whole, fraction, ok := cutPoint(s)
	value, good := appendDigits(0, whole)
	kept := fraction[:min(decimals, len(fraction))]
	if good {
		value, good = appendDigits(value, kept)
	}
	for range decimals - len(kept) {
		good = good && value <= maxNumber/10
		value *= 10
	}
	rest := fraction[len(kept):]
	up, dropped, digits := rounding(rest)
	switch {
	case !ok || !good || !digits || up > 0 && value == maxNumber:
		return 0, notNumber(s)
	case exact && dropped:
		return 0, fmt.Errorf("%q: %w: more than %d decimals", string(s), ErrNumber, decimals)
	case exact:
		return value, nil
	}
	return value + up, nil
}

// ParseUint reads digits only, up to 2^60. Errors wrap ErrNumber.
func ParseUint[T ~string | ~[]byte](s T) (int64, error) {
	v, good := appendDigits(0, s)
	if !good || len(s) == 0 {
		return 0, notNumber(s)
	}
	return v, nil
}

// cutPoint splits s at its first point; a side of the point must not be empty.
func cutPoint[T ~string | ~[]byte](s T) (whole, fraction T, ok bool) {
	for i := range len(s) {
		if s[i] == '.' {
			return s[:i], s[i+1:], i > 0 && i+1 < len(s)
		}
	}
	return s, s[len(s):], len(s) > 0
}

// appendDigits appends the digits of s to those of v.
func appendDigits[T ~string | ~[]byte](v int64, s T) (int64, bool) {
	for i := range len(s) {
		d := int64(s[i]) - '0'
		if d < 0 || d > 9 || v > (maxNumber-d)/10 {
			return 0, false
		}
		v = v*10 + d
	}
	return v, true
}

// rounding looks at the digits behind those that are kept: whether they round up
// (1) or down (0), and whether any is not zero.
func rounding[T ~string | ~[]byte](s T) (up int64, dropped, digits bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false, false
		}
		dropped = dropped || s[i] != '0'
	}
	if len(s) > 0 && s[0] >= '5' {
		up = 1
	}
	return up, dropped, true
}

func notNumber[T ~string | ~[]byte](s T) error {
	return fmt.Errorf("%q: %w", string(s), ErrNumber)
}
