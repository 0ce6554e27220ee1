package storagenode_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/countinghouse/countinghouse/controllers/certificates"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/identity/identitytest"
	"github.com/countinghouse/countinghouse/storagenode"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

var nodeIdentity = identity.Identity{Cluster: clusterName, Role: identity.Node, Shard: shardName}

// newClusterTLS starts n voters with certificates of the authority that it returns.
// The tests' own connections are those of an exchange.
func newClusterTLS(t testing.TB, n int, change func(*replica.Config)) (*cluster, *certificates.Authority) {
	t.Helper()
	ca := identitytest.Authority(t, clusterName)
	node := identitytest.Source(t, ca, nodeIdentity)
	exchange := identitytest.Source(t, ca, identity.Identity{Cluster: clusterName, Role: identity.Exchange})
	return newClusterWith(t, n, storagenode.Options{TLS: node}, exchange.Client(nodeIdentity), func(cfg *replica.Config) {
		cfg.Transport.DialOptions = append(cfg.Transport.DialOptions, grpc.WithTransportCredentials(node.Client(nodeIdentity)))
		if change != nil {
			change(cfg)
		}
	}), ca
}

// methods returns the full names of what a member serves.
func (m *member) methods() (all []string) {
	for service, info := range m.running.Load().server.Services() {
		for _, method := range info.Methods {
			all = append(all, "/"+service+"/"+method.Name)
		}
	}
	slices.Sort(all)
	return all
}

func TestEveryMethodStandsInTheTable(t *testing.T) {
	c := newCluster(t, 1, nil)
	served := c.members[0].methods()
	for _, method := range served {
		if len(storagenode.Access[method]) == 0 {
			t.Errorf("%s: the table says nothing of it", method)
		}
	}
	for method := range storagenode.Access {
		if !slices.Contains(served, method) {
			t.Errorf("%s: is not served", method)
		}
	}
	t.Logf("%d methods", len(served))
}

// Each role may call what the table says, and nothing else.
func TestEachRoleIsHeldToTheTable(t *testing.T) {
	c, ca := newClusterTLS(t, 1, nil)
	c.leader()
	m := c.members[0]
	strangers := identity.Identity{Cluster: clusterName, Role: identity.Node, Shard: "s2"}
	ids := []identity.Identity{nodeIdentity, strangers}
	for _, role := range identity.Roles {
		if role != identity.Node {
			ids = append(ids, identity.Identity{Cluster: clusterName, Role: role})
		}
	}
	var allowed, refused int
	for _, id := range ids {
		conn, err := grpc.NewClient("passthrough:///"+m.address, grpc.WithTransportCredentials(identitytest.Source(t, ca, id).Client(nodeIdentity)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		for _, method := range m.methods() {
			err := call(t, conn, method)
			if slices.Contains(storagenode.Access[method], id.Role) && id != strangers {
				allowed++
				if c := grpcstatus.Code(err); c == codes.PermissionDenied || c == codes.Unauthenticated {
					t.Errorf("%s may call %s: %v", id, method, err)
				}
				continue
			}
			refused++
			if grpcstatus.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), method) || !strings.Contains(err.Error(), string(id.Role)) {
				t.Errorf("%s may not call %s: %v", id, method, err)
			}
		}
	}
	t.Logf("%d calls allowed, %d refused", allowed, refused)
}

// call sends an empty message and returns how the call ends, or nil once it is
// answered.
func call(t *testing.T, conn *grpc.ClientConn, method string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(replica.WithIdentity(t.Context(), clusterName, shardName), 2*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	_ = stream.SendMsg(&emptypb.Empty{}) // RecvMsg says what is wrong
	_ = stream.CloseSend()
	return stream.RecvMsg(&emptypb.Empty{})
}

// Members with certificates form a shard, and say whom they trust.
func TestShardWithCertificates(t *testing.T) {
	c, ca := newClusterTLS(t, 3, nil)
	leader := c.leader()
	open(t, leader, "A", 1)
	if got := send(t, leader, batch(t, "A", 1, 1, 10)); got[0].Refusal != nil {
		t.Error(got[0].Refusal)
	}
	for _, m := range c.members {
		st, err := m.admin().Status(testContext(t), &storagepb.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(st.TrustedAuthorities, []string{ca.Fingerprint()}) || st.CertificateIssuer != ca.Fingerprint() {
			t.Errorf("%s trusts %v, issued by %s", m.id, st.TrustedAuthorities, st.CertificateIssuer)
		}
	}
}

// Probes over HTTP are answered as the health service does.
func TestHealthOverHTTP(t *testing.T) {
	c := newCluster(t, 1, nil)
	server := c.members[0].running.Load().server
	probe := func(service string) int {
		answer := httptest.NewRecorder()
		server.Health(service).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", nil))
		return answer.Code
	}
	eventually(t, "readiness", func() bool { return probe(storagenode.ReadyService) == http.StatusOK })
	if probe("") != http.StatusOK || probe("unknown") != http.StatusServiceUnavailable {
		t.Errorf("process %d, unknown %d", probe(""), probe("unknown"))
	}
	server.Stop()
	if probe("") != http.StatusServiceUnavailable || probe(storagenode.ReadyService) != http.StatusServiceUnavailable {
		t.Errorf("after the stop: process %d, ready %d", probe(""), probe(storagenode.ReadyService))
	}
}
