package server

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/identity/identitytest"
)

func (s *Server) methods() (all []string) {
	for service, info := range s.grpc.GetServiceInfo() {
		for _, method := range info.Methods {
			all = append(all, "/"+service+"/"+method.Name)
		}
	}
	slices.Sort(all)
	return all
}

func TestEveryMethodStandsInTheTable(t *testing.T) {
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	served := s.methods()
	for _, method := range served {
		if len(Access[method]) == 0 {
			t.Errorf("%s: the table says nothing of it", method)
		}
	}
	for method := range Access {
		if !slices.Contains(served, method) {
			t.Errorf("%s: is not served", method)
		}
	}
	t.Logf("%d methods", len(served))
}

// Each role may call what the table says, and nothing else. The server has no
// exchange yet: what passes the gate is answered with Unavailable, or by health.
func TestEachRoleIsHeldToTheTable(t *testing.T) {
	ca := identitytest.Authority(t, "test")
	self := identity.Identity{Cluster: "test", Role: identity.Exchange}
	s, err := New(Options{TLS: identitytest.Source(t, ca, self)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	t.Cleanup(func() { s.Stop(0) })
	var allowed, refused int
	for _, role := range identity.Roles {
		id := identity.Identity{Cluster: "test", Role: role}
		if role == identity.Node {
			id.Shard = "s1"
		}
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(identitytest.Source(t, ca, id).Client(self)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		for _, method := range s.methods() {
			err := call(t, conn, method)
			if slices.Contains(Access[method], role) {
				allowed++
				if c := status.Code(err); c == codes.PermissionDenied || c == codes.Unauthenticated {
					t.Errorf("%s may call %s: %v", id, method, err)
				}
				continue
			}
			refused++
			if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), method) || !strings.Contains(err.Error(), string(role)) {
				t.Errorf("%s may not call %s: %v", id, method, err)
			}
		}
	}
	t.Logf("%d calls allowed, %d refused", allowed, refused)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := call(t, conn, pb.MarketData_Book_FullMethodName); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "starting") {
		t.Errorf("a client without a certificate: %v", err)
	}
}

// call sends an empty message and returns how the call ends, or nil once it is
// answered.
func call(t *testing.T, conn *grpc.ClientConn, method string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	_ = stream.SendMsg(&emptypb.Empty{}) // RecvMsg says what is wrong
	_ = stream.CloseSend()
	return stream.RecvMsg(&emptypb.Empty{})
}

// Probes over HTTP tell a process that recovers from one that takes orders.
func TestHealthOverHTTP(t *testing.T) {
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(h http.Handler, want int) {
		t.Helper()
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", nil))
		if answer.Code != want {
			t.Errorf("%d, want %d", answer.Code, want)
		}
	}
	expect(s.Alive(), http.StatusOK)
	expect(s.Ready(), http.StatusServiceUnavailable)
	s = start(t, Options{}).server
	expect(s.Alive(), http.StatusOK)
	expect(s.Ready(), http.StatusOK)
	s.Drain()
	expect(s.Alive(), http.StatusOK)
	expect(s.Ready(), http.StatusServiceUnavailable)
}
