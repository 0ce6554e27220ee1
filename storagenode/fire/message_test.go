package fire

import (
	"context"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// messageFault is what can become of one message between members. Within one
// connection nothing overtakes anything; but a connection that breaks is replaced
// by another, and what the network still holds of the first arrives after what is
// sent on the second, or arrives though the sender was told that it did not.
type messageFault int

const (
	requestLost  messageFault = iota // it does not arrive, and the call fails
	answerLost                       // it arrives and is acted on, and the call fails
	requestSlow                      // it arrives late, and what follows on its stream with it
	requestTwice                     // it arrives once more, on another connection
	requestLate                      // the call fails, and it arrives later, on another connection
	messageFaults
)

var messageFaultNames = [messageFaults]string{
	"requests lost", "answers lost", "requests slowed", "requests sent twice", "requests held back",
}

// messageRates says how many of 1000 messages meet each fault.
type messageRates [messageFaults]int

func (r messageRates) and(s messageRates) messageRates {
	for i := range r {
		r[i] = max(r[i], s[i])
	}
	return r
}

// everyday is what messages meet all the time while the faults last.
var everyday = messageRates{3, 3, 3, 3, 3}

const (
	slowMax = 60 * time.Millisecond
	lateMax = 1500 * time.Millisecond // ten heartbeat timeouts: a later leader is at work
	// couriersMax bounds the requests that are held back at one time.
	couriersMax = 64
	courierWait = 2 * time.Second // for the answer to what arrives late
)

var errLetterLost = status.Error(codes.Unavailable, "lost on the network")

// post does to Raft's messages what faults say. It sits between the transport and
// its connections. What becomes of the n-th message from one member to another is
// fixed by the seed and the rates at that time.
type post struct {
	c        *cluster
	host     *host         // of what arrives late: not of the sender, which may be dead by then
	couriers chan struct{} // has room for those at work

	mu      sync.Mutex
	serials map[[2]string]uint64
	conns   map[string]*grpc.ClientConn // of the couriers, by address
}

func newPost(c *cluster) *post {
	return &post{
		c: c, host: c.net.host("post"), couriers: make(chan struct{}, couriersMax),
		serials: map[[2]string]uint64{}, conns: map[string]*grpc.ClientConn{},
	}
}

func (p *post) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		conn.Close()
	}
	p.host.crash(false)
}

// dialOptions are those of a life of the member.
func (p *post) dialOptions(from string) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if !isRaft(method) {
				return invoke(ctx, method, request, answer, conn, opts...)
			}
			l := letter{p: p, from: from, address: addressOf(conn), method: method, request: request, answer: answer}
			return l.carry(ctx, func() error { return invoke(ctx, method, request, answer, conn, opts...) })
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			if !isRaft(method) {
				return open(ctx, desc, conn, method, opts...)
			}
			ctx, cancel := context.WithCancel(ctx)
			s, err := open(ctx, desc, conn, method, opts...)
			if err != nil {
				cancel()
				return nil, err
			}
			return &postedStream{ClientStream: s, p: p, from: from, address: addressOf(conn), method: method, cancel: cancel, lost: map[int]bool{}}, nil
		}),
	}
}

func isRaft(method string) bool {
	return strings.HasPrefix(method, "/"+storagepb.RaftTransport_ServiceDesc.ServiceName+"/")
}

func addressOf(conn *grpc.ClientConn) string {
	return strings.TrimPrefix(conn.Target(), "passthrough:///")
}

// fate draws what becomes of the next message, messageFaults for no fault, and
// returns the generator for the rest. A piece of a snapshot means nothing without
// the rest of its stream: it is not sent by another.
func (p *post) fate(from, address string, piece bool) (messageFault, *rand.Rand) {
	to := strings.TrimSuffix(address, memberAddress(""))
	p.mu.Lock()
	link := [2]string{from, to}
	p.serials[link]++
	serial := p.serials[link]
	p.mu.Unlock()
	h := fnv.New64a()
	h.Write([]byte(from + ">" + to))
	rng := rand.New(rand.NewPCG(p.c.seed^h.Sum64(), serial))
	if p.c.ctx.Err() != nil {
		return messageFaults, rng
	}
	effect, _ := p.c.net.between(from, to)
	at := rng.IntN(1000)
	for f, rate := range effect.messages {
		if at -= rate; at < 0 {
			fault := messageFault(f)
			if piece && (fault == requestTwice || fault == requestLate) {
				fault = requestLost
			}
			p.c.count(messageFaultNames[fault])
			return fault, rng
		}
	}
	return messageFaults, rng
}

// pause waits for up to most, or until the call or the run is over.
func (p *post) pause(ctx context.Context, rng *rand.Rand, most time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(rng.Int64N(int64(most))))
	defer cancel()
	select {
	case <-ctx.Done():
	case <-p.c.ctx.Done():
	}
}

// letter is one request on its way.
type letter struct {
	p                     *post
	from, address, method string
	request, answer       any // the answer is where to receive it, of the right type
}

// carry makes a call that is one request and one answer.
func (l *letter) carry(ctx context.Context, send func() error) error {
	fault, rng := l.p.fate(l.from, l.address, false)
	if l.before(ctx, fault, rng) {
		return errLetterLost
	}
	err := send()
	if err == nil && fault == answerLost {
		err = errLetterLost
	}
	return err
}

// before does what a fault does to a request, and reports whether it is lost to
// the connection that it was to go by.
func (l *letter) before(ctx context.Context, fault messageFault, rng *rand.Rand) (lost bool) {
	switch fault {
	case requestLost:
		return true
	case requestSlow:
		l.p.pause(ctx, rng, slowMax)
	case requestTwice, requestLate:
		l.byCourier(rng)
		return fault == requestLate
	}
	return false
}

// byCourier delivers the request a while later. A request that the network holds
// back may arrive when its sender is dead, or its receiver was and lives again.
func (l *letter) byCourier(rng *rand.Rand) {
	select {
	case l.p.couriers <- struct{}{}:
	default:
		l.p.c.count("couriers lacking")
		return
	}
	wait := time.Duration(rng.Int64N(int64(lateMax)))
	l.p.c.background.Go(func() {
		defer func() { <-l.p.couriers }()
		if !l.p.c.sleep(wait) {
			return
		}
		ctx, cancel := context.WithTimeout(withIdentity(context.Background()), courierWait)
		defer cancel()
		if l.deliver(ctx) == nil {
			l.p.c.count("requests answered late")
		}
	})
}

// deliver makes the call by a connection of the courier's. A stream is sent the
// one request.
func (l *letter) deliver(ctx context.Context) error {
	conn, err := l.p.conn(l.address)
	if err != nil {
		return err
	}
	answer := l.answer.(proto.Message).ProtoReflect().New().Interface()
	if l.method != storagepb.RaftTransport_AppendEntries_FullMethodName {
		return conn.Invoke(ctx, l.method, l.request, answer)
	}
	s, err := conn.NewStream(ctx, &storagepb.RaftTransport_ServiceDesc.Streams[0], l.method)
	if err != nil {
		return err
	}
	if err := s.SendMsg(l.request); err != nil {
		return err
	}
	return s.RecvMsg(answer)
}

func (p *post) conn(address string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn, ok := p.conns[address]; ok {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		append(dialOptions(p.host), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err == nil {
		p.conns[address] = conn
	}
	return conn, err
}

// postedStream is a stream whose messages meet faults. With one that is lost the
// stream ends, as it does when its connection breaks.
type postedStream struct {
	grpc.ClientStream
	p                     *post
	from, address, method string
	cancel                context.CancelFunc

	mu             sync.Mutex
	sent, received int
	lost           map[int]bool // answers, counted from 0
}

// SendMsg implements grpc.ClientStream.
func (s *postedStream) SendMsg(m any) error {
	isSnapshot := s.method == storagepb.RaftTransport_InstallSnapshot_FullMethodName
	fault, rng := s.p.fate(s.from, s.address, isSnapshot)
	l := letter{p: s.p, from: s.from, address: s.address, method: s.method, request: m, answer: new(storagepb.AppendEntriesResponse)}
	if l.before(s.Context(), fault, rng) {
		s.cancel()
		return errLetterLost
	}
	s.mu.Lock()
	switch {
	case fault == answerLost && isSnapshot:
		s.lost[s.received] = true // whichever comes next
	case fault == answerLost:
		s.lost[s.sent] = true
	}
	s.sent++
	s.mu.Unlock()
	return s.ClientStream.SendMsg(m)
}

// RecvMsg implements grpc.ClientStream.
func (s *postedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.mu.Lock()
	lost := s.lost[s.received]
	delete(s.lost, s.received)
	s.received++
	s.mu.Unlock()
	if err == nil && lost {
		s.cancel()
		return errLetterLost
	}
	return err
}
