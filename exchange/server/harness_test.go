package server

import (
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/countinghouse/countinghouse/exchange"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// backend is an exchange without storage, whose records become durable when the
// test says so.
type backend struct {
	*exchange.Exchange

	mu      sync.Mutex
	waiting []func(error)
	arrived chan struct{} // receives for each wait
}

func (b *backend) OnDurable(_ uint64, done func(error)) {
	b.mu.Lock()
	b.waiting = append(b.waiting, done)
	b.mu.Unlock()
	b.arrived <- struct{}{}
}

// release ends all waits with err.
func (b *backend) release(err error) {
	b.mu.Lock()
	waiting := b.waiting
	b.waiting = nil
	b.mu.Unlock()
	for _, done := range waiting {
		done(err)
	}
}

// fixture is a server with a client's connection to it.
type fixture struct {
	x      *backend
	server *Server
	conn   *grpc.ClientConn
	entry  pb.OrderEntryClient
	data   pb.MarketDataClient
	money  pb.AccountsClient
	ctl    pb.ControlClient
}

const (
	middle = "3921.4" // IF2501
	funds  = 1_000_000_000_00
)

func start(t *testing.T, o Options) *fixture {
	t.Helper()
	return startWith(t, o, func(*exchange.Config) {})
}

// startWith is start of an exchange that is configured otherwise.
func startWith(t *testing.T, o Options, change func(*exchange.Config)) *fixture {
	t.Helper()
	set, err := order.DefaultSet()
	if err != nil {
		t.Fatal(err)
	}
	config := exchange.Config{
		Shards: &client.Map{Cluster: "test", Shards: []client.Shard{{
			Name: "s1", Instruments: []string{"IF2501", "IC2501", "IH2501", record.AccountStream},
			Members: []client.Member{{ID: "a", Address: "127.0.0.1:1"}},
		}}},
		Instruments: set, OutboxDir: filepath.Join(t.TempDir(), "outbox"), SegmentRecords: 8192,
		Init: true, DrainWait: 20 * time.Millisecond, CloseWait: time.Millisecond,
	}
	change(&config)
	x, err := exchange.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	b := &backend{Exchange: x, arrived: make(chan struct{}, 1024)}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(b); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	t.Cleanup(func() { s.Stop(100 * time.Millisecond) })
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f := &fixture{
		x: b, server: s, conn: conn, entry: pb.NewOrderEntryClient(conn), data: pb.NewMarketDataClient(conn),
		money: pb.NewAccountsClient(conn), ctl: pb.NewControlClient(conn),
	}
	for id := uint64(1); id <= 2; id++ {
		if _, err := f.money.OpenAccount(t.Context(), &pb.OpenAccountRequest{Account: id}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.money.Deposit(t.Context(), &pb.CashRequest{Account: id, Amount: funds}); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// buy is a good order; sell is the one that meets it.
func buy() *pb.SubmitRequest {
	return &pb.SubmitRequest{
		Instrument: "IF2501", Account: 1, ClientOrderId: 7, Side: pb.Side_SIDE_BUY, Offset: pb.Offset_OFFSET_OPEN, Price: middle, Volume: 2,
	}
}

func sell() *pb.SubmitRequest {
	r := buy()
	r.Account, r.Side, r.Volume = 2, pb.Side_SIDE_SELL, 1
	return r
}

func (f *fixture) submit(t *testing.T, r *pb.SubmitRequest) *pb.OrderResponse {
	t.Helper()
	out, err := f.entry.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// trade makes n trades of one lot.
func (f *fixture) trade(t *testing.T, n int) {
	t.Helper()
	for range n {
		b := buy()
		b.Volume = 1
		f.submit(t, b)
		if out := f.submit(t, sell()); out.State != pb.OrderState_ORDER_STATE_FILLED {
			t.Fatalf("no trade: %v", out)
		}
	}
}
