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

type appendServer = grpc.BidiStreamingServer[storagepb.AppendEntriesRequest, storagepb.AppendEntriesResponse]

// AppendEntries serves one stream of a leader: requests are handed to Raft in
// the order of arrival, and answered in that order. The next request is decoded
// while Raft works on the one before.
func (s *transportService) AppendEntries(stream appendServer) error {
	requests := make(chan *storagepb.AppendEntriesRequest)
	received := make(chan error, 1)
	go func() { received <- receiveRequests(stream, requests) }()
	for {
		select {
		case m := <-requests:
			answer, err := s.appendEntries(stream.Context(), m)
			if err != nil {
				return err
			}
			if err := stream.Send(answer); err != nil {
				return err
			}
		case err := <-received:
			return err
		case <-s.t.serving.Done():
			return status.Error(codes.Unavailable, errTransportClosedMessage)
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
