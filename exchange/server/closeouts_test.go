package server

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/countinghouse/countinghouse/exchange"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
)

// ruin leaves the accounts from 11 on with less than nothing after a settlement;
// each had what one lot takes.
func (f *fixture) ruin(t *testing.T, accounts int) *pb.SettleResponse {
	t.Helper()
	for i := range uint64(accounts) {
		if _, err := f.money.OpenAccount(t.Context(), &pb.OpenAccountRequest{Account: 11 + i}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.money.Deposit(t.Context(), &pb.CashRequest{Account: 11 + i, Amount: 14_200_000}); err != nil {
			t.Fatal(err)
		}
		b, s := buy(), sell()
		b.Account, b.Volume = 11+i, 1
		f.submit(t, s)
		if out := f.submit(t, b); out.State != pb.OrderState_ORDER_STATE_FILLED {
			t.Fatalf("%v", out)
		}
	}
	return f.settle(t)
}

// settle ends the day far below its prices.
func (f *fixture) settle(t *testing.T) *pb.SettleResponse {
	t.Helper()
	prices := map[string]string{"IF2501": "3600.0", "IC2501": "5800.0", "IH2501": "2662.8"}
	var err error
	for range 1000 { // the outbox may have to make the next file first
		var out *pb.SettleResponse
		if out, err = f.ctl.Settle(t.Context(), &pb.SettleRequest{Day: 20250106, Prices: prices}); err == nil {
			return out
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal(err)
	return nil
}

// The accounts to be closed out can be asked for at any time, in portions.
func TestCloseOuts(t *testing.T) {
	f := start(t, Options{})
	settled := f.ruin(t, 5)
	if fmt.Sprint(settled.CloseOut) != "[11 12 13 14 15]" || settled.UpdatesSkipped != 0 {
		t.Fatalf("%v", settled)
	}
	if _, err := f.money.Deposit(t.Context(), &pb.CashRequest{Account: 13, Amount: funds}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		r    *pb.CloseOutsRequest
		want string
	}{
		{&pb.CloseOutsRequest{}, "[11 12 14 15] false"}, {&pb.CloseOutsRequest{Limit: 2}, "[11 12] true"},
		{&pb.CloseOutsRequest{AfterAccount: 12, Limit: 2}, "[14 15] false"}, {&pb.CloseOutsRequest{AfterAccount: 15}, "[] false"},
	} {
		out, err := f.money.CloseOuts(t.Context(), c.r)
		if err != nil {
			t.Fatal(err)
		}
		ids := []uint64{}
		for _, a := range out.Accounts {
			view, err := f.money.Account(t.Context(), &pb.AccountRequest{Account: a.Account})
			if err != nil || a.Available >= 0 || view.Available != a.Available {
				t.Errorf("%v is %v, %v", a, view, err)
			}
			ids = append(ids, a.Account)
		}
		if got := fmt.Sprint(ids, out.More); got != c.want {
			t.Errorf("%v: %s, want %s", c.r, got, c.want)
		}
	}
	_, err := f.money.CloseOuts(t.Context(), &pb.CloseOutsRequest{AfterAccount: 99})
	refused(t, err, codes.NotFound, "unknown-account", "99")
	_, err = f.money.CloseOuts(t.Context(), &pb.CloseOutsRequest{Limit: 10_001})
	refused(t, err, codes.InvalidArgument, "malformed", "limit")
}

// A settlement says how many account updates found no room in the outbox.
func TestSettleTellsWhatItSkipped(t *testing.T) {
	f := startWith(t, Options{}, func(c *exchange.Config) {
		c.SegmentRecords, c.QuotaBytes, c.HeadroomRecords = 64, 4*4096*4, -1
	})
	for range 6 {
		f.trade(t, 1)
	}
	const settlements = 3 // one for each instrument
	deadline := time.Now().Add(20 * time.Second)
	for f.x.Stats().Outbox.FreeRecords > settlements {
		_, _ = f.money.Deposit(t.Context(), &pb.CashRequest{Account: 1, Amount: 1}) // refused while the next file is made
		if time.Now().After(deadline) {
			t.Fatalf("the outbox does not fill: %+v", f.x.Stats().Outbox)
		}
	}
	if out := f.settle(t); out.UpdatesSkipped != 2 {
		t.Errorf("%v, want the updates of both accounts skipped", out)
	}
}
