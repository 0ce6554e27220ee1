package rebuild

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "seed of the random flows; 0 for a few fixed ones")
	stepsFlag = flag.Int("steps", 3000, "commands of each random flow")
)

func seeds() []uint64 {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	return []uint64{1, 2, 3, 4}
}

// streams splits records into one source for each stream.
func streams(records []record.Record) []Source {
	var order []record.Symbol
	split := make(map[record.Symbol]*Slice)
	for i := range records {
		in := records[i].Instrument
		if split[in] == nil {
			split[in] = &Slice{}
			order = append(order, in)
		}
		split[in].Records = append(split[in].Records, records[i])
	}
	var sources []Source
	for _, in := range order {
		sources = append(sources, split[in])
	}
	return sources
}

// rebuilt returns the exchange that records make, and its sink.
func rebuilt(t *testing.T, records []record.Record) (*core.Exchange, *sink) {
	t.Helper()
	b, err := Run(t.Context(), Merge(streams(records)...))
	if err != nil {
		t.Fatal(err)
	}
	s := newSink(b.Global())
	ex, err := b.Exchange(gateway.New(s, gateway.Options{HeadroomRecords: 8}))
	if err != nil {
		t.Fatal(err)
	}
	ex.SetLiveOrdersMax(liveOrdersMax)
	return ex, s
}

func mustEqual(t *testing.T, what string, a, b *core.Exchange) {
	t.Helper()
	if diff := a.State().Diff(b.State()); diff != nil {
		t.Fatalf("%s: states differ:\n%s", what, strings.Join(diff, "\n"))
	}
	if a.StateHash() != b.StateHash() {
		t.Fatalf("%s: states have no difference but their hashes differ", what)
	}
}

// Whatever happens, the exchange rebuilt from its records equals the live one.
func TestRebuiltEqualsLive(t *testing.T) {
	for _, seed := range seeds() {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			f := newFlow(t, seed)
			for i := range *stepsFlag {
				f.step()
				if i%149 == 0 || i == *stepsFlag-1 {
					ex, _ := rebuilt(t, f.sink.Records())
					mustEqual(t, fmt.Sprintf("seed %d, after command %d, %s", seed, i, f.said), f.ex, ex)
				}
			}
			t.Logf("seed %d: %d orders, %d trades, %d records, refusals %v, states %v",
				seed, f.ex.LastOrderID(), f.ex.LastTradeID(), f.sink.Published(), f.refused, f.done)
			f.checkCoverage()
		})
	}
}

// checkCoverage fails when the flow lost its point: every refusal and state occurs.
func (f *flow) checkCoverage() {
	if *stepsFlag < 3000 {
		return
	}
	for _, why := range risk.Reasons() {
		switch why {
		case risk.Overloaded, risk.Malformed, risk.UnknownInstrument, risk.OffTick, risk.AccountExists, risk.BadAccount, risk.BadDay,
			risk.BadPrices, risk.BadTerms, risk.Unavailable, risk.NotYourOrder:
			continue // not by this flow
		}
		if f.refused[why] == 0 {
			f.t.Errorf("no command was refused with %s", why)
		}
	}
	for s := core.Refused; s <= core.Canceled; s++ {
		if f.done[s] == 0 {
			f.t.Errorf("no order became %s", s)
		}
	}
}

// A rebuilt exchange goes on exactly as the one that it was rebuilt from.
func TestRebuiltGoesOn(t *testing.T) {
	for _, seed := range seeds() {
		f := newFlow(t, seed)
		for range 700 {
			f.step()
		}
		at := len(f.sink.Records())
		twin := *f
		twin.ex, twin.sink = rebuilt(t, f.sink.Records())
		twin.owed, twin.accounts = mapsClone(f.owed), slices.Clone(f.accounts)
		rng, twinRng := cloneRand(t, f), cloneRand(t, f)
		f.rng, twin.rng = rng, twinRng
		for i := range 700 {
			f.step()
			twin.step()
			if f.said != twin.said {
				t.Fatalf("seed %d, command %d:\nlive:    %s\nrebuilt: %s", seed, i, f.said, twin.said)
			}
		}
		mustEqual(t, "after going on", f.ex, twin.ex)
		if !bytes.Equal(record.SliceBytes(f.sink.Records()[at:]), record.SliceBytes(twin.sink.Records())) {
			t.Fatalf("seed %d: the records differ", seed)
		}
	}
}

// The same commands give the same bytes.
func TestDeterminism(t *testing.T) {
	a, b := newFlow(t, 11), newFlow(t, 11)
	for range 1500 {
		a.step()
		b.step()
	}
	if !bytes.Equal(record.SliceBytes(a.sink.Records()), record.SliceBytes(b.sink.Records())) {
		t.Fatal("two runs of one flow differ")
	}
}

// damage changes one record of a whole run of records; the rebuild must name it.
func TestDamageIsFound(t *testing.T) {
	f := newFlow(t, 5)
	for range 1200 {
		f.step()
	}
	clean := f.sink.Records()
	find := func(typ record.Type, nth int) int {
		for i := range clean {
			if clean[i].Type == typ {
				if nth--; nth < 0 {
					return i
				}
			}
		}
		t.Fatalf("the flow has no %s", typ)
		return 0
	}
	for name, c := range map[string]struct {
		damage func(rs []record.Record) []record.Record
		want   error
		says   string
	}{
		"missing": {func(rs []record.Record) []record.Record {
			return slices.Delete(rs, 500, 501)
		}, ErrGap, "global 502 after 500"},
		"missing in one stream": {func(rs []record.Record) []record.Record {
			i := find(record.TypeOrderInsert, 50)
			rs[i].Seq++
			return rs
		}, ErrGap, ""},
		"doubled": {func(rs []record.Record) []record.Record {
			rs[600].Global--
			return rs
		}, ErrDoubled, ""},
		"torn": {func(rs []record.Record) []record.Record {
			i := find(record.TypeTradeExecuted, 30)
			return rs[:i+1]
		}, ErrTorn, "lack the end"},
		"unknown type": {func(rs []record.Record) []record.Record {
			rs[700].Type = 99
			return rs
		}, record.ErrVersion, "record type 99"},
		"unknown version": {func(rs []record.Record) []record.Record {
			rs[700].Version = 2
			return rs
		}, record.ErrVersion, "version 2"},
		"balance": {func(rs []record.Record) []record.Record {
			rs[find(record.TypeAccountUpdate, 40)].AccountUpdate().Balance++
			return rs
		}, core.ErrReplay, "balance is"},
		"position": {func(rs []record.Record) []record.Record {
			rs[find(record.TypeAccountUpdate, 41)].AccountUpdate().LongToday++
			return rs
		}, core.ErrReplay, "long_today is"},
		"trade volume": {func(rs []record.Record) []record.Record {
			rs[find(record.TypeTradeExecuted, 20)].TradeExecuted().Volume++
			return rs
		}, core.ErrReplay, ""},
		"trade price": {func(rs []record.Record) []record.Record {
			rs[find(record.TypeTradeExecuted, 20)].TradeExecuted().Price++
			return rs
		}, core.ErrReplay, "price"},
		"fee": {func(rs []record.Record) []record.Record {
			rs[find(record.TypeTradeExecuted, 20)].TradeExecuted().TakerFee++
			return rs
		}, core.ErrReplay, "stated as"},
		"cancelled volume": {func(rs []record.Record) []record.Record {
			rs[find(record.TypeOrderCancel, 20)].OrderCancel().Volume++
			return rs
		}, core.ErrReplay, "lots left is"},
		"amended from": {func(rs []record.Record) []record.Record {
			rs[find(record.TypeOrderAmend, 20)].OrderAmend().OldVolume++
			return rs
		}, core.ErrReplay, "stated as"},
		"settlement": {func(rs []record.Record) []record.Record {
			rs[find(record.TypeSettlement, 3)].Settlement().Previous++
			return rs
		}, core.ErrReplay, "previous settlement price"},
		"deposit": {func(rs []record.Record) []record.Record {
			rs[find(record.TypeDeposit, 3)].CashMove().Amount++
			return rs
		}, core.ErrReplay, "balance is"},
	} {
		t.Run(name, func(t *testing.T) {
			rs := c.damage(slices.Clone(clean))
			_, err := Run(t.Context(), &Slice{Records: rs})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error %v; want one that wraps %q and says %q", err, c.want, c.says)
			}
		})
	}
}

// After a torn end the rebuilder stands at the last whole transaction.
func TestTornEndLeavesWholeState(t *testing.T) {
	f := newFlow(t, 6)
	for range 400 {
		f.step()
	}
	records := f.sink.Records()
	last := len(records) - 1
	for records[last].Type != record.TypeTradeExecuted {
		last--
	}
	b, err := Run(t.Context(), &Slice{Records: records[:last+1]})
	if !errors.Is(err, ErrTorn) {
		t.Fatalf("error %v, want ErrTorn", err)
	}
	whole := records[:b.Global()]
	if whole[len(whole)-1].Flags&record.FlagLast == 0 {
		t.Fatalf("record %d does not end a transaction", b.Global())
	}
	if _, err := b.Exchange(gateway.New(newSink(b.Global()), gateway.Options{})); !errors.Is(err, ErrTorn) {
		t.Fatalf("a torn rebuild was allowed to go on: %v", err)
	}
}

func TestFinishRefusesAnotherOutbox(t *testing.T) {
	f := newFlow(t, 6)
	b, err := Run(t.Context(), &Slice{Records: f.sink.Records()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Exchange(gateway.New(newSink(b.Global()+1), gateway.Options{})); !errors.Is(err, core.ErrReplay) {
		t.Fatalf("error %v, want one that names the outbox's position", err)
	}
}

func TestMergeOverlap(t *testing.T) {
	f := newFlow(t, 8)
	for range 200 {
		f.step()
	}
	records := f.sink.Records()
	tail := &Slice{Records: records[len(records)/2:]}
	b, err := Run(t.Context(), Merge(append(streams(records[:len(records)*3/4]), tail)...))
	if err != nil {
		t.Fatal(err)
	}
	if b.Records() != uint64(len(records)) {
		t.Fatalf("%d records applied, want %d", b.Records(), len(records))
	}
	other := slices.Clone(records)
	other[len(records)/2].Time++
	if _, err := Run(t.Context(), Merge(&Slice{Records: records}, &Slice{Records: other})); !errors.Is(err, record.ErrCorrupt) {
		t.Fatalf("two different records of one number: error %v", err)
	}
}

func TestMergeOfNothing(t *testing.T) {
	if _, err := Merge(&Slice{}, &Slice{}).Next(); !errors.Is(err, io.EOF) {
		t.Fatalf("error %v, want EOF", err)
	}
	broken := errors.New("broken")
	if _, err := Run(t.Context(), Merge(&Slice{}, failing{broken})); !errors.Is(err, broken) {
		t.Fatalf("error %v, want the source's", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, &Slice{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want the context's", err)
	}
}

type failing struct{ err error }

func (f failing) Next() (*record.Record, error) { return nil, f.err }
