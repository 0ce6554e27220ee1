package storagenode

import (
	"context"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

const (
	guardedPrefix = "/countinghouse.storage.v1."
	raftPrefix    = "/countinghouse.storage.v1.RaftTransport/"
)

// identityGuard refuses calls that are meant for another cluster or shard, as
// when an address was given to another node.
type identityGuard struct {
	cluster, shard, id string
	calls              *callCount
}

// callCount counts calls until it is waited for; then it takes no further ones.
type callCount struct {
	mu      sync.Mutex
	closing bool
	calls   sync.WaitGroup
}

func (c *callCount) begin(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return refusal.New(storagepb.Code_CODE_UNAVAILABLE, "member %s is stopping", id)
	}
	c.calls.Add(1)
	return nil
}

func (c *callCount) wait() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.calls.Wait()
}

func (g identityGuard) check(ctx context.Context, method string) error {
	if !strings.HasPrefix(method, guardedPrefix) {
		return nil // health
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, m := range []struct{ key, want string }{
		{replica.MetadataCluster, g.cluster}, {replica.MetadataShard, g.shard},
	} {
		got := md.Get(m.key)
		switch {
		case len(got) == 0:
			return refusal.New(storagepb.Code_CODE_WRONG_CLUSTER, "the call has no metadata %q; member %s expects %q", m.key, g.id, m.want)
		case got[0] != m.want:
			return refusal.New(storagepb.Code_CODE_WRONG_CLUSTER, "%s is %q, but member %s belongs to %q: correct the address or the name", m.key, got[0], g.id, m.want)
		}
	}
	return nil
}

func (g identityGuard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := g.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	if strings.HasPrefix(info.FullMethod, raftPrefix) {
		return handler(ctx, req)
	}
	if err := g.calls.begin(g.id); err != nil {
		return nil, err
	}
	defer g.calls.calls.Done()
	return handler(ctx, req)
}

func (g identityGuard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := g.check(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	if strings.HasPrefix(info.FullMethod, raftPrefix) {
		return handler(srv, ss)
	}
	if err := g.calls.begin(g.id); err != nil {
		return err
	}
	defer g.calls.calls.Done()
	return handler(srv, ss)
}
