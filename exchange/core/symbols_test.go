package core

import (
	"fmt"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

func TestSymbolIndex(t *testing.T) {
	x := newSymbolIndex()
	var all []*market
	for _, format := range []string{"%d", "IF25%02d", "%016d", "%08dXXXXXXXX"} {
		for i := range 300 {
			s := record.MustSymbol(fmt.Sprintf(format, i))
			if m := x.get(s); m != nil {
				t.Fatalf("%s is found as %s before it was put in", s, m.terms.Symbol)
			}
			m := &market{terms: order.Instrument{Symbol: s}}
			x.put(m)
			all = append(all, m)
		}
	}
	for _, m := range all {
		if got := x.get(m.terms.Symbol); got != m {
			t.Errorf("%s: %v", m.terms.Symbol, got)
		}
	}
	if got := x.get(record.Symbol{}); got != nil {
		t.Errorf("the empty name is %s", got.terms.Symbol)
	}
}

// Names that count up do not pile up in the same slots.
func TestSymbolsSpread(t *testing.T) {
	x := newSymbolIndex()
	for i := range 1000 {
		x.put(&market{terms: order.Instrument{Symbol: record.MustSymbol(fmt.Sprintf("FUT-%06d", i))}})
	}
	mask, steps := len(x.slots)-1, 0
	for i := range x.slots {
		if m := x.slots[i].market; m != nil {
			steps += (i - x.home(&m.terms.Symbol)) & mask
		}
	}
	if steps > x.count {
		t.Errorf("%d symbols stand %d slots from home", x.count, steps)
	}
}
