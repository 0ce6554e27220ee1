package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/codec"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

// The metadata keys that every call carries; a node of another cluster or shard
// refuses it.
const (
	ClusterKey = "countinghouse-cluster"
	ShardKey   = "countinghouse-shard"
	// GenerationKey holds the highest generation of the shard that the client has met:
	// a member that a recovery from a lost quorum has given up refuses the call.
	GenerationKey = "countinghouse-generation"
)

// Options tune a Client. The zero value of a field takes its default.
type Options struct {
	// AttemptTimeout bounds one attempt at a unary call, and the wait for each
	// message of a Scan or Get; default 5 s. The whole call, with its retries,
	// is bounded by the caller's context.
	AttemptTimeout time.Duration
	// RetryPauseMin and RetryPauseMax bound the pause between two attempts,
	// which doubles and is jittered; defaults 10 ms and 500 ms.
	RetryPauseMin, RetryPauseMax time.Duration
	// TLS, if set, are the client's certificate and the authorities that it trusts:
	// only a node of the shard that is meant is talked to. Otherwise connections are
	// not encrypted. The caller runs it.
	TLS *identity.Source
	// Dial holds further gRPC options.
	Dial []grpc.DialOption
}

const (
	defaultAttemptTimeout = 5 * time.Second
	defaultRetryPauseMin  = 10 * time.Millisecond
	defaultRetryPauseMax  = 500 * time.Millisecond

	connectTimeout    = time.Second
	reconnectPauseMin = 20 * time.Millisecond
	reconnectPauseMax = 500 * time.Millisecond
	keepaliveInterval = 10 * time.Second
	keepaliveTimeout  = 3 * time.Second
	streamWindowBytes = 4 << 20
	connWindowBytes   = 16 << 20
	bufferBytes       = 128 << 10 // of a connection, each way
	receiveBytesMax   = 16 << 20
)

// Client is safe for concurrent use.
type Client struct {
	m      *Map
	o      Options
	shards map[string]*shard
}

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("client is closed")

// New returns a client of the shards in m. It connects when it is first used.
func New(m *Map, o Options) (*Client, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	if o.TLS != nil && o.TLS.Self().Cluster != m.Cluster {
		return nil, fmt.Errorf("shard map of cluster %s: the certificate is that of %s: use one of the same cluster", m.Cluster, o.TLS.Self())
	}
	setDefault(&o.AttemptTimeout, defaultAttemptTimeout)
	setDefault(&o.RetryPauseMin, defaultRetryPauseMin)
	setDefault(&o.RetryPauseMax, defaultRetryPauseMax)
	c := &Client{m: m, o: o, shards: make(map[string]*shard, len(m.Shards))}
	for i := range m.Shards {
		c.shards[m.Shards[i].Name] = newShard(m.Cluster, &m.Shards[i], dialOptions(o, m.Cluster, m.Shards[i].Name))
	}
	return c, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

func dialOptions(o Options, cluster, shard string) []grpc.DialOption {
	transport := insecure.NewCredentials()
	if o.TLS != nil {
		transport = o.TLS.Client(identity.Identity{Cluster: cluster, Role: identity.Node, Shard: shard})
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithReadBufferSize(bufferBytes),
		grpc.WithInitialWindowSize(streamWindowBytes),
		grpc.WithInitialConnWindowSize(connWindowBytes),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec.New()), grpc.MaxCallRecvMsgSize(receiveBytesMax)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveInterval, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectPauseMin, Multiplier: 2, Jitter: 0.2, MaxDelay: reconnectPauseMax},
			MinConnectTimeout: connectTimeout,
		}),
	}
	return append(options, o.Dial...)
}

// Map returns the shard map that New was given. Its members are those of that
// time; see Members.
func (c *Client) Map() *Map { return c.m }

// Members returns a shard's present members, nil for a shard that is not in the
// map. The caller may change the slice.
func (c *Client) Members(shardName string) []Member {
	s, ok := c.shards[shardName]
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.members)
}

// SetMembers replaces a shard's members while the client is in use. Calls and
// streams that are under way go on; the next attempt of each, and every further
// call, goes to one of these members. The connection to a member that is gone is
// closed once no call uses it. An error leaves the members as they are.
func (c *Client) SetMembers(shardName string, members []Member) error {
	s, err := c.shardByName(shardName)
	if err != nil {
		return err
	}
	def := Shard{Name: shardName, Members: slices.Clone(members)}
	if err := def.checkMembers(make(map[string]bool), make(map[string]bool)); err != nil {
		return err
	}
	return s.setMembers(def.Members)
}

// Close ends all connections and every call that uses them.
func (c *Client) Close() error {
	var errs []error
	for _, s := range c.shards {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// shardByName returns a shard of the map.
func (c *Client) shardByName(name string) (*shard, error) {
	if s, ok := c.shards[name]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("no shard %q in the shard map of cluster %s", name, c.m.Cluster)
}

// shardOf returns the shard that owns an instrument.
func (c *Client) shardOf(sym record.Symbol) (*shard, error) {
	if def := c.m.ShardOf(sym.String()); def != nil {
		return c.shards[def.Name], nil
	}
	return nil, fmt.Errorf("no shard of cluster %s owns instrument %s: add it to the shard map", c.m.Cluster, sym)
}

// onLeader runs call on the shard's leader, again and elsewhere as long as its
// error can pass and ctx lasts. Call must be safe to repeat.
func (c *Client) onLeader(ctx context.Context, s *shard, call func(context.Context, *grpc.ClientConn) error) error {
	pauses := pauser{min: c.o.RetryPauseMin, max: c.o.RetryPauseMax}
	var last answers
	for {
		address := s.candidate()
		err := s.on(ctx, address, call)
		if err == nil {
			s.confirm(address)
			return nil
		}
		if ctx.Err() != nil && cutShort(err) {
			return last.failed(s.def.Name, ctx.Err())
		}
		if !canRetry(err) {
			return fmt.Errorf("shard %s: %w", s.def.Name, typed(err))
		}
		last.note(address, err)
		s.doubt(address, err)
		if waitErr := pauses.wait(ctx); waitErr != nil {
			return last.failed(s.def.Name, waitErr)
		}
	}
}

// cutShort reports whether an error says only that the call's context has ended.
func cutShort(err error) bool {
	var own errYield
	var once errOnce
	if errors.As(err, &own) || errors.As(err, &once) {
		return false
	}
	code := status.Code(err)
	return code == codes.Canceled || code == codes.DeadlineExceeded ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// attempt bounds one try of a unary call.
func (c *Client) attempt(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.o.AttemptTimeout)
}

// onMember runs call once, on the named member.
func (c *Client) onMember(ctx context.Context, shardName, id string, call func(context.Context, *grpc.ClientConn) error) error {
	s, err := c.shardByName(shardName)
	if err != nil {
		return err
	}
	present := Shard{Members: c.Members(shardName)}
	member := present.Member(id)
	if member == nil {
		return fmt.Errorf("no member %q in shard %s; it has %v", id, shardName, memberIDs(&present))
	}
	if err := s.on(ctx, member.Address, call); err != nil {
		return fmt.Errorf("shard %s, member %s: %w", shardName, id, typed(err))
	}
	return nil
}

func memberIDs(s *Shard) []string {
	ids := make([]string, len(s.Members))
	for i := range s.Members {
		ids[i] = s.Members[i].ID
	}
	slices.Sort(ids)
	return ids
}

// typed returns the refusal that err carries, else err itself.
func typed(err error) error {
	if r := refusal.FromError(err); r != nil {
		return r
	}
	return err
}

// canRetry reports whether the call can succeed later or on another member.
func canRetry(err error) bool {
	var once errOnce
	if errors.As(err, &once) {
		return false
	}
	if r := refusal.FromError(err); r != nil {
		return refusal.Retryable(r.Code)
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	}
	return false
}

// errOnce marks a failure of a call that may have had its effect, and that
// would do harm the second time.
type errOnce struct{ error }

func (e errOnce) Unwrap() error { return e.error }

// once marks err unless it is a refusal, after which nothing has happened.
func once(err error) error {
	if err == nil || refusal.FromError(err) != nil {
		return err
	}
	return errOnce{err}
}

// pauser waits longer from time to time, with jitter so that clients do not
// come back all at once.
type pauser struct {
	min, max, next time.Duration
}

func (p *pauser) wait(ctx context.Context) error {
	p.next = min(max(2*p.next, p.min), p.max)
	timer := time.NewTimer(p.next/2 + rand.N(p.next/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
