package core

import (
	"cmp"
	"slices"

	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/matching"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// InstrumentView is a copy of what is known of an instrument.
type InstrumentView struct {
	Terms      order.Instrument
	Halted     bool
	Last       int64  // ticks, last trade or settlement price; 0 before the first
	Settlement int64  // ticks, last settlement price; 0 before the first
	Seq        uint64 // last record of its stream
	Orders     int    // live orders
}

// BookView is a copy of the top of a book.
type BookView struct {
	Instrument record.Symbol
	Seq        uint64 // last record of the stream that it reflects
	Change     uint64 // the gateway.Top that it reflects
	Bids, Asks []matching.Level
}

// PositionView is a copy of an account's dealings in one instrument.
type PositionView struct {
	Instrument record.Symbol
	account.Position
	Margin   int64 // minor units
	Floating int64 // minor units of profit at the last price
}

// AccountView is a copy of an account. Positions has those instruments in which
// the account ever traded or has live orders, in the order of their listing.
type AccountView struct {
	ID        uint64
	Balance   int64
	Frozen    int64
	Margin    int64
	Available int64
	Floating  int64
	Positions []PositionView
	Seq       uint64 // last record of the account stream that it reflects
	Global    uint64 // last record of all that it reflects
}

// Instruments returns all listed instruments in the order of their listing.
func (e *Exchange) Instruments() []InstrumentView {
	views := make([]InstrumentView, 0, len(e.markets))
	for _, m := range e.markets {
		views = append(views, e.view(m))
	}
	return views
}

// Instrument returns one instrument; ok is false when it is not listed.
func (e *Exchange) Instrument(instrument record.Symbol) (view InstrumentView, ok bool) {
	m := e.bySymbol.get(instrument)
	if m == nil {
		return InstrumentView{}, false
	}
	return e.view(m), true
}

func (e *Exchange) view(m *market) InstrumentView {
	return InstrumentView{
		Terms: m.terms, Halted: m.halted, Last: e.marks[m.index], Settlement: m.settlement,
		Seq: m.stream.Seq, Orders: m.orders.count,
	}
}

// Book returns the best depth levels of either side; ok is false when the
// instrument is not listed.
func (e *Exchange) Book(instrument record.Symbol, depth int) (view BookView, ok bool) {
	m := e.bySymbol.get(instrument)
	if m == nil {
		return BookView{}, false
	}
	view = BookView{Instrument: instrument, Seq: m.stream.Seq, Change: m.changes}
	view.Bids = m.book.Depth(record.Buy, depth, nil)
	view.Asks = m.book.Depth(record.Sell, depth, nil)
	return view, true
}

// Order returns a copy of a live order; ok is false when there is none of that
// id in the instrument.
func (e *Exchange) Order(instrument record.Symbol, id uint64) (o order.Order, ok bool) {
	m := e.bySymbol.get(instrument)
	if m == nil {
		return order.Order{}, false
	}
	live := m.orders.get(id)
	if live == nil || id == 0 {
		return order.Order{}, false
	}
	return *live, true
}

// Orders returns copies of the live orders of one side in priority order; nil
// when the instrument is not listed.
func (e *Exchange) Orders(instrument record.Symbol, side record.Side) []order.Order {
	m := e.bySymbol.get(instrument)
	if m == nil {
		return nil
	}
	return m.copyOrders(side)
}

// LiveOrders returns copies of an account's live orders in an instrument,
// ascending by id, and the last record of the stream that they reflect. It
// looks through the side of a book where the account has orders until it has
// found them all.
func (e *Exchange) LiveOrders(account uint64, instrument record.Symbol) (orders []order.Order, seq uint64) {
	m := e.bySymbol.get(instrument)
	i, ok := e.ledger.Find(account)
	if m == nil || !ok {
		return nil, 0
	}
	for _, side := range []record.Side{record.Buy, record.Sell} {
		left := e.ledger.Position(m.index, i).Quotes(side).Orders
		if left == 0 {
			continue
		}
		m.book.Each(side, func(o *order.Order) bool {
			if o.AccountIndex == i {
				orders = append(orders, *o)
				left--
			}
			return left > 0
		})
	}
	slices.SortFunc(orders, func(a, b order.Order) int { return cmp.Compare(a.ID, b.ID) })
	return orders, m.stream.Seq
}

// Account returns an account; ok is false when it is not open.
func (e *Exchange) Account(id uint64) (view AccountView, ok bool) {
	i, ok := e.ledger.Find(id)
	if !ok {
		return AccountView{}, false
	}
	a := e.ledger.Account(i)
	view = AccountView{
		ID: id, Balance: a.Balance, Frozen: a.Frozen(), Margin: a.Margin, Available: a.Available(),
		Seq: e.accounts.Seq, Global: e.published(),
	}
	for _, m := range e.markets {
		p := *e.ledger.Position(m.index, i)
		if p == (account.Position{}) {
			continue
		}
		floating := m.terms.Turnover(p.Floating(e.marks[m.index]))
		view.Floating += floating
		view.Positions = append(view.Positions, PositionView{
			Instrument: m.terms.Symbol, Position: p, Margin: p.Long.Margin + p.Short.Margin, Floating: floating,
		})
	}
	return view, true
}

// CloseOuts returns up to limit accounts that must be closed out, in the order of
// their opening, and whether there are more: all, or with an account's id those
// behind it. ok is false when that account is not open. It looks at every account.
func (e *Exchange) CloseOuts(after uint64, limit int) (list []account.CloseOut, more, ok bool) {
	from := uint32(0)
	if after != 0 {
		i, open := e.ledger.Find(after)
		if !open {
			return nil, false, false
		}
		from = i + 1
	}
	list, more = e.ledger.CloseOuts(from, limit)
	return list, more, true
}

// AccountIDs returns the ids of all accounts in the order of their opening.
func (e *Exchange) AccountIDs() []uint64 {
	ids := make([]uint64, e.ledger.Len())
	for i := range ids {
		ids[i] = e.ledger.Account(uint32(i)).ID
	}
	return ids
}

func (e *Exchange) published() uint64 {
	if e.gw == nil {
		return 0
	}
	return e.gw.Published()
}
