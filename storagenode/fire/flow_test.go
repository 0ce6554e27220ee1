package fire

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// flowBytesMax bounds what one direction of a connection holds, as a socket's
// buffers do.
const flowBytesMax = 1 << 20

// flow is one direction of a connection.
type flow struct {
	n        *network
	p        *pair
	from, to string

	mu     sync.Mutex
	rng    *rand.Rand
	queue  []segment
	bytes  int
	latest time.Time     // when the last segment arrives
	err    error         // the connection is broken
	ended  bool          // the writer has closed; what is queued can be read
	muted  bool          // one end has lost power: nothing arrives any more
	moved  chan struct{} // closed when any of the above changes
}

type segment struct {
	data []byte
	due  time.Time
}

func (f *flow) wake() {
	close(f.moved)
	f.moved = make(chan struct{})
}

func (f *flow) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err, f.queue, f.bytes = err, nil, 0
		f.wake()
	}
}

// refuse breaks the direction because its reader has closed. Nobody hears that of
// a reader that has lost power: to break only what the other side writes would
// leave it reading for ever, which TCP does not do.
func (f *flow) refuse() {
	f.mu.Lock()
	muted := f.muted
	f.mu.Unlock()
	if !muted {
		f.fail(net.ErrClosed)
	}
}

func (f *flow) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.wake()
}

func (f *flow) mute() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.muted, f.queue, f.bytes = true, nil, 0
	f.wake()
}

// put takes a copy of b, or says what to wait for.
func (f *flow) put(b []byte) (wait <-chan struct{}, cut bool, err error) {
	link, _ := f.n.between(f.from, f.to)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.err != nil:
		return nil, false, f.err
	case f.ended:
		return nil, false, net.ErrClosed
	case f.muted:
		return nil, false, nil
	case f.bytes > 0 && f.bytes+len(b) > flowBytesMax:
		return f.moved, false, nil
	case link.cutPerMille > 0 && f.rng.IntN(1000) < link.cutPerMille:
		return nil, true, nil
	}
	due := time.Now().Add(link.delay)
	if link.jitter > 0 {
		due = due.Add(time.Duration(f.rng.Int64N(int64(link.jitter))))
	}
	if due.Before(f.latest) {
		due = f.latest
	}
	f.latest = due
	f.queue = append(f.queue, segment{data: append([]byte(nil), b...), due: due})
	f.bytes += len(b)
	f.wake()
	return nil, false, nil
}

// take reads what has arrived into b, or says what to wait for: a change of the
// flow, one of the network, or the passing of time (0: none).
func (f *flow) take(b []byte) (n int, moved, changed <-chan struct{}, later time.Duration, err error) {
	link, changed := f.n.between(f.from, f.to)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.err != nil:
		return 0, nil, nil, 0, f.err
	case f.muted || link.blocked:
		return 0, f.moved, changed, 0, nil
	case len(f.queue) == 0 && f.ended:
		return 0, nil, nil, 0, io.EOF
	case len(f.queue) == 0:
		return 0, f.moved, changed, 0, nil
	}
	s := &f.queue[0]
	if wait := time.Until(s.due); wait > 0 {
		return 0, f.moved, changed, wait, nil
	}
	n = copy(b, s.data)
	if s.data = s.data[n:]; len(s.data) == 0 {
		f.queue = f.queue[1:]
	}
	f.bytes -= n
	f.wake()
	return n, nil, nil, 0, nil
}

// conn implements net.Conn: one side of a pair.
type conn struct {
	p             *pair
	host          *host
	in, out       *flow
	readDeadline  deadline
	writeDeadline deadline
	closed        atomic.Bool
}

func (c *conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		if err := c.usable(); err != nil {
			return 0, err
		}
		expired, reset := c.readDeadline.get()
		n, moved, changed, later, err := c.in.take(b)
		if n > 0 || err != nil {
			return n, err
		}
		if err := await(later, expired, moved, changed, reset); err != nil {
			return 0, err
		}
	}
}

func (c *conn) usable() error {
	switch {
	case c.closed.Load():
		return net.ErrClosed
	case c.host.isDown():
		return errNoRoute
	}
	return nil
}

func (c *conn) Write(b []byte) (int, error) {
	for {
		if err := c.usable(); err != nil {
			return 0, err
		}
		expired, reset := c.writeDeadline.get()
		wait, cut, err := c.out.put(b)
		switch {
		case err != nil:
			return 0, err
		case cut:
			c.p.end(errReset)
			return 0, errReset
		case wait == nil:
			return len(b), nil
		}
		if err := await(0, expired, wait, nil, reset); err != nil {
			return 0, err
		}
	}
}

// await returns when something may have changed, or with an error when the
// deadline has passed.
func await(later time.Duration, expires time.Time, a, b, c <-chan struct{}) error {
	var due, expired <-chan time.Time
	if later > 0 {
		t := time.NewTimer(later)
		defer t.Stop()
		due = t.C
	}
	if !expires.IsZero() {
		t := time.NewTimer(time.Until(expires))
		defer t.Stop()
		expired = t.C
	}
	select {
	case <-a:
	case <-b:
	case <-c:
	case <-due:
	case <-expired:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Close ends both directions: the other side may read what is on its way to it.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.out.finish()
	c.in.refuse()
	c.readDeadline.set(time.Unix(0, 1)) // wakes whoever reads
	c.p.n.mu.Lock()
	defer c.p.n.mu.Unlock()
	if c.in.isOver() && c.out.isOver() {
		delete(c.p.n.conns, c.p)
	}
	return nil
}

func (f *flow) isOver() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err != nil || f.ended && len(f.queue) == 0
}

func (c *conn) LocalAddr() net.Addr  { return address(c.out.from) }
func (c *conn) RemoteAddr() net.Addr { return address(c.out.to) }

func (c *conn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}
func (c *conn) SetReadDeadline(t time.Time) error  { c.readDeadline.set(t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.writeDeadline.set(t); return nil }

// deadline is a time that may change while somebody waits for it.
type deadline struct {
	mu      sync.Mutex
	at      time.Time
	changed chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

func (d *deadline) get() (time.Time, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return d.at, d.changed
}
