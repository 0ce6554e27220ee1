package account

import (
	"errors"
	"fmt"
	"slices"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// Account is one account's money, in minor units.
//
// Invariants: FrozenMargin and FrozenFee are the sums over the account's live
// orders; Margin is the sum over its positions; Worth is the sum of LotWorth over
// the lots it holds and those its live orders will open; none is negative, and
// Worth is at most order.MaxAmount.
type Account struct {
	ID           uint64
	Balance      int64
	FrozenMargin int64
	FrozenFee    int64
	Margin       int64
	Worth        int64
}

// Available returns what the account can still commit. It is negative when
// closing at a loss or a settlement took more than there was.
func (a *Account) Available() int64 {
	return a.Balance - a.Margin - a.FrozenMargin - a.FrozenFee
}

// Frozen returns what is held for live orders.
func (a *Account) Frozen() int64 { return a.FrozenMargin + a.FrozenFee }

// Leg is one part of a position: today's or history.
//
// Invariant: 0 ≤ Frozen ≤ Volume; Cost is 0 when Volume is.
type Leg struct {
	Volume int64 // lots
	Cost   int64 // ticks × lots
	Frozen int64 // lots that live closing orders will take
}

// Free returns the lots that a further closing order may take.
func (l *Leg) Free() int64 { return l.Volume - l.Frozen }

// Holding is what an account holds and has on order on one side of an
// instrument: long, built by buying, or short, built by selling.
type Holding struct {
	Today   Leg
	History Leg
	Margin  int64 // minor units
	Opening int64 // lots of live opening orders
}

// Volume returns the lots held.
func (h *Holding) Volume() int64 { return h.Today.Volume + h.History.Volume }

// Cost returns the cost of the lots held, in ticks × lots.
func (h *Holding) Cost() int64 { return h.Today.Cost + h.History.Cost }

// Leg returns the part that a closing order with the given offset takes.
func (h *Holding) Leg(offset record.Offset) *Leg {
	if offset == record.Close {
		return &h.History
	}
	return &h.Today
}

// Position is an account's dealings in one instrument.
type Position struct {
	Long     Holding
	Short    Holding
	Realised int64 // minor units of profit realised, ever; stops at the ends of an int64
	Fees     int64 // minor units of fees paid, ever; the same
	Bids     Quotes
	Asks     Quotes
}

// Quotes sums up an account's own orders that rest on one side of a book, so
// that most orders need no search for a self-trade.
//
// Invariant: no resting order of the account is better than Best; Best may be
// better than all of them once the best was taken off.
type Quotes struct {
	Orders int64
	Best   int64 // ticks; meaningless when Orders is 0
}

// Quotes returns the sum of the account's orders on one side of the book.
func (p *Position) Quotes(side record.Side) *Quotes {
	if side == record.Buy {
		return &p.Bids
	}
	return &p.Asks
}

// Add counts an order that rests at price.
func (q *Quotes) Add(side record.Side, price int64) {
	if q.Orders == 0 || (side == record.Buy) == (price > q.Best) {
		q.Best = price
	}
	q.Orders++
}

// Remove counts an order off.
func (q *Quotes) Remove() { q.Orders-- }

// Holding returns the side of the position that an order builds or takes down.
func (p *Position) Holding(side record.Side, offset record.Offset) *Holding {
	if (side == record.Buy) == (offset == record.Open) {
		return &p.Long
	}
	return &p.Short
}

// Floating returns the profit that closing everything at price ticks would
// realise, in ticks × lots.
func (p *Position) Floating(price int64) int64 {
	return price*p.Long.Volume() - p.Long.Cost() + p.Short.Cost() - price*p.Short.Volume()
}

// lots returns the lots that count for Account.Worth.
func (p *Position) lots() int64 {
	return p.Long.Volume() + p.Long.Opening + p.Short.Volume() + p.Short.Opening
}

// Empty reports whether nothing is held.
func (p *Position) Empty() bool { return p.Long.Volume() == 0 && p.Short.Volume() == 0 }

// Limits of the ledger.
const (
	// MaxAccounts bounds the accounts of one ledger.
	MaxAccounts = 1 << 24
	// MaxBalance is the highest balance a deposit may lead to, in minor units.
	MaxBalance = order.MaxAmount
	// BalanceBound is how far from zero, in minor units, a balance may be of an
	// account that opens a position, and after a settlement.
	BalanceBound = 2 * order.MaxAmount
)

// Errors of a ledger.
var (
	ErrExists = errors.New("account exists")
	ErrFull   = errors.New("no room for another account")
	ErrID     = errors.New("account id 0 is not usable")
)

// Ledger is all accounts and their positions. It is for one goroutine.
//
// Accounts and instruments are named by dense indexes, in the order in which
// they were added.
type Ledger struct {
	accounts []Account
	index    idIndex
	books    []book
}

// book is the positions in one instrument, by account index.
//
// Invariant: len(positions) == len(Ledger.accounts).
type book struct {
	terms     *order.Instrument
	positions []Position
	// lotWorth is the highest LotWorth of the terms since the last settlement:
	// what was opened then costs as much as the limits were.
	lotWorth int64
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger { return &Ledger{index: newIDIndex()} }

// AddInstrument adds an instrument and returns its index. The ledger reads the
// terms through the pointer whenever it needs them.
func (l *Ledger) AddInstrument(terms *order.Instrument) int {
	l.books = append(l.books, book{terms: terms, positions: make([]Position, len(l.accounts), cap(l.accounts)), lotWorth: terms.LotWorth()})
	return len(l.books) - 1
}

// LotWorth returns what a lot of the instrument counts for in Account.Worth.
func (l *Ledger) LotWorth(instrument int) int64 { return l.books[instrument].lotWorth }

// Open adds an account and returns its index. Errors wrap ErrExists, ErrFull or ErrID.
func (l *Ledger) Open(id uint64) (uint32, error) {
	if id == 0 {
		return 0, ErrID
	}
	if _, ok := l.index.get(id); ok {
		return 0, fmt.Errorf("account %d: %w", id, ErrExists)
	}
	if len(l.accounts) == MaxAccounts {
		return 0, fmt.Errorf("account %d: %w", id, ErrFull)
	}
	i := uint32(len(l.accounts))
	l.accounts = append(l.accounts, Account{ID: id})
	for b := range l.books {
		l.books[b].positions = append(l.books[b].positions, Position{})
	}
	l.index.put(id, i)
	return i, nil
}

// Find returns the index of an account.
func (l *Ledger) Find(id uint64) (uint32, bool) { return l.index.get(id) }

// Len returns the number of accounts.
func (l *Ledger) Len() int { return len(l.accounts) }

// Account returns an account; the pointer is valid until the next Open.
func (l *Ledger) Account(i uint32) *Account { return &l.accounts[i] }

// Position returns an account's position; the pointer is valid until the next Open.
func (l *Ledger) Position(instrument int, i uint32) *Position {
	return &l.books[instrument].positions[i]
}

// Accounts returns a copy of all accounts, by their indexes.
func (l *Ledger) Accounts() []Account { return slices.Clone(l.accounts) }

// Positions returns a copy of all positions in an instrument, by account index.
func (l *Ledger) Positions(instrument int) []Position {
	return slices.Clone(l.books[instrument].positions)
}

// Deposit adds amount, which must be positive, to the balance. It reports
// false, and changes nothing, when the balance would exceed MaxBalance.
func (l *Ledger) Deposit(i uint32, amount int64) bool {
	a := &l.accounts[i]
	if amount <= 0 || amount > MaxBalance || a.Balance > MaxBalance-amount {
		return false
	}
	a.Balance += amount
	return true
}

// Withdraw takes amount, which must be positive, off the balance; the caller
// has checked that it may go.
func (l *Ledger) Withdraw(i uint32, amount int64) { l.accounts[i].Balance -= amount }
