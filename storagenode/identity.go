package storagenode

import (
	"context"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

const guardedPrefix = "/countinghouse.storage.v1."

// identityGuard refuses calls that are meant for another cluster or shard, as
// when an address was given to another node.
type identityGuard struct {
	cluster, shard, id string
	generation         func() uint64
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
	if method == storagepb.Admin_Status_FullMethodName {
		return nil // so that it can be seen
	}
	return g.checkGeneration(md)
}

// checkGeneration refuses a caller who has met the shard after a recovery that has
// given this member up.
func (g identityGuard) checkGeneration(md metadata.MD) error {
	for _, v := range md.Get(replica.MetadataGeneration) {
		theirs, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return refusal.New(storagepb.Code_CODE_INVALID, "metadata %q: %q is no number", replica.MetadataGeneration, v)
		}
		if own := g.generation(); own < theirs {
			return refusal.New(storagepb.Code_CODE_GIVEN_UP, "member %s is of generation %d of shard %s, which was recovered without it and is in generation %d",
				g.id, own, g.shard, theirs)
		}
	}
	return nil
}

func (g identityGuard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := g.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (g identityGuard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := g.check(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, ss)
}
