package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// snapshotReceiver is the part of the replica that takes snapshots from a leader.
type snapshotReceiver interface {
	// has reports whether the log holds the snapshot's last entry, and with it
	// everything before. An error means that the snapshot must not be taken.
	has(index, term uint64) (bool, error)
	// stage reads a snapshot of size bytes from r into a directory of its own
	// and checks it. The token, written to a sink of the snapshot store, adopts
	// the directory; discard drops it if nobody did.
	stage(r io.Reader, size int64) (token []byte, discard func(), err error)
	// installed is called after the Raft instance took a snapshot.
	installed(index, term uint64)
}

func (t *Transport) setReceiver(r snapshotReceiver) {
	t.receiverMu.Lock()
	defer t.receiverMu.Unlock()
	t.receiver = r
}

func (t *Transport) snapshotReceiver() (snapshotReceiver, error) {
	t.receiverMu.RLock()
	defer t.receiverMu.RUnlock()
	if t.receiver == nil {
		return nil, status.Error(codes.Unavailable, "the node is starting")
	}
	return t.receiver, nil
}

// InstallSnapshot implements raft.Transport. It returns an error when the
// transfer makes no progress for SnapshotIdleTimeout; the library tries again.
func (t *Transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	calls, p, err := t.peer(target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(calls)
	defer cancel()
	stream, err := p.raft.InstallSnapshot(ctx)
	if err != nil {
		return fmt.Errorf("snapshot to %s at %s: %w", id, target, err)
	}
	idle := time.AfterFunc(t.opts.SnapshotIdleTimeout, cancel)
	defer idle.Stop()
	sent, err := t.sendSnapshot(stream, args, data, idle)
	if err != nil {
		return fmt.Errorf("snapshot to %s at %s: after %d of %d bytes: %w", id, target, sent, args.Size, err)
	}
	idle.Reset(defaultSnapshotFinish) // the peer checks and adopts what it got
	m, err := stream.CloseAndRecv()
	if err != nil {
		return fmt.Errorf("snapshot to %s at %s: %d of %d bytes sent: %w", id, target, sent, args.Size, err)
	}
	resp.RPCHeader, resp.Term, resp.Success = headerFromProto(m.Header), m.Term, m.Success
	if m.Success {
		t.progress.record(id, args.Term, args.LastLogIndex)
	}
	return nil
}

type snapshotStream = storagepb.RaftTransport_InstallSnapshotClient

// sendSnapshot sends header and data. It ends early, without an error, when the
// peer has answered already; the answer is for the caller to receive.
func (t *Transport) sendSnapshot(stream snapshotStream, args *raft.InstallSnapshotRequest, data io.Reader, idle *time.Timer) (sent int64, err error) {
	m := &storagepb.InstallSnapshotRequest{Snapshot: snapshotToProto(args)}
	for {
		idle.Reset(t.opts.SnapshotIdleTimeout)
		if err := stream.Send(m); errors.Is(err, io.EOF) {
			return sent, nil
		} else if err != nil {
			return sent, err
		}
		sent += int64(len(m.Data))
		// Not reused: gRPC may hold on to a message after Send has returned.
		chunk := make([]byte, snapshotChunkBytes)
		n, err := io.ReadFull(data, chunk)
		if n == 0 && errors.Is(err, io.EOF) {
			return sent, nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return sent, err
		}
		m = &storagepb.InstallSnapshotRequest{Data: chunk[:n]}
	}
}

func snapshotToProto(a *raft.InstallSnapshotRequest) *storagepb.InstallSnapshotHeader {
	return &storagepb.InstallSnapshotHeader{
		Header: headerToProto(a.RPCHeader), SnapshotVersion: int64(a.SnapshotVersion), Term: a.Term,
		LastLogIndex: a.LastLogIndex, LastLogTerm: a.LastLogTerm,
		Configuration: a.Configuration, ConfigurationIndex: a.ConfigurationIndex, Size: a.Size,
	}
}

func snapshotFromProto(m *storagepb.InstallSnapshotHeader) *raft.InstallSnapshotRequest {
	header := headerFromProto(m.Header)
	return &raft.InstallSnapshotRequest{
		RPCHeader: header, SnapshotVersion: raft.SnapshotVersion(m.SnapshotVersion), Term: m.Term,
		Leader: header.Addr, LastLogIndex: m.LastLogIndex, LastLogTerm: m.LastLogTerm,
		Configuration: m.Configuration, ConfigurationIndex: m.ConfigurationIndex, Size: m.Size,
	}
}

// InstallSnapshot receives a snapshot. The bytes are read and checked before
// Raft hears of them, because its main loop does nothing else, heartbeats
// included, while it reads. What the loop is given is a token for the staged
// directory. An interrupted transfer therefore leaves no trace in Raft: the
// staged files are dropped and the leader starts over.
func (s *transportService) InstallSnapshot(stream grpc.ClientStreamingServer[storagepb.InstallSnapshotRequest, storagepb.InstallSnapshotResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.Snapshot == nil {
		return status.Error(codes.InvalidArgument, "snapshot: the first message has no header")
	}
	receiver, err := s.t.snapshotReceiver()
	if err != nil {
		return err
	}
	select {
	case s.t.installing <- struct{}{}:
		defer func() { <-s.t.installing }()
	case <-stream.Context().Done():
		return status.FromContextError(stream.Context().Err()).Err()
	}
	answer, err := s.t.receiveSnapshot(stream, receiver, snapshotFromProto(first.Snapshot))
	if err != nil {
		return err
	}
	return stream.SendAndClose(answer)
}

func (t *Transport) receiveSnapshot(stream chunkStream, receiver snapshotReceiver, req *raft.InstallSnapshotRequest) (*storagepb.InstallSnapshotResponse, error) {
	log := t.opts.Logger.With("index", req.LastLogIndex, "term", req.LastLogTerm, "bytes", req.Size)
	switch has, err := receiver.has(req.LastLogIndex, req.LastLogTerm); {
	case err != nil:
		log.Error("snapshot refused", "error", err)
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case has:
		log.Info("snapshot is not needed: its entries are here already")
		return &storagepb.InstallSnapshotResponse{Term: req.Term, Success: true}, nil
	}
	log.Info("receiving a snapshot")
	start := time.Now()
	token, discard, err := receiver.stage(&chunkReader{stream: stream}, req.Size)
	if err != nil {
		log.Warn("snapshot transfer ended early", "error", err)
		return nil, err
	}
	defer discard()
	log.Info("snapshot received", "duration", time.Since(start))
	req.Size = int64(len(token))
	answer, err := t.deliver(stream.Context(), req, bytes.NewReader(token))
	if err != nil {
		return nil, err
	}
	r := answer.(*raft.InstallSnapshotResponse)
	if r.Success {
		receiver.installed(req.LastLogIndex, req.LastLogTerm)
	}
	return &storagepb.InstallSnapshotResponse{Header: headerToProto(r.RPCHeader), Term: r.Term, Success: r.Success}, nil
}

type chunkStream interface {
	Recv() (*storagepb.InstallSnapshotRequest, error)
	Context() context.Context
}

// chunkReader is the data of a snapshot's messages as one stream of bytes.
type chunkReader struct {
	stream chunkStream
	chunk  []byte
}

// Read implements io.Reader.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.chunk = m.Data
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}
