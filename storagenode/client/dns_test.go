package client

import (
	"context"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer answers for one name, with the address that it has at the time.
type nameServer struct {
	mu      sync.Mutex
	name    string
	address [4]byte // zero: there is no such name
	asked   chan struct{}
	lookups int // questions for the address, of any name
}

// startNameServer makes the process's resolver ask a server of the test.
func startNameServer(t *testing.T, name string) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{name: name + ".", asked: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serve(conn)
	}()
	own := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = own
		conn.Close()
		<-done
	})
	return s
}

func (s *nameServer) serve(conn net.PacketConn) {
	b := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		if answer, err := s.answer(m); err == nil {
			_, _ = conn.WriteTo(answer, from)
		}
	}
}

func (s *nameServer) answer(m dnsmessage.Message) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := m.Questions[0]
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RecursionAvailable: true}
	m.Additionals = nil
	if q.Name.String() != s.name || s.address == [4]byte{} {
		m.RCode = dnsmessage.RCodeNameError
	} else if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 3600},
			Body:   &dnsmessage.AResource{A: s.address},
		}}
	}
	if q.Type == dnsmessage.TypeA {
		s.lookups++
		select {
		case s.asked <- struct{}{}:
		default:
		}
	}
	return m.Pack()
}

func (s *nameServer) set(address [4]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.address = address
}

// A member's name is looked up anew whenever the client connects: there is none
// while its pod starts, and another address behind it after each restart. The
// answer's time to live is not relied upon.
func TestNamesAreLookedUpAtEachConnection(t *testing.T) {
	names := startNameServer(t, "s1-0.s1-peers.trading.svc")
	g := &group{grown: make(chan struct{})}
	first := g.start(t, "a", "127.0.0.1:0")
	_, port, err := net.SplitHostPort(first.address)
	if err != nil {
		t.Fatal(err)
	}
	g.leader = first
	c := dialGroup(t, []Member{{ID: "a", Address: net.JoinHostPort("s1-0.s1-peers.trading.svc", port)}})

	opened := make(chan error, 1)
	go func() {
		_, err := c.OpenStream(bounded(t), testSymbol, 1)
		opened <- err
	}()
	<-names.asked // and there is no such name
	names.set([4]byte{127, 0, 0, 1})
	if err := <-opened; err != nil {
		t.Fatalf("the name that was missing at first: %v", err)
	}

	// The restart: another address behind the name, and the old one is gone.
	second := g.start(t, "a", net.JoinHostPort("127.0.0.2", port))
	g.lead(second)
	names.set([4]byte{127, 0, 0, 2})
	first.server.Stop()
	if _, err := c.OpenStream(bounded(t), testSymbol, 2); err != nil {
		t.Fatalf("the name that has another address: %v", err)
	}
	if second.callCount() == 0 || len(c.shards["s1"].links) != 1 {
		t.Errorf("%d calls to the restarted member over %d connections", second.callCount(), len(c.shards["s1"].links))
	}
	names.mu.Lock()
	defer names.mu.Unlock()
	t.Logf("%d lookups", names.lookups)
}
