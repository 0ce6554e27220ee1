// Package account keeps the money and the positions of the exchange's accounts,
// in whole minor units and lots.
//
// # Money
//
//	balance   = deposits − withdrawals + realised profit − fees
//	available = balance − margin − frozen
//
// Profit is realised when a position is closed and, once a day, when all
// positions are marked to the settlement price. Until then it floats and counts
// for nothing but what may be withdrawn.
//
// # Orders
//
// An opening order freezes its margin and fee, lot by lot and rounded up, at the
// worst price it can trade at: a buyer's limit, or for a seller the better of
// its limit and the best bid it meets. So a fill never ties up more than it
// frees, and fills of opening orders never lower the available funds. A closing
// order freezes the position it will close and its fee; it asks for no free
// funds, so that an account that is to be closed out can do so.
//
// # Positions
//
// Close takes positions carried over from earlier days ("history"), close-today
// those opened today. Each has a cost, the sum of price × lots in ticks. Closing
// takes the average cost of what is closed, rounded down, and leaves the rest,
// so that over all accounts long cost − short cost = realised profit, to the
// tick. Margin is reckoned anew from the cost after every change, at the opening
// price for today's positions and at the last settlement price for history: it
// cannot drift.
package account
