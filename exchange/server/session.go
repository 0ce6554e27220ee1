package server

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
)

// session is one Session stream: its requests are carried out as they come, by
// one goroutine; another sends the answers.
type session struct {
	e      *orderEntry
	stream grpc.BidiStreamingServer[pb.SessionRequest, pb.SessionResponse]

	mu      sync.Mutex
	changed *sync.Cond
	answers []*pb.SessionResponse // not sent yet
	waiting int                   // requests that wait for durability
	ended   bool                  // no more requests come, or nobody takes answers
}

// Session carries a stream of requests. It ends when the client has ended its
// side and has all answers.
func (e *orderEntry) Session(stream grpc.BidiStreamingServer[pb.SessionRequest, pb.SessionResponse]) error {
	s := &session{e: e, stream: stream}
	s.changed = sync.NewCond(&s.mu)
	ctx, cancel := e.streaming(stream.Context())
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.end(true) })
	defer stop()
	e.metrics.sessions.Inc()
	defer e.metrics.sessions.Dec()
	received := make(chan error, 1)
	go func() { received <- s.receive() }()
	if err := s.send(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return refusalStopping(stream.Context())
	}
	return <-received
}

// receive carries requests out until the client ends its side, which is no
// error, or the stream breaks or breaks a rule.
func (s *session) receive() error {
	for {
		in, err := s.stream.Recv()
		if err == nil {
			err = s.take(in)
		}
		if err != nil {
			s.end(false)
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

func (s *session) take(in *pb.SessionRequest) error {
	var r request
	switch k := in.Request.(type) {
	case *pb.SessionRequest_Submit:
		r = s.e.submit(k.Submit)
	case *pb.SessionRequest_Cancel:
		r = s.e.cancel(k.Cancel)
	case *pb.SessionRequest_Amend:
		r = s.e.amend(k.Amend)
	default:
		return invalid("request", "missing in request_id %d; set submit, cancel or amend", in.RequestId)
	}
	if !s.room() {
		return nil // nobody takes the answer any more; the request was not carried out
	}
	answer := &pb.SessionResponse{RequestId: in.RequestId}
	switch {
	case !r.durable:
		answer.Response = s.e.run(&r)
		s.put(answer)
	case !s.claim():
		answer.Response = s.e.overloaded(&r)
		s.put(answer)
	default:
		s.takeDurable(&r, answer)
	}
	return nil
}

// takeDurable carries out a request for which a place was claimed.
func (s *session) takeDurable(r *request, answer *pb.SessionResponse) {
	answer.Response = s.e.run(r)
	if !waits(r, answer.Response) {
		s.e.durableWaits.Add(-1)
		s.settle(answer)
		return
	}
	s.e.whenDurable(answer.Response, func() { s.settle(answer) })
}

// claim takes a place among the session's requests that wait, and among all.
func (s *session) claim() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting >= s.e.options.SessionDurableWaitsMax || !s.e.claim() {
		return false
	}
	s.waiting++
	return true
}

// settle answers a request that had a place.
func (s *session) settle(answer *pb.SessionResponse) {
	s.mu.Lock()
	s.waiting--
	s.answers = append(s.answers, answer)
	s.mu.Unlock()
	s.changed.Broadcast()
}

func (s *session) put(answer *pb.SessionResponse) {
	s.mu.Lock()
	s.answers = append(s.answers, answer)
	s.mu.Unlock()
	s.changed.Broadcast()
}

// room waits until the client has taken enough answers for another request. It
// returns false when the session has ended.
func (s *session) room() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.ended && len(s.answers) >= s.e.options.SessionAnswersMax {
		s.changed.Wait()
	}
	return !s.ended
}

// end lets send return: at once, or when everything is answered.
func (s *session) end(now bool) {
	s.mu.Lock()
	s.ended = true
	if now {
		s.waiting, s.answers = 0, nil
	}
	s.mu.Unlock()
	s.changed.Broadcast()
}

// send sends answers until the session has ended and all are sent.
func (s *session) send() error {
	for {
		batch := s.next()
		if batch == nil {
			return nil
		}
		for _, answer := range batch {
			if err := s.stream.Send(answer); err != nil {
				s.end(true)
				return err
			}
		}
	}
}

func (s *session) next() []*pb.SessionResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.answers) == 0 && (!s.ended || s.waiting > 0) {
		s.changed.Wait()
	}
	batch := s.answers
	s.answers = nil
	s.changed.Broadcast()
	return batch
}
