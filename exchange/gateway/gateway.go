package gateway

import (
	"fmt"
	"sync/atomic"

	"github.com/countinghouse/countinghouse/record"
)

// Policy says what happens to a command for whose records the sink has no room.
type Policy uint8

// The policies.
const (
	Reject Policy = iota // the command is refused before it has any effect
	Drop                 // the command is carried out, its records are counted and lost: no rebuild and no restart from then on
)

// ParsePolicy returns the policy named "reject" or "drop".
func ParsePolicy(name string) (Policy, error) {
	switch name {
	case "reject":
		return Reject, nil
	case "drop":
		return Drop, nil
	}
	return 0, fmt.Errorf("backlog policy %q: use \"reject\" or \"drop\"", name)
}

// String returns the policy's name.
func (p Policy) String() string {
	if p == Drop {
		return "drop"
	}
	return "reject"
}

// Class tells whether a command may use the last part of the sink's quota.
type Class uint8

// The classes.
const (
	Orders Class = iota // orders and amends leave the headroom free
	Urgent              // cancels, account and control commands may use all
)

// DefaultHeadroomRecords is the part of the sink's quota that orders leave to
// cancels, money and control.
const DefaultHeadroomRecords = 4096

// Options configure a Gateway; the zero value is usable.
type Options struct {
	Policy Policy
	// HeadroomRecords that orders leave free, which the sink must hold many
	// times over, or no order is ever taken; negative for none, 0 for
	// DefaultHeadroomRecords.
	HeadroomRecords int
}

// Stats counts what a gateway did.
type Stats struct {
	Records      uint64 // written to the sink
	Transactions uint64 // written to the sink
	Dropped      uint64 // records lost under the policy Drop
	Refused      uint64 // commands refused under the policy Reject
}

// Stream numbers the records of one instrument.
type Stream struct {
	Symbol record.Symbol
	Seq    uint64 // of the last record, 0 for none
}

// Gateway writes records. Its methods, but for Dropped and Fanout, are for the
// goroutine that runs the core.
type Gateway struct {
	sink     Sink
	policy   Policy
	headroom int
	fan      Fanout
	scratch  record.Record // stands in for a slot while a transaction is dropped
	dropping bool
	written  int // records of the running transaction

	// Counted by the core alone: adding to them atomically would wait for the
	// stores of the transaction.
	records, transactions uint64

	dropped, refused atomic.Uint64
}

// New returns a gateway that writes to sink.
func New(sink Sink, opts Options) *Gateway {
	if opts.HeadroomRecords == 0 {
		opts.HeadroomRecords = DefaultHeadroomRecords
	}
	return &Gateway{sink: sink, policy: opts.Policy, headroom: max(opts.HeadroomRecords, 0)}
}

// Fanout returns what local subscribers subscribe to.
func (g *Gateway) Fanout() *Fanout { return &g.fan }

// Dropped returns how many records were lost under the policy Drop; any goroutine
// may call it.
func (g *Gateway) Dropped() uint64 { return g.dropped.Load() }

// Stats returns the counters.
func (g *Gateway) Stats() Stats {
	return Stats{
		Records: g.records, Transactions: g.transactions,
		Dropped: g.dropped.Load(), Refused: g.refused.Load(),
	}
}

// Published returns the Global of the last published record.
func (g *Gateway) Published() uint64 { return g.sink.Published() }

// HasRoom reports whether Begin would find room, without counting a refusal.
func (g *Gateway) HasRoom(worst int, class Class) bool {
	if class == Orders {
		worst += g.headroom
	}
	return g.policy == Drop || g.sink.Reserve(worst)
}

// Begin starts a transaction of at most worst records. False means that the
// command must be refused; nothing was started.
func (g *Gateway) Begin(worst int, class Class) bool {
	ok := g.TryBegin(worst, class)
	if !ok {
		g.refused.Add(1)
	}
	return ok
}

// TryBegin is Begin that counts no refusal: the caller may ask for less.
func (g *Gateway) TryBegin(worst int, class Class) bool {
	if class == Orders {
		worst += g.headroom
	}
	g.written, g.dropping = 0, false
	if g.sink.Reserve(worst) {
		return true
	}
	g.dropping = g.policy == Drop
	return g.dropping
}

// End publishes the transaction and returns the Global of its last record; 0
// when its records were dropped or it has none.
func (g *Gateway) End() (global uint64) {
	n := uint64(g.written)
	if g.dropping {
		g.dropped.Add(n)
		g.fan.flush()
		return 0
	}
	if n == 0 {
		return 0
	}
	g.sink.Commit()
	g.records += n
	g.transactions++
	g.fan.flush()
	return g.sink.Published()
}

// next returns an all-zero record with its header filled.
func (g *Gateway) next(s *Stream, t record.Type, now int64) *record.Record {
	g.written++
	r := &g.scratch
	if g.dropping {
		*r = record.Record{}
	} else {
		r = g.sink.Next()
		global := r.Global
		*r = record.Record{}
		s.Seq++
		r.Seq, r.Global = s.Seq, global
	}
	r.Begin(t)
	r.Time, r.Instrument = now, s.Symbol
	return r
}
