package core

import (
	"sync"
	"sync/atomic"

	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// Router is the exchange's entry for any number of callers: it lets them in one
// after the other and gives each request the time. Why it is a lock and not a
// queue: docs/decisions/0002-core-entry.md.
//
// A Router without an exchange answers everything with risk.Unavailable, or
// with nothing; so does one that was closed.
type Router struct {
	mu    sync.Mutex
	ex    *Exchange // nil until Start and after Close
	clock func() int64
	last  int64 // time given last; times never go back

	refused [riskReasons]atomic.Uint64
}

// riskReasons is the size of a table by risk.Reason.
const riskReasons = 64

// NewRouter returns a router without an exchange. clock returns Unix nanoseconds
// and is called under the lock; nil means the system's clock.
func NewRouter(clock func() int64) *Router {
	if clock == nil {
		clock = SystemClock()
	}
	return &Router{clock: clock}
}

// Start lets callers in to ex, which must not be used otherwise any more.
func (r *Router) Start(ex *Exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ex = ex
}

// Close lets no more callers in and returns the exchange, whose last command is
// done; nil when there was none.
func (r *Router) Close() *Exchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	ex := r.ex
	r.ex = nil
	return ex
}

// now returns the time, not before that of the request before. The lock is held.
func (r *Router) now() int64 {
	r.last = max(r.last, r.clock())
	return r.last
}

// Submit is Exchange.Submit.
func (r *Router) Submit(n *NewOrder) Result {
	r.mu.Lock()
	res := Result{ClientOrderID: n.ClientOrderID, Reason: risk.Unavailable}
	if r.ex != nil {
		res = r.ex.Submit(r.now(), n)
	}
	r.mu.Unlock()
	return r.counted(res)
}

// Cancel is Exchange.Cancel.
func (r *Router) Cancel(c *CancelOrder) Result {
	r.mu.Lock()
	res := Result{OrderID: c.OrderID, Reason: risk.Unavailable}
	if r.ex != nil {
		res = r.ex.Cancel(r.now(), c)
	}
	r.mu.Unlock()
	return r.counted(res)
}

// Amend is Exchange.Amend.
func (r *Router) Amend(a *AmendOrder) Result {
	r.mu.Lock()
	res := Result{OrderID: a.OrderID, Reason: risk.Unavailable}
	if r.ex != nil {
		res = r.ex.Amend(r.now(), a)
	}
	r.mu.Unlock()
	return r.counted(res)
}

// Refuse refuses an order for a reason that the caller found, such as a field
// that a NewOrder has no room for: counters and drop copy see it like any other.
func (r *Router) Refuse(n *NewOrder, why risk.Reason) Result {
	r.mu.Lock()
	res := Result{ClientOrderID: n.ClientOrderID, Reason: why}
	if r.ex != nil {
		res = r.ex.refuse(r.now(), n, why)
	}
	r.mu.Unlock()
	return r.counted(res)
}

// RefuseChange is Refuse of a cancel or an amend.
func (r *Router) RefuseChange(instrument record.Symbol, account, id uint64, why risk.Reason) Result {
	r.mu.Lock()
	res := Result{OrderID: id, Reason: why}
	if r.ex != nil {
		_, o, _ := r.ex.find(instrument, account, id)
		res = r.ex.refuseChange(r.now(), change{instrument, account, id}, o, why)
	}
	r.mu.Unlock()
	return r.counted(res)
}

func (r *Router) counted(res Result) Result {
	if res.Reason != risk.OK {
		r.refused[res.Reason%riskReasons].Add(1)
	}
	return res
}

// Refused returns how many orders, cancels and amends were refused for a reason.
func (r *Router) Refused(why risk.Reason) uint64 { return r.refused[why%riskReasons].Load() }

// do runs a request that is not on the trading path; false when there is no exchange.
func (r *Router) do(request func(now int64, e *Exchange)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ex == nil {
		return false
	}
	request(r.now(), r.ex)
	return true
}

// receipt runs a request that is answered with a Receipt.
func (r *Router) receipt(request func(now int64, e *Exchange) Receipt) Receipt {
	res := Receipt{Reason: risk.Unavailable}
	r.do(func(now int64, e *Exchange) { res = request(now, e) })
	return res
}

// OpenAccount is Exchange.OpenAccount.
func (r *Router) OpenAccount(id uint64) Receipt {
	return r.receipt(func(now int64, e *Exchange) Receipt { return e.OpenAccount(now, id) })
}

// Deposit is Exchange.Deposit.
func (r *Router) Deposit(id uint64, amount int64, reference uint64) Receipt {
	return r.receipt(func(now int64, e *Exchange) Receipt { return e.Deposit(now, id, amount, reference) })
}

// Withdraw is Exchange.Withdraw.
func (r *Router) Withdraw(id uint64, amount int64, reference uint64) Receipt {
	return r.receipt(func(now int64, e *Exchange) Receipt { return e.Withdraw(now, id, amount, reference) })
}

// Halt is Exchange.Halt.
func (r *Router) Halt(instrument record.Symbol) Receipt {
	return r.receipt(func(now int64, e *Exchange) Receipt { return e.Halt(now, instrument) })
}

// Resume is Exchange.Resume.
func (r *Router) Resume(instrument record.Symbol) Receipt {
	return r.receipt(func(now int64, e *Exchange) Receipt { return e.Resume(now, instrument) })
}

// ListInstrument is Exchange.ListInstrument.
func (r *Router) ListInstrument(terms order.Instrument) (Receipt, error) {
	res, err := Receipt{Reason: risk.Unavailable}, error(&risk.Error{Reason: risk.Unavailable})
	r.do(func(now int64, e *Exchange) { res, err = e.ListInstrument(now, terms) })
	return res, err
}

// Settle is Exchange.Settle.
func (r *Router) Settle(day uint32, prices []SettlementPrice) Settled {
	res := Settled{Reason: risk.Unavailable}
	r.do(func(now int64, e *Exchange) { res = e.Settle(now, day, prices) })
	return res
}

// Instruments is Exchange.Instruments; nil without an exchange.
func (r *Router) Instruments() (views []InstrumentView) {
	r.do(func(_ int64, e *Exchange) { views = e.Instruments() })
	return views
}

// Instrument is Exchange.Instrument.
func (r *Router) Instrument(instrument record.Symbol) (view InstrumentView, ok bool) {
	r.do(func(_ int64, e *Exchange) { view, ok = e.Instrument(instrument) })
	return view, ok
}

// Book is Exchange.Book.
func (r *Router) Book(instrument record.Symbol, depth int) (view BookView, ok bool) {
	r.do(func(_ int64, e *Exchange) { view, ok = e.Book(instrument, depth) })
	return view, ok
}

// Order is Exchange.Order.
func (r *Router) Order(instrument record.Symbol, id uint64) (o order.Order, ok bool) {
	r.do(func(_ int64, e *Exchange) { o, ok = e.Order(instrument, id) })
	return o, ok
}

// Orders is Exchange.Orders.
func (r *Router) Orders(instrument record.Symbol, side record.Side) (orders []order.Order) {
	r.do(func(_ int64, e *Exchange) { orders = e.Orders(instrument, side) })
	return orders
}

// LiveOrders is Exchange.LiveOrders.
func (r *Router) LiveOrders(account uint64, instrument record.Symbol) (orders []order.Order, seq uint64) {
	r.do(func(_ int64, e *Exchange) { orders, seq = e.LiveOrders(account, instrument) })
	return orders, seq
}

// Account is Exchange.Account.
func (r *Router) Account(id uint64) (view AccountView, ok bool) {
	r.do(func(_ int64, e *Exchange) { view, ok = e.Account(id) })
	return view, ok
}

// CloseOuts is Exchange.CloseOuts.
func (r *Router) CloseOuts(after uint64, limit int) (list []account.CloseOut, more, ok bool) {
	r.do(func(_ int64, e *Exchange) { list, more, ok = e.CloseOuts(after, limit) })
	return list, more, ok
}

// AccountIDs is Exchange.AccountIDs.
func (r *Router) AccountIDs() (ids []uint64) {
	r.do(func(_ int64, e *Exchange) { ids = e.AccountIDs() })
	return ids
}

// State is Exchange.State. Callers wait only while accounts, positions and orders
// are copied, not while they become text.
func (r *Router) State() (s State, ok bool) {
	var copied *snapshot
	if !r.do(func(_ int64, e *Exchange) { copied = e.snapshot(e.published()) }) {
		return State{}, false
	}
	return copied.state(), true
}

// Totals are an exchange's counters.
type Totals struct {
	Orders    uint64 // accepted
	Trades    uint64
	Published uint64 // Global of the last record
	Gateway   gateway.Stats

	Accounts    int
	Instruments int
	LiveOrders  int // in all books
}

// Totals returns the counters; all zero without an exchange.
func (r *Router) Totals() (t Totals) {
	r.do(func(_ int64, e *Exchange) {
		t = Totals{
			Orders: e.lastOrderID, Trades: e.lastTradeID, Published: e.published(), Gateway: e.gw.Stats(),
			Accounts: e.ledger.Len(), Instruments: len(e.markets),
		}
		for _, m := range e.markets {
			t.LiveOrders += m.orders.count
		}
	})
	return t
}

// Fanout returns what local subscribers subscribe to; nil without an exchange.
func (r *Router) Fanout() (f *gateway.Fanout) {
	r.do(func(_ int64, e *Exchange) { f = e.gw.Fanout() })
	return f
}
