// Package core is the exchange's order router and single writer: request → risk
// → matching → accounts → records. It owns all numbering: order ids, trade ids,
// and the sequence numbers of every stream.
//
// An Exchange is deterministic: it has no clock, starts no goroutine and waits
// for nothing; the time is an argument. It is for one goroutine at a time; a
// Router lets any number of callers in, one after the other.
//
// # Transactions
//
// Each request that is not refused is one transaction, published at once:
//
//	submit    OrderInsert, TradeExecuted…, [OrderCancel], AccountUpdate…
//	amend     OrderAmend,  TradeExecuted…, AccountUpdate…
//	cancel    OrderCancel
//	account   AccountOpened | Deposit | Withdraw           in the account stream
//	control   InstrumentListed | TradingState
//
// AccountUpdates follow only where something traded: one for each account that
// took part, makers first in the order of their first fill, the taker last,
// each stating the account as the transaction leaves it. What an order freezes
// and frees without trading is in its own records.
//
// Settlement alone is several transactions, each of which leaves a state that
// stands: live orders are cancelled in portions of up to settleChunk, then one
// transaction holds a Settlement for every instrument, which is the event from
// which everything follows, and then AccountUpdates restate, in portions, every
// position that was marked.
//
// A request that is refused has no effect: no record, no number, no change.
package core
