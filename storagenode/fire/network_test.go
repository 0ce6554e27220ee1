package fire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// network carries connections between named hosts in memory. What it can do to a
// connection is what a network does to TCP: bytes come late, or not before a
// fault is over, and a connection breaks with everything that is on its way; but
// bytes never change, nor come out of order within one connection. Across
// connections they do.
type network struct {
	seed uint64

	mu        sync.Mutex
	listeners map[string]*listener // by address
	faults    map[*fault]struct{}
	changed   chan struct{} // closed when faults change
	serial    uint64        // of connections
	conns     map[*pair]struct{}
}

// fault is what is wrong with the links that it matches.
type fault struct {
	matches func(from, to string) bool
	effect
}

type effect struct {
	blocked       bool // nothing arrives until the fault is over
	delay, jitter time.Duration
	cutPerMille   int // of all writes: the connection breaks
	messages      messageRates
}

func (e effect) and(f effect) effect {
	return effect{
		blocked: e.blocked || f.blocked,
		delay:   e.delay + f.delay, jitter: e.jitter + f.jitter,
		cutPerMille: max(e.cutPerMille, f.cutPerMille),
		messages:    e.messages.and(f.messages),
	}
}

func newNetwork(seed uint64) *network {
	return &network{
		seed: seed, listeners: map[string]*listener{}, faults: map[*fault]struct{}{},
		changed: make(chan struct{}), conns: map[*pair]struct{}{},
	}
}

// inject adds a fault; the returned function ends it.
func (n *network) inject(f *fault) (end func()) {
	n.change(func() { n.faults[f] = struct{}{} })
	return sync.OnceFunc(func() { n.change(func() { delete(n.faults, f) }) })
}

func (n *network) change(do func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	do()
	close(n.changed)
	n.changed = make(chan struct{})
}

// between returns what is wrong with a link, and a channel that tells of changes.
func (n *network) between(from, to string) (effect, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var sum effect
	for f := range n.faults {
		if f.matches(from, to) {
			sum = sum.and(f.effect)
		}
	}
	return sum, n.changed
}

// cut breaks the connections between hosts that match.
func (n *network) cut(matches func(a, b string) bool) {
	n.mu.Lock()
	var broken []*pair
	for p := range n.conns {
		if matches(p.a, p.b) || matches(p.b, p.a) {
			broken = append(broken, p)
		}
	}
	n.mu.Unlock()
	for _, p := range broken {
		p.end(errReset)
	}
}

var (
	errReset   = errors.New("connection reset")
	errRefused = errors.New("connection refused")
	errNoRoute = errors.New("the host is down")
)

// host is one life of a machine on the network: when it is over nothing leaves or
// reaches it any more, also not what was on its way.
type host struct {
	n    *network
	name string
	down chan struct{}
	once sync.Once
}

func (n *network) host(name string) *host { return &host{n: n, name: name, down: make(chan struct{})} }

func (h *host) isDown() bool {
	select {
	case <-h.down:
		return true
	default:
		return false
	}
}

// crash ends the host's life. When it returns, no byte of it is on its way. The
// others see their connections break, as when a process is killed; or, with
// silent, nothing at all before the machine is up again, as when it loses power.
func (h *host) crash(silent bool) {
	h.once.Do(func() { close(h.down) })
	h.n.mu.Lock()
	var own []*pair
	for p := range h.n.conns {
		if p.hosts[0] == h || p.hosts[1] == h {
			own = append(own, p)
		}
	}
	for address, l := range h.n.listeners {
		if l.host == h {
			delete(h.n.listeners, address)
		}
	}
	h.n.mu.Unlock()
	for _, p := range own {
		if silent {
			p.mute()
		} else {
			p.end(errReset)
		}
	}
}

// resetOrphans breaks the connections to earlier lives of the host.
func (h *host) resetOrphans() {
	h.n.mu.Lock()
	var orphans []*pair
	for p := range h.n.conns {
		for _, other := range p.hosts {
			if other != h && other.name == h.name {
				orphans = append(orphans, p)
			}
		}
	}
	h.n.mu.Unlock()
	for _, p := range orphans {
		p.end(errReset)
	}
}

// listener implements net.Listener.
type listener struct {
	host    *host
	address string
	queue   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

const acceptBacklog = 64

func (h *host) listen(address string) *listener {
	h.resetOrphans()
	l := &listener{host: h, address: address, queue: make(chan net.Conn, acceptBacklog), closed: make(chan struct{})}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if !h.isDown() {
		h.n.listeners[address] = l
	}
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
	case <-l.host.down:
	}
	return nil, net.ErrClosed
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	l.host.n.mu.Lock()
	defer l.host.n.mu.Unlock()
	if l.host.n.listeners[l.address] == l {
		delete(l.host.n.listeners, l.address)
	}
	return nil
}

func (l *listener) Addr() net.Addr { return address(l.address) }

type address string

func (a address) Network() string { return "fire" }
func (a address) String() string  { return string(a) }

// dial connects to the host that listens on to. It takes as long as the link to
// that host and back is blocked.
func (h *host) dial(ctx context.Context, to string) (net.Conn, error) {
	for {
		l, err := h.target(to)
		if err != nil {
			return nil, err
		}
		there, changed := h.n.between(h.name, l.host.name)
		back, _ := h.n.between(l.host.name, h.name)
		if !there.blocked && !back.blocked {
			return h.connect(ctx, l)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-h.down:
		}
	}
}

func (h *host) target(to string) (*listener, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.isDown() {
		return nil, errNoRoute
	}
	l := h.n.listeners[to]
	if l == nil {
		return nil, fmt.Errorf("%s: %w", to, errRefused)
	}
	return l, nil
}

func (h *host) connect(ctx context.Context, l *listener) (net.Conn, error) {
	p := h.n.pair(h, l.host)
	if h.isDown() || l.host.isDown() { // one crashed before it knew of the connection
		p.end(errReset)
		return nil, errReset
	}
	select {
	case l.queue <- p.conn(1):
		return p.conn(0), nil
	case <-l.closed:
	case <-ctx.Done():
	case <-h.down:
	}
	p.end(errReset)
	return nil, errRefused
}

// pair is one connection: a flow each way.
type pair struct {
	n     *network
	a, b  string
	hosts [2]*host
	flows [2]*flow // 0: a to b
}

func (n *network) pair(a, b *host) *pair {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.serial++
	p := &pair{n: n, a: a.name, b: b.name, hosts: [2]*host{a, b}}
	for i := range p.flows {
		from, to := a.name, b.name
		if i == 1 {
			from, to = to, from
		}
		p.flows[i] = &flow{
			n: n, p: p, from: from, to: to, moved: make(chan struct{}),
			rng: rand.New(rand.NewPCG(n.seed, n.serial<<1|uint64(i))),
		}
	}
	n.conns[p] = struct{}{}
	return p
}

// end breaks the connection; what has not been read is lost.
func (p *pair) end(err error) {
	p.n.mu.Lock()
	delete(p.n.conns, p)
	p.n.mu.Unlock()
	for _, f := range p.flows {
		f.fail(err)
	}
}

// mute drops what is on its way, and all that is still sent.
func (p *pair) mute() {
	for _, f := range p.flows {
		f.mute()
	}
}

func (p *pair) conn(side int) *conn {
	return &conn{p: p, host: p.hosts[side], out: p.flows[side], in: p.flows[1-side]}
}
