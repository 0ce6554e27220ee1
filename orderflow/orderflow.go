// Package orderflow defines the stream of order events that drives an exchange
// in demonstrations, replays and benchmarks. Its sub-packages make such streams:
// synthetic draws one at random, l3 and lobster read recorded ones; reproduce
// compares the trades that came of it with those that were recorded.
//
// Everything is in integers: prices in ticks, volumes in lots, time in
// nanoseconds. What a tick and a lot are is the source's to say.
package orderflow

import (
	"fmt"

	"github.com/countinghouse/countinghouse/record"
)

// Kind says what an event asks for.
type Kind uint8

// The kinds of events.
const (
	// Submit enters an order.
	Submit Kind = 1
	// Cancel takes what is left of Order off the book.
	Cancel Kind = 2
	// Reduce takes Volume lots off what is open of Order.
	Reduce Kind = 3
	// Amend gives Order the price Price and Volume open lots; Volume 0 leaves
	// its open lots as they are. The price may cross.
	Amend Kind = 4
	// Observe asks for nothing: the recorded market had Volume lots of Order
	// open after a fill. An exchange in step has as many. A replay that stays
	// close to the record takes off the book what exceeds them.
	Observe Kind = 5
)

var kindNames = [...]string{Submit: "submit", Cancel: "cancel", Reduce: "reduce", Amend: "amend", Observe: "observe"}

// String returns the kind's name, or its number when it is unknown.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Event is one step of an order flow. Only Submit sets the fields from Account
// to TimeInForce; the others name an order that an earlier Submit entered, or
// one that the exchange has never seen or does not have any more: then the
// exchange refuses them, and the flow goes on.
type Event struct {
	Time        int64 // nanoseconds since the Unix epoch; never descends
	Order       uint64
	Price       int64  // ticks; Submit of a market order: the protection price
	Volume      int64  // lots
	Account     uint64 // 1 … the source's number of accounts; 0 when the source knows none
	Instrument  int32  // index into the source's instruments
	Kind        Kind
	Side        record.Side
	Offset      record.Offset // Open when the source knows none
	OrderKind   record.Kind
	TimeInForce record.TimeInForce
}

// String returns the event on one line, for messages and tests.
func (e *Event) String() string {
	s := fmt.Sprintf("%d %v #%d", e.Time, e.Kind, e.Order)
	switch e.Kind {
	case Submit:
		return fmt.Sprintf("%s %v %d@%d %v %v %v", s, e.Side, e.Volume, e.Price, e.OrderKind, e.TimeInForce, e.Offset)
	case Cancel:
		return s
	case Amend:
		return fmt.Sprintf("%s to %d@%d", s, e.Volume, e.Price)
	}
	return fmt.Sprintf("%s %d", s, e.Volume)
}

// Source yields an order flow event by event. A source is for one goroutine.
type Source interface {
	// Next overwrites *e with the next event. It returns false without an
	// error at the end of the flow. After an error it must not be called again.
	Next(e *Event) (ok bool, err error)
}

// Trade is a trade that a market reported or an exchange made.
type Trade struct {
	Time   int64  // nanoseconds, on the same clock as the events'
	Price  int64  // ticks
	Volume int64  // lots
	ID     uint64 // the reporter's own id, 0 when there is none
}
