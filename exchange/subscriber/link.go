package subscriber

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

const (
	pollMin = 20 * time.Microsecond
	pollMax = time.Millisecond
)

// link is a session's stream to the shard's leader and what is on its way.
type link struct {
	stream  Stream
	cancel  context.CancelFunc
	answers chan answer // holds every answer that can come: Recv never waits for the lane
	flight  []sent      // in the order of sending; at most Options.Window
	// watch ends the stream when an answer is overdue: a Send that waits for a
	// hung leader returns then, too.
	watch   *time.Timer
	timeout time.Duration
	overdue atomic.Bool // the watch has ended the stream
}

type sent struct {
	stream      *stream
	firstSeq    uint64
	lastSeq     uint64
	firstGlobal uint64
	batch       []byte
}

type answer struct {
	ack client.Ack
	err error
}

// connect starts a stream to the leader.
func (l *lane) connect(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(l.options.OpenTimeout, cancel)
	stream, err := l.storage.Append(ctx, l.shard)
	if !late.Stop() && err == nil {
		stream.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		return fmt.Errorf("append: %w", err)
	}
	k := &link{stream: stream, cancel: cancel, answers: make(chan answer, l.options.Window+1), timeout: l.options.AckTimeout}
	k.watch = time.AfterFunc(k.timeout, k.late)
	k.watch.Stop()
	l.link = k
	go k.receive()
	return nil
}

// receive hands answers on until the stream ends. There are no more of them
// than batches on their way, and one error.
func (k *link) receive() {
	for {
		ack, err := k.stream.Recv()
		select {
		case k.answers <- answer{ack, err}:
		default:
			return // more answers than batches: the lane sees that from the first of them
		}
		if err != nil {
			return
		}
	}
}

func (k *link) late() {
	k.overdue.Store(true)
	k.cancel()
	k.stream.Close()
}

// close ends the stream and the goroutine that receives from it.
func (k *link) close() {
	k.watch.Stop()
	k.cancel()
	k.stream.Close()
}

func (k *link) oldest() (uint64, bool) {
	lowest, found := uint64(0), false
	for i := range k.flight {
		if g := k.flight[i].firstGlobal; !found || g < lowest {
			lowest, found = g, true
		}
	}
	return lowest, found
}

func (l *lane) inFlight() int {
	if l.link == nil {
		return 0
	}
	return len(l.link.flight)
}

// flush sends what is due, as far as the window allows, and returns how many
// batches that were.
func (l *lane) flush(ctx context.Context, now time.Time) (int, error) {
	idle, n := l.inFlight() == 0, 0
	for l.inFlight() < l.options.Window {
		s := l.batcher.due(now, idle)
		if s == nil {
			break
		}
		if err := l.send(ctx, s); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// send sends a stream's group.
func (l *lane) send(ctx context.Context, s *stream) error {
	if l.link == nil {
		if err := l.connect(ctx); err != nil {
			return err
		}
	}
	g := l.batcher.remove(s)
	batch, err := g.seal(Epoch(l.incarnation, l.session))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOutbox, err)
	}
	k := l.link
	k.flight = append(k.flight, sent{
		stream: s, firstSeq: g.firstSeq, lastSeq: g.firstSeq + uint64(g.count) - 1,
		firstGlobal: g.firstGlobal, batch: batch,
	})
	l.stats.inFlight.Store(int64(len(k.flight)))
	if len(k.flight) == 1 {
		k.watch.Reset(k.timeout)
	}
	if err := k.stream.Send(batch); err != nil {
		return l.sendError(err)
	}
	return nil
}

// sendError prefers the reason that Recv gives: Send often knows only that the
// stream has ended.
func (l *lane) sendError(err error) error {
	wait := time.NewTimer(l.options.RetryMin)
	defer wait.Stop()
	for {
		select {
		case a := <-l.link.answers:
			if failed := l.takeAnswer(a); failed != nil {
				return failed
			}
		case <-wait.C:
			return fmt.Errorf("send: %w", err)
		}
	}
}

// takeAnswers takes the answers that have come and returns how many.
func (l *lane) takeAnswers() (int, error) {
	if l.link == nil {
		return 0, nil
	}
	for n := 0; ; n++ {
		select {
		case a := <-l.link.answers:
			if err := l.takeAnswer(a); err != nil {
				return n, err
			}
		default:
			return n, nil
		}
	}
}

func (l *lane) takeAnswer(a answer) error {
	k := l.link
	if a.err != nil {
		return l.answerError(a.err)
	}
	if len(k.flight) == 0 {
		return fmt.Errorf("answer for %s seq %d: nothing is on its way", a.ack.Instrument, a.ack.FirstSeq)
	}
	head := k.flight[0]
	if err := l.refused(a.ack, head); err != nil {
		return err
	}
	k.flight = append(k.flight[:0], k.flight[1:]...)
	l.stats.inFlight.Store(int64(len(k.flight)))
	l.stats.batches.Add(1)
	l.batcher.giveBack(head.batch)
	head.stream.durable = max(head.stream.durable, head.lastSeq)
	l.countDurable(head.stream)
	if len(k.flight) > 0 {
		k.watch.Reset(k.timeout)
	} else {
		k.watch.Stop()
	}
	return nil
}

// answerError names the cause that the lane itself has for a stream's end.
func (l *lane) answerError(err error) error {
	if l.link.overdue.Load() {
		return fmt.Errorf("no answer within %v: %w", l.link.timeout, err)
	}
	if r := refusal.FromError(err); r != nil {
		return l.refusal(r)
	}
	return fmt.Errorf("append: %w", err)
}

// refused reports an answer that is not the success of the batch head. A
// duplicate is one: the shard has the batch.
func (l *lane) refused(ack client.Ack, head sent) error {
	r := ack.Refusal
	switch {
	case r != nil && !errors.Is(r, refusal.ErrDuplicate):
		return l.refusal(r)
	case ack.Instrument != head.stream.sym || ack.FirstSeq != head.firstSeq || ack.LastSeq < head.lastSeq:
		return fmt.Errorf("answer for %s seq %d to %d: expected %s seq %d to %d", ack.Instrument, ack.FirstSeq, ack.LastSeq,
			head.stream.sym, head.firstSeq, head.lastSeq)
	}
	return nil
}

func (l *lane) refusal(r *refusal.Error) error {
	if errors.Is(r, refusal.ErrFenced) && l.superseded(r.Epoch) {
		return fmt.Errorf("%w: shard %s: %w", ErrSuperseded, l.shard, r)
	}
	if errors.Is(r, refusal.ErrFenced) && IncarnationOf(r.Epoch) > l.incarnation {
		return fmt.Errorf("%w: it has incarnation %d, this process has %d: %w", ErrFenced, IncarnationOf(r.Epoch), l.incarnation, r)
	}
	return fmt.Errorf("append: %w", r)
}

// wait returns when an answer has come, or after pause to look for records, or
// when a group has lingered. While a full group can not be sent only an answer
// helps, and the watch makes sure that there is one.
func (l *lane) wait(ctx context.Context, pause time.Duration, blocked bool) error {
	var answers chan answer
	if l.link != nil {
		answers = l.link.answers
	}
	if blocked {
		pause = l.options.AckTimeout
	}
	if l.inFlight() < l.options.Window {
		if d, ok := l.batcher.untilDue(time.Now()); ok {
			pause = min(pause, d)
		}
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case a := <-answers:
		err := l.takeAnswer(a)
		l.moveCursor()
		return err
	case <-timer.C:
		return nil
	}
}
