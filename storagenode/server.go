package storagenode

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/codec"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// ReadyService is the name under which the health service states readiness: a
// leader is known and the replica has caught up. The health of "" is that of the
// process.
const ReadyService = "countinghouse.ready"

const (
	windowBytes        = 8 << 20
	bufferBytes        = 128 << 10 // of a connection, each way
	messageBytesMax    = 16 << 20
	keepaliveInterval  = 10 * time.Second
	keepaliveTimeout   = 5 * time.Second
	keepaliveMinimum   = 5 * time.Second
	readyCheckInterval = 50 * time.Millisecond
	stopGrace          = 2 * time.Second
)

// Options bound a Server. Zero fields take their defaults.
type Options struct {
	// AppendWindow bounds the batches of one Append stream that are not answered
	// yet; default 64.
	AppendWindow int
	// QueriesMax bounds the Get, Scan, Tail and Verify calls at a time; default 256.
	QueriesMax int
	// AppendStreamsMax bounds the Append streams at a time; default 256. Where all
	// are taken, one that got nothing for ReaderTimeout gives its place away.
	AppendStreamsMax int
	// ConnectionsMax bounds the connections at a time, those of the shard's other
	// members among them; more are closed at once. Default 4096.
	ConnectionsMax int
	// StreamsMax bounds the calls at a time of one connection; the client waits.
	// Default 1024.
	StreamsMax uint32
	// ReaderTimeout is after how long a client that takes nothing of what it is sent
	// loses its stream; default 1 min.
	ReaderTimeout time.Duration
	// ChunkBytes is the size in bytes of a Records message; default 1 MiB.
	ChunkBytes int
	// Version is what Status reports as the node's build.
	Version string
	// TLS, if set, are the node's certificate and the authorities that it trusts:
	// whoever connects must show a certificate of the cluster, and may call what
	// Access gives its role. Otherwise connections are not encrypted, and anyone may
	// call anything. The caller runs it.
	TLS *identity.Source
}

func (o Options) withDefaults() Options {
	if o.AppendWindow <= 0 {
		o.AppendWindow = 64
	}
	if o.QueriesMax <= 0 {
		o.QueriesMax = 256
	}
	if o.AppendStreamsMax <= 0 {
		o.AppendStreamsMax = 256
	}
	if o.ConnectionsMax <= 0 {
		o.ConnectionsMax = 4096
	}
	if o.StreamsMax == 0 {
		o.StreamsMax = 1024
	}
	if o.ReaderTimeout <= 0 {
		o.ReaderTimeout = time.Minute
	}
	if o.ChunkBytes <= 0 {
		o.ChunkBytes = 1 << 20
	}
	o.ChunkBytes = max(o.ChunkBytes/record.Size, 1) * record.Size
	return o
}

// Server serves one replica.
type Server struct {
	opts    Options
	replica *replica.Replica
	grpc    *grpc.Server
	health  *health.Server
	metrics *metrics
	queries chan struct{} // a place for each query under way
	appends appendStreams
	listens *limitedListener
	stop    context.CancelFunc
	stopped context.Context // ends with Stop
}

// New returns a server for r, whose services are registered but not yet served.
func New(r *replica.Replica, o Options) *Server {
	o = o.withDefaults()
	s := &Server{
		opts: o, replica: r, health: health.NewServer(), metrics: newMetrics(),
		queries: make(chan struct{}, o.QueriesMax),
		appends: appendStreams{began: time.Now(), max: o.AppendStreamsMax, idle: o.ReaderTimeout, open: make(map[*appendStream]bool)},
	}
	s.listens = &limitedListener{places: make(chan struct{}, o.ConnectionsMax), metrics: s.metrics}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(s.serverOptions()...)
	r.Transport().Register(s.grpc)
	storagepb.RegisterIngestServer(s.grpc, &ingest{server: s})
	storagepb.RegisterQueryServer(s.grpc, &query{server: s})
	storagepb.RegisterAdminServer(s.grpc, &admin{server: s})
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	s.health.SetServingStatus(ReadyService, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return s
}

func (s *Server) serverOptions() []grpc.ServerOption {
	guard := identityGuard{cluster: s.replica.Cluster(), shard: s.replica.Shard(), id: s.replica.ID(), generation: s.replica.Generation}
	unary := []grpc.UnaryServerInterceptor{guard.unary}
	stream := []grpc.StreamServerInterceptor{guard.stream, impatient{s.opts.ReaderTimeout, s.metrics, s.listens.undrained}.stream}
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec.New()),
		grpc.WriteBufferSize(bufferBytes),
		grpc.ReadBufferSize(bufferBytes),
		grpc.InitialWindowSize(windowBytes),
		grpc.InitialConnWindowSize(windowBytes),
		grpc.MaxRecvMsgSize(messageBytesMax),
		grpc.MaxSendMsgSize(messageBytesMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveInterval, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinimum, PermitWithoutStream: true}),
		grpc.MaxConcurrentStreams(s.opts.StreamsMax),
	}
	if s.opts.TLS != nil {
		gate := identity.Gate{Access: Access, Shard: s.replica.Shard(), Refused: s.metrics.forbid}
		unary = append([]grpc.UnaryServerInterceptor{gate.Unary}, unary...)
		stream = append([]grpc.StreamServerInterceptor{gate.Stream}, stream...)
		options = append(options, grpc.Creds(s.opts.TLS.Server()))
	}
	return append(options, grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...))
}

// Serve serves the listener until Stop is called or the listener fails.
func (s *Server) Serve(l net.Listener) error {
	go s.reportReadiness()
	s.listens.Listener = l
	err := s.grpc.Serve(s.listens)
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Stop ends the server: append streams, tails and Raft's streams are told at
// once, other calls get a short grace.
func (s *Server) Stop() {
	s.stop()
	s.health.Shutdown()
	s.replica.Transport().StopServing()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-time.After(stopGrace):
		s.grpc.Stop()
		<-done
	}
}

// reportReadiness keeps the health service's view of readiness up to date.
func (s *Server) reportReadiness() {
	ticker := time.NewTicker(readyCheckInterval)
	defer ticker.Stop()
	for {
		st := grpc_health_v1.HealthCheckResponse_NOT_SERVING
		if s.replica.Ready() {
			st = grpc_health_v1.HealthCheckResponse_SERVING
		}
		s.health.SetServingStatus(ReadyService, st)
		select {
		case <-ticker.C:
		case <-s.stopped.Done():
			return
		}
	}
}

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s.metrics.all() {
		c.Describe(ch)
	}
	s.replica.Describe(ch)
}

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s.metrics.all() {
		c.Collect(ch)
	}
	s.replica.Collect(ch)
}

// asStatus makes an error of the replica or the store one that gRPC can send.
func asStatus(err error) error {
	switch {
	case err == nil:
		return nil
	case refusal.FromError(err) != nil:
		return refusal.FromError(err).GRPCStatus().Err()
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.Is(err, record.ErrCorrupt):
		return refusal.New(storagepb.Code_CODE_CORRUPT, "%v", err).GRPCStatus().Err()
	case errors.Is(err, io.EOF):
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, err.Error())
}
