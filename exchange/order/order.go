// Package order holds what the parts of the exchange pass to each other about
// orders: the order itself and the terms of the instrument it is for.
//
// # Not as on the China Financial Futures Exchange
//
// The futures are modelled on those of that exchange, with these differences:
// margin is asked for on both sides of a position and for each instrument, not on
// the larger side of a product; an instrument has no last trading day and no
// delivery; one limit holds for the lots of limit and market orders; and lots
// opened in a day are not limited.
package order

import "github.com/countinghouse/countinghouse/record"

// Order is a live order. Matching owns Remaining; everything else is set by the
// order router and constant until an amend.
//
// Invariant of a resting order: 0 < Remaining ≤ Volume.
type Order struct {
	ID            uint64 // assigned by the order router, from 1, ascending
	ClientOrderID uint64 // the submitter's own id, 0 when it gave none
	Account       uint64 // the account's id
	AccountIndex  uint32 // dense index of the account inside the process; not persisted

	Side        record.Side
	Offset      record.Offset
	Kind        record.Kind
	TimeInForce record.TimeInForce

	Price     int64 // ticks; market: protection price (the limit it may trade up or down to)
	Volume    int64 // lots when it entered or was last amended
	Remaining int64 // lots open

	FrozenMargin int64 // minor units still frozen for Remaining
	FrozenFee    int64 // minor units still frozen for Remaining
}
