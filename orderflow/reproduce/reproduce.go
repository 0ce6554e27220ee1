// Package reproduce compares the trades that an exchange made of a recorded order
// flow with the trades that were recorded.
//
// An expected trade is reproduced if the exchange made a trade of exactly its
// price and volume, at most a given time before or after it, that no other
// expected trade is matched with. The expected trades are taken in their order;
// each is matched with the nearest in time of those that are left, the earlier of
// two that are as near.
package reproduce

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/countinghouse/countinghouse/orderflow"
)

// Reason says why an expected trade was not reproduced: what comes nearest to it
// among the exchange's trades.
type Reason uint8

// The reasons, from the nearest miss to the farthest.
const (
	// Fewer: trades like it were made in the window, but each is matched with
	// another expected trade.
	Fewer Reason = 1
	// OtherVolume: there was a trade at its price in the window, of another volume.
	OtherVolume Reason = 2
	// OtherPrice: there were trades in the window, at other prices.
	OtherPrice Reason = 3
	// NoTrade: the exchange made no trade in the window.
	NoTrade Reason = 4
)

var reasonNames = [...]string{
	Fewer: "fewer such trades", OtherVolume: "another volume at its price",
	OtherPrice: "trades at other prices only", NoTrade: "no trade at that time",
}

// String returns the reason in a few words.
func (r Reason) String() string {
	if int(r) < len(reasonNames) && reasonNames[r] != "" {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Missing is an expected trade that was not reproduced.
type Missing struct {
	Trade  orderflow.Trade
	Reason Reason
	// Nearest is the exchange's trade that Reason speaks of: at OtherVolume the
	// one whose volume differs least, otherwise the nearest in time. With NoTrade
	// it is zero.
	Nearest orderflow.Trade
}

// String says which trade is missing and why.
func (m Missing) String() string {
	s := fmt.Sprintf("trade %d, %d@%d: %v", m.Trade.ID, m.Trade.Volume, m.Trade.Price, m.Reason)
	if m.Reason == NoTrade {
		return s
	}
	return fmt.Sprintf("%s; nearest %d@%d", s, m.Nearest.Volume, m.Nearest.Price)
}

// Result is the outcome of a comparison.
type Result struct {
	Expected   int // trades that were recorded
	Made       int // trades that the exchange made
	Reproduced int
	Missing    []Missing // in the order of the expected trades
}

// Compare compares the trades made with those expected; both are in order of
// time. Window is the most that two matched trades may be apart, 0 for no bound.
func Compare(expected, made []orderflow.Trade, window time.Duration) Result {
	c := comparison{made: made, window: int64(window), used: make([]bool, len(made))}
	c.index = make([]int32, len(made))
	for i := range c.index {
		c.index[i] = int32(i)
	}
	slices.SortFunc(c.index, func(a, b int32) int {
		return cmp.Or(compareTrades(&made[a], &made[b]), int(a-b))
	})
	result := Result{Expected: len(expected), Made: len(made)}
	for i := range expected {
		if c.take(&expected[i]) {
			result.Reproduced++
		} else {
			result.Missing = append(result.Missing, Missing{Trade: expected[i]})
		}
	}
	for i := range result.Missing {
		c.explain(&result.Missing[i])
	}
	return result
}

func compareTrades(a, b *orderflow.Trade) int {
	return cmp.Or(cmp.Compare(a.Price, b.Price), cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Time, b.Time))
}

type comparison struct {
	made   []orderflow.Trade
	index  []int32 // of made, by price, volume and time
	used   []bool  // by index of made: matched
	window int64
}

// take matches want with the nearest unmatched trade like it, if there is one.
func (c *comparison) take(want *orderflow.Trade) bool {
	earliest := orderflow.Trade{Time: want.Time - c.window, Price: want.Price, Volume: want.Volume}
	first, _ := slices.BinarySearchFunc(c.index, &earliest, func(i int32, t *orderflow.Trade) int {
		return cmp.Or(compareTrades(&c.made[i], t), 1) // before all equal ones
	})
	best, bestApart := int32(-1), int64(0)
	for _, i := range c.index[first:] {
		m := &c.made[i]
		if m.Price != want.Price || m.Volume != want.Volume || m.Time-want.Time > c.window {
			break
		}
		if a := apart(m, want); !c.used[i] && (best < 0 || a < bestApart) {
			best, bestApart = i, a
		}
	}
	if best < 0 {
		return false
	}
	c.used[best] = true
	return true
}

func apart(a, b *orderflow.Trade) int64 { return distance(a.Time, b.Time) }

func distance(a, b int64) int64 { return max(a, b) - min(a, b) }

// explain fills in why m is missing.
func (c *comparison) explain(m *Missing) {
	m.Reason = NoTrade
	var least [2]int64
	for i := c.firstAtOrAfter(m.Trade.Time - c.window); i < len(c.made); i++ {
		t := &c.made[i]
		if t.Time-m.Trade.Time > c.window {
			break
		}
		reason, differs := nearness(&m.Trade, t)
		key := [2]int64{differs, apart(t, &m.Trade)}
		if reason < m.Reason || reason == m.Reason && less(key, least) {
			m.Reason, m.Nearest, least = reason, *t, key
		}
	}
}

func less(a, b [2]int64) bool { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) < 0 }

// nearness says how t, which was made, misses want, and by how much its volume
// differs where the price is right.
func nearness(want, t *orderflow.Trade) (Reason, int64) {
	switch {
	case t.Price != want.Price:
		return OtherPrice, 0
	case t.Volume != want.Volume:
		return OtherVolume, distance(t.Volume, want.Volume)
	}
	return Fewer, 0
}

func (c *comparison) firstAtOrAfter(time int64) int {
	i, _ := slices.BinarySearchFunc(c.made, time, func(t orderflow.Trade, time int64) int {
		return cmp.Compare(t.Time, time)
	})
	return i
}
