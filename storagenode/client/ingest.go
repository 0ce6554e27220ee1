package client

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// OpenResult is what a stream holds when it is opened.
type OpenResult struct {
	Epoch      uint64
	LastSeq    uint64         // 0 for an empty stream
	LastRecord *record.Record // the record at LastSeq; nil for an empty stream
}

// OpenStream opens the instrument's stream with an epoch and fences all writers
// with a lower one. It tries until ctx ends or the shard refuses for good.
//
// An attempt whose answer is lost may have been carried out; the next one is
// then refused with CODE_FENCED and this same epoch. A writer that finds its own
// incarnation in the refusal's epoch raises its session and opens again.
func (c *Client) OpenStream(ctx context.Context, sym record.Symbol, epoch uint64) (OpenResult, error) {
	s, err := c.shardOf(sym)
	if err != nil {
		return OpenResult{}, err
	}
	var answer *storagepb.OpenStreamResponse
	err = c.onLeader(ctx, s, func(ctx context.Context, conn *grpc.ClientConn) error {
		ctx, cancel := c.attempt(ctx)
		defer cancel()
		var err error
		answer, err = storagepb.NewIngestClient(conn).OpenStream(ctx, &storagepb.OpenStreamRequest{Instrument: sym.String(), Epoch: epoch})
		return err
	})
	if err != nil {
		return OpenResult{}, fmt.Errorf("open stream %s: %w", sym, err)
	}
	return openResult(sym, answer)
}

func openResult(sym record.Symbol, answer *storagepb.OpenStreamResponse) (OpenResult, error) {
	result := OpenResult{Epoch: answer.Epoch, LastSeq: answer.LastSeq}
	if answer.LastSeq == 0 {
		return result, nil
	}
	rs, err := record.View(answer.LastRecord)
	if err == nil && len(rs) != 1 {
		err = fmt.Errorf("%w: %d records instead of the last one", record.ErrCorrupt, len(rs))
	}
	if err == nil {
		err = rs[0].Check()
	}
	if err == nil && (rs[0].Seq != answer.LastSeq || rs[0].Instrument != sym) {
		err = fmt.Errorf("%w: last record is %s seq %d, not seq %d", record.ErrCorrupt, rs[0].Instrument, rs[0].Seq, answer.LastSeq)
	}
	if err != nil {
		return OpenResult{}, fmt.Errorf("open stream %s: answer: %w", sym, err)
	}
	result.LastRecord = &rs[0]
	return result, nil
}

// Ack is the answer to one batch, in the order in which batches were sent.
type Ack struct {
	Instrument record.Symbol
	Epoch      uint64
	FirstSeq   uint64
	// LastSeq is durable on a quorum when Refusal is nil; for CODE_DUPLICATE it
	// is the stream's last.
	LastSeq uint64
	Refusal *refusal.Error
}

// Appender is a stream of batches to a shard's leader. Send and Recv may each be
// used by one goroutine, at the same time.
type Appender struct {
	stream  grpc.BidiStreamingClient[storagepb.AppendRequest, storagepb.AppendResponse]
	cancel  context.CancelFunc
	shard   *shard
	address string
}

// Append starts a stream to the shard's leader, which it looks for until ctx
// ends. The stream lasts until ctx ends, Close is called, or it fails; then the
// caller opens its instruments' streams again and starts another one.
func (c *Client) Append(ctx context.Context, shardName string) (*Appender, error) {
	s, err := c.shardByName(shardName)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &Appender{cancel: cancel, shard: s}
	err = c.onLeader(ctx, s, func(ctx context.Context, conn *grpc.ClientConn) error {
		if err := c.askForLeader(ctx, s, conn); err != nil {
			return err
		}
		var err error
		a.address = addressOf(conn)
		if a.stream, err = storagepb.NewIngestClient(conn).Append(ctx); err == nil {
			s.hold(ctx, a.address)
		}
		return err
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("append: %w", err)
	}
	return a, nil
}

// askForLeader returns nil if the node leads its shard, else a refusal that
// names the leader it knows.
func (c *Client) askForLeader(ctx context.Context, s *shard, conn *grpc.ClientConn) error {
	ctx, cancel := c.attempt(ctx)
	defer cancel()
	st, err := storagepb.NewAdminClient(conn).Status(ctx, &storagepb.StatusRequest{})
	if err != nil {
		return err
	}
	if st.State == StateLeader {
		return s.met(st)
	}
	r := refusal.New(storagepb.Code_CODE_NOT_LEADER, "%s does not lead shard %s", st.Id, s.def.Name)
	r.LeaderID, r.LeaderAddress, r.Term = st.LeaderId, st.LeaderAddress, st.Term
	return r
}

// StateLeader is what StatusResponse.State says of a leader.
const StateLeader = "leader"

// Leader returns the address that the stream goes to.
func (a *Appender) Leader() string { return a.address }

// Send sends a batch in the layout of package record. The bytes are not copied
// and must stay as they are until their answer has come; after an error, for
// good. It blocks while the connection's window is full.
func (a *Appender) Send(batch []byte) error {
	return a.stream.Send(&storagepb.AppendRequest{Batch: batch})
}

// Recv returns the next answer. After an error the stream is of no further use,
// and the shard's leader is looked for anew.
func (a *Appender) Recv() (Ack, error) {
	answer, err := a.stream.Recv()
	if err != nil {
		a.cancel()
		a.shard.doubt(a.address, err)
		return Ack{}, typed(err)
	}
	sym, err := record.MakeSymbol(answer.Instrument)
	if err != nil && answer.Refusal == nil { // a broken batch has no name to answer with
		return Ack{}, fmt.Errorf("append: answer: %w", err)
	}
	ack := Ack{
		Instrument: sym, Epoch: answer.Epoch, FirstSeq: answer.FirstSeq, LastSeq: answer.LastSeq,
		Refusal: refusal.FromProto(answer.Refusal),
	}
	if ack.Refusal != nil && errors.Is(ack.Refusal, refusal.ErrNotLeader) {
		a.shard.doubt(a.address, ack.Refusal)
	}
	return ack, nil
}

// Close ends the stream; a Recv that waits returns an error.
func (a *Appender) Close() { a.cancel() }
