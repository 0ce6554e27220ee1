package identity_test

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/controllers/certificates"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/identity/identitytest"
)

// clock is a time that the test moves.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time       { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) skip(d time.Duration) { c.ahead.Add(int64(d)) }

// serve serves the health service with a source's credentials, and a gate if there
// is one.
func serve(t *testing.T, s *identity.Source, gate *identity.Gate) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	options := []grpc.ServerOption{grpc.Creds(s.Server())}
	if gate != nil {
		options = append(options, grpc.UnaryInterceptor(gate.Unary), grpc.StreamInterceptor(gate.Stream))
	}
	server := grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

func dial(t *testing.T, address string, c credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func check(t *testing.T, conn *grpc.ClientConn) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

// byServer stands for an error whose text the client may not get: the server may
// have closed the connection by then.
const byServer = "desc ="

func TestWhoMayConnect(t *testing.T) {
	ca, foreign := identitytest.Authority(t, "demo"), identitytest.Authority(t, "demo")
	server := identitytest.Source(t, ca, node1)
	address := serve(t, server, nil)
	of := func(by *certificates.Authority, id identity.Identity, trusted ...*certificates.Authority) *identity.Source {
		return identitytest.Source(t, by, id, trusted...)
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}
	node2 := identity.Identity{Cluster: "demo", Role: identity.Node, Shard: "s2"}
	late, err := ca.Issue(exchange, nil, time.Now().Add(-time.Hour), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	back := identity.Options{Now: func() time.Time { return time.Now().Add(-time.Hour) }}
	expired, err := identity.FromPEM(late.Cert, late.Key, identitytest.Bundle(ca), back)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		credentials credentials.TransportCredentials
		want        string // of the error; empty for none, byServer where only the server says it
	}{
		"a certificate of the cluster":           {of(ca, exchange).Client(node1), ""},
		"another shard is meant":                 {of(ca, exchange).Client(node2), "answers where spiffe://demo/node/s2 was expected"},
		"an exchange is meant":                   {of(ca, reader).Client(exchange), "answers where spiffe://demo/exchange was expected"},
		"an authority that the client lacks":     {of(foreign, exchange).Client(node1), "certificate signed by unknown authority"},
		"an authority that the server lacks":     {of(foreign, exchange, ca).Client(node1), byServer},
		"another cluster, by the same authority": {of(ca, identity.Identity{Cluster: "other", Role: identity.Exchange}).Client(node1), "of another cluster"},
		"an expired certificate":                 {expired.Client(node1), byServer},
		"no certificate":                         {credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}), byServer},
		"an older TLS":                           {credentials.NewTLS(old), byServer},
		"no TLS":                                 {insecure.NewCredentials(), byServer},
	} {
		t.Run(what, func(t *testing.T) {
			err := check(t, dial(t, address, c.credentials))
			if c.want == "" && err != nil || c.want != "" && (status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestForeignClusterIsRefusedByTheServer(t *testing.T) {
	ca := identitytest.Authority(t, "demo")
	other := identity.Identity{Cluster: "other", Role: identity.Exchange}
	server := identitytest.Source(t, ca, node1)
	address := serve(t, server, nil)
	// A client that looks at nothing itself.
	p := identitytest.Pair(t, ca, other)
	cert, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	err = check(t, dial(t, address, credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})))
	if status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	metric(t, server, "handshakes_refused_total", "Handshakes refused because of the peer's certificate.", "counter", "1")
}

// lost waits until conn has lost its connection.
func lost(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for conn.GetState() == connectivity.Ready {
		if !conn.WaitForStateChange(ctx, connectivity.Ready) {
			t.Fatal("the connection stays")
		}
	}
}

func TestConnectionsEndWithTheirCertificates(t *testing.T) {
	ca := identitytest.Authority(t, "demo")
	var serverClock clock
	p := identitytest.Pair(t, ca, node1)
	server, err := identity.FromPEM(p.Cert, p.Key, identitytest.Bundle(ca), identity.Options{Now: serverClock.now})
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, serve(t, server, nil), identitytest.Source(t, ca, exchange).Client(node1))
	if err := check(t, conn); err != nil {
		t.Fatal(err)
	}
	serverClock.skip(identitytest.Lifetime - time.Minute)
	server.Sweep()
	if conn.GetState() != connectivity.Ready || check(t, conn) != nil {
		t.Error("a connection ended whose certificate is valid")
	}
	serverClock.skip(2 * time.Minute)
	server.Sweep()
	lost(t, conn)
	if err := check(t, conn); status.Code(err) != codes.Unavailable {
		t.Errorf("back with an expired certificate: %v", err)
	}
	metric(t, server, "connections_ended_total", "Connections ended because the peer's certificate expired or is not trusted any more.", "counter", "1")
}

// Either side ends a connection once it does not trust the other's authority any
// more, and not before.
func TestConnectionsEndWithTheirAuthority(t *testing.T) {
	for _, side := range []string{"server", "client"} {
		t.Run(side, func(t *testing.T) {
			ca, next := identitytest.Authority(t, "demo"), identitytest.Authority(t, "demo")
			both := identitytest.Bundle(ca, next)
			dirs := map[string]*identitytest.Dir{"server": identitytest.NewDir(t), "client": identitytest.NewDir(t)}
			ids := map[string]identity.Identity{"server": node1, "client": exchange}
			sources := map[string]*identity.Source{}
			for name, d := range dirs {
				d.Put(identitytest.Pair(t, ca, ids[name]), both)
				var err error
				if sources[name], err = identity.Open(d.Path, identity.Options{}); err != nil {
					t.Fatal(err)
				}
			}
			conn := dial(t, serve(t, sources["server"], nil), sources["client"].Client(node1))
			if err := check(t, conn); err != nil {
				t.Fatal(err)
			}
			for name, d := range dirs {
				d.Put(identitytest.Pair(t, next, ids[name]), both)
				sources[name].Refresh()
				sources[name].Sweep()
			}
			if conn.GetState() != connectivity.Ready {
				t.Error("a connection ended while both authorities are trusted")
			}
			dirs[side].Put(identitytest.Pair(t, next, ids[side]), identitytest.Bundle(next))
			sources[side].Refresh()
			sources[side].Sweep()
			lost(t, conn)
			if err := check(t, conn); err != nil {
				t.Errorf("with the certificate that is there by now: %v", err)
			}
		})
	}
}

// What gRPC drops without a Close is forgotten.
func TestDroppedConnectionsAreForgotten(t *testing.T) {
	ca := identitytest.Authority(t, "demo")
	server, client := identitytest.Source(t, ca, node1), identitytest.Source(t, ca, exchange)
	for range 3 {
		a, b := net.Pipe()
		var both sync.WaitGroup
		both.Go(func() {
			if _, _, err := server.Server().ServerHandshake(a); err != nil {
				t.Error(err)
			}
		})
		if _, _, err := client.Client(node1).ClientHandshake(t.Context(), "", b); err != nil {
			t.Fatal(err)
		}
		both.Wait()
	}
	runtime.GC()
	server.Sweep()
	if n := server.Followed(); n != 0 {
		t.Errorf("%d connections are followed still", n)
	}
}

func TestGate(t *testing.T) {
	ca := identitytest.Authority(t, "demo")
	const method = "/grpc.health.v1.Health/Check"
	type refusal struct {
		method string
		role   identity.Role
	}
	var refused []refusal
	var mu sync.Mutex
	gate := &identity.Gate{
		Access: identity.Access{method: {identity.Exchange, identity.Node}}, Shard: "s1",
		Refused: func(method string, role identity.Role) {
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, refusal{method, role})
		},
	}
	address := serve(t, identitytest.Source(t, ca, node1), gate)
	for id, want := range map[identity.Identity]string{
		exchange: "",
		node1:    "",
		reader:   "role reader may not call " + method + ", as spiffe://demo/reader tries to: exchange, node may",
		{Cluster: "demo", Role: identity.Node, Shard: "s2"}: "of its own shard, but spiffe://demo/node/s2 is not of shard s1",
	} {
		err := check(t, dial(t, address, identitytest.Source(t, ca, id).Client(node1)))
		if want == "" && err != nil || want != "" && (status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", id, err, want)
		}
	}
	conn := dial(t, address, identitytest.Source(t, ca, exchange).Client(node1))
	watch, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "nobody may") {
		t.Errorf("a stream that stands in no table: %v", err)
	}
	if err := gate.Check(t.Context(), method); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a call without a certificate: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(refused) != 4 {
		t.Errorf("told of %v", refused)
	}
}
