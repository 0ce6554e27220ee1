package account

import "github.com/countinghouse/countinghouse/record"

// Update fills the body of an AccountUpdate, whose header it leaves alone, with
// the account's state and its position in the instrument.
func (l *Ledger) Update(instrument int, i uint32, r *record.AccountUpdate) {
	a, p := &l.accounts[i], &l.books[instrument].positions[i]
	r.Account, r.Balance, r.Frozen, r.Margin = a.ID, a.Balance, a.Frozen(), a.Margin
	r.LongToday, r.LongHistory = p.Long.Today.Volume, p.Long.History.Volume
	r.ShortToday, r.ShortHistory = p.Short.Today.Volume, p.Short.History.Volume
	r.Realised, r.Fees = p.Realised, p.Fees
}
