package orders

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/exchange/core"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/server"
)

// service is a server on loopback and a client's connection to it.
type service struct {
	entry pb.OrderEntryClient
	close func() error
}

// serviceOpener starts a server for the flow, whose warm-up is done.
type serviceOpener func(f *flow, dir string) (*service, error)

// grace is how long a server waits for calls when it is stopped; there are none.
const grace = time.Second

// serveAndDial serves on a free port until stop, which ends serve.
func serveAndDial(serve func(net.Listener) error, stop func(), end func() error) (*service, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, end())
	}
	served := make(chan error, 1)
	go func() { served <- serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		stop()
		return nil, errors.Join(err, <-served, end())
	}
	return &service{entry: pb.NewOrderEntryClient(conn), close: func() error {
		err := conn.Close()
		stop()
		return errors.Join(err, <-served, end())
	}}, nil
}

// backend is an exchange for the server, whose records are delivered nowhere.
type backend struct{ *exchangeSystem }

func (b backend) Router() *core.Router              { return b.router }
func (b backend) Fanout() *gateway.Fanout           { return b.router.Fanout() }
func (b backend) OnDurable(_ uint64, f func(error)) { f(errNotDurable) }
func (b backend) Stats() exchange.Stats             { return exchange.Stats{Core: b.router.Totals()} }
func (b backend) Collector() prometheus.Collector   { return noMetrics{} }
func (b backend) State() (core.State, error) {
	s, _ := b.router.State()
	return s, nil
}

var errNotDurable = errors.New("nothing is stored")

// noMetrics is a collector of nothing.
type noMetrics struct{}

func (noMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- prometheus.NewDesc("bench_nothing", "Nothing.", nil, nil)
}
func (noMetrics) Collect(chan<- prometheus.Metric) {}

// serveExchange starts the exchange's own server.
func serveExchange(f *flow, dir string) (*service, error) {
	x, err := openExchange(f, dir)
	if err != nil {
		return nil, err
	}
	s, err := server.New(server.Options{})
	if err == nil {
		err = s.Start(backend{x.(*exchangeSystem)})
	}
	if err != nil {
		return nil, errors.Join(err, x.close())
	}
	return serveAndDial(s.Serve, func() { s.Stop(grace) }, x.close)
}

// serveEcho starts a server that is set up like the exchange's and answers every
// request with the same response.
func serveEcho(*flow, string) (*service, error) {
	s := grpc.NewServer(
		grpc.MaxConcurrentStreams(1024), grpc.MaxRecvMsgSize(256<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	)
	pb.RegisterOrderEntryServer(s, echo{})
	return serveAndDial(s.Serve, s.Stop, func() error { return nil })
}

type echo struct {
	pb.UnimplementedOrderEntryServer
}

func echoed() *pb.OrderResponse {
	return &pb.OrderResponse{OrderId: 1 << 20, ClientOrderId: 1 << 20, State: pb.OrderState_ORDER_STATE_RESTING, Remaining: 1, Seq: 1 << 20, Global: 1 << 21}
}

func (echo) Submit(context.Context, *pb.SubmitRequest) (*pb.OrderResponse, error) {
	return echoed(), nil
}

func (echo) Cancel(context.Context, *pb.CancelRequest) (*pb.OrderResponse, error) {
	return echoed(), nil
}

func (echo) Amend(context.Context, *pb.AmendRequest) (*pb.OrderResponse, error) {
	return echoed(), nil
}

func (echo) Session(stream grpc.BidiStreamingServer[pb.SessionRequest, pb.SessionResponse]) error {
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.SessionResponse{RequestId: in.RequestId, Response: echoed()}); err != nil {
			return err
		}
	}
}
