package server

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
)

// dropCopy subscribes, and returns when the server has taken the subscription.
func (f *fixture) dropCopy(t *testing.T, r *pb.ExecutionsRequest) pb.MarketData_ExecutionsClient {
	t.Helper()
	x, err := f.data.Executions(bounded(t), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Header(); err != nil {
		t.Fatal(err)
	}
	return x
}

// told receives n events, each in one line.
func told(t *testing.T, x pb.MarketData_ExecutionsClient, n int) string {
	t.Helper()
	var lines []string
	for range n {
		e, err := x.Recv()
		if err != nil {
			t.Fatalf("after %q: %v", lines, err)
		}
		if (e.Seq == 0) != (e.Kind == pb.ExecutionKind_EXECUTION_KIND_REFUSED) || e.Time == 0 || e.Missed != 0 {
			t.Errorf("seq %d, time %d, missed %d in %v", e.Seq, e.Time, e.Missed, e)
		}
		lines = append(lines, line(e))
	}
	return strings.Join(lines, "\n") + "\n"
}

func line(e *pb.Execution) string {
	kind := strings.ToLower(strings.TrimPrefix(e.Kind.String(), "EXECUTION_KIND_"))
	o := e.Order
	if o == nil {
		return fmt.Sprintf("%s %s %d: %d @%d, %d of %d (client %d, %s, fee %d) with %s %d of %d (client %d, %s, fee %d)", kind, e.Instrument, e.TradeId,
			e.Volume, e.Price, e.MakerOrderId, e.MakerAccount, e.MakerClientOrderId, short(e.MakerOffset), e.MakerFee,
			short(e.TakerSide), e.TakerOrderId, e.TakerAccount, e.TakerClientOrderId, short(e.TakerOffset), e.TakerFee)
	}
	head := fmt.Sprintf("%s %s %d of %d (client %d)", kind, e.Instrument, o.OrderId, o.Account, o.ClientOrderId)
	switch e.Kind {
	case pb.ExecutionKind_EXECUTION_KIND_REFUSED:
		if o.Message == "" {
			return head + " without a message"
		}
		return head + " " + o.RejectReason
	case pb.ExecutionKind_EXECUTION_KIND_CANCELED:
		return fmt.Sprintf("%s %d %s", head, o.Volume, short(o.CancelReason))
	case pb.ExecutionKind_EXECUTION_KIND_AMENDED:
		return fmt.Sprintf("%s %d @%d from %d @%d kept %t", head, o.Volume, o.Price, o.OldVolume, o.OldPrice, o.KeptPriority)
	}
	return fmt.Sprintf("%s %s %s %d @%d %s %s", head, short(o.Side), short(o.Offset), o.Volume, o.Price, short(o.Kind), short(o.TimeInForce))
}

// short is an enum's value without the enum's name.
func short(v fmt.Stringer) string {
	parts := strings.Split(v.String(), "_")
	return strings.ToLower(parts[len(parts)-1])
}

// The drop copy tells the whole life of every order, and of every request that
// was refused.
func TestDropCopy(t *testing.T) {
	f := start(t, Options{})
	x := f.dropCopy(t, &pb.ExecutionsRequest{})
	f.submit(t, buy())
	s := sell()
	s.ClientOrderId = 8
	f.submit(t, s)
	for _, r := range []*pb.AmendRequest{
		{Instrument: "IF2501", Account: 1, OrderId: 1, Volume: 5, Price: "3921.2"}, {Instrument: "IF2501", Account: 1, OrderId: 1, Volume: 4},
		{Instrument: "IF2501", Account: 1, OrderId: 1, Volume: 400},
	} {
		if _, err := f.entry.Amend(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	bad := buy()
	bad.Volume = 1000
	f.submit(t, bad)
	m := sell()
	m.Kind, m.Price, m.ClientOrderId, m.TimeInForce, m.Volume = pb.Kind_KIND_MARKET, "", 9, pb.TimeInForce_TIME_IN_FORCE_FOK, 5
	f.submit(t, m)
	for _, r := range []*pb.CancelRequest{{Instrument: "IF2501", Account: 2, OrderId: 1}, {Instrument: "IF2501", Account: 1, OrderId: 1}} {
		if _, err := f.entry.Cancel(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	f.submit(t, buy())
	prices := map[string]string{"IF2501": "3921.6", "IC2501": "5800.0", "IH2501": "2662.8"}
	if _, err := f.ctl.Settle(t.Context(), &pb.SettleRequest{Day: 20250106, Prices: prices}); err != nil {
		t.Fatal(err)
	}
	// 3921.4 × 300 × 0.23 / 10,000 are 27.06 yuan.
	const want = `accepted IF2501 1 of 1 (client 7) buy open 2 @19607 unspecified gfd
accepted IF2501 2 of 2 (client 8) sell open 1 @19607 unspecified gfd
trade IF2501 1: 1 @19607, 1 of 1 (client 7, open, fee 2706) with sell 2 of 2 (client 8, open, fee 2706)
amended IF2501 1 of 1 (client 7) 5 @19606 from 1 @19607 kept false
amended IF2501 1 of 1 (client 7) 4 @19606 from 5 @19606 kept true
refused IF2501 1 of 1 (client 7) bad-volume
refused IF2501 0 of 1 (client 7) bad-volume
accepted IF2501 3 of 2 (client 9) sell open 5 @17647 market fok
canceled IF2501 3 of 2 (client 9) 5 fok
refused IF2501 1 of 2 (client 0) not-your-order
canceled IF2501 1 of 1 (client 7) 4 user
accepted IF2501 4 of 1 (client 7) buy open 2 @19607 unspecified gfd
canceled IF2501 4 of 1 (client 7) 2 day
`
	if got := told(t, x, strings.Count(want, "\n")); got != want {
		t.Errorf("told:\n%s", got)
	}
}

// A reader that asked for one account and instrument hears of nothing else.
func TestDropCopyOfOneAccount(t *testing.T) {
	f := start(t, Options{})
	mine := f.dropCopy(t, &pb.ExecutionsRequest{Instrument: "IC2501", Account: 2})
	for _, name := range []string{"IF2501", "IC2501"} {
		for _, r := range []*pb.SubmitRequest{buy(), sell()} {
			if r.Instrument = name; name == "IC2501" {
				r.Price = "5800.0"
			}
			f.submit(t, r)
			r.Volume = -1
			f.submit(t, r)
		}
	}
	const want = `accepted IC2501 4 of 2 (client 7) sell open 1 @29000 unspecified gfd
trade IC2501 2: 1 @29000, 3 of 1 (client 7, open, fee 2668) with sell 4 of 2 (client 7, open, fee 2668)
refused IC2501 0 of 2 (client 7) bad-volume
`
	if got := told(t, mine, 3); got != want {
		t.Errorf("told:\n%s", got)
	}
	for _, r := range []*pb.ExecutionsRequest{{Instrument: "nope"}, {Account: 999}} {
		x, err := f.data.Executions(bounded(t), r)
		if err == nil {
			_, err = x.Recv()
		}
		if status.Code(err) != codes.NotFound {
			t.Errorf("%v: %v", r, err)
		}
	}
}

// A drop copy that does not keep up is told that events are missing, and how many.
func TestDropCopyThatLags(t *testing.T) {
	f := start(t, Options{SubscriberEventsMax: 8})
	x := f.dropCopy(t, &pb.ExecutionsRequest{})
	const trades, events = 2000, 3 // two orders and their trade
	n, bad := f.server.newOrder(buy())
	if bad != nil {
		t.Fatal(bad)
	}
	m, _ := f.server.newOrder(sell())
	n.Volume = 1
	for range trades {
		f.x.Router().Submit(n)
		f.x.Router().Submit(m)
	}
	received, missed, lastSeq := uint64(0), uint64(0), uint64(0)
	for received+missed < trades*events {
		e, err := x.Recv()
		if err != nil {
			t.Fatal(err)
		}
		missed += e.Missed
		if e.Kind == pb.ExecutionKind_EXECUTION_KIND_UNSPECIFIED {
			if e.Missed == 0 {
				t.Fatal("an empty message")
			}
			continue
		}
		if e.Seq <= lastSeq {
			t.Fatalf("seq %d after %d", e.Seq, lastSeq)
		}
		lastSeq = e.Seq
		received++
	}
	if missed == 0 || received+missed != trades*events {
		t.Errorf("%d received, %d missed of %d events", received, missed, trades*events)
	}
}

// A client that lost an answer finds its order, or that it does not rest.
func TestLiveOrders(t *testing.T) {
	f := start(t, Options{})
	for i := range uint64(5) {
		r := buy()
		if r.ClientOrderId = 100 + i; i%2 == 1 {
			r.Instrument, r.Price = "IC2501", "5800.0"
		}
		if i == 4 {
			r.Price = "3922.0" // ahead of the others in its book
		}
		f.submit(t, r)
	}
	f.submit(t, sell()) // takes one lot of the best
	ask := sell()
	ask.Price = "3930.0"
	f.submit(t, ask)
	list := func(r *pb.LiveOrdersRequest) string {
		t.Helper()
		out, err := f.entry.LiveOrders(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, o := range out.Orders {
			fmt.Fprintf(&b, "%s %d client %d %s %s %d of %d @%d after %d; ", o.Instrument, o.OrderId, o.ClientOrderId, short(o.Side), short(o.TimeInForce), o.Remaining, o.Volume, o.Price, o.Seq)
		}
		return fmt.Sprint(b.String(), out.More)
	}
	for _, c := range []struct {
		r    *pb.LiveOrdersRequest
		want string
	}{
		{&pb.LiveOrdersRequest{Account: 1, Limit: 2}, "IF2501 1 client 100 buy gfd 2 of 2 @19607 after 9; IC2501 2 client 101 buy gfd 2 of 2 @29000 after 3; true"},
		{&pb.LiveOrdersRequest{Account: 1, AfterOrderId: 3}, "IC2501 4 client 103 buy gfd 2 of 2 @29000 after 3; IF2501 5 client 104 buy gfd 1 of 2 @19610 after 9; false"},
		{&pb.LiveOrdersRequest{Account: 1, Instrument: "IF2501", AfterOrderId: 1, Limit: 1}, "IF2501 3 client 102 buy gfd 2 of 2 @19607 after 9; true"},
		{&pb.LiveOrdersRequest{Account: 2}, "IF2501 7 client 7 sell gfd 1 of 1 @19650 after 9; false"},
		{&pb.LiveOrdersRequest{Account: 2, Instrument: "IC2501"}, "false"},
	} {
		if got := list(c.r); got != c.want {
			t.Errorf("%v: %s", c.r, got)
		}
	}
	for r, code := range map[*pb.LiveOrdersRequest]codes.Code{
		{Account: 9}: codes.NotFound, {Account: 1, Instrument: "nope"}: codes.NotFound, {Account: 1, Limit: 10_001}: codes.InvalidArgument,
	} {
		if _, err := f.entry.LiveOrders(t.Context(), r); status.Code(err) != code {
			t.Errorf("%v: %v", r, err)
		}
	}
}
