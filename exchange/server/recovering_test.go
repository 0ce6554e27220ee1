package server

import (
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
)

// health asks for each service and returns the answer, which is the same for all.
func healthOf(t *testing.T, conn *grpc.ClientConn) grpc_health_v1.HealthCheckResponse_ServingStatus {
	t.Helper()
	var all grpc_health_v1.HealthCheckResponse_ServingStatus
	for i, name := range []string{
		"", "countinghouse.exchange.v1.OrderEntry", "countinghouse.exchange.v1.MarketData",
		"countinghouse.exchange.v1.Accounts", "countinghouse.exchange.v1.Control",
	} {
		h, err := grpc_health_v1.NewHealthClient(conn).Check(bounded(t), &grpc_health_v1.HealthCheckRequest{Service: name})
		if err != nil {
			t.Fatalf("health of %q: %v", name, err)
		}
		if i > 0 && h.Status != all {
			t.Errorf("%q is %v, others %v", name, h.Status, all)
		}
		all = h.Status
	}
	return all
}

// While the exchange recovers, health and metrics answer and nothing else does.
func TestBeforeStart(t *testing.T) {
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	t.Cleanup(func() { s.Stop(0) })
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if h := healthOf(t, conn); h != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health: %v", h)
	}
	_, err = pb.NewOrderEntryClient(conn).Submit(t.Context(), buy())
	refused(t, err, codes.Unavailable, "unavailable", "starting")
	_, err = pb.NewAccountsClient(conn).Account(t.Context(), &pb.AccountRequest{Account: 1})
	refused(t, err, codes.Unavailable, "unavailable", "starting")
	_, err = pb.NewControlClient(conn).State(t.Context(), &pb.StateRequest{})
	refused(t, err, codes.Unavailable, "unavailable", "starting")
	books, err := pb.NewMarketDataClient(conn).Books(bounded(t), &pb.BookRequest{Instrument: "IF2501"})
	if err == nil {
		_, err = books.Recv()
	}
	refused(t, err, codes.Unavailable, "unavailable", "starting")
	w := httptest.NewRecorder()
	s.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(w.Body.String(), "countinghouse_exchange_started 0") {
		t.Errorf("metrics: %.200s", w.Body)
	}
}

// Each service has a health of its own name.
func TestHealthByService(t *testing.T) {
	f := start(t, Options{})
	if h := healthOf(t, f.conn); h != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v", h)
	}
	f.server.Drain()
	if h := healthOf(t, f.conn); h != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health after Drain: %v", h)
	}
}
