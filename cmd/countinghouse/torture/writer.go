package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

const (
	windowBatches  = 8
	openTimeout    = 5 * time.Second
	ackTimeoutMin  = time.Second
	ackTimeoutMax  = 3 * time.Second
	sessionPause   = 30 * time.Millisecond
	burstMax       = 300 * time.Millisecond // of records that a writer catches up on
	smallBatchMax  = 20
	mediumBatchMax = 200
	largeBatchMax  = 2000
)

var (
	// errFenced means that a writer with a higher incarnation has taken over.
	errFenced = errors.New("fenced by a higher incarnation")
	// errOwnEpoch means that the stream was opened by an attempt whose answer
	// was lost.
	errOwnEpoch = errors.New("fenced by the own epoch")
)

// writer is one incarnation of a writer of some instruments of a shard. It keeps
// the rules: after any error it opens its streams with the next session and goes
// on after the last seq it is told; fenced by a higher incarnation, it stops.
type writer struct {
	t           *torture
	shard       *shard
	ledgers     []*ledger
	number      uint64
	incarnation uint64
	session     uint64
	conn        connection
	random      *rand.Rand // of the goroutine that sends
	wants       wants
	due         time.Time // when the next batch is due
	fenced      bool      // how it ended; valid after run
}

func (w *writer) epoch() uint64 { return w.incarnation<<32 | w.session }

func (w *writer) name() string { return fmt.Sprintf("writer %d at %s", w.incarnation, w.conn.host) }

// run writes until ctx ends or the writer is fenced.
func (w *writer) run(ctx context.Context) {
	defer w.conn.close()
	w.wants.more(1)
	defer w.wants.none()
	for ctx.Err() == nil {
		err := w.oneSession(ctx)
		if errors.Is(err, errFenced) {
			w.fenced = true
			w.t.counts.fenced.Add(1)
			w.t.event("%s is fenced", w.name())
			w.wants.none()
			w.haunt(ctx)
			return
		}
		if ctx.Err() == nil && err != nil && !errors.Is(err, errOwnEpoch) && !canHappen(err) {
			w.t.found.add(broken, 1, "%s, epoch %s: %v", w.name(), epochName(w.epoch()), err)
		}
		pause(ctx, sessionPause/2+time.Duration(w.random.Int64N(int64(sessionPause))))
	}
}

// oneSession opens the streams and appends until the first error. The caller
// waits for the shard when it is called, and again when it has returned.
func (w *writer) oneSession(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.session++
	c, err := w.conn.client()
	if err != nil {
		return err
	}
	next, err := w.open(ctx, c)
	if err != nil {
		return err
	}
	given := time.AfterFunc(openTimeout, cancel)
	a, err := c.Append(ctx, w.shard.name)
	if !given.Stop() || err != nil {
		return err
	}
	defer a.Close()
	w.t.counts.sessions.Add(1)
	w.wants.more(-1) // nothing is on its way yet
	s := &appending{
		w: w, a: a, epoch: w.epoch(), next: next, expected: make(chan expectation, windowBatches),
		timeout: ackTimeoutMin + time.Duration(w.random.Int64N(int64(ackTimeoutMax-ackTimeoutMin))),
	}
	return s.run(ctx)
}

// open opens the streams of all instruments and returns the seq that each one
// goes on with.
func (w *writer) open(ctx context.Context, c *client.Client) ([]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	next := make([]uint64, len(w.ledgers))
	for i, l := range w.ledgers {
		l.attempt(w.epoch())
		opened, err := c.OpenStream(ctx, l.sym, w.epoch())
		if err != nil {
			return nil, w.openError(l, err)
		}
		if opened.Epoch != w.epoch() {
			return nil, fmt.Errorf("OpenStream of %s answers for epoch %s", l.sym, epochName(opened.Epoch))
		}
		l.opened(w.epoch(), w.number, opened.LastSeq, opened.LastRecord)
		next[i] = opened.LastSeq + 1
	}
	return next, nil
}

// openError says what an error of OpenStream means. An attempt whose answer was
// lost may have been carried out: then the writer meets its own epoch.
func (w *writer) openError(l *ledger, err error) error {
	r := refusal.FromError(err)
	if r == nil || !errors.Is(r, refusal.ErrFenced) {
		return err
	}
	l.fenced(w.epoch(), r.Epoch)
	if r.Epoch>>32 > w.incarnation {
		return errFenced
	}
	if r.Epoch != w.epoch() {
		return fmt.Errorf("%s can not be opened: %w", l.sym, r)
	}
	return errOwnEpoch
}

// expectation is an answer that is due.
type expectation struct {
	ledger      *ledger
	first, last uint64
	probe       probe // what was wrong with the batch on purpose
}

// appending is one session's stream of batches.
type appending struct {
	w        *writer
	a        *client.Appender
	epoch    uint64
	next     []uint64 // by instrument; of the goroutine that sends
	expected chan expectation
	timeout  time.Duration // how long an answer may take
	sent     []byte        // the last batch, which may be sent again
	sentAs   expectation
}

// run returns with the first error. It leaves the writer waiting for the shard.
func (s *appending) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var sending sync.WaitGroup
	sending.Go(func() {
		defer close(s.expected)
		s.send(ctx)
	})
	err := s.receive()
	s.w.wants.more(1)
	cancel()
	s.a.Close()
	for range s.expected {
		s.w.wants.more(-1)
	}
	sending.Wait()
	return err
}

// send sends batches, paced, until the stream breaks or ctx ends. The room in
// expected is the window.
func (s *appending) send(ctx context.Context) {
	for s.w.pace(ctx) {
		batch, e, err := s.build()
		if err != nil {
			s.w.t.found.add(broken, 1, "%s: %v", s.w.name(), err)
			return
		}
		s.w.wants.more(1)
		select {
		case s.expected <- e:
		case <-ctx.Done():
			s.w.wants.more(-1)
			return
		}
		if s.a.Send(batch) != nil {
			return // the goroutine that receives learns why
		}
	}
}

// build makes the next batch, or something that must be refused.
func (s *appending) build() ([]byte, expectation, error) {
	if p := s.w.drawProbe(); p != probeNone && s.sent != nil {
		return s.provoke(p)
	}
	i := s.w.random.IntN(len(s.next))
	n := s.w.drawSize()
	e := expectation{ledger: s.w.ledgers[i], first: s.next[i], last: s.next[i] + n - 1}
	batch, err := s.w.batch(e, s.epoch)
	if err != nil {
		return nil, e, err
	}
	e.ledger.sending(s.epoch, e.last)
	s.next[i] = e.last + 1
	s.sent, s.sentAs = batch, e
	s.w.advance(n)
	return batch, e, nil
}

// batch makes the bytes of the records that e is about.
func (w *writer) batch(e expectation, epoch uint64) ([]byte, error) {
	rs := make([]record.Record, e.last-e.first+1)
	for i := range rs {
		fill(&rs[i], e.ledger.sym, origin{writer: w.number, epoch: epoch, seq: e.first + uint64(i)})
	}
	return record.AppendBatch(make([]byte, 0, record.BatchHeaderSize+len(rs)*record.Size), epoch, rs)
}

func (w *writer) drawSize() uint64 {
	switch k := w.random.IntN(100); {
	case k < 80:
		return 1 + w.random.Uint64N(smallBatchMax)
	case k < 98:
		return smallBatchMax + w.random.Uint64N(mediumBatchMax)
	}
	return mediumBatchMax + w.random.Uint64N(largeBatchMax)
}

// pace waits until the next batch is due, and reports false when ctx has ended.
func (w *writer) pace(ctx context.Context) bool {
	if late := time.Now().Add(-burstMax); w.due.Before(late) {
		w.due = late
	}
	wait := time.Until(w.due)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	return pause(ctx, wait)
}

// advance makes the next batch due after n records.
func (w *writer) advance(n uint64) {
	perWriter := float64(w.t.Rate) / float64(len(w.t.shards)*writersPerShard)
	w.due = w.due.Add(time.Duration(float64(n) / perWriter * float64(time.Second)))
}

// receive takes the answers in order and returns the first error.
func (s *appending) receive() error {
	for e := range s.expected {
		// The stream is given up when its leader falls silent.
		silent := time.AfterFunc(s.timeout, s.a.Close)
		ack, err := s.a.Recv()
		silent.Stop()
		s.w.wants.more(-1)
		if errors.Is(err, io.EOF) {
			return context.Canceled // the node has ended the stream
		}
		if err == nil {
			err = s.answer(e, ack)
		}
		if err != nil {
			return err
		}
	}
	return context.Canceled
}

// answer checks the answer to a batch.
func (s *appending) answer(e expectation, ack client.Ack) error {
	if e.probe != probeNone {
		return s.refused(e, ack)
	}
	if r := ack.Refusal; r != nil {
		if errors.Is(r, refusal.ErrFenced) {
			e.ledger.fenced(s.epoch, r.Epoch)
			if r.Epoch>>32 > s.w.incarnation {
				return errFenced
			}
		}
		// A gap or a duplicate can not be the first error of a session either.
		return fmt.Errorf("batch of %s from seq %d to %d: %w", e.ledger.sym, e.first, e.last, r)
	}
	if ack.Instrument != e.ledger.sym || ack.Epoch != s.epoch || ack.FirstSeq != e.first || ack.LastSeq != e.last {
		return fmt.Errorf("the batch of %s from seq %d to %d was answered by %s, epoch %s, seq %d to %d",
			e.ledger.sym, e.first, e.last, ack.Instrument, epochName(ack.Epoch), ack.FirstSeq, ack.LastSeq)
	}
	e.ledger.acknowledged(s.epoch, e.last)
	s.w.shard.outages.acknowledged()
	s.w.t.counts.batches.Add(1)
	return nil
}

// wants says for a writer's shard whether the writer waits for it: while it opens
// its streams, and while batches are on their way.
type wants struct {
	outages *outages

	mu sync.Mutex
	n  int
}

func (w *wants) more(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set(w.n + n)
}

func (w *wants) none() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set(0)
}

func (w *wants) set(n int) {
	switch {
	case w.n == 0 && n > 0:
		w.outages.wait()
	case w.n > 0 && n == 0:
		w.outages.rest()
	}
	w.n = n
}
