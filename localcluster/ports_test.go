package localcluster

import (
	"net"
	"testing"
)

// A port is its cluster's while the node is down, runs, and is down again; and
// nobody's after the end.
func TestPortsStayReserved(t *testing.T) {
	var ours, others ports
	t.Cleanup(ours.release)
	t.Cleanup(others.release)
	addresses, err := ours.free(2)
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		refused := func(when string) {
			t.Helper()
			if others.hold(address, false) == nil {
				t.Errorf("%s was reserved twice, %s", address, when)
			}
		}
		refused("before its node runs")
		for range 2 {
			l, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			refused("while its node runs")
			l.Close()
			refused("while its node is down")
		}
	}
	ours.release()
	if err := others.hold(addresses[0], false); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// A cluster that is started again has its ports again, though connections that
// are over still linger on them.
func TestPortsAreKeptAfterConnections(t *testing.T) {
	var first, again ports
	t.Cleanup(first.release)
	t.Cleanup(again.release)
	addresses, err := first.free(1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server.Close() // first: its end waits
	conn.Close()
	l.Close()
	first.release()
	if err := again.keep(addresses[0]); err != nil || len(again.held) != 1 {
		t.Errorf("held %v, %v", again.held, err)
	}
	if l, err = net.Listen("tcp", addresses[0]); err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestReserveBadAddress(t *testing.T) {
	var p ports
	for _, address := range []string{"", "localhost:80", "[::1]:80", "127.0.0.1"} {
		if err := p.keep(address); err == nil {
			t.Errorf("%q was taken", address)
		}
	}
}
