package identity

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Access says which roles may call a method; methods are named as gRPC does it,
// "/package.Service/Method". What is not in it nobody may call.
type Access map[string][]Role

// Gate lets calls pass to which their caller has the right.
type Gate struct {
	Access Access
	// Shard is the only one whose nodes have the rights of Node here.
	Shard string
	// Refused is told of each refusal; the role is empty for a caller without an
	// identity. It must return soon.
	Refused func(method string, role Role)
}

// Check returns an error that gRPC can send unless the caller may call the method.
func (g *Gate) Check(ctx context.Context, method string) error {
	id, ok := FromContext(ctx)
	if !ok {
		g.Refused(method, "")
		return status.Errorf(codes.Unauthenticated, "%s: the connection has no certificate with an identity", method)
	}
	roles := g.Access[method]
	switch {
	case !slices.Contains(roles, id.Role):
		g.Refused(method, id.Role)
		return status.Errorf(codes.PermissionDenied, "role %s may not call %s, as %s tries to: %s may", id.Role, method, id, names(roles))
	case id.Role == Node && id.Shard != g.Shard:
		g.Refused(method, id.Role)
		return status.Errorf(codes.PermissionDenied, "role node may call %s of its own shard, but %s is not of shard %s", method, id, g.Shard)
	}
	return nil
}

func names(roles []Role) string {
	if len(roles) == 0 {
		return "nobody"
	}
	s := make([]string, len(roles))
	for i, r := range roles {
		s[i] = string(r)
	}
	return strings.Join(s, ", ")
}

// Unary is a server's interceptor.
func (g *Gate) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := g.Check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// Stream is a server's interceptor.
func (g *Gate) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := g.Check(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, stream)
}
