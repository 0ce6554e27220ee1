package netfault

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// Link is the way from one host to another, by their names. It carries the bytes
// that From sends to To, on whichever side's connections.
type Link struct{ From, To string }

// Both returns the links between two hosts.
func Both(a, b string) []Link { return []Link{{a, b}, {b, a}} }

// Network is a set of hosts and the proxies between them. It is safe for
// concurrent use.
type Network struct {
	seed uint64

	mu        sync.Mutex
	closed    bool
	addresses map[string]netip.Addr
	names     map[netip.Addr]string
	links     map[Link]*link
	proxies   map[string]*proxy
	pairs     map[*pair]struct{} // connections under way
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("network is closed")

// hostsMax is the number of addresses in 127.1.0.0/16 without its ends.
const hostsMax = 1<<16 - 2

// New returns a network without hosts.
func New(seed uint64) *Network {
	return &Network{
		seed: seed, addresses: map[string]netip.Addr{}, names: map[netip.Addr]string{},
		links: map[Link]*link{}, proxies: map[string]*proxy{}, pairs: map[*pair]struct{}{},
	}
}

// Address returns the loopback address from which a host dials. The first call
// for a name makes the host.
func (n *Network) Address(host string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.addresses[host]; ok {
		return a, nil
	}
	number := len(n.addresses) + 1
	if number > hostsMax {
		return netip.Addr{}, fmt.Errorf("host %s: the network has %d hosts, which is its limit", host, hostsMax)
	}
	raw := [4]byte{127, 1}
	binary.BigEndian.PutUint16(raw[2:], uint16(number))
	a := netip.AddrFrom4(raw)
	n.addresses[host], n.names[a] = a, host
	return a, nil
}

// Dialer returns a function that connects from a host's address, to be used as
// a dialler of gRPC.
func (n *Network) Dialer(host string) (func(ctx context.Context, address string) (net.Conn, error), error) {
	from, err := n.Address(host)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	return func(ctx context.Context, address string) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", address)
	}, nil
}

// Serve opens a proxy in front of the host, which listens at target itself, and
// returns the proxy's address. A connection whose source is no host's address
// passes without faults.
func (n *Network) Serve(host, target string) (string, error) {
	if _, err := n.Address(host); err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("proxy of %s: %w", host, err)
	}
	p := &proxy{net: n, host: host, target: target, listener: l}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.proxies[host] != nil {
		l.Close()
		if n.closed {
			return "", ErrClosed
		}
		return "", fmt.Errorf("proxy of %s: it has one already", host)
	}
	n.proxies[host] = p
	go p.accept()
	return l.Addr().String(), nil
}

// Leave closes the proxy of a host that is gone, and its connections. The host's
// name and address are not used again.
func (n *Network) Leave(host string) {
	n.mu.Lock()
	p := n.proxies[host]
	delete(n.proxies, host)
	n.mu.Unlock()
	if p != nil {
		p.listener.Close()
	}
	n.abort(func(c *pair) bool { return c.from == host || c.to == host })
}

// Impose lays a fault on links until lift is called, which may happen more than
// once. Faults on the same link add up: delays do, the lowest bandwidth wins,
// and one blackhole is enough.
func (n *Network) Impose(f Fault, links ...Link) (lift func()) {
	laid := &f
	all := make([]*link, len(links))
	for i, l := range links {
		all[i] = n.link(l)
		all[i].change(func(faults map[*Fault]struct{}) { faults[laid] = struct{}{} })
	}
	return func() {
		for _, l := range all {
			l.change(func(faults map[*Fault]struct{}) { delete(faults, laid) })
		}
	}
}

// Cut breaks the connections between two hosts, whoever opened them, and returns
// how many there were. New ones can be made at once.
func (n *Network) Cut(a, b string) int {
	return n.abort(func(c *pair) bool { return c.from == a && c.to == b || c.from == b && c.to == a })
}

// Connections returns how many connections are carried at present.
func (n *Network) Connections() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.pairs)
}

// Close ends all proxies and connections.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	for _, p := range n.proxies {
		p.listener.Close()
	}
	n.mu.Unlock()
	n.abort(func(*pair) bool { return true })
}

func (n *Network) abort(which func(*pair) bool) (count int) {
	n.mu.Lock()
	var found []*pair
	for c := range n.pairs {
		if which(c) {
			found = append(found, c)
		}
	}
	n.mu.Unlock()
	for _, c := range found {
		c.abort()
	}
	return len(found)
}

// hostOf returns the name of the host that dials from a, "" for none.
func (n *Network) hostOf(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names[t.AddrPort().Addr().Unmap()]
}

func (n *Network) link(l Link) *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	got, ok := n.links[l]
	if !ok {
		got = newLink()
		n.links[l] = got
	}
	return got
}

// add notes a connection, or reports false when the network is closed.
func (n *Network) add(c *pair) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.pairs[c] = struct{}{}
	return true
}

func (n *Network) remove(c *pair) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pairs, c)
}
