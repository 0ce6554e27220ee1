package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/countinghouse/countinghouse/storagenode/codec"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// The metadata keys that every call to a storage node carries.
const (
	MetadataCluster = "countinghouse-cluster"
	MetadataShard   = "countinghouse-shard"
	// MetadataGeneration is the highest generation of the shard that the caller has
	// met, in decimal; a call may be without it. A member of an earlier one refuses.
	MetadataGeneration = "countinghouse-generation"
)

const (
	defaultMessageBytesMax    = 4 << 20
	defaultPipelineMax        = 32
	defaultAppendTimeout      = 10 * time.Second
	defaultVoteTimeout        = time.Second
	defaultSnapshotIdle       = 30 * time.Second
	defaultSnapshotFinish     = 10 * time.Minute
	defaultSnapshotPace       = 100 << 20
	snapshotChunkBytes        = 1 << 20
	windowBytes               = 8 << 20
	bufferBytes               = 128 << 10 // of a connection, each way
	grpcMessageBytesMax       = 16 << 20
	reconnectBaseDelay        = 20 * time.Millisecond
	reconnectMaxDelay         = 500 * time.Millisecond
	connectTimeout            = time.Second
	keepaliveInterval         = 10 * time.Second
	keepaliveTimeout          = 5 * time.Second
	entryOverheadBytes        = 64
	heartbeatTimeoutFallback  = 2 * time.Second
	errTransportClosedMessage = "raft transport is closed"
)

var errTransportClosed = errors.New(errTransportClosedMessage)

// TransportOptions configure a Transport. Zero fields take their defaults.
type TransportOptions struct {
	// Cluster and Shard are presented to peers, which refuse others.
	Cluster, Shard string
	// Address is the address under which peers reach this node.
	Address string
	// MessageBytesMax is the size in bytes above which one AppendEntries
	// request is sent as several messages; default 4 MiB. A message holds at
	// least one entry.
	MessageBytesMax int
	// PipelineMax bounds the unanswered requests of one pipeline; default 32.
	PipelineMax int
	// AppendTimeout is how long a peer may take to answer AppendEntries;
	// default 10 s. The peer writes to its disk before it answers.
	AppendTimeout time.Duration
	// HeartbeatTimeout is how long a peer may take to answer a heartbeat;
	// default 2 s.
	HeartbeatTimeout time.Duration
	// VoteTimeout bounds a vote request and TimeoutNow; default 1 s.
	VoteTimeout time.Duration
	// SnapshotIdleTimeout ends a snapshot transfer that makes no progress;
	// default 30 s.
	SnapshotIdleTimeout time.Duration
	// SnapshotFinishTimeout is how long a peer may take to read what it has of a
	// snapshot, or to check and adopt what it was sent; default 10 min.
	SnapshotFinishTimeout time.Duration
	// SnapshotChunkBytes is how much of a snapshot one message holds; default, and
	// at most, 1 MiB.
	SnapshotChunkBytes int
	// SnapshotBytesPerSecond bounds what is sent of snapshots, to all peers
	// together; default 100 MiB, at least 1 MiB, negative for no bound.
	SnapshotBytesPerSecond int64
	// DialOptions are added to the connections to peers.
	DialOptions []grpc.DialOption
	Logger      *slog.Logger
}

func (o TransportOptions) withDefaults() TransportOptions {
	setDefault(&o.MessageBytesMax, defaultMessageBytesMax)
	setDefault(&o.PipelineMax, defaultPipelineMax)
	setDefault(&o.AppendTimeout, defaultAppendTimeout)
	setDefault(&o.HeartbeatTimeout, heartbeatTimeoutFallback)
	setDefault(&o.VoteTimeout, defaultVoteTimeout)
	setDefault(&o.SnapshotIdleTimeout, defaultSnapshotIdle)
	setDefault(&o.SnapshotFinishTimeout, defaultSnapshotFinish)
	setDefault(&o.SnapshotBytesPerSecond, defaultSnapshotPace)
	setDefault(&o.SnapshotChunkBytes, snapshotChunkBytes)
	o.SnapshotChunkBytes = min(o.SnapshotChunkBytes, snapshotChunkBytes)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Transport carries Raft's messages over gRPC. It implements raft.Transport and
// raft.WithPreVote. It deliberately has no method Close, which the library would
// call with the end of a Raft instance: the transport outlives it, because the
// instance may be replaced while the node runs.
//
// All methods may be called from any goroutine.
type Transport struct {
	opts      TransportOptions
	consumer  chan raft.RPC
	log       durableLog // what is on this member's disk
	progress  progressTable
	transfers transferTable
	pace      *rate.Limiter // of the bytes of snapshots

	receiverMu sync.RWMutex
	receiver   snapshotReceiver // guarded by receiverMu
	// generations are kept apart by it; nil: they are not. Guarded by receiverMu.
	generations generations
	reception   *reception // guarded by receiverMu; nil for none
	receiveOf   uint64     // guarded by receiverMu; the latest term of a sender

	ctx    context.Context // ends with Stop; carries the cluster's metadata
	cancel context.CancelFunc

	serving     context.Context // of incoming calls; ends with StopServing
	stopServing context.CancelFunc

	installing chan struct{} // has room for the one snapshot that is received

	mu         sync.Mutex
	peers      map[raft.ServerAddress]*peer // guarded by mu
	calls      context.Context              // of outgoing calls; guarded by mu
	cancelCall context.CancelFunc           // guarded by mu
}

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
)

// durableLog tells what of the log is on disk; see writeBehind.
type durableLog interface {
	// durable returns the index up to which all entries are.
	durable() uint64
	// awaitDurable waits until they are up to index.
	awaitDurable(ctx context.Context, index uint64) error
	// losses returns how often entries that had been taken were dropped.
	losses() uint64
}

// syncedLog is a log that has everything on disk.
type syncedLog struct{}

func (syncedLog) losses() uint64                                   { return 0 }
func (syncedLog) durable() uint64                                  { return math.MaxUint64 }
func (syncedLog) awaitDurable(ctx context.Context, _ uint64) error { return ctx.Err() }

// NewTransport returns a transport that is not yet registered with a server.
func NewTransport(o TransportOptions) *Transport {
	o = o.withDefaults()
	ctx, cancel := context.WithCancel(WithIdentity(context.Background(), o.Cluster, o.Shard))
	t := &Transport{
		opts:     o,
		consumer: make(chan raft.RPC),
		log:      syncedLog{},
		pace:     rate.NewLimiter(rate.Inf, snapshotChunkBytes),
		ctx:      ctx,
		cancel:   cancel,
		peers:    make(map[raft.ServerAddress]*peer),

		installing: make(chan struct{}, 1),
	}
	if o.SnapshotBytesPerSecond > 0 {
		t.pace.SetLimit(rate.Limit(o.SnapshotBytesPerSecond))
	}
	t.calls, t.cancelCall = context.WithCancel(ctx)
	t.serving, t.stopServing = context.WithCancel(ctx)
	return t
}

// StopServing ends all incoming streams, which otherwise last as long as the
// peers' processes, and refuses further ones.
func (t *Transport) StopServing() { t.stopServing() }

// interrupt ends all outgoing calls. Calls made after it go on as usual.
func (t *Transport) interrupt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancelCall()
	t.calls, t.cancelCall = context.WithCancel(t.ctx)
}

// WithIdentity returns a context whose outgoing calls name the cluster and the
// shard that the caller means to reach.
func WithIdentity(ctx context.Context, cluster, shard string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, MetadataCluster, cluster, MetadataShard, shard)
}

// Stop ends all streams and connections. Calls that wait return an error.
func (t *Transport) Stop() {
	t.cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.peers {
		p.conn.Close()
	}
	clear(t.peers)
}

// Consumer implements raft.Transport.
func (t *Transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr implements raft.Transport.
func (t *Transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.opts.Address) }

// EncodePeer implements raft.Transport.
func (t *Transport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

// DecodePeer implements raft.Transport.
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport and does nothing, so that
// heartbeats go through Raft's main loop like every other message. The library's
// handler would change the term from a second goroutine while the main loop
// works with it, which can make two nodes write different entries in one term.
// The price is that a heartbeat waits for the write before it; heartbeat
// timeouts must be well above the slowest fsync.
func (t *Transport) SetHeartbeatHandler(func(raft.RPC)) {}

// peer is what the transport keeps for one remote address.
type peer struct {
	conn *grpc.ClientConn
	raft storagepb.RaftTransportClient
	// Heartbeats have a stream of their own: they must not queue behind entries.
	heartbeats callStream
	appends    callStream
}

// peer returns the connection to a, which is dialled when first used, and the
// context for a call.
func (t *Transport) peer(a raft.ServerAddress) (context.Context, *peer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, nil, errTransportClosed
	}
	if p, ok := t.peers[a]; ok {
		return t.calls, p, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+string(a), t.dialOptions()...)
	if err != nil {
		return nil, nil, fmt.Errorf("peer %s: %w", a, err)
	}
	p := &peer{conn: conn, raft: storagepb.NewRaftTransportClient(conn)}
	t.peers[a] = p
	return t.calls, p, nil
}

func (t *Transport) dialOptions() []grpc.DialOption {
	return append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithReadBufferSize(bufferBytes),
		grpc.WithInitialWindowSize(windowBytes),
		grpc.WithInitialConnWindowSize(windowBytes),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec.New()),
			grpc.MaxCallRecvMsgSize(grpcMessageBytesMax), grpc.MaxCallSendMsgSize(grpcMessageBytesMax)),
		// A peer that restarts must be found again within a heartbeat or two.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectBaseDelay, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMaxDelay},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveInterval, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
	}, t.opts.DialOptions...)
}

// retain closes the connections to all addresses but those.
func (t *Transport) retain(members map[raft.ServerAddress]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a, p := range t.peers {
		if !members[a] {
			p.conn.Close()
			delete(t.peers, a)
		}
	}
}

// Conn returns the connection to the node at address, for calls to its other
// services. The transport owns it. The context of such calls must come from
// WithIdentity.
func (t *Transport) Conn(address string) (grpc.ClientConnInterface, error) {
	_, p, err := t.peer(raft.ServerAddress(address))
	if err != nil {
		return nil, err
	}
	return p.conn, nil
}

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.unary(target, func(ctx context.Context, c storagepb.RaftTransportClient) error {
		r, err := c.RequestVote(ctx, &storagepb.RequestVoteRequest{
			Header: headerToProto(args.RPCHeader), Term: args.Term,
			LastLogIndex: args.LastLogIndex, LastLogTerm: args.LastLogTerm,
			LeadershipTransfer: args.LeadershipTransfer,
		})
		if err == nil {
			resp.RPCHeader, resp.Term, resp.Granted = headerFromProto(r.Header), r.Term, r.Granted
		}
		return err
	})
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.unary(target, func(ctx context.Context, c storagepb.RaftTransportClient) error {
		r, err := c.RequestPreVote(ctx, &storagepb.RequestPreVoteRequest{
			Header: headerToProto(args.RPCHeader), Term: args.Term,
			LastLogIndex: args.LastLogIndex, LastLogTerm: args.LastLogTerm,
		})
		if err == nil {
			resp.RPCHeader, resp.Term, resp.Granted = headerFromProto(r.Header), r.Term, r.Granted
		}
		return err
	})
}

// TimeoutNow implements raft.Transport. Its timeout matters: the library waits
// for the call without one of its own, and refuses entries meanwhile.
func (t *Transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.unary(target, func(ctx context.Context, c storagepb.RaftTransportClient) error {
		r, err := c.TimeoutNow(ctx, &storagepb.TimeoutNowRequest{Header: headerToProto(args.RPCHeader)})
		if err == nil {
			resp.RPCHeader = headerFromProto(r.Header)
		}
		return err
	})
}

func (t *Transport) unary(target raft.ServerAddress, call func(context.Context, storagepb.RaftTransportClient) error) error {
	calls, p, err := t.peer(target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(calls, t.opts.VoteTimeout)
	defer cancel()
	return t.noteRefused(call(ctx, p.raft))
}
