package storagenode

import (
	"context"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

// query serves storagepb.QueryServer. What a slow reader costs is bounded: gRPC's
// flow control blocks its stream, and the number of streams has a limit.
type query struct {
	storagepb.UnimplementedQueryServer
	server *Server
}

type recordsStream = grpc.ServerStreamingServer[storagepb.Records]

// enter takes a place for a query, or refuses it.
func (s *Server) enter(kind string) (leave func(), err error) {
	select {
	case s.queries <- struct{}{}:
	default:
		s.metrics.queriesRefused.Inc()
		return nil, refusal.New(storagepb.Code_CODE_OVERLOADED, "member %s answers %d queries already, which is its limit", s.replica.ID(), cap(s.queries))
	}
	gauge := s.metrics.queries.WithLabelValues(kind)
	gauge.Inc()
	return func() {
		gauge.Dec()
		<-s.queries
	}, nil
}

// chunker collects records into messages.
type chunker struct {
	server  *Server
	stream  recordsStream
	applied uint64
	buf     []byte
}

// add copies records, because a message outlives the memory that they are read
// from, and sends every chunk that is full.
func (c *chunker) add(rs []record.Record) error {
	for b := record.SliceBytes(rs); len(b) > 0; {
		if c.buf == nil {
			c.buf = make([]byte, 0, min(len(b), c.server.opts.ChunkBytes))
		}
		n := min(len(b), c.server.opts.ChunkBytes-len(c.buf))
		c.buf = append(c.buf, b[:n]...)
		b = b[n:]
		if len(c.buf) == c.server.opts.ChunkBytes {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *chunker) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	return c.send()
}

// send sends what there is, even if it is nothing. The buffer is not reused: gRPC
// may hold on to it.
func (c *chunker) send() error {
	m := &storagepb.Records{Data: c.buf, AppliedIndex: c.applied}
	c.server.metrics.recordsRead.Add(float64(len(c.buf) / record.Size))
	c.buf = nil
	return c.stream.Send(m)
}

// Get serves storagepb.QueryServer.
func (q *query) Get(req *storagepb.GetRequest, stream recordsStream) error {
	leave, err := q.server.enter("get")
	if err != nil {
		return err
	}
	defer leave()
	selection, err := getQuery(req)
	if err != nil {
		return err
	}
	view, err := q.server.replica.Read(stream.Context(), req.Stale)
	if err != nil {
		return asStatus(err)
	}
	defer view.Release()
	c := &chunker{server: q.server, stream: stream, applied: view.AppliedIndex}
	if err := view.Shard.Get(stream.Context(), selection, c.add); err != nil {
		return asStatus(err)
	}
	return c.send()
}

func getQuery(req *storagepb.GetRequest) (store.GetQuery, error) {
	out := store.GetQuery{Limit: req.Limit}
	given := 0
	for _, id := range []record.ID{
		{Kind: record.OrderID, Value: req.OrderId}, {Kind: record.TradeID, Value: req.TradeId}, {Kind: record.AccountID, Value: req.Account},
	} {
		if id.Value != 0 {
			out.ID = id
			given++
		}
	}
	if given != 1 {
		return out, refusal.New(storagepb.Code_CODE_INVALID, "order_id, trade_id, account: %d of them are set; set exactly one", given)
	}
	if req.Instrument == "" {
		return out, nil
	}
	var err error
	out.Instrument, err = symbol(req.Instrument)
	return out, err
}

// Scan serves storagepb.QueryServer.
func (q *query) Scan(req *storagepb.ScanRequest, stream recordsStream) error {
	leave, err := q.server.enter("scan")
	if err != nil {
		return err
	}
	defer leave()
	sym, err := symbol(req.Instrument)
	if err != nil {
		return err
	}
	view, err := q.server.replica.Read(stream.Context(), req.Stale)
	if err != nil {
		return asStatus(err)
	}
	defer view.Release()
	c := &chunker{server: q.server, stream: stream, applied: view.AppliedIndex}
	_, err = scanInto(c, view, sym, store.ScanOptions{
		FromSeq: req.FromSeq, ToSeq: req.ToSeq, FromTime: req.FromTime, ToTime: req.ToTime, Limit: req.Limit,
	})
	if err != nil {
		return asStatus(err)
	}
	return c.send()
}

// scanInto adds records to c and returns the seq of the last one, 0 for none.
func scanInto(c *chunker, view *replica.View, sym record.Symbol, o store.ScanOptions) (last uint64, err error) {
	it, err := view.Shard.Scan(sym, o)
	if err != nil {
		return 0, err
	}
	defer it.Close()
	for it.Next() {
		rs := it.Records()
		if err := c.add(rs); err != nil {
			return last, err
		}
		last = rs[len(rs)-1].Seq
	}
	return last, it.Err()
}

// Tail serves storagepb.QueryServer. It reads up to the end in steps, each with a
// view of its own, so that a reader that follows for days pins nothing. No record
// is missed: the channel that tells of further ones is taken before the end is
// read. None is sent twice: each step begins after the last record sent.
func (q *query) Tail(req *storagepb.TailRequest, stream recordsStream) error {
	leave, err := q.server.enter("tail")
	if err != nil {
		return err
	}
	defer leave()
	sym, err := symbol(req.Instrument)
	if err != nil {
		return err
	}
	t := &tail{c: &chunker{server: q.server, stream: stream}, sym: sym, next: req.FromSeq, stale: req.Stale}
	if err := t.begin(stream.Context()); err != nil {
		return asStatus(err)
	}
	for {
		lead := q.server.replica.LeadEnds()
		more, err := t.step(stream.Context())
		if err != nil {
			return asStatus(err)
		}
		select {
		case <-more:
		case <-lead: // the next step ends a tail that needs the leader
		case <-stream.Context().Done():
			return asStatus(stream.Context().Err())
		case <-q.server.stopped.Done():
			return refusal.New(storagepb.Code_CODE_UNAVAILABLE, "member %s is stopping", q.server.replica.ID())
		}
	}
}

// tail follows one instrument.
type tail struct {
	c     *chunker
	sym   record.Symbol
	next  uint64 // seq of the next record to send
	stale bool
}

// begin fixes the first record. It sends an empty message, by which the caller
// knows that what is applied from here on will come.
func (t *tail) begin(ctx context.Context) error {
	view, err := t.c.server.replica.Read(ctx, t.stale)
	if err != nil {
		return err
	}
	defer view.Release()
	last, err := view.Shard.LastSeq(t.sym)
	if err != nil {
		return err
	}
	if t.next == 0 {
		t.next = last + 1
	}
	t.c.applied = view.AppliedIndex
	return t.c.send()
}

// step sends what there is and returns the channel that tells of more. A tail of
// the leader ends when the node no longer leads: it would fall behind unnoticed.
func (t *tail) step(ctx context.Context) (<-chan struct{}, error) {
	r := t.c.server.replica
	if !t.stale && !r.IsLeader() {
		_, err := r.Read(ctx, false)
		if err == nil {
			err = refusal.New(storagepb.Code_CODE_UNAVAILABLE, "leadership has changed: call again")
		}
		return nil, err
	}
	view, err := r.Read(ctx, true)
	if err != nil {
		return nil, err
	}
	defer view.Release()
	more, err := view.Shard.Watch(t.sym)
	if err != nil {
		return nil, err
	}
	t.c.applied = view.AppliedIndex
	// A store that was replaced by a snapshot may end before the next record.
	if last, err := view.Shard.LastSeq(t.sym); err != nil || last < t.next {
		return more, err
	}
	last, err := scanInto(t.c, view, t.sym, store.ScanOptions{FromSeq: t.next})
	if err != nil {
		return nil, err
	}
	if last != 0 {
		t.next = last + 1
	}
	return more, t.c.flush()
}

// Instruments serves storagepb.QueryServer.
func (q *query) Instruments(ctx context.Context, req *storagepb.InstrumentsRequest) (*storagepb.InstrumentsResponse, error) {
	view, err := q.server.replica.Read(ctx, req.Stale)
	if err != nil {
		return nil, asStatus(err)
	}
	defer view.Release()
	out := &storagepb.InstrumentsResponse{AppliedIndex: view.AppliedIndex}
	for _, st := range view.Shard.Instruments() {
		out.Instruments = append(out.Instruments, &storagepb.InstrumentStats{
			Instrument: st.Instrument.String(), Epoch: st.Epoch, LastSeq: st.LastSeq,
			MemtableRecords: st.MemtableRecords, TableRecords: st.TableRecords, Tables: uint32(st.Tables),
			TableBytes: st.TableBytes, Chain: st.Chain, FirstTime: st.FirstTime, LastTime: st.LastTime, LastGlobal: st.LastGlobal,
		})
	}
	return out, nil
}
