package netfault

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

const (
	chunkBytes = 16 << 10
	// queueChunksMax bounds what one direction of a connection holds back:
	// 512 KiB, as the buffers of a real network do.
	queueChunksMax = 32
	dialTimeout    = 2 * time.Second
)

// proxy stands in front of one host.
type proxy struct {
	net      *Network
	host     string
	target   string
	listener net.Listener
}

func (p *proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // out of descriptors: it may pass
			continue
		}
		go p.carry(conn)
	}
}

// carry takes a connection to the host, with the faults of the links between.
func (p *proxy) carry(dialled net.Conn) {
	from := p.net.hostOf(dialled.RemoteAddr())
	c := &pair{net: p.net, from: from, to: p.host, dialled: dialled, done: make(chan struct{})}
	if !p.net.add(c) {
		c.abort()
		return
	}
	there, back := p.net.link(Link{from, p.host}), p.net.link(Link{p.host, from})
	number := there.number()
	// The connection itself has to cross the link before the host hears of it.
	if !there.pass(&passage{arrived: time.Now()}, c.done) || !c.reach(p.target) {
		c.abort()
		return
	}
	go c.pump(c.dialled, c.reached, there, p.net.random(Link{from, p.host}, 2*number))
	c.pump(c.reached, c.dialled, back, p.net.random(Link{p.host, from}, 2*number+1))
}

// random returns the source of randomness of one direction of a connection.
func (n *Network) random(l Link, stream uint64) *rand.Rand {
	hash := uint64(14695981039346656037) // FNV-1a
	for _, b := range []byte(l.From + "\x00" + l.To) {
		hash = (hash ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(n.seed^hash, stream))
}

// pair is a connection through a proxy: the one that was dialled by From, and
// the one that reaches To.
type pair struct {
	net      *Network
	from, to string
	dialled  net.Conn

	mu      sync.Mutex
	reached net.Conn // nil until there is one
	ended   int      // directions that have come to their end
	aborted bool
	done    chan struct{} // closed when the pair is over
}

func (c *pair) reach(target string) bool {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).Dial("tcp", target)
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborted {
		reset(conn)
		return false
	}
	c.reached = conn
	return true
}

// reset closes a connection so that the other side sees it break.
func reset(conn net.Conn) {
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // then it ends in good order, which is second best
	}
	conn.Close()
}

// abort breaks the connection on both sides.
func (c *pair) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborted {
		return
	}
	c.aborted = true
	reset(c.dialled)
	if c.reached != nil {
		reset(c.reached)
	}
	c.finish()
}

// finish forgets the pair; the caller holds mu.
func (c *pair) finish() {
	select {
	case <-c.done:
	default:
		close(c.done)
		c.net.remove(c)
	}
}

// halfDone notes that one direction has ended in good order.
func (c *pair) halfDone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended++; c.ended == 2 && !c.aborted {
		c.dialled.Close()
		c.reached.Close()
		c.finish()
	}
}

// piece is data, or the end of a direction, on its way.
type piece struct {
	passage
	data []byte
	end  error // io.EOF, or why reading failed; nil for data
}

// pump carries one direction until it ends or the pair is aborted.
func (c *pair) pump(src, dst net.Conn, l *link, random *rand.Rand) {
	queue := make(chan piece, queueChunksMax)
	go c.read(src, queue, random)
	for {
		select {
		case p := <-queue:
			if !l.pass(&p.passage, c.done) || !c.deliver(p, dst) {
				return
			}
		case <-c.done:
			return
		}
	}
}

// read fills the queue. Its draws depend on the connection alone: one for each
// piece, whatever the link does.
func (c *pair) read(src net.Conn, queue chan<- piece, random *rand.Rand) {
	buf := make([]byte, chunkBytes)
	for {
		n, err := src.Read(buf)
		p := piece{data: bytes.Clone(buf[:n])}
		p.passage = passage{bytes: n, arrived: time.Now(), jitter: random.Float64()}
		if n == 0 {
			p.end = err
		}
		select {
		case queue <- p:
		case <-c.done:
			return
		}
		if p.end != nil {
			return
		}
	}
}

// deliver writes what has crossed the link, and reports whether more can follow.
func (c *pair) deliver(p piece, dst net.Conn) bool {
	switch {
	case p.end == nil:
		if _, err := dst.Write(p.data); err != nil {
			c.abort()
			return false
		}
		return true
	case errors.Is(p.end, io.EOF):
		if t, ok := dst.(*net.TCPConn); ok {
			_ = t.CloseWrite() // a connection that is gone needs no end
		}
		c.halfDone()
	default:
		c.abort()
	}
	return false
}
