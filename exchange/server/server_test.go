package server

import (
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/risk"
)

func TestOneOrderPerCall(t *testing.T) {
	f := start(t, Options{})
	b := f.submit(t, buy())
	if b.State != pb.OrderState_ORDER_STATE_RESTING || b.OrderId != 1 || b.ClientOrderId != 7 || b.Remaining != 2 || b.Seq == 0 || b.Global == 0 || b.Durable {
		t.Errorf("buy: %v", b)
	}
	s := f.submit(t, sell())
	if s.State != pb.OrderState_ORDER_STATE_FILLED || s.Filled != 1 || s.Remaining != 0 {
		t.Errorf("sell: %v", s)
	}
	a, err := f.entry.Amend(t.Context(), &pb.AmendRequest{Instrument: "IF2501", Account: 1, OrderId: b.OrderId, Price: "3921.2", Volume: 3})
	if err != nil || a.State != pb.OrderState_ORDER_STATE_RESTING || a.Remaining != 3 {
		t.Errorf("amend: %v, %v", a, err)
	}
	c, err := f.entry.Cancel(t.Context(), &pb.CancelRequest{Instrument: "IF2501", Account: 1, OrderId: b.OrderId})
	if err != nil || c.State != pb.OrderState_ORDER_STATE_CANCELED || c.Remaining != 3 {
		t.Errorf("cancel: %v, %v", c, err)
	}
	m := sell()
	m.Kind, m.Price = pb.Kind_KIND_MARKET, ""
	if out := f.submit(t, m); out.State != pb.OrderState_ORDER_STATE_CANCELED || out.Filled != 0 {
		t.Errorf("market order into an empty book: %v", out)
	}
}

// Every refusal names a reason, and the field if one is wrong; nothing changes.
func TestBadOrders(t *testing.T) {
	f := start(t, Options{})
	before := f.hash(t)
	for name, c := range map[string]struct {
		change func(*pb.SubmitRequest)
		reason string
		field  string
	}{
		"side":         {func(r *pb.SubmitRequest) { r.Side = 0 }, "malformed", "side"},
		"wrapped side": {func(r *pb.SubmitRequest) { r.Side = 257 }, "malformed", "side"},
		"offset":       {func(r *pb.SubmitRequest) { r.Offset = 9 }, "malformed", "offset"},
		"kind":         {func(r *pb.SubmitRequest) { r.Kind = -1 }, "malformed", "kind"},
		"tif":          {func(r *pb.SubmitRequest) { r.TimeInForce = 77 }, "malformed", "time_in_force"},
		"market GFD": {func(r *pb.SubmitRequest) {
			r.Kind, r.Price, r.TimeInForce = pb.Kind_KIND_MARKET, "", pb.TimeInForce_TIME_IN_FORCE_GFD
		}, "malformed", "time_in_force"},
		"market price":  {func(r *pb.SubmitRequest) { r.Kind = pb.Kind_KIND_MARKET }, "malformed", "price"},
		"no price":      {func(r *pb.SubmitRequest) { r.Price = "" }, "malformed", "price"},
		"two prices":    {func(r *pb.SubmitRequest) { r.PriceTicks = 19607 }, "malformed", "price_ticks"},
		"not a decimal": {func(r *pb.SubmitRequest) { r.Price = "1e3" }, "malformed", "price"},
		"off tick":      {func(r *pb.SubmitRequest) { r.Price = "3921.5" }, "off-tick", "0.2"},
		"zero price":    {func(r *pb.SubmitRequest) { r.Price = "0" }, "outside-limits", "price"},
		"limits":        {func(r *pb.SubmitRequest) { r.Price = "9999.0" }, "outside-limits", ""},
		"negative":      {func(r *pb.SubmitRequest) { r.Price = ""; r.PriceTicks = -1 }, "outside-limits", ""},
		"volume":        {func(r *pb.SubmitRequest) { r.Volume = 0 }, "bad-volume", ""},
		"instrument":    {func(r *pb.SubmitRequest) { r.Instrument = "IF2512" }, "unknown-instrument", "IF2512"},
		"bad name":      {func(r *pb.SubmitRequest) { r.Instrument = "a b" }, "unknown-instrument", "instrument"},
		"padded name":   {func(r *pb.SubmitRequest) { r.Instrument = "IF2501\x00" }, "unknown-instrument", "instrument"},
		"no name":       {func(r *pb.SubmitRequest) { r.Instrument = "" }, "unknown-instrument", "instrument"},
		"account":       {func(r *pb.SubmitRequest) { r.Account = 99 }, "unknown-account", ""},
		"position":      {func(r *pb.SubmitRequest) { r.Offset = pb.Offset_OFFSET_CLOSE_TODAY }, "insufficient-today", ""},
	} {
		r := buy()
		r.Durable = true // is answered at once when refused
		c.change(r)
		out := f.submit(t, r)
		if out.State != pb.OrderState_ORDER_STATE_REJECTED || out.RejectReason != c.reason || out.Message == "" || !strings.Contains(out.Message, c.field) {
			t.Errorf("%s: %v", name, out)
		}
		if out.ClientOrderId != 7 || out.OrderId != 0 || out.Seq != 0 {
			t.Errorf("%s: ids %v", name, out)
		}
	}
	out, err := f.entry.Cancel(t.Context(), &pb.CancelRequest{Instrument: "IF2501", Account: 1, OrderId: 5})
	if err != nil || out.RejectReason != "unknown-order" || out.OrderId != 5 {
		t.Errorf("cancel: %v, %v", out, err)
	}
	if after := f.hash(t); after != before {
		t.Error("refused requests left a trace")
	}
	if n := f.server.durableWaits.Load(); n != 0 {
		t.Errorf("%d places are held", n)
	}
}

// A request for which several reasons hold is refused for the first of them, and
// each refusal is counted and reaches the drop copy, wherever it was found.
func TestRefusalsComeInOrder(t *testing.T) {
	f := start(t, Options{DurableWaitsMax: 1})
	if _, err := f.ctl.Halt(t.Context(), &pb.HaltRequest{Instrument: "IC2501", Halt: true}); err != nil {
		t.Fatal(err)
	}
	f.submit(t, buy())
	x := f.dropCopy(t, &pb.ExecutionsRequest{})
	seen := map[risk.Reason]uint64{}
	check := func(out *pb.OrderResponse, why risk.Reason, instrument, word string) {
		t.Helper()
		if out.RejectReason != why.String() || !strings.Contains(out.Message, word) {
			t.Errorf("%v, want %s with %q", out, why, word)
		}
		e, err := x.Recv()
		if err != nil || e.Instrument != instrument || e.Order == nil || e.Order.RejectReason != why.String() ||
			e.Order.ClientOrderId != out.ClientOrderId || e.Order.OrderId != out.OrderId {
			t.Errorf("drop copy: %v, %v, want %s", e, err, why)
		}
		if seen[why]++; f.x.Router().Refused(why) != seen[why] {
			t.Errorf("%s is counted %d times, want %d", why, f.x.Router().Refused(why), seen[why])
		}
	}
	for _, c := range []struct {
		change     func(*pb.SubmitRequest)
		why        risk.Reason
		instrument string
		word       string
	}{
		{func(r *pb.SubmitRequest) { r.Instrument, r.Price, r.Side = "nope", "3921.5", 0 }, risk.Malformed, "nope", "side"},
		{func(r *pb.SubmitRequest) { r.Account, r.Price = 99, "1e3" }, risk.Malformed, "IF2501", "1e3"},
		{func(r *pb.SubmitRequest) { r.Instrument, r.Price, r.Account = "nope", "3921.5", 99 }, risk.UnknownInstrument, "nope", "nope"},
		{func(r *pb.SubmitRequest) { r.Instrument, r.Account = "no name", 99 }, risk.UnknownInstrument, "", "no name"},
		{func(r *pb.SubmitRequest) { r.Account, r.Price = 99, "3921.5" }, risk.UnknownAccount, "IF2501", "account"},
		{func(r *pb.SubmitRequest) { r.Instrument, r.Price, r.Volume = "IC2501", "3921.5", 0 }, risk.TradingHalted, "IC2501", "halted"},
		{func(r *pb.SubmitRequest) { r.Price, r.Volume = "3921.5", 0 }, risk.BadVolume, "IF2501", "volume"},
		{func(r *pb.SubmitRequest) { r.Price, r.Offset = "3921.5", pb.Offset_OFFSET_CLOSE }, risk.OffTick, "IF2501", "0.2"},
		{func(r *pb.SubmitRequest) { r.Price, r.Offset = "0", pb.Offset_OFFSET_CLOSE }, risk.OutsideLimits, "IF2501", "zero"},
	} {
		r := buy()
		c.change(r)
		check(f.submit(t, r), c.why, c.instrument, c.word)
	}
	for _, c := range []struct {
		r    *pb.AmendRequest
		why  risk.Reason
		word string
	}{
		{&pb.AmendRequest{Instrument: "IF2501", Account: 2, OrderId: 1, Price: "3921.5"}, risk.NotYourOrder, "account"},
		{&pb.AmendRequest{Instrument: "IF2501", Account: 1, OrderId: 1, Price: "3921.5", Volume: 99}, risk.BadVolume, "volume"},
		{&pb.AmendRequest{Instrument: "IF2501", Account: 1, OrderId: 1, Price: "3921.5"}, risk.OffTick, "0.2"},
		{&pb.AmendRequest{Instrument: "IF2501", Account: 1, OrderId: 1, Price: "0.0"}, risk.OutsideLimits, "zero"},
		{&pb.AmendRequest{Instrument: "IF2501", Account: 1, OrderId: 1, Price: "x"}, risk.Malformed, "x"},
	} {
		out, err := f.entry.Amend(t.Context(), c.r)
		if err != nil {
			t.Fatal(err)
		}
		check(out, c.why, "IF2501", c.word)
	}
	out, err := f.entry.Cancel(t.Context(), &pb.CancelRequest{Instrument: "nope", Account: 1, OrderId: 1})
	if err != nil {
		t.Fatal(err)
	}
	check(out, risk.UnknownInstrument, "nope", "nope")
	f.server.durableWaits.Store(1)
	r := buy()
	r.Durable = true
	check(f.submit(t, r), risk.Overloaded, "IF2501", "wait")
	out, err = f.entry.Cancel(t.Context(), &pb.CancelRequest{Instrument: "IF2501", Account: 1, OrderId: 1, Durable: true})
	if err != nil {
		t.Fatal(err)
	}
	check(out, risk.Overloaded, "IF2501", "wait")
	f.server.durableWaits.Store(0)
}

func (f *fixture) hash(t *testing.T) string {
	t.Helper()
	st, err := f.ctl.State(t.Context(), &pb.StateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st.Hash
}

func TestUnaryDurable(t *testing.T) {
	f := start(t, Options{DurableWaitsMax: 1})
	r := buy()
	r.Durable = true
	answers := make(chan *pb.OrderResponse)
	for _, end := range []error{nil, errors.New("disk on fire")} {
		go func() {
			out, _ := f.entry.Submit(t.Context(), r)
			answers <- out
		}()
		<-f.x.arrived
		if out := f.submit(t, r); out.RejectReason != risk.Overloaded.String() {
			t.Errorf("a second one that waits: %v", out)
		}
		if out := f.submit(t, buy()); out.State != pb.OrderState_ORDER_STATE_RESTING {
			t.Errorf("one that need not wait: %v", out)
		}
		select {
		case out := <-answers:
			t.Fatalf("answered before it was durable: %v", out)
		default:
		}
		f.x.release(end)
		out := <-answers
		if out.State != pb.OrderState_ORDER_STATE_RESTING || out.Durable != (end == nil) || (end != nil) != strings.Contains(out.Message, "disk on fire") {
			t.Errorf("after %v: %v", end, out)
		}
	}
}

// open starts a session; send sends requests numbered from first on.
func (f *fixture) session(t *testing.T) pb.OrderEntry_SessionClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	s, err := f.entry.Session(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func send(t *testing.T, s pb.OrderEntry_SessionClient, id uint64, r *pb.SubmitRequest) {
	t.Helper()
	if err := s.Send(&pb.SessionRequest{RequestId: id, Request: &pb.SessionRequest_Submit{Submit: r}}); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, s pb.OrderEntry_SessionClient, id uint64, state pb.OrderState) *pb.OrderResponse {
	t.Helper()
	in, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if in.RequestId != id || in.Response.State != state {
		t.Fatalf("got %v, want the answer to %d: %s", in, id, state)
	}
	return in.Response
}

const resting, rejected = pb.OrderState_ORDER_STATE_RESTING, pb.OrderState_ORDER_STATE_REJECTED

// Answers come in the order of the requests, and one that waits for durability
// holds up no other.
func TestSession(t *testing.T) {
	f := start(t, Options{})
	s := f.session(t)
	durable := buy()
	durable.Durable = true
	send(t, s, 10, durable)
	for id := uint64(11); id < 111; id++ {
		send(t, s, id, buy())
	}
	for id := uint64(11); id < 111; id++ {
		expect(t, s, id, resting)
	}
	<-f.x.arrived
	f.x.release(nil)
	out := expect(t, s, 10, resting)
	if !out.Durable || out.OrderId != 1 {
		t.Errorf("durable answer: %v", out)
	}
	for _, r := range []*pb.SessionRequest{
		{RequestId: 1, Request: &pb.SessionRequest_Amend{Amend: &pb.AmendRequest{Instrument: "IF2501", Account: 1, OrderId: 1, Volume: 1}}},
		{RequestId: 2, Request: &pb.SessionRequest_Cancel{Cancel: &pb.CancelRequest{Instrument: "IF2501", Account: 1, OrderId: 1}}},
	} {
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, s, 1, resting)
	expect(t, s, 2, pb.OrderState_ORDER_STATE_CANCELED)

	// The session ends when the last answer is there.
	send(t, s, 12, durable)
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	<-f.x.arrived
	f.x.release(nil)
	expect(t, s, 12, resting)
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestSessionBounds(t *testing.T) {
	f := start(t, Options{SessionDurableWaitsMax: 2, SessionAnswersMax: 4})
	s := f.session(t)
	durable := buy()
	durable.Durable = true
	for id := uint64(1); id <= 3; id++ {
		send(t, s, id, durable)
	}
	if out := expect(t, s, 3, rejected); out.RejectReason != risk.Overloaded.String() || out.Message == "" {
		t.Errorf("%v", out)
	}
	f.x.release(nil)
	expect(t, s, 1, resting)
	expect(t, s, 2, resting)

	// A client that takes no answers is not read from, and loses none.
	const many = 20000
	go func() {
		for id := uint64(1); id <= many; id++ {
			r := buy()
			r.Account = 99
			if s.Send(&pb.SessionRequest{RequestId: id, Request: &pb.SessionRequest_Submit{Submit: r}}) != nil {
				return
			}
		}
		s.CloseSend()
	}()
	time.Sleep(50 * time.Millisecond)
	for id := uint64(1); id <= many; id++ {
		expect(t, s, id, rejected)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestSessionRefusesEmptyRequests(t *testing.T) {
	f := start(t, Options{})
	s := f.session(t)
	send(t, s, 1, buy())
	if err := s.Send(&pb.SessionRequest{RequestId: 2}); err != nil {
		t.Fatal(err)
	}
	expect(t, s, 1, resting)
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "request_id 2") {
		t.Errorf("got %v", err)
	}
}

// A client that goes away with requests that wait leaves nothing behind.
func TestSessionThatBreaks(t *testing.T) {
	f := start(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := f.entry.Session(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := buy()
	r.Durable = true
	send(t, s, 1, r)
	<-f.x.arrived
	cancel()
	if _, err := s.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
	f.x.release(nil)
	for f.server.durableWaits.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
}

func TestTooLargeRequest(t *testing.T) {
	f := start(t, Options{MessageBytesMax: 1024})
	r := buy()
	r.Instrument = strings.Repeat("x", 2000)
	if _, err := f.entry.Submit(t.Context(), r); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"DurableWaitsMax": {DurableWaitsMax: -1}, "MessageBytesMax": {MessageBytesMax: 1 << 30}, "BookPause": {BookPause: -1},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStop(t *testing.T) {
	f := start(t, Options{})
	health := grpc_health_v1.NewHealthClient(f.conn)
	h, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || h.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("%v, %v", h, err)
	}
	s := f.session(t)
	send(t, s, 1, buy())
	expect(t, s, 1, resting)
	x, err := f.data.Executions(t.Context(), &pb.ExecutionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Header(); err != nil {
		t.Fatal(err)
	}
	f.server.Drain()
	if h, err = health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil || h.Status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("%v, %v", h, err)
	}
	if _, err := f.x.Close(); err != nil {
		t.Fatal(err)
	}
	if out := f.submit(t, buy()); out.RejectReason != "unavailable" {
		t.Errorf("an order for a closed exchange: %v", out)
	}
	if _, err := f.data.Book(t.Context(), &pb.BookRequest{Instrument: "IF2501"}); status.Code(err) != codes.Unavailable {
		t.Errorf("a book of a closed exchange: %v", err)
	}
	f.server.Stop(5 * time.Second)
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("session: %v", err)
	}
	if _, err := x.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("executions: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	f := start(t, Options{})
	f.submit(t, buy())
	bad := buy()
	bad.Volume = 0
	f.submit(t, bad)
	w := httptest.NewRecorder()
	f.server.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`countinghouse_exchange_requests_total{request="submit",result="resting"} 1`,
		`countinghouse_exchange_requests_total{request="submit",result="bad-volume"} 1`,
		`countinghouse_exchange_request_latency_nanoseconds_count{request="submit"} 2`,
		`countinghouse_exchange_orders_accepted_total 1`, `countinghouse_exchange_started 1`,
		`countinghouse_exchange_outbox_free_records `, `countinghouse_subscriber_lag_records{shard="s1"} `, `go_goroutines `,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
}
