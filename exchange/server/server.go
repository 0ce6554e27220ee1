package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/exchange/core"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/identity"
)

// Backend is the exchange as the server needs it; *exchange.Exchange is one.
type Backend interface {
	Router() *core.Router
	Fanout() *gateway.Fanout
	OnDurable(global uint64, done func(error))
	State() (core.State, error)
	Stats() exchange.Stats
	Collector() prometheus.Collector
}

// Options bound a Server. The zero value of a field means its default.
type Options struct {
	// ConnectionStreamsMax bounds the calls at a time on one connection.
	// Default 1024.
	ConnectionStreamsMax int
	// MessageBytesMax bounds a request. Default 256 KiB.
	MessageBytesMax int
	// DurableWaitsMax bounds the requests that wait for durability, and
	// SessionDurableWaitsMax those of one session. Defaults 65536 and 16384.
	DurableWaitsMax, SessionDurableWaitsMax int
	// SessionAnswersMax bounds the answers that a session has not taken yet;
	// then its requests are not read. Default 1024.
	SessionAnswersMax int
	// SubscribersMax bounds the Books and Executions streams at a time.
	// Default 256.
	SubscribersMax int
	// SubscriberEventsMax is how far a subscriber may lag before it misses
	// events. Default gateway.DefaultRingEvents.
	SubscriberEventsMax int
	// BookPause is the least time between two updates of one Books stream.
	// Default 1 ms.
	BookPause time.Duration
	// Metrics are served beside the server's own, from New on.
	Metrics []prometheus.Collector
	// TLS, if set, are the exchange's certificate and the authorities that it
	// trusts: whoever connects must show a certificate of the cluster, and may call
	// what Access gives its role. Otherwise connections are not encrypted, and anyone
	// may call anything. The caller runs it.
	TLS *identity.Source
}

func (o *Options) complete() error {
	for _, f := range []struct {
		name string
		v    *int
		def  int
		most int
	}{
		{"ConnectionStreamsMax", &o.ConnectionStreamsMax, 1024, 1 << 20},
		{"MessageBytesMax", &o.MessageBytesMax, 256 << 10, 16 << 20},
		{"DurableWaitsMax", &o.DurableWaitsMax, 65536, 1 << 24},
		{"SessionDurableWaitsMax", &o.SessionDurableWaitsMax, 16384, 1 << 24},
		{"SessionAnswersMax", &o.SessionAnswersMax, 1024, 1 << 20},
		{"SubscribersMax", &o.SubscribersMax, 256, 1 << 16},
		{"SubscriberEventsMax", &o.SubscriberEventsMax, gateway.DefaultRingEvents, 1 << 20},
	} {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < 1 || *f.v > f.most {
			return fmt.Errorf("exchange server: %s: %d: use 1 to %d", f.name, *f.v, f.most)
		}
	}
	if o.BookPause == 0 {
		o.BookPause = time.Millisecond
	}
	if o.BookPause < 0 {
		return fmt.Errorf("exchange server: BookPause: %v is negative", o.BookPause)
	}
	return nil
}

// Server serves one exchange, which may still recover: until Start, health says
// NOT_SERVING, metrics are served, and all other calls are refused with
// Unavailable. Serve, Start and Stop are called once.
type Server struct {
	// Invariant: x is set before started and never changed; who has not seen
	// started does not look at it.
	x       Backend
	started atomic.Bool

	options  Options
	grpc     *grpc.Server
	health   *health.Server
	metrics  metrics
	registry *prometheus.Registry

	durableWaits atomic.Int64
	subscribers  atomic.Int64
	terms        sync.Map // record.Symbol → *order.Instrument; ticks never change

	stopping chan struct{} // ends the streams that have no end of their own
	stop     sync.Once
}

// services are the exchange's own, as the health service names them; "" is all
// of them together.
var services = []string{
	"", pb.OrderEntry_ServiceDesc.ServiceName, pb.MarketData_ServiceDesc.ServiceName,
	pb.Accounts_ServiceDesc.ServiceName, pb.Control_ServiceDesc.ServiceName,
}

// New returns a server that has no exchange yet.
func New(o Options) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Server{options: o, metrics: newMetrics(), stopping: make(chan struct{}), health: health.NewServer()}
	s.registry = s.newRegistry()
	for _, c := range o.Metrics {
		if err := s.registry.Register(c); err != nil {
			return nil, fmt.Errorf("exchange server: %w", err)
		}
	}
	s.grpc = grpc.NewServer(append(s.protection(),
		grpc.MaxConcurrentStreams(uint32(o.ConnectionStreamsMax)),
		grpc.MaxRecvMsgSize(o.MessageBytesMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.admitUnary),
		grpc.ChainStreamInterceptor(s.admitStream),
	)...)
	pb.RegisterOrderEntryServer(s.grpc, &orderEntry{Server: s})
	pb.RegisterMarketDataServer(s.grpc, &marketData{Server: s})
	pb.RegisterAccountsServer(s.grpc, &accounts{Server: s})
	pb.RegisterControlServer(s.grpc, &control{Server: s})
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	s.tell(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return s, nil
}

// protection are the server's options that say who may connect and call. Its
// interceptors come first.
func (s *Server) protection() []grpc.ServerOption {
	if s.options.TLS == nil {
		return nil
	}
	s.registry.MustRegister(s.options.TLS)
	gate := identity.Gate{Access: Access, Refused: s.metrics.forbid}
	return []grpc.ServerOption{
		grpc.Creds(s.options.TLS.Server()), grpc.ChainUnaryInterceptor(gate.Unary), grpc.ChainStreamInterceptor(gate.Stream),
	}
}

// tell sets what the health service answers for all services.
func (s *Server) tell(status grpc_health_v1.HealthCheckResponse_ServingStatus) {
	for _, name := range services {
		s.health.SetServingStatus(name, status)
	}
}

// Start opens the server to calls for x, which takes orders, and adds its
// metrics.
func (s *Server) Start(x Backend) error {
	s.x = x
	for _, c := range []prometheus.Collector{gauges{s}, x.Collector()} {
		if err := s.registry.Register(c); err != nil {
			return fmt.Errorf("exchange server: %w", err)
		}
	}
	s.started.Store(true)
	s.metrics.started.Set(1)
	s.tell(grpc_health_v1.HealthCheckResponse_SERVING)
	return nil
}

// admit refuses calls to the exchange's own services until Start.
func (s *Server) admit(method string) error {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if s.started.Load() || !slices.Contains(services, service) {
		return nil
	}
	return refusal(risk.Unavailable, "")
}

func (s *Server) admitUnary(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := s.admit(info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, r)
}

func (s *Server) admitStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := s.admit(info.FullMethod); err != nil {
		return err
	}
	return next(srv, stream)
}

// Serve answers on l until Stop is called.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("exchange server: %w", err)
	}
	return nil
}

// Drain tells clients, through the health service, that the exchange is about to
// end. Calls are still answered.
func (s *Server) Drain() { s.health.Shutdown() }

// Stop ends the subscriptions, waits up to grace for the other calls, and ends
// them too.
func (s *Server) Stop(grace time.Duration) {
	s.stop.Do(func() {
		s.health.Shutdown()
		close(s.stopping)
		timer := time.AfterFunc(grace, s.grpc.Stop)
		defer timer.Stop()
		s.grpc.GracefulStop()
	})
}

// streaming returns a context that ends with the stream's or when the server
// stops.
func (s *Server) streaming(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
