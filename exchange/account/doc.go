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
//
// # Why no sum overflows
//
// Let M be order.MaxAmount, 2^60. Each lot that an account holds or has on order
// to open counts for LotWorth in its Worth: at least the lot's turnover at any
// price since the last settlement and until the next, and its fee. Worth, over
// all instruments and both sides, never exceeds M: opening orders beyond it are
// refused, and neither a settlement nor changed terms raise a price limit so far.
//
// A lot costs its account at most four times LotWorth from any instant on: what
// it can lose, the fee to open it, the fee to close it, and the margin it ties
// up. It gains at most LotWorth. Further lots come only by an opening order,
// which is accepted only while the balance is within BalanceBound, 2 M, either
// side of zero; a settlement, and changed terms, are refused beyond it. So from
// one such instant to the next no balance exceeds 3 M, and balance, available
// funds, and these less all floating losses stay above −6 M, within −8 M, the
// end of an int64. Frozen amounts and margins are each at most 2 M. Money comes
// in up to a balance of M, and goes out down to none.
package account
