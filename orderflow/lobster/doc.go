// Package lobster reads order flow in the format of LOBSTER: a message file, and
// if wanted an order book file whose first row gives the opening book.
//
// # Messages
//
// The columns are time (seconds after midnight), type, order id, size, price (in
// 1/10,000 of the currency) and direction (1 buy, -1 sell) of the order that the
// message is about; there is no header. A row becomes:
//
//	1 submission             Submit, a limit order
//	2 partial cancellation   Reduce by size
//	3 deletion               Cancel
//	4 visible execution      see below
//	5 hidden execution       skipped and counted
//	6 cross trade            skipped and counted
//	7 trading halt           skipped and counted
//
// The file shows executions by the orders that rested, not the order that came
// in. Consecutive executions of equal time and direction, rows skipped between
// them aside, are taken for one incoming order: a marketable IOC limit order of
// the other side, with the sum of the sizes and the worst of the prices. What such
// an order left in the book is a submission of its own in the file. Each execution
// is an expected trade.
//
// # The opening book
//
// Row k of the book file is the book after message k, so the opening book is the
// first row with the first message undone. Each of its levels becomes one order,
// which stands before all others at its price: who owned the orders in it is not
// known. Cancellations of orders that were not submitted in the file are taken
// from the opening book's order at their price as far as that has lots; what is
// left of them names unknown orders and is counted.
package lobster
