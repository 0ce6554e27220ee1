package core

import (
	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/matching"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// Exchange is books, accounts and numbering. See the package's documentation.
type Exchange struct {
	gw       *gateway.Gateway
	ledger   *account.Ledger
	markets  []*market // in the order of listing
	bySymbol symbolIndex
	accounts gateway.Stream // the account stream
	marks    []int64        // ticks, by market: last trade or settlement price, 0 before the first

	lastOrderID uint64
	lastTradeID uint64
	day         uint32 // yyyymmdd settled last

	liveOrdersMax int // in one book
	// held are the last seqs of streams whose instrument is not listed any more:
	// its listing stood behind a cut.
	held map[record.Symbol]uint64

	// Scratch of one transaction.
	fills       []matching.Fill
	touched     []uint32 // account indexes of makers, in the order of their first fill
	stamps      []uint64 // by account index: transaction that touched it last
	transaction uint64
}

// market is one instrument's book with what belongs to it.
type market struct {
	terms      order.Instrument
	index      int
	book       *matching.Book
	orders     orderIndex // live orders
	stream     gateway.Stream
	halted     bool
	settlement int64  // ticks, last settlement price; 0 before the first
	changes    uint64 // transactions of this process that may have changed the book
}

var accountSymbol = record.MustSymbol(record.AccountStream)

// New returns an exchange without instruments and accounts that writes through
// gw, whose sink has published nothing yet. A rebuilt one comes from a Replayer.
func New(gw *gateway.Gateway) *Exchange {
	e := empty()
	e.gw = gw
	return e
}

func empty() *Exchange {
	return &Exchange{
		ledger:   account.NewLedger(),
		bySymbol: newSymbolIndex(),
		held:     make(map[record.Symbol]uint64),
		accounts: gateway.Stream{Symbol: accountSymbol},

		liveOrdersMax: DefaultLiveOrdersMax,
	}
}

// DefaultLiveOrdersMax is how many orders may rest in one book. An order takes 72
// bytes, its place in the index of ids 32 to 64.
const DefaultLiveOrdersMax = 1 << 20

// SetLiveOrdersMax sets how many orders may rest in one book. What rests already
// stays. It does not bound a replay, which repeats what was accepted.
func (e *Exchange) SetLiveOrdersMax(n int) { e.liveOrdersMax = n }

// Gateway returns the gateway that the exchange writes through.
func (e *Exchange) Gateway() *gateway.Gateway { return e.gw }

// ListInstrument lists an instrument or changes the terms of a listed one. What
// a tick is and is worth cannot change, margins and fees only while no order is
// live; changed margins apply to positions at once. The error, if any, is a
// *risk.Error or wraps order.ErrTerms.
func (e *Exchange) ListInstrument(now int64, terms order.Instrument) (Receipt, error) {
	if err := e.checkListing(&terms); err != nil {
		return Receipt{Reason: risk.BadTerms}, err
	}
	if !e.gw.Begin(1, gateway.Urgent) {
		return Receipt{Reason: risk.BacklogFull}, &risk.Error{Reason: risk.BacklogFull, Detail: terms.Symbol.String()}
	}
	m := e.list(terms)
	e.gw.Listed(&m.stream, now, &terms)
	global := e.gw.End()
	return Receipt{Seq: m.stream.Seq, Global: global}, nil
}

// list carries out a listing that was checked.
func (e *Exchange) list(terms order.Instrument) *market {
	if m := e.bySymbol.get(terms.Symbol); m != nil {
		m.terms = terms
		e.ledger.Remargin(m.index)
		return m
	}
	m := &market{terms: terms, book: matching.New(), orders: newOrderIndex()}
	m.stream = gateway.Stream{Symbol: terms.Symbol, Seq: e.held[terms.Symbol]}
	m.index = e.ledger.AddInstrument(&m.terms)
	e.markets = append(e.markets, m)
	e.bySymbol.put(m)
	e.marks = append(e.marks, 0)
	return m
}

// Halt stops trading in an instrument: orders and amends are refused, cancels
// are taken. Halting what is halted changes nothing.
func (e *Exchange) Halt(now int64, instrument record.Symbol) Receipt {
	return e.setHalted(now, instrument, true)
}

// Resume undoes Halt.
func (e *Exchange) Resume(now int64, instrument record.Symbol) Receipt {
	return e.setHalted(now, instrument, false)
}

func (e *Exchange) setHalted(now int64, instrument record.Symbol, halted bool) Receipt {
	m := e.bySymbol.get(instrument)
	switch {
	case m == nil:
		return Receipt{Reason: risk.UnknownInstrument}
	case m.halted == halted:
		return Receipt{Seq: m.stream.Seq}
	case !e.gw.Begin(1, gateway.Urgent):
		return Receipt{Reason: risk.BacklogFull}
	}
	m.halted = halted
	e.gw.Halted(&m.stream, now, halted)
	global := e.gw.End()
	return Receipt{Seq: m.stream.Seq, Global: global}
}

// LastOrderID returns the id of the order accepted last, which is also the
// number of orders accepted unless the history was cut.
func (e *Exchange) LastOrderID() uint64 { return e.lastOrderID }

// LastTradeID returns the id of the last trade, which is also the number of
// trades unless the history was cut.
func (e *Exchange) LastTradeID() uint64 { return e.lastTradeID }
