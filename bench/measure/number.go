package measure

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Number prints three significant digits, with k, M or G for thousands.
func Number(v float64) string {
	for _, scale := range []struct {
		factor float64
		suffix string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= scale.factor*0.9995 {
			return digits(v/scale.factor) + scale.suffix
		}
	}
	return digits(v)
}

func digits(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// span prints a duration in nanoseconds with three significant digits.
func span(ns int64) string {
	d := time.Duration(ns)
	switch {
	case d < time.Microsecond:
		return fmt.Sprintf("%dns", ns)
	case d < time.Millisecond:
		return digits(float64(d)/1e3) + "µs"
	case d < time.Second:
		return digits(float64(d)/1e6) + "ms"
	}
	return digits(d.Seconds()) + "s"
}

func sortedKeys(m map[string]float64) []string { return slices.Sorted(maps.Keys(m)) }
