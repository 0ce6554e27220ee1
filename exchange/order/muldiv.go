package order

import "math/bits"

// million is the denominator of every rate in parts per million.
const million = 1_000_000

// MaxAmount bounds what one order may be worth, and all lots of an account
// together, in minor units, so that the sums of an account stay within an int64:
// package account has the argument.
const MaxAmount = 1 << 60

const maxAmount = int64(MaxAmount)

// Rounding says which way a quotient goes that is not whole.
type Rounding uint8

// The roundings.
const (
	Down    Rounding = iota // towards zero
	Up                      // away from zero
	Nearest                 // halves away from zero
)

// MulDiv returns a × b / c for a, b ≥ 0 and c > 0 with a product of 128 bits,
// rounded as asked. ok is false when the quotient does not fit an int64 or an
// argument is out of range.
func MulDiv(a, b, c int64, r Rounding) (quotient int64, ok bool) {
	if a < 0 || b < 0 || c <= 0 {
		return 0, false
	}
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi >= uint64(c) {
		return 0, false
	}
	q, rem := bits.Div64(hi, lo, uint64(c))
	if r == Up && rem > 0 || r == Nearest && rem >= uint64(c)-rem {
		q++
	}
	return int64(q), q <= 1<<63-1
}

// share returns a × b / c for arguments whose quotient is known to fit. Terms
// that passed Check keep it so: amounts stay below MaxAmount, rates below one.
func share(a, b, c int64, r Rounding) int64 {
	q, ok := MulDiv(a, b, c, r)
	if !ok {
		return maxAmount
	}
	return q
}
