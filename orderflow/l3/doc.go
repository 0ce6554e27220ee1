// Package l3 reads recorded order-level flow: a CSV of what happened to each
// order, and the trades that the exchange reported meanwhile.
//
// # Orders
//
// The columns are id, timestamp (received, Unix milliseconds),
// exchange.timestamp, price, volume (what is left of the order), action and
// direction (bid, ask). A row becomes these events:
//
//	created             Submit, a limit order that may cross
//	changed             Observe: a fill left the order with that volume
//	deleted, volume 0   Observe: a fill used the order up
//	deleted, volume >0  Cancel
//
// The exchange shows a market order as a limit order that it reprices as it
// sweeps the book. A changed row that states another price than the row before is
// such a step: Observe of the volume it had until then, and Amend to the price. A
// last fill at another price is Amend, and Observe of nothing.
//
// Fills are not events: an exchange that is fed the rest makes them itself.
// Observe lets a replay see, and if it wants to mend, where it made none.
//
// # Order of the rows
//
// Rows are taken as they were received, and the receive time must not descend.
// exchange.timestamp is of no use for ordering: it has whole seconds, and in
// every row of an order it is the time at which the order was created. On the
// five hours of BTC/USD that the format comes from, a bare order book reproduces
// 478 of 575 reported trades in receive order, 506 when it also follows Observe
// and 383 when it ignores the repricing; with the rows sorted by
// exchange.timestamp, stably, it is 245. (Same price and volume, at most five
// seconds apart.) Of the 97 that the bare book misses, 56 are of the first twenty
// minutes, when the market still held orders older than the capture; 30 of the 97
// differ from a trade at their price by one or two lots, as volumes do that went
// through binary fractions.
//
// # What such captures contain besides
//
// Orders that are changed or deleted without having been created (they are older
// than the capture), orders that are deleted twice, and orders whose deletion was
// received just before their creation. All are counted, none is an error; the
// last kind is cancelled as soon as it is created.
package l3
