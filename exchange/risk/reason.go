// Package risk holds the checks that a request passes before it may touch a
// book or an account, and the documented reasons for which it is refused. A
// refused request leaves no trace.
//
// The checks are made in the order of the reasons' numbers, so that one request is
// always refused for the same reason. Each takes
// constant time and allocates nothing; the self-trade check, which needs the
// book, is the order router's and looks at no more orders than could trade.
package risk

import "fmt"

// Reason says why a request was refused. Its numbers may change; its name, as
// String returns it, is part of the protocol.
type Reason uint8

// The reasons, in the order in which they are checked.
const (
	// OK: the request was not refused.
	OK Reason = iota
	// Overloaded: an answer was to wait for durability, and too many wait already.
	Overloaded
	// Malformed: side, offset, kind or time in force is not one that exists,
	// or a market order is to rest; or a price that can not be read, or that is
	// missing or too much.
	Malformed
	// UnknownInstrument: no instrument of that name is listed.
	UnknownInstrument
	// UnknownAccount: no account has that id.
	UnknownAccount
	// UnknownOrder: no order of that id was ever accepted.
	UnknownOrder
	// OrderDone: the order is filled or cancelled already, or is not one of
	// this instrument.
	OrderDone
	// NotYourOrder: the order belongs to another account.
	NotYourOrder
	// TradingHalted: trading in the instrument is halted; cancels are taken.
	TradingHalted
	// BadVolume: the volume is not positive or above the limit for one order.
	BadVolume
	// OffTick: the price lies between two ticks.
	OffTick
	// OutsideLimits: the price is outside the daily limits.
	OutsideLimits
	// InsufficientToday: a close-today order asks for more than the lots
	// opened today that no other order will close.
	InsufficientToday
	// InsufficientHistory: a close order asks for more than the lots carried
	// over from earlier days that no other order will close.
	InsufficientHistory
	// PositionLimit: held and ordered lots on this side would exceed the limit,
	// or all lots of the account would be worth more than is kept exactly.
	PositionLimit
	// SelfTrade: the order would trade with a resting order of its own account.
	SelfTrade
	// InsufficientFunds: the available funds do not cover margin and fee, or
	// the withdrawal.
	InsufficientFunds
	// BadAmount: a deposit or withdrawal is not positive, or a balance is or
	// would be further from zero than is kept exactly.
	BadAmount
	// AccountExists: an account of that id is open already.
	AccountExists
	// BadAccount: the account id is 0, or there is no room for another account.
	BadAccount
	// BadDay: the settlement day is not a date after the day settled last.
	BadDay
	// BadPrices: the settlement prices do not name every listed instrument
	// once, with a price within its daily limits.
	BadPrices
	// BadTerms: an instrument's terms cannot be traded on, or cannot take the
	// place of those it is listed with.
	BadTerms
	// BookFull: the instrument has as many live orders as are kept. Orders that do
	// not rest (IOC, FOK, market) and cancels are taken.
	BookFull
	// BacklogFull: the outbox has no room for what the request may produce;
	// storage is behind. Nothing was matched.
	BacklogFull
	// Unavailable: the exchange is starting or stopping.
	Unavailable

	reasonLimit
)

var names = [reasonLimit]struct{ name, message string }{
	OK:                  {"", ""},
	Overloaded:          {"overloaded", "too many requests wait for durability already; the request was not taken, try again later"},
	Malformed:           {"malformed", "side, offset, kind or time in force does not exist, or a market order is to rest"},
	UnknownInstrument:   {"unknown-instrument", "no instrument of that name is listed"},
	UnknownAccount:      {"unknown-account", "no account has that id"},
	UnknownOrder:        {"unknown-order", "no order of that id was ever accepted"},
	OrderDone:           {"order-done", "the order is filled or cancelled already, or not one of this instrument"},
	NotYourOrder:        {"not-your-order", "the order belongs to another account"},
	TradingHalted:       {"trading-halted", "trading in the instrument is halted; cancels are taken"},
	BadVolume:           {"bad-volume", "the volume is not positive or above the limit for one order"},
	OffTick:             {"off-tick", "the price lies between two ticks"},
	OutsideLimits:       {"outside-limits", "the price is outside the daily limits"},
	InsufficientToday:   {"insufficient-today", "not enough lots opened today are free to close"},
	InsufficientHistory: {"insufficient-history", "not enough lots carried over from earlier days are free to close"},
	PositionLimit:       {"position-limit", "held and ordered lots on this side would exceed the limit, or all the account's lots be worth more than is kept exactly"},
	SelfTrade:           {"self-trade", "the order would trade with a resting order of its own account"},
	InsufficientFunds:   {"insufficient-funds", "the available funds do not cover it"},
	BadAmount:           {"bad-amount", "the amount is not positive, or the balance is or would be too far from zero to be kept exactly"},
	AccountExists:       {"account-exists", "an account of that id is open already"},
	BadAccount:          {"bad-account", "the account id is 0, or there is no room for another account"},
	BadDay:              {"bad-day", "the settlement day is not a date (yyyymmdd) after the day settled last"},
	BadPrices:           {"bad-prices", "every listed instrument needs one settlement price within its daily limits"},
	BadTerms:            {"bad-terms", "the instrument's terms cannot be traded on, or cannot replace those it has"},
	BookFull:            {"book-full", "the instrument has as many live orders as are kept; only orders that do not rest are taken"},
	BacklogFull:         {"backlog-full", "the outbox has no room left; storage is behind, try again later"},
	Unavailable:         {"unavailable", "the exchange is starting or stopping"},
}

// String returns the reason's name, such as "insufficient-funds"; "" for OK.
func (r Reason) String() string {
	if r < reasonLimit {
		return names[r].name
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// Message returns the reason as a sentence for people.
func (r Reason) Message() string {
	if r < reasonLimit {
		return names[r].message
	}
	return ""
}

// Reasons returns all reasons but OK, in the order of their checks.
func Reasons() []Reason {
	all := make([]Reason, 0, reasonLimit-1)
	for r := OK + 1; r < reasonLimit; r++ {
		all = append(all, r)
	}
	return all
}

// Error makes a reason usable as an error in calls that return one.
type Error struct {
	Reason Reason
	Detail string // what exactly, such as the instrument that lacks a price
}

// Error returns the reason's name, its sentence and the detail.
func (e *Error) Error() string {
	s := e.Reason.String() + ": " + e.Reason.Message()
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	return s
}
