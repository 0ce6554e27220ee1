package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
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
	// and checks it. Once it has read the list of files it calls want with what
	// is there already, size bytes of them; r must go on with the rest. The
	// token, written to a sink of the snapshot store, adopts the directory;
	// release says that nobody will any more.
	stage(r io.Reader, size int64, want func(held []heldFile, size int64) error) (token []byte, release func(), err error)
	// installed is called after the Raft instance took a snapshot.
	installed(index, term uint64)
}

// snapshotSource is a snapshot that can be sent in part.
type snapshotSource interface {
	// head returns the stream's first bytes, up to the first file.
	head() []byte
	// after returns what follows head, without what the receiver holds.
	after(held []heldFile) (io.Reader, error)
}

var (
	errSnapshotIdle      = errors.New("the transfer made no progress")
	errSnapshotPreempted = errors.New("another snapshot is sent to this node")
	errSnapshotSource    = errors.New("not a snapshot of this package's store")
)

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
// No more is sent than SnapshotBytesPerSecond, to all peers together.
func (t *Transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	source, ok := data.(snapshotSource)
	if !ok {
		return fmt.Errorf("snapshot to %s: %w: %T", id, errSnapshotSource, data)
	}
	calls, p, err := t.peer(target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(calls)
	defer cancel(nil)
	stream, err := p.raft.InstallSnapshot(ctx)
	if err != nil {
		return fmt.Errorf("snapshot to %s at %s: %w", id, target, err)
	}
	idle := time.AfterFunc(t.opts.SnapshotIdleTimeout, func() { cancel(errSnapshotIdle) })
	defer idle.Stop()
	s := &snapshotSender{t: t, ctx: ctx, stream: stream, idle: idle, transfer: newTransfer(args.LastLogIndex, args.Size)}
	defer t.transfers.sending(id, s.transfer)()
	m, err := s.send(args, source)
	if t.noteRefused(err) != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return fmt.Errorf("snapshot to %s at %s: after %d of %d bytes: %w", id, target, s.transfer.done.Load(), args.Size, err)
	}
	resp.RPCHeader, resp.Term, resp.Success = headerFromProto(m.Header), m.Term, m.Success
	if m.Success {
		t.progress.record(id, args.Term, args.LastLogIndex)
	}
	return nil
}

// snapshotSender sends one snapshot.
type snapshotSender struct {
	t        *Transport
	ctx      context.Context
	stream   storagepb.RaftTransport_InstallSnapshotClient
	idle     *time.Timer // ends ctx unless it is reset
	transfer *transfer
}

// send returns the peer's answer, which may come before everything is sent.
func (s *snapshotSender) send(args *raft.InstallSnapshotRequest, source snapshotSource) (*storagepb.InstallSnapshotResponse, error) {
	if err := s.message(&storagepb.InstallSnapshotRequest{Snapshot: snapshotToProto(args)}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := s.data(bytes.NewReader(source.head())); err != nil {
		return nil, err
	}
	held, answer, err := s.held()
	if err != nil || answer != nil {
		return answer, err
	}
	rest, err := source.after(held)
	if err != nil {
		return nil, err
	}
	if err := s.data(rest); err != nil {
		return nil, err
	}
	if err := s.stream.CloseSend(); err != nil {
		return nil, err
	}
	s.idle.Reset(s.t.opts.SnapshotFinishTimeout) // the peer checks and adopts what it got
	return s.stream.Recv()
}

// held receives what the peer has of the files, or its answer if there is nothing
// to send.
func (s *snapshotSender) held() ([]heldFile, *storagepb.InstallSnapshotResponse, error) {
	s.idle.Reset(s.t.opts.SnapshotFinishTimeout) // the peer may have to read them
	var held []heldFile
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return nil, nil, err
		}
		if len(m.Held) == 0 && !m.GoOn {
			return nil, m, nil
		}
		for _, k := range m.Held {
			held = append(held, heldFile{int(k.File), int64(k.Bytes)})
			s.transfer.hold(int64(k.Bytes))
		}
		if m.GoOn {
			return held, nil, nil
		}
	}
}

// data sends all of r. It ends early, without an error, when the peer has
// answered already; the answer is for the caller to receive.
func (s *snapshotSender) data(r io.Reader) error {
	for {
		// Not reused: gRPC may hold on to a message after Send has returned.
		chunk := make([]byte, s.t.opts.SnapshotChunkBytes)
		n, err := io.ReadFull(r, chunk)
		if n == 0 && errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if err := s.t.pace.WaitN(s.ctx, n); err != nil {
			return err
		}
		if err := s.message(&storagepb.InstallSnapshotRequest{Data: chunk[:n]}); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		s.transfer.done.Add(int64(n))
		s.t.transfers.sent.Add(int64(n))
	}
}

func (s *snapshotSender) message(m *storagepb.InstallSnapshotRequest) error {
	s.idle.Reset(s.t.opts.SnapshotIdleTimeout)
	return s.stream.Send(m)
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
// directory. An interrupted transfer therefore leaves no trace in Raft, and the
// leader's next one needs to send only what has not arrived.
func (s *transportService) InstallSnapshot(stream snapshotServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.Snapshot == nil {
		return status.Error(codes.InvalidArgument, "snapshot: the first message has no header")
	}
	if err := s.t.admit(first.Snapshot.Term, first.Snapshot.Header); err != nil {
		return err
	}
	receiver, err := s.t.snapshotReceiver()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	done, err := s.t.receiving(ctx, first.Snapshot.Term, cancel)
	if err != nil {
		return err
	}
	defer done()
	in := &incoming{t: s.t, ctx: ctx, cancel: cancel, stream: stream, receiver: receiver, req: snapshotFromProto(first.Snapshot)}
	answer, err := in.receive()
	if err != nil {
		return err
	}
	return stream.Send(answer)
}

type snapshotServer = grpc.BidiStreamingServer[storagepb.InstallSnapshotRequest, storagepb.InstallSnapshotResponse]

// reception is the snapshot that is being received.
type reception struct {
	term   uint64
	cancel context.CancelCauseFunc
}

// receiving waits until no other snapshot is received; done ends that. One that an
// earlier leader sends, or that this leader sent before, is ended: its sender may
// be behind a cut link, and would keep its place for long. Once a later leader has
// come, an earlier one gets no place any more.
func (t *Transport) receiving(ctx context.Context, term uint64, cancel context.CancelCauseFunc) (done func(), err error) {
	own := &reception{term, cancel}
	t.receiverMu.Lock()
	t.receiveOf = max(t.receiveOf, term)
	if other := t.reception; other != nil && other.term <= term {
		other.cancel(errSnapshotPreempted)
	}
	t.receiverMu.Unlock()
	select {
	case t.installing <- struct{}{}:
	case <-ctx.Done():
		return nil, status.Error(codes.Canceled, context.Cause(ctx).Error())
	}
	t.receiverMu.Lock()
	defer t.receiverMu.Unlock()
	if term < t.receiveOf {
		<-t.installing
		return nil, status.Error(codes.Canceled, errSnapshotPreempted.Error())
	}
	t.reception = own
	return func() {
		t.receiverMu.Lock()
		defer t.receiverMu.Unlock()
		t.reception = nil
		<-t.installing
	}, nil
}

// incoming is one snapshot that arrives.
type incoming struct {
	t        *Transport
	ctx      context.Context
	cancel   context.CancelCauseFunc
	stream   snapshotServer
	receiver snapshotReceiver
	req      *raft.InstallSnapshotRequest
	transfer *transfer
	wanted   atomic.Bool // the sender was told to go on
}

func (in *incoming) receive() (*storagepb.InstallSnapshotResponse, error) {
	t, req := in.t, in.req
	log := t.opts.Logger.With("index", req.LastLogIndex, "term", req.LastLogTerm, "bytes", req.Size)
	switch has, err := in.receiver.has(req.LastLogIndex, req.LastLogTerm); {
	case err != nil:
		log.Error("snapshot refused", "error", err)
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case has:
		log.Info("snapshot is not needed: its entries are here already")
		return &storagepb.InstallSnapshotResponse{Term: req.Term, Success: true}, nil
	}
	in.transfer = newTransfer(req.LastLogIndex, req.Size)
	defer t.transfers.receiving(in.transfer)()
	start := time.Now()
	token, release, err := in.stage()
	if err != nil {
		log.Warn("snapshot transfer ended early", "received", in.transfer.done.Load(), "error", err)
		return nil, err
	}
	defer release()
	log.Info("snapshot received", "duration", time.Since(start), "held", in.transfer.held.Load())
	req.Size = int64(len(token))
	answer, err := t.deliver(in.ctx, req, bytes.NewReader(token))
	if err != nil {
		return nil, err
	}
	r := answer.(*raft.InstallSnapshotResponse)
	if r.Success {
		in.receiver.installed(req.LastLogIndex, req.LastLogTerm)
	}
	return &storagepb.InstallSnapshotResponse{Header: headerToProto(r.RPCHeader), Term: r.Term, Success: r.Success}, nil
}

// stage receives and checks all files.
func (in *incoming) stage() (token []byte, release func(), err error) {
	in.t.opts.Logger.Info("receiving a snapshot", "index", in.req.LastLogIndex, "bytes", in.req.Size)
	chunks := make(chan []byte)
	received := make(chan error, 1)
	go func() { received <- in.pump(chunks) }()
	r := &chunkReader{chunks: chunks, received: received, ctx: in.ctx}
	return in.receiver.stage(r, in.req.Size, in.want)
}

// pump returns when the stream ends, which it does with its handler at the latest.
func (in *incoming) pump(chunks chan<- []byte) error {
	for {
		m, err := in.next()
		if err != nil {
			return err
		}
		select {
		case chunks <- m.Data:
		case <-in.ctx.Done():
			return context.Cause(in.ctx)
		}
		in.transfer.done.Add(int64(len(m.Data)))
		in.t.transfers.received.Add(int64(len(m.Data)))
	}
}

// next receives a message. A sender behind a link that is cut in one direction
// does not end its stream: once it should send, it is not waited for for ever.
func (in *incoming) next() (*storagepb.InstallSnapshotRequest, error) {
	if in.wanted.Load() {
		idle := time.AfterFunc(2*in.t.opts.SnapshotIdleTimeout, func() { in.cancel(errSnapshotIdle) })
		defer idle.Stop()
	}
	return in.stream.Recv()
}

// heldPage is how many files one message names.
const heldPage = 1 << 16

// want tells the leader what it need not send.
func (in *incoming) want(held []heldFile, size int64) error {
	in.transfer.hold(size)
	in.t.transfers.resumed.Add(size)
	in.wanted.Store(true)
	for {
		n := min(len(held), heldPage)
		m := &storagepb.InstallSnapshotResponse{GoOn: n == len(held)}
		for _, k := range held[:n] {
			m.Held = append(m.Held, &storagepb.HeldFile{File: uint32(k.file), Bytes: uint64(k.bytes)})
		}
		if err := in.stream.Send(m); err != nil || m.GoOn {
			return err
		}
		held = held[n:]
	}
}

// chunkReader is the data of a snapshot's messages as one stream of bytes.
type chunkReader struct {
	chunks   <-chan []byte
	received <-chan error
	ctx      context.Context
	chunk    []byte
	err      error
}

// Read implements io.Reader.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		select {
		case r.chunk = <-r.chunks:
		case r.err = <-r.received:
		case <-r.ctx.Done():
			r.err = status.Error(codes.Canceled, context.Cause(r.ctx).Error())
		}
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}
