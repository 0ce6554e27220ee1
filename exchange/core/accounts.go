package core

import (
	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// OpenAccount adds an account without money. Ids are the caller's, above zero.
func (e *Exchange) OpenAccount(now int64, id uint64) Receipt {
	if r := e.checkOpen(id); r != risk.OK {
		return Receipt{Reason: r}
	}
	if !e.gw.Begin(1, gateway.Urgent) {
		return Receipt{Reason: risk.BacklogFull}
	}
	if err := e.open(id); err != nil {
		return Receipt{Reason: risk.BadAccount}
	}
	e.gw.Opened(&e.accounts, now, id)
	global := e.gw.End()
	return Receipt{Seq: e.accounts.Seq, Global: global}
}

func (e *Exchange) checkOpen(id uint64) risk.Reason {
	if id == 0 || e.ledger.Len() >= account.MaxAccounts {
		return risk.BadAccount
	}
	if _, exists := e.ledger.Find(id); exists {
		return risk.AccountExists
	}
	return risk.OK
}

func (e *Exchange) open(id uint64) error {
	_, err := e.ledger.Open(id)
	if err == nil {
		e.stamps = append(e.stamps, 0)
	}
	return err
}

// Deposit adds amount minor units to an account. reference is the caller's own
// id, 0 for none.
func (e *Exchange) Deposit(now int64, id uint64, amount int64, reference uint64) Receipt {
	i, ok := e.ledger.Find(id)
	switch {
	case !ok:
		return Receipt{Reason: risk.UnknownAccount}
	case amount <= 0 || amount > account.MaxBalance || e.ledger.Account(i).Balance > account.MaxBalance-amount:
		return Receipt{Reason: risk.BadAmount}
	case !e.gw.Begin(1, gateway.Urgent):
		return Receipt{Reason: risk.BacklogFull}
	}
	e.ledger.Deposit(i, amount)
	return e.moved(now, record.TypeDeposit, i, amount, reference)
}

// Withdraw takes amount minor units off an account. No more may go than is
// available after the floating losses, at the last prices, of its positions.
func (e *Exchange) Withdraw(now int64, id uint64, amount int64, reference uint64) Receipt {
	i, ok := e.ledger.Find(id)
	switch {
	case !ok:
		return Receipt{Reason: risk.UnknownAccount}
	case amount <= 0:
		return Receipt{Reason: risk.BadAmount}
	case amount > e.ledger.Withdrawable(i, e.marks):
		return Receipt{Reason: risk.InsufficientFunds}
	case !e.gw.Begin(1, gateway.Urgent):
		return Receipt{Reason: risk.BacklogFull}
	}
	e.ledger.Withdraw(i, amount)
	return e.moved(now, record.TypeWithdraw, i, amount, reference)
}

func (e *Exchange) moved(now int64, typ record.Type, i uint32, amount int64, reference uint64) Receipt {
	a := e.ledger.Account(i)
	e.gw.CashMoved(&e.accounts, now, typ, a.ID, amount, a.Balance, reference)
	global := e.gw.End()
	return Receipt{Balance: a.Balance, Seq: e.accounts.Seq, Global: global}
}
