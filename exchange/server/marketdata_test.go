package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/exchange"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/risk"
)

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestInstrumentsAndBook(t *testing.T) {
	f := start(t, Options{})
	list, err := f.data.Instruments(t.Context(), &pb.InstrumentsRequest{})
	if err != nil || len(list.Instruments) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	if in := list.Instruments[0]; in.Name != "IF2501" || in.Tick != "0.2" || in.TickValue != 6000 || in.LastSeq != 1 || in.Halted || in.UpperLimit <= in.LowerLimit {
		t.Errorf("%v", in)
	}
	out := f.submit(t, buy())
	book, err := f.data.Book(t.Context(), &pb.BookRequest{Instrument: "IF2501"})
	if err != nil || book.Seq != out.Seq || len(book.Bids) != 1 || len(book.Asks) != 0 {
		t.Fatalf("%v, %v", book, err)
	}
	if b := book.Bids[0]; b.Price != 19607 || b.Volume != 2 || b.Orders != 1 {
		t.Errorf("%v", b)
	}
	for r, code := range map[*pb.BookRequest]codes.Code{
		{Instrument: "nope"}: codes.NotFound, {Instrument: "IF2501", Depth: 1001}: codes.InvalidArgument,
	} {
		if _, err := f.data.Book(t.Context(), r); status.Code(err) != code {
			t.Errorf("%v: %v", r, err)
		}
	}
}

func TestBookUpdates(t *testing.T) {
	f := start(t, Options{})
	books, err := f.data.Books(bounded(t), &pb.BookRequest{Instrument: "IF2501", Depth: 1})
	if err != nil {
		t.Fatal(err)
	}
	up, err := books.Recv()
	if err != nil || up.Book.Seq != 1 || len(up.Book.Bids) != 0 || up.Missed != 0 {
		t.Fatalf("first: %v, %v", up, err)
	}
	other := buy()
	other.Instrument, other.Price = "IC2501", "5800.0"
	f.submit(t, other) // does not concern the reader
	out := f.submit(t, buy())
	if up, err = books.Recv(); err != nil || up.Book.Seq != out.Seq || len(up.Book.Bids) != 1 || up.Missed != 0 {
		t.Fatalf("second: %v, %v", up, err)
	}
}

// A book goes on changing, and its readers go on being told, when the outbox is
// full and records are dropped.
func TestBookUpdatesWhileRecordsAreDropped(t *testing.T) {
	f := startWith(t, Options{}, func(c *exchange.Config) {
		c.Policy, c.SegmentRecords, c.QuotaBytes = gateway.Drop, 1024, 4*(1024*136+4096)
	})
	f.submit(t, buy())
	ioc := buy()
	ioc.TimeInForce = pb.TimeInForce_TIME_IN_FORCE_IOC
	for n := 0; f.x.Stats().Core.Gateway.Dropped == 0; n++ {
		if f.submit(t, ioc); n > 10_000 {
			t.Fatal("nothing is ever dropped")
		}
	}
	books, err := f.data.Books(bounded(t), &pb.BookRequest{Instrument: "IF2501", Depth: 1})
	if err != nil {
		t.Fatal(err)
	}
	first, err := books.Recv()
	if err != nil {
		t.Fatal(err)
	}
	f.submit(t, sell()) // takes one lot of the best price
	up, err := books.Recv()
	if err != nil || up.Book.Bids[0].Volume != first.Book.Bids[0].Volume-1 {
		t.Errorf("after %v: %v, %v", first, up, err)
	}
}

// A reader that is slower than the book gets the latest one, and is told how many
// updates it replaces.
func TestBookReaderThatLags(t *testing.T) {
	f := start(t, Options{BookPause: 200 * time.Millisecond, SubscriberEventsMax: 4})
	books, err := f.data.Books(bounded(t), &pb.BookRequest{Instrument: "IF2501"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := books.Recv(); err != nil {
		t.Fatal(err)
	}
	const orders = 20
	var last uint64
	for range orders {
		last = f.submit(t, buy()).Seq
	}
	updates, missed := uint64(0), uint64(0)
	for {
		up, err := books.Recv()
		if err != nil {
			t.Fatal(err)
		}
		updates++
		missed += up.Missed
		if up.Book.Seq == last {
			break
		}
	}
	// What lies in the reader's ring when the last snapshot is taken is in it.
	if updates+missed > orders || updates+missed < orders-4 || missed == 0 {
		t.Errorf("%d updates replace %d others of %d", updates, missed, orders)
	}
}

func TestSubscribersAreBounded(t *testing.T) {
	f := start(t, Options{SubscribersMax: 1})
	x, err := f.data.Executions(bounded(t), &pb.ExecutionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Header(); err != nil {
		t.Fatal(err)
	}
	b, err := f.data.Books(bounded(t), &pb.BookRequest{Instrument: "IF2501"})
	if err == nil {
		_, err = b.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), risk.Overloaded.String()) {
		t.Errorf("got %v", err)
	}
}

// refused checks a status and its typed detail.
func refused(t *testing.T, err error, code codes.Code, reason, word string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), word) {
		t.Errorf("got %v, want %v with %q", err, code, word)
		return
	}
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*pb.Refusal); ok && r.Reason == reason {
			return
		}
	}
	t.Errorf("%v has no detail with the reason %s", err, reason)
}

func TestAccounts(t *testing.T) {
	f := start(t, Options{})
	ctx := t.Context()
	f.trade(t, 1)
	got, err := f.money.Account(ctx, &pb.AccountRequest{Account: 2})
	if err != nil || got.Margin == 0 || got.Available != got.Balance-got.Margin || len(got.Positions) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	if p := got.Positions[0]; p.Instrument != "IF2501" || p.ShortToday != 1 || p.LongToday != 0 || p.Fees == 0 || p.Margin != got.Margin {
		t.Errorf("%v", p)
	}
	out, err := f.money.Withdraw(ctx, &pb.CashRequest{Account: 2, Amount: 100})
	if err != nil || out.Balance != got.Balance-100 || out.Seq != 5 {
		t.Errorf("%v, %v", out, err)
	}
	_, err = f.money.Withdraw(ctx, &pb.CashRequest{Account: 2, Amount: 2 * funds})
	refused(t, err, codes.FailedPrecondition, "insufficient-funds", "account 2")
	_, err = f.money.Deposit(ctx, &pb.CashRequest{Account: 2, Amount: -1})
	refused(t, err, codes.InvalidArgument, "bad-amount", "account 2")
	_, err = f.money.OpenAccount(ctx, &pb.OpenAccountRequest{Account: 2})
	refused(t, err, codes.AlreadyExists, "account-exists", "account 2")
	_, err = f.money.OpenAccount(ctx, &pb.OpenAccountRequest{})
	refused(t, err, codes.InvalidArgument, "bad-account", "account 0")
	_, err = f.money.Account(ctx, &pb.AccountRequest{Account: 77})
	refused(t, err, codes.NotFound, "unknown-account", "77")
}

func TestControl(t *testing.T) {
	f := start(t, Options{})
	ctx := t.Context()
	if _, err := f.ctl.Halt(ctx, &pb.HaltRequest{Instrument: "IF2501", Halt: true}); err != nil {
		t.Fatal(err)
	}
	if out := f.submit(t, buy()); out.RejectReason != "trading-halted" {
		t.Errorf("%v", out)
	}
	if _, err := f.ctl.Halt(ctx, &pb.HaltRequest{Instrument: "IF2501"}); err != nil {
		t.Fatal(err)
	}
	_, err := f.ctl.Halt(ctx, &pb.HaltRequest{Instrument: "XX"})
	refused(t, err, codes.NotFound, "unknown-instrument", "XX")
	f.trade(t, 1)
	f.submit(t, buy())

	prices := map[string]string{"IF2501": "3921.6", "IC2501": "5800.0"}
	_, err = f.ctl.Settle(ctx, &pb.SettleRequest{Day: 20250106, Prices: prices})
	refused(t, err, codes.InvalidArgument, "bad-prices", "IH2501")
	prices["IH2501"] = "2600.1"
	_, err = f.ctl.Settle(ctx, &pb.SettleRequest{Day: 20250106, Prices: prices})
	refused(t, err, codes.InvalidArgument, "off-tick", `prices["IH2501"]`)
	prices["IH2501"] = "2650.0"
	_, err = f.ctl.Settle(ctx, &pb.SettleRequest{Day: 20251399, Prices: prices})
	refused(t, err, codes.InvalidArgument, "bad-day", "20251399")
	settled, err := f.ctl.Settle(ctx, &pb.SettleRequest{Day: 20250106, Prices: prices})
	if err != nil || settled.OrdersCanceled != 1 || len(settled.CloseOut) != 0 {
		t.Fatalf("%v, %v", settled, err)
	}
	st, err := f.ctl.State(ctx, &pb.StateRequest{})
	if err != nil || len(st.Hash) != 64 || st.Trades != 1 || st.Orders != 3 || st.Published != st.Global || st.Durable != 0 {
		t.Errorf("%v, %v", st, err)
	}
}
