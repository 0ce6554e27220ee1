// Package rebuild makes an exchange from its records: the streams of all
// instruments and of the accounts, as the storage nodes or an outbox hold them,
// are merged by their global number and applied one after the other. The result
// equals the exchange that wrote them, and goes on where it ended.
//
// Nothing is believed: numbers must follow each other without a gap, a
// transaction must have its end, and what the records state about orders and
// accounts must be what the records before them lead to.
package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/record"
)

// Errors of a rebuild; test with errors.Is.
var (
	// ErrGap means that a number is missing in a stream or in the whole.
	ErrGap = errors.New("records are missing")
	// ErrDoubled means that a number comes twice or out of order.
	ErrDoubled = errors.New("records are doubled or out of order")
	// ErrTorn means that the last transaction has no end.
	ErrTorn = errors.New("the last transaction is not whole")
)

// Source yields records in ascending order of Global. Next returns io.EOF after
// the last one. The record is valid until the next call.
type Source interface {
	Next() (*record.Record, error)
}

// Slice is a Source of records in memory.
type Slice struct {
	Records []record.Record
	at      int
}

// Next returns the next record.
func (s *Slice) Next() (*record.Record, error) {
	if s.at == len(s.Records) {
		return nil, io.EOF
	}
	s.at++
	return &s.Records[s.at-1], nil
}

// Rebuilder applies records. It is for one goroutine.
//
// A transaction is applied when its last record is there, so that the state is
// always one that the exchange was in.
type Rebuilder struct {
	replay  *core.Replayer
	global  uint64 // of the last record taken
	seqs    map[record.Symbol]*uint64
	pending []record.Record // the running transaction
	applied uint64
	void    void
}

// New returns a rebuilder that expects the record with Global 1.
func New() *Rebuilder {
	return &Rebuilder{replay: core.NewReplayer(), seqs: make(map[record.Symbol]*uint64)}
}

// Run rebuilds an exchange from src. On ErrTorn the rebuilder stands at the last
// whole transaction; after any other error its state is of no use.
func Run(ctx context.Context, src Source) (*Rebuilder, error) {
	b := New()
	for {
		if b.global%4096 == 0 && ctx.Err() != nil {
			return b, fmt.Errorf("rebuild after record %d: %w", b.global, ctx.Err())
		}
		r, err := src.Next()
		if errors.Is(err, io.EOF) {
			return b, b.End()
		}
		if err != nil {
			return b, fmt.Errorf("rebuild after record %d: %w", b.global, err)
		}
		if err := b.Add(r); err != nil {
			return b, err
		}
	}
}

// Add takes the next record. Errors wrap ErrGap, ErrDoubled, record.ErrVersion,
// record.ErrCorrupt or core.ErrReplay, and name the record. That a global number is
// missing is not an error yet: a HistoryCut may follow. End tells.
func (b *Rebuilder) Add(r *record.Record) error {
	seq := b.seqs[r.Instrument]
	if seq == nil {
		seq = new(uint64)
	}
	if err := b.check(r, *seq); err != nil {
		return fmt.Errorf("rebuild: %w", err)
	}
	if r.Seq == 1 {
		b.seqs[r.Instrument] = seq
	}
	whole := b.noteGap(r)
	b.global, *seq = r.Global, r.Seq
	switch {
	case r.Type == record.TypeHistoryCut:
		return b.addCut(r)
	case !whole:
		b.void.add(r)
		return nil
	}
	if len(b.pending) == 0 && r.Flags&record.FlagLast != 0 {
		return b.apply(r)
	}
	b.pending = append(b.pending, *r)
	if r.Flags&record.FlagLast == 0 {
		return nil
	}
	for i := range b.pending {
		if err := b.apply(&b.pending[i]); err != nil {
			return err
		}
	}
	b.pending = b.pending[:0]
	return nil
}

// check reports why r cannot be the next record, where last is the last of its stream.
func (b *Rebuilder) check(r *record.Record, last uint64) error {
	if err := r.Check(); err != nil {
		return err
	}
	global, seq := follows(r.Global, b.global), follows(r.Seq, last)
	switch {
	case global != nil && (seq != nil || errors.Is(global, ErrDoubled)):
		return fmt.Errorf("%s seq %d: global %d after %d: %w", r.Instrument, r.Seq, r.Global, b.global, global)
	case seq != nil:
		return fmt.Errorf("%s: seq %d after %d (global %d): %w", r.Instrument, r.Seq, last, r.Global, seq)
	}
	return nil
}

func follows(n, last uint64) error {
	switch {
	case n > last+1:
		return ErrGap
	case n <= last:
		return ErrDoubled
	}
	return nil
}

func (b *Rebuilder) apply(r *record.Record) error {
	if err := b.replay.Apply(r); err != nil {
		return fmt.Errorf("rebuild: %w; record: %s", err, r)
	}
	b.applied++
	return nil
}

// End reports whether the records are one whole history: the error wraps ErrGap
// if a global number is missing and no HistoryCut says that what follows does not
// count, and ErrTorn if the last transaction has no end.
func (b *Rebuilder) End() error {
	if b.void.cause != nil {
		return fmt.Errorf("rebuild: %w", b.void.cause)
	}
	if n := len(b.pending); n > 0 {
		first := &b.pending[0]
		return fmt.Errorf("rebuild: %w: records %d to %d, of which the first is %s seq %d, lack the end; the last whole transaction ends with record %d",
			ErrTorn, first.Global, b.global, first.Instrument, first.Seq, b.replay.Global())
	}
	return nil
}

// Global returns the Global of the last record of the last whole transaction.
func (b *Rebuilder) Global() uint64 { return b.replay.Global() }

// State returns the state after the last whole transaction.
func (b *Rebuilder) State() core.State { return b.replay.State() }

// Records returns the number of records applied.
func (b *Rebuilder) Records() uint64 { return b.applied }

// LastSeqs returns the last sequence number of every stream, of what was taken.
func (b *Rebuilder) LastSeqs() map[record.Symbol]uint64 {
	last := make(map[record.Symbol]uint64, len(b.seqs))
	for in, seq := range b.seqs {
		last[in] = *seq
	}
	return last
}

// Exchange returns the exchange, which goes on writing through gw; the sink of
// gw must have published exactly what was applied. The rebuilder is used up.
func (b *Rebuilder) Exchange(gw *gateway.Gateway) (*core.Exchange, error) {
	if err := b.End(); err != nil {
		return nil, err
	}
	return b.replay.Finish(gw)
}
