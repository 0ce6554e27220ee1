package storagenode

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// ingest serves storagepb.IngestServer.
type ingest struct {
	storagepb.UnimplementedIngestServer
	server *Server
}

// OpenStream serves storagepb.IngestServer.
func (i *ingest) OpenStream(ctx context.Context, req *storagepb.OpenStreamRequest) (*storagepb.OpenStreamResponse, error) {
	sym, err := symbol(req.Instrument)
	if err != nil {
		return nil, err
	}
	if req.Epoch == 0 {
		return nil, refusal.New(storagepb.Code_CODE_INVALID, "epoch: 0; epochs start at 1")
	}
	opened, err := i.server.replica.OpenStream(ctx, sym, req.Epoch)
	if err != nil {
		return nil, asStatus(err)
	}
	out := &storagepb.OpenStreamResponse{Epoch: opened.Epoch, LastSeq: opened.LastSeq}
	if opened.LastRecord != nil {
		out.LastRecord = opened.LastRecord.Bytes()
	}
	return out, nil
}

func symbol(name string) (record.Symbol, error) {
	sym, err := record.MakeSymbol(name)
	if err != nil {
		return sym, refusal.New(storagepb.Code_CODE_INVALID, "%v", err)
	}
	return sym, nil
}

// pendingBatch is a batch whose answer is due.
type pendingBatch struct {
	answer   *storagepb.AppendResponse // complete already if proposal is nil
	proposal *replica.Proposal
	records  int
	arrived  time.Time
}

type appendStreamServer = grpc.BidiStreamingServer[storagepb.AppendRequest, storagepb.AppendResponse]

// Append serves storagepb.IngestServer: one goroutine takes batches in and hands
// them to Raft, this one answers them in the same order. The channel between them
// bounds how many are on their way; when it is full, the stream's flow control
// holds the client back.
func (i *ingest) Append(stream appendStreamServer) error {
	place, leave, err := i.server.enterAppend()
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	pending := make(chan *pendingBatch, i.server.opts.AppendWindow)
	received := make(chan error, 1)
	go func() {
		defer close(pending)
		received <- i.receive(ctx, stream, place, pending)
	}()
	if err := i.answerAll(stream, place, pending); err != nil {
		go i.drain(pending)
		return err
	}
	return <-received
}

// drain waits for the proposals of a stream that ended before they were answered.
// The receiving side ends by itself, because the stream has.
func (i *ingest) drain(pending <-chan *pendingBatch) {
	for p := range pending {
		i.complete(p)
	}
}

func (i *ingest) receive(ctx context.Context, stream appendStreamServer, place *appendStream, pending chan<- *pendingBatch) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		place.pending.Add(1)
		place.used.Store(i.server.appends.now())
		pending <- i.take(ctx, req.Batch)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// take checks a batch and proposes it. A batch that fails a check is answered by
// itself; the stream goes on.
func (i *ingest) take(ctx context.Context, b []byte) *pendingBatch {
	p := &pendingBatch{arrived: time.Now(), answer: &storagepb.AppendResponse{}}
	batch, err := record.ParseBatch(b)
	if err != nil {
		code := storagepb.Code_CODE_CORRUPT
		if errors.Is(err, record.ErrVersion) {
			code = storagepb.Code_CODE_UNKNOWN_VERSION
		}
		p.answer.Refusal = refusal.New(code, "%v", err).Proto()
		return p
	}
	p.answer.Instrument, p.answer.Epoch, p.answer.FirstSeq = batch.Instrument.String(), batch.Epoch, batch.FirstSeq
	p.records = len(batch.Records)
	p.proposal = i.server.replica.ProposeBatch(ctx, b)
	return p
}

// answerAll sends the answers until there are no more, or the server stops.
func (i *ingest) answerAll(stream appendStreamServer, place *appendStream, pending <-chan *pendingBatch) error {
	for {
		select {
		case p, ok := <-pending:
			if !ok {
				return nil
			}
			i.complete(p)
			place.pending.Add(-1)
			if err := stream.Send(p.answer); err != nil {
				return err
			}
		case <-place.evicted:
			return refusal.New(storagepb.Code_CODE_OVERLOADED, "member %s gives the place of this idle stream to another writer", i.server.replica.ID())
		case <-i.server.stopped.Done():
			return refusal.New(storagepb.Code_CODE_UNAVAILABLE, "member %s is stopping", i.server.replica.ID())
		}
	}
}

func (i *ingest) complete(p *pendingBatch) {
	m := i.server.metrics
	if p.proposal != nil {
		last, err := p.proposal.Wait()
		p.answer.LastSeq = last
		if err != nil {
			e := asRefusal(err)
			p.answer.Refusal, p.answer.LastSeq = e.Proto(), e.LastSeq
		}
	}
	m.appendSeconds.Observe(time.Since(p.arrived).Seconds())
	if p.answer.Refusal != nil {
		m.batches.WithLabelValues(p.answer.Refusal.Code.String()).Inc()
		return
	}
	m.batches.WithLabelValues("stored").Inc()
	m.records.Add(float64(p.records))
}

// asRefusal makes any error of a proposal a refusal: inside of an answer there is
// no other kind.
func asRefusal(err error) *refusal.Error {
	if e := refusal.FromError(err); e != nil {
		return e
	}
	return refusal.New(storagepb.Code_CODE_UNAVAILABLE, "%v", err)
}
