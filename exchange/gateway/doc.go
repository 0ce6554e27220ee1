// Package gateway is the trade gateway: it turns what the core did into records,
// numbers them, and writes them in place into a Sink, the outbox. It also copies
// them to local subscribers (drop copy, market data), which may lag and are then
// told how much they missed.
//
// One command to the exchange is one transaction:
//
//	if !gw.Begin(worst, gateway.Orders) { refuse }   // before anything is matched
//	gw.Inserted(…); gw.Traded(…); …                  // at most worst records
//	gw.End()                                         // one atomic store publishes all
//
// Begin asks for the worst case, so that a command is refused before it has any
// effect or carried out in full. With the policy Drop nothing is refused:
// transactions that do not fit are not numbered and only counted, as a bounded
// channel would do. The store then holds a cancel of an order that it lacks, or
// the like: Drop gives up rebuild and restart, and is for simulators.
package gateway
