package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

// replicas is a source in memory: records by member and instrument.
type replicas map[string]map[record.Symbol][]record.Record

func (r replicas) LastSeq(_ context.Context, _, member string, sym record.Symbol) (uint64, error) {
	rs := r[member][sym]
	if len(rs) == 0 {
		return 0, nil
	}
	return rs[len(rs)-1].Seq, nil
}

func (r replicas) Scan(_ context.Context, _, member string, sym record.Symbol, first, last uint64, yield func([]record.Record) error) error {
	if member == "broken" {
		return errors.New("no such host")
	}
	var chunk []record.Record
	for _, rec := range r[member][sym] {
		if rec.Seq < first || rec.Seq > last {
			continue
		}
		if chunk = append(chunk, rec); len(chunk) == 1000 {
			if err := yield(chunk); err != nil {
				return err
			}
			chunk = nil
		}
	}
	if len(chunk) == 0 {
		return nil
	}
	return yield(chunk)
}

var (
	symA = record.MustSymbol("A")
	symB = record.MustSymbol("B")
)

const perStream = windowRecords + 1500

// healthy returns two instruments on three members, their globals interleaved.
func healthy() (replicas, []Stream) {
	r := replicas{}
	var streams []Stream
	members := []string{"m0", "m1", "m2"}
	for _, m := range members {
		r[m] = map[record.Symbol][]record.Record{}
	}
	for s, sym := range []record.Symbol{symA, symB} {
		for i := range uint64(perStream) {
			rec := record.Record{Header: record.Header{
				Version: record.Version, Type: record.TypeDeposit, Seq: i + 1, Global: 2*i + uint64(s) + 1, Instrument: sym,
			}}
			rec.CashMove().Amount = int64(i)
			for _, m := range members {
				r[m][sym] = append(r[m][sym], rec)
			}
		}
		streams = append(streams, Stream{Shard: "s", Instrument: sym, Members: members})
	}
	return r, streams
}

func run(t *testing.T, r replicas, streams []Stream, published uint64) Result {
	t.Helper()
	got, err := Run(t.Context(), r, streams, published, func(uint64) {})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestHealthy(t *testing.T) {
	r, streams := healthy()
	var seen uint64
	got, err := Run(t.Context(), r, streams, 2*perStream, func(n uint64) { seen = n })
	if err != nil || !got.Identical() || got.Persisted != 2*perStream || got.Lost != 0 || got.Duplicated != 0 || got.Beyond != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if want := uint64(2 * 2 * perStream * record.Size); got.BytesCompared != want || seen != 2*perStream {
		t.Errorf("compared %d bytes, want %d; progress %d", got.BytesCompared, want, seen)
	}
}

func TestEveryKindOfDamageIsFound(t *testing.T) {
	far := windowRecords + 700
	cases := map[string]struct {
		damage                   func(replicas)
		published                uint64
		lost, duplicated, beyond uint64
		difference               string
	}{
		"lost at the end of all":  {func(replicas) {}, 2*perStream + 3, 3, 0, 0, ""},
		"more than was published": {func(replicas) {}, 2*perStream - 2, 0, 0, 2, ""},
		"one bit": {func(r replicas) { r["m2"][symB][far].Body[79] ^= 1 }, 2 * perStream, 0, 0, 0,
			fmt.Sprintf("B: m0 and m2 differ from seq %d on", far+1)},
		"a replica is short": {func(r replicas) { r["m1"][symA] = r["m1"][symA][:far] }, 2 * perStream, 0, 0, 0,
			fmt.Sprintf("A: m0 holds %d records, m1 holds %d", perStream, far)},
		"a replica has a hole": {func(r replicas) { r["m1"][symA] = append(r["m1"][symA][:5:5], r["m1"][symA][6:]...) }, 2 * perStream, 0, 0, 0,
			"A: m0 and m1 differ from seq 6 on"},
		"the same global twice": {func(r replicas) {
			for _, m := range r {
				m[symB][far].Global = 7
			}
		}, 2 * perStream, 1, 1, 0, ""},
		"a hole everywhere": {func(r replicas) {
			for _, m := range r {
				m[symB] = append(m[symB][:5:5], m[symB][6:]...)
			}
		}, 2 * perStream, 1, 0, 0, "B: m0 yields"},
	}
	for name, c := range cases {
		r, streams := healthy()
		c.damage(r)
		got := run(t, r, streams, c.published)
		if got.Lost != c.lost || got.Duplicated != c.duplicated || got.Beyond != c.beyond {
			t.Errorf("%s: lost %d, duplicated %d, beyond %d; want %d, %d, %d", name, got.Lost, got.Duplicated, got.Beyond, c.lost, c.duplicated, c.beyond)
		}
		if (c.difference == "") != got.Identical() || !strings.Contains(strings.Join(got.Differences, "\n"), c.difference) {
			t.Errorf("%s: differences %q, want %q", name, got.Differences, c.difference)
		}
		if len(got.Differences) > differencesMax {
			t.Errorf("%s: %d differences are listed", name, len(got.Differences))
		}
	}
}

// Numbers that a HistoryCut gives up are no loss; those beside it are.
func TestGivenUpIsNotLost(t *testing.T) {
	r, streams := healthy()
	const end = 2 * perStream
	for _, m := range r {
		rec := record.Record{Header: record.Header{
			Version: record.Version, Type: record.TypeHistoryCut, Seq: perStream + 1, Global: end + 5, Instrument: symA,
		}}
		rec.HistoryCut().From, rec.HistoryCut().To = end-10, end+4
		m[symA] = append(m[symA], rec)
	}
	if got := run(t, r, streams, end+7); got.GivenUp != 4 || got.Lost != 2 || !got.Identical() {
		t.Errorf("%+v", got)
	}
}

// Cuts overlap, touch and reach beyond the end; each number counts once.
func TestGivenUpIsCountedOnce(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 3))
		last := 1 + rng.Uint64N(300)
		a := &auditor{seen: make([]uint64, last/64+1), last: last, cuts: map[cut]bool{}}
		for global := uint64(1); global <= last; global++ {
			a.seen[global/64] |= rng.Uint64N(2) << (global % 64)
		}
		for range rng.IntN(5) {
			first := 1 + rng.Uint64N(last+10)
			a.cuts[cut{first, first + rng.Uint64N(100)}] = true
		}
		want := uint64(0)
		for global := uint64(1); global <= last; global++ {
			for c := range a.cuts {
				if c.first <= global && global <= c.last {
					want += 1 - a.seen[global/64]>>(global%64)&1
					break
				}
			}
		}
		if a.giveUp(); a.result.GivenUp != want {
			t.Fatalf("seed %d: %d of %v, want %d", seed, a.result.GivenUp, a.cuts, want)
		}
	}
}

func TestUnreadableReplicaIsAnError(t *testing.T) {
	r, streams := healthy()
	r["broken"] = r["m2"]
	streams[0].Members = []string{"m0", "broken"}
	if _, err := Run(t.Context(), r, streams, 2*perStream, func(uint64) {}); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("got %v", err)
	}
}
