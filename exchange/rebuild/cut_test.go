package rebuild

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/record"
)

// loseTails drops the last records of some streams, as when an outbox is lost
// before all shards have its records. The first kept records are stored already.
func loseTails(rng *rand.Rand, records []record.Record, kept, most int) []record.Record {
	lost := make(map[record.Symbol]uint64)
	last := make(map[record.Symbol]uint64)
	for i := range records {
		last[records[i].Instrument] = records[i].Seq
	}
	for _, sym := range slices.SortedFunc(mapKeys(last), func(a, b record.Symbol) int { return slices.Compare(a[:], b[:]) }) {
		if rng.IntN(3) > 0 {
			lost[sym] = last[sym] - min(last[sym], uint64(rng.IntN(most)))
		} else {
			lost[sym] = last[sym]
		}
	}
	stored := slices.Clone(records[:kept])
	for _, r := range records[kept:] {
		if r.Seq <= lost[r.Instrument] {
			stored = append(stored, r)
		}
	}
	return stored
}

func mapKeys(m map[record.Symbol]uint64) func(yield func(record.Symbol) bool) {
	return func(yield func(record.Symbol) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// prefix returns the records of the whole transactions up to the first number
// that is missing.
func prefix(records []record.Record) []record.Record {
	whole := 0
	for i := range records {
		if records[i].Global != uint64(i)+1 {
			break
		}
		if records[i].Flags&record.FlagLast != 0 {
			whole = i + 1
		}
	}
	return records[:whole]
}

// Tails are lost, the history is cut, the exchange goes on, and so on: what is
// rebuilt is always what went on, and after a cut it is what the records before
// the first missing number lead to.
func TestCutHistory(t *testing.T) {
	cuts := 0
	for _, seed := range seeds() {
		rng := rand.New(rand.NewPCG(seed, 99))
		f := newFlow(t, seed)
		var all []record.Record
		kept := 30 // the instruments and the first accounts
		for round := range 12 {
			for range 100 {
				f.step()
			}
			all = append(all, f.sink.Records()...)
			stored := loseTails(rng, all, kept, 1+rng.IntN(60))
			b, err := Run(t.Context(), Merge(streams(stored)...))
			if err != nil && !errors.Is(err, ErrGap) && !errors.Is(err, ErrTorn) {
				t.Fatalf("seed %d, round %d: %v", seed, round, err)
			}
			cut := b.Cut(f.now)
			if (err == nil) != (len(cut) == 0) {
				t.Fatalf("seed %d, round %d: %v, but a cut of %d records", seed, round, err, len(cut))
			}
			cuts += min(len(cut), 1)
			checkCut(t, stored, cut, b.Global())
			for i := range cut {
				if err := b.Add(&cut[i]); err != nil {
					t.Fatalf("seed %d, round %d: %v", seed, round, err)
				}
			}
			all, kept = append(stored, cut...), len(stored)
			f.sink = newSink(b.Global())
			if f.ex, err = b.Exchange(gateway.New(f.sink, gateway.Options{HeadroomRecords: 8})); err != nil {
				t.Fatalf("seed %d, round %d: %v", seed, round, err)
			}
			if f.accounts = f.ex.AccountIDs(); len(f.accounts) == 0 {
				t.Fatalf("seed %d, round %d: nothing is left to go on with", seed, round)
			}
			again, _ := rebuilt(t, all)
			mustEqual(t, fmt.Sprintf("seed %d, round %d", seed, round), f.ex, again)
		}
	}
	if cuts < 10 {
		t.Errorf("the history was cut %d times only", cuts)
	}
}

// checkCut compares the books and accounts after the first cut of a history with
// those of its prefix.
func checkCut(t *testing.T, stored, cut []record.Record, from uint64) {
	t.Helper()
	void := uint64(0)
	for i := range stored {
		if stored[i].Global > from {
			void++
		}
	}
	stated := uint64(0)
	for i := range cut {
		body := cut[i].HistoryCut()
		stated += body.Records
		if body.From != from || body.To != stored[len(stored)-1].Global {
			t.Errorf("cut from %d to %d, want %d and %d", body.From, body.To, from, stored[len(stored)-1].Global)
		}
	}
	if void != stated && len(cut) > 0 {
		t.Errorf("%d records do not count, the cut says %d", void, stated)
	}
	if slices.ContainsFunc(stored, func(r record.Record) bool { return r.Type == record.TypeHistoryCut }) {
		return
	}
	if good := prefix(stored); len(good) > 0 && good[len(good)-1].Global != from {
		t.Errorf("cut after %d, want %d", from, good[len(good)-1].Global)
	}
}

// A cut that was stored in part is replaced by the next one.
func TestCutStoredInPart(t *testing.T) {
	f := newFlow(t, 3)
	for range 400 {
		f.step()
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var stored, cut []record.Record
	for len(cut) < 2 {
		stored = loseTails(rng, f.sink.Records(), 30, 50)
		b, _ := Run(t.Context(), Merge(streams(stored)...))
		cut = b.Cut(1)
	}
	for n := 1; n < len(cut); n++ {
		for _, part := range [][]record.Record{cut[:n], cut[n:]} {
			broken := append(slices.Clone(stored), part...)
			b, err := Run(t.Context(), Merge(streams(broken)...))
			if !errors.Is(err, ErrGap) && !errors.Is(err, ErrTorn) {
				t.Fatalf("%d of %d records: %v", len(part), len(cut), err)
			}
			again := b.Cut(2)
			if _, err := Run(t.Context(), Merge(streams(append(broken, again...))...)); err != nil {
				t.Errorf("%d of %d records and then a cut: %v", len(part), len(cut), err)
			}
		}
	}
}

func TestFalseCutIsRefused(t *testing.T) {
	f := newFlow(t, 3)
	for range 400 {
		f.step()
	}
	stored := loseTails(rand.New(rand.NewPCG(5, 2)), f.sink.Records(), 30, 50)
	b, _ := Run(t.Context(), Merge(streams(stored)...))
	cut := b.Cut(1)
	cut[0].HistoryCut().From--
	if _, err := Run(t.Context(), Merge(streams(append(stored, cut...))...)); err == nil {
		t.Error("a cut in the middle of what counts was believed")
	}
}
