package storagenode

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// undrainedMax is how many streams of one connection may end because their client
// took nothing, before the connection is closed: what such a stream was sent stays
// in memory as long as its connection does.
const undrainedMax = 4

// limitedListener closes connections beyond a number as soon as they are accepted.
type limitedListener struct {
	net.Listener
	places  chan struct{} // taken by each connection that is open
	metrics *metrics
	open    sync.Map // by remote address: *limitedConn
}

// Accept returns the next connection for which there is a place.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.places <- struct{}{}:
			l.metrics.connections.Inc()
			address := conn.RemoteAddr().String()
			c := &limitedConn{Conn: conn}
			c.leave = sync.OnceFunc(func() {
				l.metrics.connections.Dec()
				l.open.CompareAndDelete(address, c)
				<-l.places
			})
			l.open.Store(address, c)
			return c, nil
		default:
			l.metrics.connectionsRefused.Inc()
			_ = conn.Close() // the peer tries again
		}
	}
}

type limitedConn struct {
	net.Conn
	leave     func()
	undrained atomic.Int32 // streams ended because their client took nothing
}

// undrained notes that a stream of the call's connection was ended because its
// client took nothing.
func (l *limitedListener) undrained(ctx context.Context) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return
	}
	c, ok := l.open.Load(p.Addr.String())
	if ok && c.(*limitedConn).undrained.Add(1) >= undrainedMax {
		_ = c.(*limitedConn).Close() // gRPC notices, and lets go of everything
	}
}

// Close gives the connection's place back.
func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// impatient ends streams whose client takes nothing of what it is sent for long:
// each holds a place, memory, and the store that it reads. Raft's streams have
// limits of their own.
type impatient struct {
	timeout time.Duration
	metrics *metrics
	ended   func(context.Context) // told of the context of a stream that was ended
}

func (i impatient) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if info.FullMethod == storagepb.RaftTransport_AppendEntries_FullMethodName ||
		info.FullMethod == storagepb.RaftTransport_InstallSnapshot_FullMethodName {
		return handler(srv, ss)
	}
	overdue := make(chan struct{})
	s := &impatientStream{ServerStream: ss, timeout: i.timeout, overdue: sync.OnceFunc(func() { close(overdue) })}
	done := make(chan error, 1)
	go func() { done <- handler(srv, s) }()
	select {
	case err := <-done:
		return err
	case <-overdue:
		// The return ends the stream, which lets the handler's Send fail.
		i.metrics.readersEnded.Inc()
		i.ended(ss.Context())
		return refusal.New(storagepb.Code_CODE_OVERLOADED, "the client has taken nothing for %s of what it asked for", i.timeout)
	}
}

// impatientStream calls overdue when a message waits for too long to be taken.
type impatientStream struct {
	grpc.ServerStream
	timeout time.Duration
	overdue func()
	timer   *time.Timer // for the one goroutine that sends
}

// SendMsg implements grpc.ServerStream.
func (s *impatientStream) SendMsg(m any) error {
	if s.timer == nil {
		s.timer = time.AfterFunc(s.timeout, s.overdue)
	} else {
		s.timer.Reset(s.timeout)
	}
	defer s.timer.Stop()
	return s.ServerStream.SendMsg(m)
}

// appendStream is an append stream that is open.
type appendStream struct {
	used    atomic.Int64  // when it last got a batch, nanoseconds of the server's life
	pending atomic.Int64  // batches without an answer
	evicted chan struct{} // closed when another stream takes its place
}

// appendStreams bounds the append streams. Where all places are taken, one that
// has been idle for long gives its own to a writer that comes.
type appendStreams struct {
	began time.Time
	max   int
	idle  time.Duration
	mu    sync.Mutex
	open  map[*appendStream]bool
}

func (a *appendStreams) now() int64 { return int64(time.Since(a.began)) }

// enter returns a place, nil if there is none.
func (a *appendStreams) enter() *appendStream {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.open) >= a.max && !a.evict() {
		return nil
	}
	s := &appendStream{evicted: make(chan struct{})}
	s.used.Store(a.now())
	a.open[s] = true
	return s
}

// evict ends the stream that was idle longest, if that is long enough. REQUIRES:
// mu held.
func (a *appendStreams) evict() bool {
	var oldest *appendStream
	for s := range a.open {
		if s.pending.Load() == 0 && (oldest == nil || s.used.Load() < oldest.used.Load()) {
			oldest = s
		}
	}
	if oldest == nil || a.now()-oldest.used.Load() < int64(a.idle) {
		return false
	}
	delete(a.open, oldest)
	close(oldest.evicted)
	return true
}

func (a *appendStreams) leave(s *appendStream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.open, s)
}

// enterAppend takes a place for an append stream, or refuses it.
func (s *Server) enterAppend() (place *appendStream, leave func(), err error) {
	if place = s.appends.enter(); place == nil {
		s.metrics.appendsRefused.Inc()
		return nil, nil, refusal.New(storagepb.Code_CODE_OVERLOADED, "member %s serves %d append streams already, which is its limit", s.replica.ID(), s.appends.max)
	}
	s.metrics.appendStreams.Inc()
	return place, func() {
		s.metrics.appendStreams.Dec()
		s.appends.leave(place)
	}, nil
}
