package identity

import (
	"crypto/x509"
	"net"
	"slices"
	"sync"
	"time"
	"weak"
)

// connections are those whose handshake is over. They are held weakly: gRPC may
// drop one without a Close.
type connections struct {
	mu   sync.Mutex
	open map[*connection]struct{} // guarded by mu
}

type connection struct {
	conn  weak.Pointer[followedConn]
	chain []*x509.Certificate // as the peer has shown it
	usage x509.ExtKeyUsage
	by    []string  // fingerprints of the authorities it was checked with; nil before the first check
	until time.Time // when the chain expires
}

// followedConn is a connection that leaves the list when it is closed.
type followedConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *followedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

func (l *connections) add(conn net.Conn, chain []*x509.Certificate, usage x509.ExtKeyUsage) net.Conn {
	c := &connection{chain: chain, usage: usage}
	f := &followedConn{Conn: conn, leave: func() { l.remove(c) }}
	c.conn = weak.Make(f)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = make(map[*connection]struct{})
	}
	l.open[c] = struct{}{}
	return f
}

func (l *connections) remove(c *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c)
}

func (l *connections) all() []*connection {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*connection, 0, len(l.open))
	for c := range l.open {
		out = append(out, c)
	}
	return out
}

// Sweep ends the connections whose peer's certificate has expired, or is not
// trusted any more. Run calls it with each look at the files; calls must not
// overlap.
func (s *Source) Sweep() {
	now, set := s.options.Now(), s.current.Load()
	for _, c := range s.conns.all() {
		f := c.conn.Value()
		if f == nil {
			s.conns.remove(c)
			continue
		}
		if c.holds(set, now) {
			continue
		}
		s.metrics.ended.Inc()
		s.options.Logger.Info("a connection ends: its peer's certificate is not valid any more", "peer", f.RemoteAddr().String())
		_ = f.Close() // gRPC notices, and tells its calls
	}
}

// holds reports whether the peer is trusted still.
func (c *connection) holds(s *set, now time.Time) bool {
	if c.by == nil || !slices.Equal(c.by, s.fingerprints) {
		_, until, err := s.verify(c.chain, c.usage, now)
		if err != nil {
			return false
		}
		c.by, c.until = s.fingerprints, until
	}
	return !now.After(c.until)
}
