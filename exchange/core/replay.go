package core

import (
	"errors"
	"fmt"

	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// ErrReplay means that a record contradicts the state that the records before
// it lead to.
var ErrReplay = errors.New("record contradicts the state before it")

// Replayer rebuilds an exchange from its records. It applies results: nothing is
// matched or checked for risk again, and what each record states about itself
// (what is left of an order, what was frozen, what an account holds) is compared
// with the state it is applied to.
//
// After an error the state is of no use.
type Replayer struct {
	e      *Exchange
	global uint64

	// hand is the order that the running transaction inserted or moved: it
	// rests only when the transaction ends.
	hand       *order.Order
	handMarket *market
}

// NewReplayer returns a replayer whose exchange is empty.
func NewReplayer() *Replayer { return &Replayer{e: empty()} }

// Global returns the Global of the last record applied.
func (p *Replayer) Global() uint64 { return p.global }

// State returns the state that the records so far lead to, which is one that the
// exchange was in when the last of them ended a transaction.
func (p *Replayer) State() State { return p.e.snapshot(p.global).state() }

// Apply applies the next record. The caller has checked its header, and that it
// is next in its stream and in the whole. Errors wrap ErrReplay.
func (p *Replayer) Apply(r *record.Record) error {
	if err := p.apply(r); err != nil {
		return fmt.Errorf("%w: %w", ErrReplay, err)
	}
	p.global = r.Global
	if r.Flags&record.FlagLast == 0 {
		return nil
	}
	if err := p.settleHand(); err != nil {
		return fmt.Errorf("%w: %w", ErrReplay, err)
	}
	return nil
}

// Finish returns the exchange, which goes on writing through gw. The sink of gw
// must have published exactly the records that were applied.
func (p *Replayer) Finish(gw *gateway.Gateway) (*Exchange, error) {
	if p.hand != nil {
		return nil, fmt.Errorf("%w: the transaction of order %d has no end", ErrReplay, p.hand.ID)
	}
	if at := gw.Published(); at != p.global {
		return nil, fmt.Errorf("%w: the outbox continues after record %d, the replay ends with %d", ErrReplay, at, p.global)
	}
	p.e.gw = gw
	return p.e, nil
}

func (p *Replayer) apply(r *record.Record) error {
	if r.Type == record.TypeHistoryCut {
		p.applyCut(r)
		return nil
	}
	if r.Instrument == accountSymbol {
		p.e.accounts.Seq = r.Seq
		return p.applyAccount(r)
	}
	if r.Type == record.TypeInstrumentListed {
		return p.applyListing(r)
	}
	m := p.e.bySymbol.get(r.Instrument)
	if m == nil {
		return fmt.Errorf("instrument %s is not listed", r.Instrument)
	}
	m.stream.Seq = r.Seq
	switch r.Type {
	case record.TypeOrderInsert:
		return p.applyInsert(m, r.OrderInsert())
	case record.TypeOrderCancel:
		return p.applyCancel(m, r.OrderCancel())
	case record.TypeOrderAmend:
		return p.applyAmend(m, r.OrderAmend())
	case record.TypeTradeExecuted:
		return p.applyTrade(m, r.TradeExecuted())
	case record.TypeAccountUpdate:
		return p.compare(m, r)
	case record.TypeTradingState:
		m.halted = r.TradingState().Halted != 0
		return nil
	case record.TypeSettlement:
		return p.applySettlement(m, r.Settlement())
	}
	return fmt.Errorf("a record of type %s does not belong into an instrument's stream", r.Type)
}

// applyCut goes on after records that do not count; that it starts where the
// replay stands is the caller's to check.
func (p *Replayer) applyCut(r *record.Record) {
	m := p.e.bySymbol.get(r.Instrument)
	switch {
	case r.Instrument == accountSymbol:
		p.e.accounts.Seq = r.Seq
	case m == nil:
		p.e.held[r.Instrument] = r.Seq
	default:
		m.stream.Seq = r.Seq
	}
	b := r.HistoryCut()
	p.e.lastOrderID = max(p.e.lastOrderID, b.LastOrderID)
	p.e.lastTradeID = max(p.e.lastTradeID, b.LastTradeID)
}

func (p *Replayer) applyAccount(r *record.Record) error {
	switch r.Type {
	case record.TypeAccountOpened:
		return p.e.open(r.AccountOpened().Account)
	case record.TypeDeposit, record.TypeWithdraw:
		return p.applyCash(r.Type, r.CashMove())
	}
	return fmt.Errorf("a record of type %s does not belong into the account stream", r.Type)
}

func (p *Replayer) applyCash(typ record.Type, b *record.CashMove) error {
	i, ok := p.e.ledger.Find(b.Account)
	if !ok {
		return fmt.Errorf("account %d is not open", b.Account)
	}
	switch {
	case b.Amount <= 0:
		return fmt.Errorf("amount %d is not positive", b.Amount)
	case typ == record.TypeWithdraw:
		p.e.ledger.Withdraw(i, b.Amount)
	case !p.e.ledger.Deposit(i, b.Amount):
		return fmt.Errorf("account %d cannot hold the deposit of %d", b.Account, b.Amount)
	}
	return same("balance", p.e.ledger.Account(i).Balance, b.Balance)
}

func (p *Replayer) applyListing(r *record.Record) error {
	terms := order.FromListed(r.InstrumentListed())
	if err := p.e.checkListing(&terms); err != nil {
		return err
	}
	p.e.list(terms).stream.Seq = r.Seq
	return nil
}

func (p *Replayer) applySettlement(m *market, b *record.Settlement) error {
	if live := m.book.Orders(record.Buy) + m.book.Orders(record.Sell); live > 0 || p.hand != nil {
		return fmt.Errorf("%d orders are live at the settlement", live)
	}
	if err := same("previous settlement price", m.settlement, b.Previous); err != nil {
		return err
	}
	if b.Day < p.e.day || b.Price < m.terms.LowerLimit || b.Price > m.terms.UpperLimit {
		return fmt.Errorf("settlement of day %d at %d, after day %d with limits %d … %d", b.Day, b.Price, p.e.day, m.terms.LowerLimit, m.terms.UpperLimit)
	}
	if limit := p.e.worthLimit(m); b.UpperLimit > limit {
		return fmt.Errorf("settlement of day %d: above the price of %d, and below the upper limit of %d, an account's lots are worth too much", b.Day, limit, b.UpperLimit)
	}
	next := m.terms
	next.LowerLimit, next.UpperLimit = b.LowerLimit, b.UpperLimit
	if err := next.Check(); err != nil {
		return err
	}
	p.e.settle(m, &gateway.Settlement{
		Day: b.Day, Price: b.Price, Previous: b.Previous, Lower: b.LowerLimit, Upper: b.UpperLimit,
	})
	return nil
}

// compare checks what an AccountUpdate states against the state.
func (p *Replayer) compare(m *market, r *record.Record) error {
	id := r.AccountUpdate().Account
	i, ok := p.e.ledger.Find(id)
	if !ok {
		return fmt.Errorf("account %d is not open", id)
	}
	have := record.Record{Header: r.Header}
	p.e.ledger.Update(m.index, i, have.AccountUpdate())
	if have == *r {
		return nil
	}
	stated := r.Fields()
	for n, f := range have.Fields() {
		if f.Value != stated[n].Value {
			return fmt.Errorf("account %d: %s is %v by the records before it, but stated as %v", id, f.Name, f.Value, stated[n].Value)
		}
	}
	return nil
}

func same(what string, have, stated int64) error {
	if have != stated {
		return fmt.Errorf("%s is %d by the records before it, but stated as %d", what, have, stated)
	}
	return nil
}
