package fire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

const (
	writerWindow    = 8
	batchRecordsMax = 12
	sessionBatches  = 400
)

// writer appends to one instrument as an exchange does: it opens the stream with
// its incarnation, keeps several batches on their way, and after any error opens
// again with the next session. It ends when a higher incarnation has taken over.
// Now and then it does what it should not.
type writer struct {
	*client
	instrument  string
	incarnation uint64
	session     uint64
}

func (c *cluster) writer(instrument string, incarnation uint64) *writer {
	name := fmt.Sprintf("writer-%s-%d", instrument, incarnation)
	return &writer{client: c.client(name), instrument: instrument, incarnation: incarnation}
}

// run returns when the writer is fenced for good, or the run is over.
func (w *writer) run() {
	defer w.close()
	for w.c.ctx.Err() == nil {
		m := w.pick()
		epoch, last, err := w.open(m)
		if errors.Is(err, refusal.ErrFenced) {
			if epoch>>sessionBits > w.incarnation {
				w.c.count("writers fenced for good")
				return
			}
			w.session = max(w.session, epoch&(1<<sessionBits-1))
		} else if err == nil {
			w.append(m, epoch, last)
		}
		if !w.pause(30 * time.Millisecond) {
			return
		}
	}
}

// open opens the stream with the next session. After ErrFenced epoch is that of
// the fence.
func (w *writer) open(m *member) (epoch, last uint64, err error) {
	w.session++
	epoch = w.incarnation<<sessionBits | w.session
	ctx, cancel := call(w.c.ctx)
	defer cancel()
	o := w.c.history.begin(op{client: w.name, kind: opOpen, instrument: w.instrument, epoch: epoch})
	answer, err := w.ingest(m).OpenStream(ctx, &storagepb.OpenStreamRequest{Instrument: w.instrument, Epoch: epoch})
	if err == nil {
		o.outcome, o.gotEpoch, o.gotLast, o.content = done, answer.Epoch, answer.LastSeq, answer.LastRecord
		w.c.history.end(o)
		w.hint = m.id
		return answer.Epoch, answer.LastSeq, nil
	}
	r := refusal.FromError(err)
	o.told(r, err)
	w.c.history.end(o)
	w.follow(m, r)
	if r != nil && errors.Is(r, refusal.ErrFenced) {
		return r.Epoch, r.LastSeq, r
	}
	return 0, 0, err
}

// told fills in what a refusal, or another error, says.
func (o *op) told(r *refusal.Error, err error) {
	if r == nil {
		o.reason = fmt.Sprint(err)
		return
	}
	switch r.Code {
	case storagepb.Code_CODE_DUPLICATE:
		o.outcome = duplicate
	case storagepb.Code_CODE_GAP:
		o.outcome = gap
	case storagepb.Code_CODE_FENCED:
		o.outcome = fenced
	case storagepb.Code_CODE_NOT_OWNER:
		o.outcome = notOwner
	default:
		o.reason = r.Code.String()
	}
	o.gotEpoch, o.gotLast = r.Epoch, r.LastSeq
}

// follow remembers who leads; a member that does not answer is dialled anew.
func (k *client) follow(m *member, r *refusal.Error) {
	k.hint = ""
	if r == nil {
		if k.rng.IntN(4) == 0 {
			k.drop(m)
		}
		return
	}
	k.hint = r.LeaderID
}

// inFlight are the batches of a stream that are not answered yet.
type inFlight struct {
	mu  sync.Mutex
	ops []*op
}

func (f *inFlight) push(o *op) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, o)
}

func (f *inFlight) pop() *op {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.ops) == 0 {
		return nil
	}
	o := f.ops[0]
	f.ops = f.ops[1:]
	return o
}

// append sends batches from last+1 on until something goes wrong.
func (w *writer) append(m *member, epoch, last uint64) {
	ctx, cancel := context.WithCancel(w.c.ctx)
	defer cancel()
	stream, err := w.ingest(m).Append(withIdentity(ctx))
	if err != nil {
		return
	}
	s := &session{w: w, m: m, epoch: epoch, next: last + 1, stream: stream, cancel: cancel, window: make(chan struct{}, writerWindow)}
	var receiving sync.WaitGroup
	receiving.Go(s.receive)
	s.send(ctx)
	if ctx.Err() == nil {
		stream.CloseSend()
		quiet := time.AfterFunc(callTimeout, cancel)
		receiving.Wait()
		quiet.Stop()
	}
	receiving.Wait()
	for o := s.flying.pop(); o != nil; o = s.flying.pop() {
		o.reason = "the stream ended"
		w.c.history.end(o)
	}
	w.follow(m, s.last)
}

// session is one append stream.
type session struct {
	w      *writer
	m      *member
	epoch  uint64
	next   uint64
	stream grpc.BidiStreamingClient[storagepb.AppendRequest, storagepb.AppendResponse]
	cancel context.CancelFunc
	window chan struct{}
	flying inFlight
	last   *refusal.Error // that ended the stream; for the sender after receive has returned
	sent   []byte         // the last batch
	lastOp op
}

func (s *session) send(ctx context.Context) {
	for range sessionBatches {
		o, b := s.pickBatch()
		timer := time.NewTimer(callTimeout)
		select {
		case s.window <- struct{}{}:
			timer.Stop()
		case <-timer.C:
			s.cancel()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
		started := s.w.c.history.begin(o)
		s.flying.push(started)
		if s.stream.Send(&storagepb.AppendRequest{Batch: b}) != nil {
			s.cancel()
			return
		}
		if s.w.rng.IntN(3) == 0 && !s.w.pause(10*time.Millisecond) {
			return
		}
	}
}

// pickBatch returns the next batch, or, rarely, one that is to be refused.
func (s *session) pickBatch() (op, []byte) {
	first, epoch := s.next, s.epoch
	n := 1 + s.w.rng.IntN(batchRecordsMax)
	switch s.w.rng.IntN(100) {
	case 0: // a gap
		first += 1 + uint64(s.w.rng.IntN(5))
	case 1: // in part what is stored already
		if back := uint64(s.w.rng.IntN(5)); back < first {
			first -= back
		}
	case 2: // an epoch that has been over for long, or one that is not open yet
		epoch += uint64(s.w.rng.IntN(2)<<1) - 1
	case 3: // the same bytes again
		if s.sent != nil {
			return s.lastOp, s.sent
		}
	}
	nonce := s.w.c.nonce()
	rs := makeRecords(s.w.instrument, first, n, nonce)
	b, err := record.AppendBatch(nil, epoch, rs)
	if err != nil {
		s.w.c.find(err)
		return op{}, nil
	}
	o := op{
		client: s.w.name, kind: opAppend, instrument: s.w.instrument,
		epoch: epoch, first: first, records: b[record.BatchHeaderSize:], nonce: nonce,
	}
	if first == s.next && epoch == s.epoch {
		s.next = o.lastSeq() + 1
		s.sent, s.lastOp = b, o
	}
	return o, b
}

// receive takes answers in the order of the batches.
func (s *session) receive() {
	defer s.cancel()
	for {
		answer, err := s.stream.Recv()
		if err != nil {
			return
		}
		o := s.flying.pop()
		if o == nil {
			s.w.c.find(fmt.Errorf("%s was sent an answer without a question: %v", s.w.name, answer))
			return
		}
		<-s.window
		if !s.take(o, answer) {
			return
		}
	}
}

// take notes an answer and reports whether the stream can go on.
func (s *session) take(o *op, answer *storagepb.AppendResponse) bool {
	if answer.FirstSeq != o.first || answer.Epoch != o.epoch || answer.Instrument != o.instrument {
		s.w.c.find(fmt.Errorf("answer %v to %s", answer, o))
		return false
	}
	if answer.Refusal == nil {
		o.outcome, o.gotLast = done, answer.LastSeq
		s.w.c.history.end(o)
		return true
	}
	r := refusal.FromProto(answer.Refusal)
	o.told(r, r)
	s.w.c.history.end(o)
	// Of a batch that was wrong on purpose, nothing is to be learned.
	if o.outcome == unknown || o.outcome == fenced && o.epoch == s.epoch {
		s.last = r
		return false
	}
	return true
}
