package storagenode

import (
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// limitedListener closes connections beyond a number as soon as they are accepted.
type limitedListener struct {
	net.Listener
	places  chan struct{} // taken by each connection that is open
	metrics *metrics
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
			return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() {
				l.metrics.connections.Dec()
				<-l.places
			})}, nil
		default:
			l.metrics.connectionsRefused.Inc()
			_ = conn.Close() // the peer tries again
		}
	}
}

type limitedConn struct {
	net.Conn
	leave func()
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

// enterAppend takes a place for an append stream, or refuses it.
func (s *Server) enterAppend() (leave func(), err error) {
	select {
	case s.appends <- struct{}{}:
	default:
		s.metrics.appendsRefused.Inc()
		return nil, refusal.New(storagepb.Code_CODE_OVERLOADED, "member %s serves %d append streams already, which is its limit", s.replica.ID(), cap(s.appends))
	}
	s.metrics.appendStreams.Inc()
	return func() {
		s.metrics.appendStreams.Dec()
		<-s.appends
	}, nil
}
