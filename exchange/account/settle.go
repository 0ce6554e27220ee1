package account

// Settle marks every position in the instrument to price: the floating profit
// is realised, today's positions become history, and the cost of all is the
// price. No order may be live in the instrument.
func (l *Ledger) Settle(instrument int, price int64) {
	b := &l.books[instrument]
	for i := range b.positions {
		if p := &b.positions[i]; !p.Empty() {
			b.settle(&l.accounts[i], p, price)
		}
	}
}

func (b *book) settle(a *Account, p *Position, price int64) {
	profit := b.terms.Turnover(p.Floating(price))
	p.Realised += profit
	a.Balance += profit
	for _, h := range []*Holding{&p.Long, &p.Short} {
		h.History = Leg{Volume: h.Volume(), Cost: price * h.Volume()}
		h.Today = Leg{}
		b.remargin(a, p, h)
	}
}

// Remargin reckons all margins in the instrument anew, after its terms changed.
func (l *Ledger) Remargin(instrument int) {
	b := &l.books[instrument]
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
