package ingest

import (
	"context"
	"fmt"

	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/replica"
)

// pendingMax bounds what a writer of Countinghouse has in flight; the driver's
// window is below it.
const pendingMax = 1024

// houseStream is an append stream of the public client.
type houseStream struct {
	appender *client.Appender
	pending  chan pendingBatch // in the order of sending
	ended    chan struct{}
}

type pendingBatch struct {
	lastSeq uint64
	done    func(error)
}

func appendOverGRPC(ctx context.Context, h *houses, s *houseShard) (houseWriter, error) {
	a, err := h.client.Append(ctx, s.name)
	if err != nil {
		return nil, err
	}
	w := &houseStream{appender: a, pending: make(chan pendingBatch, pendingMax), ended: make(chan struct{})}
	go w.receive()
	return w, nil
}

func (w *houseStream) submit(batch []byte, lastSeq uint64, done func(error)) {
	w.pending <- pendingBatch{lastSeq, done}
	// The receiving side learns of an error as well, with its reason.
	_ = w.appender.Send(batch)
}

func (w *houseStream) receive() {
	defer close(w.ended)
	for p := range w.pending {
		ack, err := w.appender.Recv()
		switch {
		case err != nil:
		case ack.Refusal != nil:
			err = ack.Refusal
		case ack.LastSeq != p.lastSeq:
			err = fmt.Errorf("acknowledged up to seq %d, not %d", ack.LastSeq, p.lastSeq)
		}
		p.done(err)
	}
}

func (w *houseStream) close() {
	w.appender.Close()
	close(w.pending)
	<-w.ended
}

// houseProposer proposes at the leader.
type houseProposer struct {
	ctx     context.Context
	replica *replica.Replica
}

func proposeInProcess(ctx context.Context, _ *houses, s *houseShard) (houseWriter, error) {
	return &houseProposer{ctx: ctx, replica: s.leader()}, nil
}

func (w *houseProposer) submit(batch []byte, lastSeq uint64, done func(error)) {
	p := w.replica.ProposeBatch(w.ctx, batch)
	go func() {
		last, err := p.Wait()
		if err == nil && last < lastSeq {
			err = fmt.Errorf("stored up to seq %d, not %d", last, lastSeq)
		}
		done(err)
	}()
}

func (w *houseProposer) close() {}
