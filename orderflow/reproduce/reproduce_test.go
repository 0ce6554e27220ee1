package reproduce

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/orderflow"
)

func trade(ms, price, volume int64) orderflow.Trade {
	return orderflow.Trade{Time: ms * 1e6, Price: price, Volume: volume}
}

func TestCompare(t *testing.T) {
	expected := []orderflow.Trade{
		trade(1000, 50, 7), // made
		trade(1001, 50, 7), // made
		trade(1002, 50, 7), // made only twice
		trade(1100, 51, 3), // made with another volume
		trade(1200, 52, 1), // at another price
		trade(9000, 50, 7), // nothing then
		trade(9900, 60, 1), // made a window later
	}
	made := []orderflow.Trade{
		trade(900, 50, 7), trade(990, 51, 9), trade(1001, 50, 7), trade(1300, 51, 4), trade(10_400, 60, 1),
	}
	got := Compare(expected, made, 500*time.Millisecond)
	if got.Reproduced != 3 || got.Expected != 7 || got.Made != 5 {
		t.Errorf("%+v", got)
	}
	want := []Missing{
		{Trade: expected[2], Reason: Fewer, Nearest: made[2]},
		{Trade: expected[3], Reason: OtherVolume, Nearest: made[3]},
		{Trade: expected[4], Reason: OtherPrice, Nearest: made[3]},
		{Trade: expected[5], Reason: NoTrade},
	}
	if !slices.Equal(got.Missing, want) {
		t.Errorf("missing\n%v\nexpected\n%v", got.Missing, want)
	}
	if got := Compare(expected, made, time.Hour); got.Reproduced != 3 || got.Missing[2].Reason != OtherPrice {
		t.Errorf("within an hour: %+v", got)
	}
}

// A nearer trade is taken before an earlier one, the earlier of two as near.
func TestNearestIsTaken(t *testing.T) {
	expected := []orderflow.Trade{trade(1000, 5, 5), trade(400, 5, 5)}
	made := []orderflow.Trade{trade(500, 5, 5), trade(900, 5, 5), trade(1100, 5, 5)}
	if got := Compare(expected, made, 150*time.Millisecond); got.Reproduced != 2 {
		t.Errorf("%+v", got)
	}
	if got := Compare([]orderflow.Trade{trade(1000, 5, 5), trade(1150, 5, 5)}, made, 100*time.Millisecond); got.Reproduced != 2 {
		t.Errorf("the later of two as near was taken: %+v", got)
	}
}

func TestNothingToCompare(t *testing.T) {
	if got := Compare(nil, nil, time.Hour); got.Reproduced != 0 || len(got.Missing) != 0 {
		t.Errorf("%+v", got)
	}
	got := Compare([]orderflow.Trade{trade(1, 2, 3)}, nil, time.Hour)
	if len(got.Missing) != 1 || got.Missing[0].Reason != NoTrade {
		t.Errorf("%+v", got)
	}
	if s := got.Missing[0].String(); s != "trade 0, 3@2: no trade at that time" {
		t.Error(s)
	}
}

// A flow compared with itself is reproduced in full, whatever the window, and
// every expected trade is either reproduced or missing.
func TestCompareAccountsForAll(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		random := func(n int) (trades []orderflow.Trade) {
			for i := range n {
				trades = append(trades, trade(int64(i*10)+r.Int64N(10), r.Int64N(4), r.Int64N(4)))
			}
			return trades
		}
		a, b := random(200), random(150)
		if got := Compare(a, a, time.Nanosecond); got.Reproduced != len(a) {
			t.Errorf("seed %d: %d of %d", seed, got.Reproduced, len(a))
		}
		got := Compare(a, b, 100*time.Millisecond)
		if got.Reproduced+len(got.Missing) != len(a) || got.Reproduced > len(b) {
			t.Errorf("seed %d: %d reproduced, %d missing", seed, got.Reproduced, len(got.Missing))
		}
	}
}
