package replica

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

type appendStream = storagepb.RaftTransport_AppendEntriesClient

// callStream is a stream that is kept open for calls that wait for their answer.
// It is opened by the first call and again by the first one after an error.
type callStream struct {
	mu     sync.Mutex // held during a call
	stream appendStream
	cancel context.CancelFunc
}

// call sends messages and returns the answer to all of them: the first that is
// no success, or the last.
func (c *callStream) call(ctx context.Context, client storagepb.RaftTransportClient, messages []*storagepb.AppendEntriesRequest, timeout time.Duration) (*storagepb.AppendEntriesResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.open(ctx, client); err != nil {
		return nil, err
	}
	expiry := time.AfterFunc(timeout, c.cancel)
	answer, err := c.exchange(messages)
	if err != nil || !expiry.Stop() {
		c.cancel()
		c.stream = nil
	}
	return answer, err
}

func (c *callStream) open(ctx context.Context, client storagepb.RaftTransportClient) error {
	if c.stream != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := client.AppendEntries(ctx)
	if err != nil {
		cancel()
		return err
	}
	c.stream, c.cancel = stream, cancel
	return nil
}

func (c *callStream) exchange(messages []*storagepb.AppendEntriesRequest) (*storagepb.AppendEntriesResponse, error) {
	for _, m := range messages {
		if err := c.stream.Send(m); err != nil {
			return nil, streamError(c.stream, err)
		}
	}
	return receiveAll(c.stream, len(messages))
}

// streamError returns why a stream broke: Send says only that it did.
func streamError(stream appendStream, err error) error {
	if _, recvErr := stream.Recv(); recvErr != nil {
		return recvErr
	}
	return err
}

func receiveAll(stream appendStream, n int) (*storagepb.AppendEntriesResponse, error) {
	var answer *storagepb.AppendEntriesResponse
	for range n {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if m.Error != "" {
			return nil, fmt.Errorf("peer %s: %s", m.Header.GetAddr(), m.Error)
		}
		if answer == nil || answer.Success {
			answer = m
		}
	}
	return answer, nil
}

// messages returns what a request is sent as. A leader counts its own copy of an
// entry for the commit index before its disk has it; the followers are told of a
// commit only when it has.
func (t *Transport) messages(args *raft.AppendEntriesRequest) []*storagepb.AppendEntriesRequest {
	return splitAppend(args, min(args.LeaderCommitIndex, t.log.durable()), t.opts.MessageBytesMax)
}

// AppendEntries implements raft.Transport.
func (t *Transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	calls, p, err := t.peer(target)
	if err != nil {
		return err
	}
	stream, timeout := &p.appends, t.opts.AppendTimeout
	if isHeartbeat(args) {
		stream, timeout = &p.heartbeats, t.opts.HeartbeatTimeout
	}
	m, err := stream.call(calls, p.raft, t.messages(args), timeout)
	if t.noteRefused(err) != nil {
		return fmt.Errorf("append entries to %s at %s: %w", id, target, err)
	}
	responseFromProto(m, resp)
	t.progress.answered(id, args, resp)
	return nil
}

// pipeline sends requests without waiting for the answers to those before. It
// ends for good with its first error; the library then goes back to single calls
// and opens another one.
type pipeline struct {
	t      *Transport
	id     raft.ServerID
	stream appendStream
	ctx    context.Context
	cancel context.CancelFunc

	unanswered chan *appendFuture // in the order sent
	answered   chan raft.AppendFuture
}

// AppendEntriesPipeline implements raft.Transport.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	calls, p, err := t.peer(target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(calls)
	stream, err := p.raft.AppendEntries(ctx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("pipeline to %s at %s: %w", id, target, err)
	}
	pipe := &pipeline{
		t: t, id: id, stream: stream, ctx: ctx, cancel: cancel,
		unanswered: make(chan *appendFuture, t.opts.PipelineMax),
		answered:   make(chan raft.AppendFuture, t.opts.PipelineMax),
	}
	go pipe.receive()
	return pipe, nil
}

// AppendEntries implements raft.AppendPipeline. It blocks while PipelineMax
// requests are unanswered.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	messages := p.t.messages(args)
	f := &appendFuture{start: time.Now(), args: args, resp: resp, parts: len(messages), done: make(chan struct{})}
	select {
	case p.unanswered <- f:
	case <-p.ctx.Done():
		return nil, raft.ErrPipelineShutdown
	}
	for _, m := range messages {
		if err := p.stream.Send(m); err != nil {
			p.cancel()
			return nil, fmt.Errorf("pipeline to %s: %w", p.id, err)
		}
	}
	return f, nil
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answered }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.cancel()
	return nil
}

// receive hands answers on in order. A request without an answer is not handed
// on: the library would take it for a sign of life. It learns of the end from
// its next AppendEntries, which fails.
func (p *pipeline) receive() {
	defer p.cancel()
	for {
		select {
		case f := <-p.unanswered:
			if !p.await(f) {
				return
			}
		case <-p.ctx.Done():
			return
		}
	}
}

func (p *pipeline) await(f *appendFuture) bool {
	expiry := time.AfterFunc(p.t.opts.AppendTimeout, p.cancel)
	m, err := receiveAll(p.stream, f.parts)
	expiry.Stop()
	if p.t.noteRefused(err) != nil {
		p.t.opts.Logger.Debug("pipeline ended", "peer", p.id, "error", err)
		f.finish(err)
		return false
	}
	responseFromProto(m, f.resp)
	p.t.progress.answered(p.id, f.args, f.resp)
	f.finish(nil)
	select {
	case p.answered <- f:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// appendFuture is one request of a pipeline.
type appendFuture struct {
	start time.Time
	args  *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	parts int // messages it was sent as
	done  chan struct{}
	err   error // valid once done is closed
}

func (f *appendFuture) finish(err error) {
	f.err = err
	close(f.done)
}

// Error implements raft.Future.
func (f *appendFuture) Error() error {
	<-f.done
	return f.err
}

// Start implements raft.AppendFuture.
func (f *appendFuture) Start() time.Time { return f.start }

// Request implements raft.AppendFuture.
func (f *appendFuture) Request() *raft.AppendEntriesRequest { return f.args }

// Response implements raft.AppendFuture.
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }
