// Package server serves an exchange over gRPC: order entry, market data, the
// drop copy, accounts and control, with health and, over HTTP, metrics.
//
// Decimal prices become ticks here and nowhere further in. A request that breaks
// a rule is refused with the name of a documented reason (package risk) and a
// message that names the field. The router carries out every refusal of an order,
// cancel or amend, also of what is wrong here already, so that reasons come in
// their order, and counters and drop copy see them all.
//
// What callers can make the server hold is bounded: streams of a connection,
// the size of a message, market data and drop copy subscribers and how far each
// may lag, and the requests that wait for durability, of one session and of all.
package server
