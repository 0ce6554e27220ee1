package account

import "github.com/countinghouse/countinghouse/exchange/order"

// Settle marks every position in the instrument to price: the floating profit
// is realised, today's positions become history, and the cost of all is the
// price. No order may be live in the instrument, and its terms have the limits
// of the next day.
func (l *Ledger) Settle(instrument int, price int64) {
	b := &l.books[instrument]
	for i := range b.positions {
		if p := &b.positions[i]; !p.Empty() {
			b.settle(&l.accounts[i], p, price)
		}
	}
	l.revalue(b, b.terms.LotWorth())
}

// CheckSettle reports whether no balance would be beyond BalanceBound after
// positions were marked to prices (ticks, by instrument index), and else an
// account of which it would, and the balance.
func (l *Ledger) CheckSettle(prices []int64) (id uint64, balance int64, ok bool) {
	for i := range l.accounts {
		balance = l.accounts[i].Balance
		for n := range l.books {
			b := &l.books[n]
			if p := &b.positions[i]; !p.Empty() {
				balance += b.terms.Turnover(p.Floating(prices[n]))
			}
		}
		if balance > BalanceBound || balance < -BalanceBound {
			return l.accounts[i].ID, balance, false
		}
	}
	return 0, 0, true
}

// WorthLimit returns the highest LotWorth of the instrument at which no
// account's Worth exceeds order.MaxAmount.
func (l *Ledger) WorthLimit(instrument int) int64 {
	b := &l.books[instrument]
	limit := int64(order.MaxAmount)
	for i := range b.positions {
		if lots := b.positions[i].lots(); lots > 0 {
			limit = min(limit, (order.MaxAmount-l.accounts[i].Worth+lots*b.lotWorth)/lots)
		}
	}
	return limit
}

// Strained returns the first account with lots in the instrument whose balance
// is beyond BalanceBound, 0 for none.
func (l *Ledger) Strained(instrument int) (id uint64) {
	b := &l.books[instrument]
	for i := range b.positions {
		a := &l.accounts[i]
		if b.positions[i].lots() > 0 && (a.Balance > BalanceBound || a.Balance < -BalanceBound) {
			return a.ID
		}
	}
	return 0
}

// revalue sets what a lot counts for.
func (l *Ledger) revalue(b *book, lotWorth int64) {
	more := lotWorth - b.lotWorth
	if more == 0 {
		return
	}
	b.lotWorth = lotWorth
	for i := range b.positions {
		l.accounts[i].Worth += b.positions[i].lots() * more
	}
}

func (b *book) settle(a *Account, p *Position, price int64) {
	profit := b.terms.Turnover(p.Floating(price))
	p.Realised = tally(p.Realised, profit)
	a.Balance += profit
	for _, h := range []*Holding{&p.Long, &p.Short} {
		h.History = Leg{Volume: h.Volume(), Cost: price * h.Volume()}
		h.Today = Leg{}
		b.remargin(a, p, h)
	}
}

// Remargin reckons all margins in the instrument anew, after its terms changed,
// and what its lots are worth.
func (l *Ledger) Remargin(instrument int) {
	b := &l.books[instrument]
	l.revalue(b, max(b.lotWorth, b.terms.LotWorth()))
	for i := range b.positions {
		a, p := &l.accounts[i], &b.positions[i]
		b.remargin(a, p, &p.Long)
		b.remargin(a, p, &p.Short)
	}
}

// BelowZero returns the ids of the accounts whose available funds are negative,
// in the order in which they were opened: they are to be closed out.
func (l *Ledger) BelowZero() []uint64 {
	var ids []uint64
	for i := range l.accounts {
		if l.accounts[i].Available() < 0 {
			ids = append(ids, l.accounts[i].ID)
		}
	}
	return ids
}

// CloseOut is an account whose available funds are negative.
type CloseOut struct {
	ID        uint64
	Available int64 // minor units, below zero
}

// CloseOuts returns up to limit accounts, from index on, whose available funds
// are negative, in the order in which they were opened, and whether there are
// more.
func (l *Ledger) CloseOuts(from uint32, limit int) (list []CloseOut, more bool) {
	for i := int(from); i < len(l.accounts); i++ {
		available := l.accounts[i].Available()
		switch {
		case available >= 0:
		case len(list) == limit:
			return list, true
		default:
			list = append(list, CloseOut{l.accounts[i].ID, available})
		}
	}
	return list, false
}

// Withdrawable returns what account i may take out: its available funds less
// the floating loss of its positions in each instrument at the given prices
// (ticks, by instrument index). Floating profit does not count.
func (l *Ledger) Withdrawable(i uint32, prices []int64) int64 {
	left := l.accounts[i].Available()
	for n := range l.books {
		b := &l.books[n]
		if p := &b.positions[i]; !p.Empty() {
			left += min(0, b.terms.Turnover(p.Floating(prices[n])))
		}
	}
	return left
}
