package core

import (
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// NewOrder asks for an order.
type NewOrder struct {
	Instrument    record.Symbol
	Account       uint64
	ClientOrderID uint64 // the submitter's own, repeated in the answer; 0 for none
	Side          record.Side
	Offset        record.Offset
	Kind          record.Kind        // 0 for Limit
	TimeInForce   record.TimeInForce // 0 for GFD (limit) or IOC (market)
	Price         int64              // ticks; ignored for a market order, which may trade up or down to the daily limit
	Volume        int64              // lots
	// PriceFault is OK, or why the price that was asked for is no number of ticks
	// that Price could state: risk.OffTick or risk.OutsideLimits. The order is
	// refused for it when nothing comes first.
	PriceFault risk.Reason
}

// CancelOrder asks to take an order off the book.
type CancelOrder struct {
	Instrument record.Symbol
	Account    uint64
	OrderID    uint64
}

// AmendOrder asks to change a resting order. Lowering the volume at the same
// price keeps the order's place in its queue; any other change puts it at the
// end, after it traded with what it now crosses.
type AmendOrder struct {
	Instrument record.Symbol
	Account    uint64
	OrderID    uint64
	Price      int64       // ticks; 0 keeps the price
	Volume     int64       // lots that shall be left open; 0 keeps what is left
	PriceFault risk.Reason // as in NewOrder
}

// Status is what became of an order.
type Status uint8

// The states in which a request leaves an order.
const (
	Refused      Status = iota // Reason says why; nothing changed
	Resting                    // in the book, untouched
	PartlyFilled               // in the book, after fills of this request
	Filled                     // done
	Canceled                   // done; Filled lots traded before in this request
)

// String returns the state's name.
func (s Status) String() string {
	return [...]string{"refused", "resting", "partly-filled", "filled", "canceled"}[min(s, Canceled)]
}

// Result answers Submit, Cancel and Amend.
type Result struct {
	OrderID       uint64 // 0 when a NewOrder was refused
	ClientOrderID uint64
	Status        Status
	Reason        risk.Reason
	Filled        int64  // lots traded by this request
	Remaining     int64  // lots open after it, or lots cancelled by it
	Seq           uint64 // last record of the transaction in the instrument's stream
	Global        uint64 // the same record's Global; 0 when refused or dropped
}

// Receipt answers account and control requests.
type Receipt struct {
	Reason  risk.Reason
	Balance int64  // minor units, after; account requests only
	Seq     uint64 // last record of the transaction in its stream
	Global  uint64 // the same record's Global; 0 when refused, dropped, or when nothing had to change
}
