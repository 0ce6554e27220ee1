package rebuild

import (
	"fmt"
	"slices"
	"strings"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/record"
)

// void is what was taken after the first missing number. It counts only if a
// HistoryCut says that it does not: without one the rebuild fails.
type void struct {
	cause   error                    // what is missing; nil while nothing is
	records map[record.Symbol]uint64 // by stream
	orders  uint64                   // highest id
	trades  uint64
	cut     []record.Record // the transaction that ends it, as far as it was taken
}

func (v *void) add(r *record.Record) {
	if v.records == nil {
		v.records = make(map[record.Symbol]uint64)
	}
	v.records[r.Instrument]++
	switch r.Type {
	case record.TypeOrderInsert:
		v.orders = max(v.orders, r.OrderInsert().OrderID)
	case record.TypeTradeExecuted:
		v.trades = max(v.trades, r.TradeExecuted().TradeID)
	}
}

// noteGap reports whether every number up to r is there.
func (b *Rebuilder) noteGap(r *record.Record) (whole bool) {
	if b.void.cause == nil && r.Global != b.global+1 && r.Type != record.TypeHistoryCut {
		b.void.cause = fmt.Errorf("%s seq %d: global %d after %d: %w", r.Instrument, r.Seq, r.Global, b.global, ErrGap)
	}
	return b.void.cause == nil
}

// addCut takes a record of the transaction that says that what was taken after
// the last whole transaction does not count.
func (b *Rebuilder) addCut(r *record.Record) error {
	v, body := &b.void, r.HistoryCut()
	if body.From != b.replay.Global() {
		return fmt.Errorf("rebuild: %s seq %d: %w: a history cut after record %d, but the last whole transaction ends with record %d",
			r.Instrument, r.Seq, core.ErrReplay, body.From, b.replay.Global())
	}
	if len(v.cut) > 0 && v.cut[0].HistoryCut().To != body.To {
		v.cut = v.cut[:0] // that one was not stored as a whole
	}
	if r.Global != body.To+1+uint64(len(v.cut)) {
		if v.cause == nil {
			v.cause = fmt.Errorf("%s seq %d: global %d, of a history cut up to %d: %w", r.Instrument, r.Seq, r.Global, body.To, ErrGap)
		}
		v.add(r)
		return nil
	}
	v.cut = append(v.cut, *r)
	if r.Flags&record.FlagLast == 0 {
		if v.cause == nil {
			v.cause = fmt.Errorf("record %d begins a history cut that has no end: %w", r.Global, ErrTorn)
		}
		v.add(r)
		return nil
	}
	for i := range v.cut {
		if err := b.apply(&v.cut[i]); err != nil {
			return err
		}
	}
	b.pending, b.void = b.pending[:0], void{}
	return nil
}

// Taken returns the Global of the last record taken, whether it counts or not.
func (b *Rebuilder) Taken() uint64 { return b.global }

// Cut returns the transaction which says that everything after the last whole
// transaction does not count. It goes to the end of the streams, and Add takes it
// like any other. There is none if End has no error.
func (b *Rebuilder) Cut(now int64) []record.Record {
	if b.End() == nil {
		return nil
	}
	for i := range b.pending {
		b.void.add(&b.pending[i])
	}
	v := &b.void
	symbols := make([]record.Symbol, 0, len(v.records))
	for sym := range v.records {
		symbols = append(symbols, sym)
	}
	slices.SortFunc(symbols, func(a, b record.Symbol) int { return strings.Compare(a.String(), b.String()) })
	cut := make([]record.Record, len(symbols))
	for i, sym := range symbols {
		r := &cut[i]
		r.Header = record.Header{
			Version: record.Version, Type: record.TypeHistoryCut, Seq: *b.seqs[sym] + 1, Global: b.global + 1 + uint64(i),
			Time: now, Instrument: sym,
		}
		body := r.HistoryCut()
		body.From, body.To, body.Records = b.replay.Global(), b.global, v.records[sym]
		body.LastOrderID, body.LastTradeID = v.orders, v.trades
	}
	cut[len(cut)-1].Flags = record.FlagLast
	return cut
}
