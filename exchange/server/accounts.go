package server

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/countinghouse/countinghouse/exchange/core"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/risk"
)

// accounts is the Accounts service.
type accounts struct {
	pb.UnimplementedAccountsServer
	*Server
}

// OpenAccount adds an account.
func (a *accounts) OpenAccount(_ context.Context, r *pb.OpenAccountRequest) (*pb.AccountResponse, error) {
	return a.answer(r.Account, a.x.Router().OpenAccount(r.Account))
}

// Deposit adds money to an account.
func (a *accounts) Deposit(_ context.Context, r *pb.CashRequest) (*pb.AccountResponse, error) {
	return a.answer(r.Account, a.x.Router().Deposit(r.Account, r.Amount, r.Reference))
}

// Withdraw takes money off an account.
func (a *accounts) Withdraw(_ context.Context, r *pb.CashRequest) (*pb.AccountResponse, error) {
	return a.answer(r.Account, a.x.Router().Withdraw(r.Account, r.Amount, r.Reference))
}

// Account returns what an account holds.
func (a *accounts) Account(_ context.Context, r *pb.AccountRequest) (*pb.AccountResponse, error) {
	view, ok := a.x.Router().Account(r.Account)
	if !ok {
		return nil, a.unknownAccount(r.Account)
	}
	return account(&view), nil
}

// CloseOuts lists the accounts that must be closed out.
func (a *accounts) CloseOuts(_ context.Context, r *pb.CloseOutsRequest) (*pb.CloseOutsResponse, error) {
	limit, err := pageOf(r.Limit)
	if err != nil {
		return nil, err
	}
	list, more, ok := a.x.Router().CloseOuts(r.AfterAccount, limit)
	if !ok {
		return nil, a.unknownAccount(r.AfterAccount)
	}
	out := &pb.CloseOutsResponse{More: more}
	for _, c := range list {
		out.Accounts = append(out.Accounts, &pb.CloseOut{Account: c.ID, Available: c.Available})
	}
	return out, nil
}

// answer states the account after a request, with the number of its record.
func (a *accounts) answer(id uint64, res core.Receipt) (*pb.AccountResponse, error) {
	if err := refusal(res.Reason, fmt.Sprintf("account %d", id)); err != nil {
		return nil, err
	}
	view, ok := a.x.Router().Account(id)
	if !ok {
		return nil, refusal(risk.Unavailable, "the request was carried out")
	}
	out := account(&view)
	out.Seq = res.Seq
	return out, nil
}

func account(v *core.AccountView) *pb.AccountResponse {
	out := &pb.AccountResponse{
		Account: v.ID, Balance: v.Balance, Frozen: v.Frozen, Margin: v.Margin, Available: v.Available, Seq: v.Seq,
	}
	for i := range v.Positions {
		p := &v.Positions[i]
		out.Positions = append(out.Positions, &pb.Position{
			Instrument: p.Instrument.String(), LongToday: p.Long.Today.Volume, LongHistory: p.Long.History.Volume,
			ShortToday: p.Short.Today.Volume, ShortHistory: p.Short.History.Volume,
			Margin: p.Margin, Realised: p.Realised, Floating: p.Floating, Fees: p.Fees,
		})
	}
	return out
}

// control is the Control service.
type control struct {
	pb.UnimplementedControlServer
	*Server
}

// Halt stops or resumes trading in an instrument.
func (c *control) Halt(_ context.Context, r *pb.HaltRequest) (*pb.HaltResponse, error) {
	sym, _, bad := c.termsOf(r.Instrument)
	if bad != nil {
		return nil, refusal(bad.why, bad.message)
	}
	act := c.x.Router().Resume
	if r.Halt {
		act = c.x.Router().Halt
	}
	if err := refusal(act(sym).Reason, "instrument: "+r.Instrument); err != nil {
		return nil, err
	}
	return &pb.HaltResponse{}, nil
}

// Settle ends the trading day.
func (c *control) Settle(_ context.Context, r *pb.SettleRequest) (*pb.SettleResponse, error) {
	prices := make([]core.SettlementPrice, 0, len(r.Prices))
	for _, name := range slices.Sorted(maps.Keys(r.Prices)) {
		field := fmt.Sprintf("prices[%q]", name)
		sym, terms, bad := c.termsOf(name)
		if bad != nil {
			return nil, refusal(bad.why, field+": "+bad.message)
		}
		price, bad := ticks(terms, r.Prices[name], 0)
		if bad != nil {
			return nil, refusal(bad.why, field+": "+bad.message)
		}
		prices = append(prices, core.SettlementPrice{Instrument: sym, Price: price})
	}
	res := c.x.Router().Settle(r.Day, prices)
	if err := refusal(res.Reason, res.Detail); err != nil {
		return nil, err
	}
	return &pb.SettleResponse{CloseOut: res.CloseOut, OrdersCanceled: uint64(res.OrdersCanceled), UpdatesSkipped: uint64(res.UpdatesSkipped)}, nil
}

// State returns the hash of everything, and how far records have come.
func (c *control) State(context.Context, *pb.StateRequest) (*pb.StateResponse, error) {
	state, err := c.x.State()
	if err != nil {
		return nil, refusal(risk.Unavailable, "")
	}
	stats := c.x.Stats()
	return &pb.StateResponse{
		Hash: state.Hash(), Global: state.Global, Published: stats.Outbox.Published, Durable: stats.Subscriber.Cursor,
		Orders: stats.Core.Orders, Trades: stats.Core.Trades,
	}, nil
}
