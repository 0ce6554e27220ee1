package replica

import (
	"context"
	"errors"
	"io"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Register adds the transport's service to a server.
func (t *Transport) Register(s grpc.ServiceRegistrar) {
	storagepb.RegisterRaftTransportServer(s, &transportService{t: t})
}

// transportService receives peers' messages and hands them to the Raft instance.
type transportService struct {
	storagepb.UnimplementedRaftTransportServer
	t *Transport
}

// deliver hands a command to whichever Raft instance reads the consumer channel
// and waits for its answer.
func (t *Transport) deliver(ctx context.Context, command any, reader io.Reader) (any, error) {
	answers := make(chan raft.RPCResponse, 1) // room: the instance must never wait for us
	select {
	case t.consumer <- raft.RPC{Command: command, Reader: reader, RespChan: answers}:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-t.serving.Done():
		return nil, status.Error(codes.Unavailable, errTransportClosedMessage)
	}
	select {
	case a := <-answers:
		return a.Response, a.Error
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-t.serving.Done():
		return nil, status.Error(codes.Unavailable, errTransportClosedMessage)
	}
}

// campaign tells the Raft instance that reads the consumer channel to call an election
// at once, as a leader does that hands over to it.
func (t *Transport) campaign(ctx context.Context, id raft.ServerID) {
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: t.EncodePeer(id, t.LocalAddr())}
	_, _ = t.deliver(ctx, &raft.TimeoutNowRequest{RPCHeader: header}, nil) // else it calls one after its heartbeat timeout
}

type appendServer = grpc.BidiStreamingServer[storagepb.AppendEntriesRequest, storagepb.AppendEntriesResponse]

// appendAnswersMax bounds the answers of a stream that wait for the disk.
const appendAnswersMax = 64

// appendAnswer waits until the log's entries up to index are on disk.
type appendAnswer struct {
	message *storagepb.AppendEntriesResponse
	index   uint64 // 0: nothing to wait for
	losses  uint64 // of the log, before Raft was handed the request
}

// await returns an error if the entries never came to the disk: they are not
// acknowledged, also if the log has been forgiven the loss since.
func (a *appendAnswer) await(ctx context.Context, log durableLog) error {
	if a.index == 0 {
		return nil
	}
	if err := log.awaitDurable(ctx, a.index); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	if log.losses() != a.losses {
		return status.Error(codes.Unavailable, "entries of the request were not written")
	}
	return nil
}

// AppendEntries serves one stream of a leader: requests are handed to Raft in
// the order of arrival, and answered in that order. The next request is decoded
// while Raft works on the one before, and Raft works on the next ones while the
// disk writes what an answer waits for.
func (s *transportService) AppendEntries(stream appendServer) error {
	requests := make(chan *storagepb.AppendEntriesRequest)
	answers := make(chan appendAnswer, appendAnswersMax)
	ended := make(chan error, 2)
	go func() { ended <- receiveRequests(stream, requests) }()
	go func() { ended <- s.handOver(stream.Context(), requests, answers) }()
	for {
		select {
		case a := <-answers:
			if err := a.await(stream.Context(), s.t.log); err != nil {
				return err
			}
			if err := stream.Send(a.message); err != nil {
				return err
			}
		case err := <-ended:
			return err
		case <-s.t.serving.Done():
			return status.Error(codes.Unavailable, errTransportClosedMessage)
		}
	}
}

// handOver hands requests to Raft, one after another. It returns with the first
// error, or when the stream ends.
func (s *transportService) handOver(ctx context.Context, requests <-chan *storagepb.AppendEntriesRequest, answers chan<- appendAnswer) error {
	for {
		select {
		case m := <-requests:
			a := appendAnswer{losses: s.t.log.losses()}
			answer, err := s.appendEntries(ctx, m)
			if err != nil {
				return err
			}
			a.message = answer
			if answer.Success {
				a.index = m.PrevLogEntry + uint64(len(m.Entries))
			}
			select {
			case answers <- a:
			case <-ctx.Done():
				return ctx.Err()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// receiveRequests returns when the stream ends, which it does with its handler.
func receiveRequests(stream appendServer, requests chan<- *storagepb.AppendEntriesRequest) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case requests <- m:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (s *transportService) appendEntries(ctx context.Context, m *storagepb.AppendEntriesRequest) (*storagepb.AppendEntriesResponse, error) {
	if err := s.t.admit(m.Term, m.Header); err != nil {
		return nil, err
	}
	answer, err := s.t.deliver(ctx, appendFromProto(m), nil)
	if _, isStatus := status.FromError(err); err != nil && isStatus {
		return nil, err
	}
	out := &storagepb.AppendEntriesResponse{}
	if err != nil {
		out.Error = err.Error()
	}
	if r, ok := answer.(*raft.AppendEntriesResponse); ok && r != nil {
		out.Header, out.Term, out.LastLog = headerToProto(r.RPCHeader), r.Term, r.LastLog
		out.Success, out.NoRetryBackoff = r.Success, r.NoRetryBackoff
	}
	return out, nil
}

// RequestVote serves storagepb.RaftTransportServer.
func (s *transportService) RequestVote(ctx context.Context, m *storagepb.RequestVoteRequest) (*storagepb.RequestVoteResponse, error) {
	if err := s.t.admit(m.Term, m.Header); err != nil {
		return nil, err
	}
	header := headerFromProto(m.Header)
	answer, err := s.t.deliver(ctx, &raft.RequestVoteRequest{
		RPCHeader: header, Term: m.Term, Candidate: header.Addr,
		LastLogIndex: m.LastLogIndex, LastLogTerm: m.LastLogTerm, LeadershipTransfer: m.LeadershipTransfer,
	}, nil)
	if err != nil {
		return nil, err
	}
	r := answer.(*raft.RequestVoteResponse)
	return &storagepb.RequestVoteResponse{Header: headerToProto(r.RPCHeader), Term: r.Term, Granted: r.Granted}, nil
}

// RequestPreVote serves storagepb.RaftTransportServer.
func (s *transportService) RequestPreVote(ctx context.Context, m *storagepb.RequestPreVoteRequest) (*storagepb.RequestPreVoteResponse, error) {
	if err := s.t.admit(m.Term, m.Header); err != nil {
		return nil, err
	}
	answer, err := s.t.deliver(ctx, &raft.RequestPreVoteRequest{
		RPCHeader: headerFromProto(m.Header), Term: m.Term,
		LastLogIndex: m.LastLogIndex, LastLogTerm: m.LastLogTerm,
	}, nil)
	if err != nil {
		return nil, err
	}
	r := answer.(*raft.RequestPreVoteResponse)
	return &storagepb.RequestPreVoteResponse{Header: headerToProto(r.RPCHeader), Term: r.Term, Granted: r.Granted}, nil
}

// TimeoutNow serves storagepb.RaftTransportServer.
func (s *transportService) TimeoutNow(ctx context.Context, m *storagepb.TimeoutNowRequest) (*storagepb.TimeoutNowResponse, error) {
	answer, err := s.t.deliver(ctx, &raft.TimeoutNowRequest{RPCHeader: headerFromProto(m.Header)}, nil)
	if err != nil {
		return nil, err
	}
	r := answer.(*raft.TimeoutNowResponse)
	return &storagepb.TimeoutNowResponse{Header: headerToProto(r.RPCHeader)}, nil
}
