package subscriber

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

// stream is one instrument on its way to the shard.
type stream struct {
	sym record.Symbol

	// For the lane's goroutine only.
	opened   bool
	durable  uint64         // last seq on a quorum, as far as is known
	next     uint64         // the seq to be gathered next
	stored   *record.Record // what the shard ended with when the stream was opened, nil for nothing
	group    group
	received uint64 // highest seq read in this process
	counted  uint64 // up to here seqs are in stats.persisted
}

// lane carries one shard's records. All but the watermarks, the statistics and
// the published counter belongs to its goroutine.
type lane struct {
	shard       string
	incarnation uint64
	ahead       uint64
	options     Options
	storage     Storage
	reader      *outbox.Reader
	streams     map[record.Symbol]*stream
	// others holds the instruments of the other shards, in the one lane that
	// watches for instruments without an owner; nil in the rest.
	others map[record.Symbol]bool

	session uint32
	last    uint32 // the highest session that this lane may use
	terms   bool   // it takes a term before it delivers anything
	begun   bool   // it has taken it, and last is the term's end
	batcher batcher
	link    *link         // nil until the first batch of a session
	seen    uint64        // highest global ever read
	held    atomic.Uint64 // lowest global of an unowned instrument, 0 for none

	cursor  watermark
	moved   func() // called after each rise of cursor, and after its failure
	hold    func(global uint64)
	holding watermark // 1 once held is set
	stats   laneStats
	state   atomic.Int32
}

// readMax is how many records a lane looks at between two looks at its answers.
const readMax = 4096

// run carries records until ctx ends, which is not an error, or for good.
func (l *lane) run(ctx context.Context) error {
	pause := l.options.RetryMin
	for {
		l.beginSession()
		before := l.stats.batches.Load()
		err := l.runSession(ctx)
		l.endSession()
		switch {
		case ctx.Err() != nil:
			return l.stop(StateStopped, ErrStopped)
		case fatal(err):
			l.stats.note(err)
			return l.stop(stateOf(err), fmt.Errorf("subscriber: shard %s: %w", l.shard, err))
		}
		l.stats.note(err)
		if l.stats.batches.Load() > before {
			pause = l.options.RetryMin
		}
		l.state.Store(int32(StateRetrying))
		l.noteOldest()
		if !sleep(ctx, pause/2+rand.N(pause/2+1)) {
			return l.stop(StateStopped, ErrStopped)
		}
		pause = min(2*pause, l.options.RetryMax)
	}
}

func (l *lane) stop(s State, err error) error {
	l.state.Store(int32(s))
	l.cursor.fail(err)
	l.moved()
	if s == StateStopped {
		return nil
	}
	return err
}

func fatal(err error) bool {
	for _, target := range []error{ErrFenced, ErrSuperseded, ErrDiverged, ErrMissing, ErrOutbox, ErrSessions} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// beginSession goes back to the cursor.
func (l *lane) beginSession() {
	l.session++
	l.batcher.clear()
	for _, s := range l.streams {
		s.opened = false
	}
	l.link = nil
	// The cursor lies between itself and what is published: this can not fail.
	_ = l.reader.Seek(l.reader.Cursor())
	l.noteOldest()
}

// sorted returns the shard's streams, always in the same order.
func (l *lane) sorted() []*stream {
	return slices.SortedFunc(maps.Values(l.streams), func(a, b *stream) int { return bytes.Compare(a.sym[:], b.sym[:]) })
}

func (l *lane) endSession() {
	if l.link != nil {
		l.link.close()
	}
}

// runSession carries records until the first error.
func (l *lane) runSession(ctx context.Context) error {
	if l.begun && l.session > l.last {
		return ErrSessions
	}
	if l.terms && !l.begun {
		if err := l.begin(ctx); err != nil {
			return err
		}
	}
	pause := pollMin
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		answered, err := l.takeAnswers()
		if err != nil {
			return err
		}
		read, blocked, err := l.read(ctx)
		if err != nil {
			return err
		}
		sent, err := l.flush(ctx, time.Now())
		if err != nil {
			return err
		}
		if answered+read+sent > 0 {
			l.moveCursor()
			pause = pollMin
			continue
		}
		if err := l.wait(ctx, pause, blocked); err != nil {
			return err
		}
		pause = min(2*pause, pollMax)
	}
}

// read gathers records until the outbox is empty, a full group can not be sent,
// or it is time to look at the answers again. It returns how many it has taken
// in, and whether a full group stopped it.
func (l *lane) read(ctx context.Context) (n int, blocked bool, err error) {
	rs := l.reader.PeekWhole(readMax)
	if err := l.reader.Err(); err != nil && l.settled() {
		return 0, false, fmt.Errorf("%w: %w", ErrOutbox, err)
	}
	if len(rs) == 0 {
		return 0, false, nil
	}
	now := time.Now()
	for i := range rs {
		taken, err := l.take(ctx, &rs[i], now)
		if err != nil || !taken {
			l.reader.Advance(i)
			return i, !taken, err
		}
	}
	l.reader.Advance(len(rs))
	return len(rs), false, nil
}

// settled reports whether everything read is durable, and moves the cursor if
// so: what stands before damage is delivered before the lane ends.
func (l *lane) settled() bool {
	if _, gathered := l.batcher.oldest(); gathered || l.inFlight() > 0 {
		return false
	}
	l.moveCursor()
	return true
}

// take gathers r if it belongs to this lane. It returns false when the group
// that r belongs to is full.
func (l *lane) take(ctx context.Context, r *record.Record, now time.Time) (bool, error) {
	s := l.streams[r.Instrument]
	if s == nil {
		l.passOver(r)
		return true, nil
	}
	if !s.opened {
		if err := l.open(ctx, s); err != nil {
			return true, err
		}
	}
	if l.batcher.full(s) {
		return false, nil
	}
	l.count(s, r)
	if r.Seq < s.next {
		return true, l.passStored(s, r)
	}
	if r.Seq > s.next {
		return true, fmt.Errorf("%w: the shard holds %s up to seq %d, and the outbox goes on with seq %d", ErrMissing, s.sym, s.next-1, r.Seq)
	}
	s.next++
	l.batcher.add(s, r, now)
	if l.batcher.full(s) && l.inFlight() < l.options.Window {
		return true, l.send(ctx, s)
	}
	return true, nil
}

// passStored passes over a record that the shard has, unless what it has under
// that number must be another one.
func (l *lane) passStored(s *stream, r *record.Record) error {
	last := s.stored
	switch {
	case last == nil || r.Seq > last.Seq || r.Seq < last.Seq && r.Global < last.Global:
		return nil
	case r.Seq == last.Seq && bytes.Equal(r.Bytes(), last.Bytes()):
		return nil
	}
	return Differ(l.shard, last, r)
}

// count takes a record that is read for the first time into the statistics.
func (l *lane) count(s *stream, r *record.Record) {
	if r.Global <= l.seen {
		return
	}
	l.seen = r.Global
	l.stats.received.Add(1)
	if s.received == 0 {
		s.counted = r.Seq - 1
	}
	s.received = r.Seq
	l.countDurable(s)
}

func (l *lane) countDurable(s *stream) {
	if d := min(s.durable, s.received); d > s.counted {
		l.stats.persisted.Add(d - s.counted)
		s.counted = d
	}
}

// passOver looks at a record of another shard, or of none.
func (l *lane) passOver(r *record.Record) {
	if r.Global <= l.seen {
		return
	}
	l.seen = r.Global
	if l.others == nil || l.others[r.Instrument] || outbox.Void(r) {
		return
	}
	if l.held.Load() == 0 {
		l.held.Store(r.Global)
		l.holding.raise(1)
		l.hold(r.Global)
		l.stats.note(fmt.Errorf("%w: %s seq %d stays in the outbox; add the instrument to the shard map", ErrUnowned, r.Instrument, r.Seq))
	}
	l.stats.unowned.Add(1)
}

// open opens a stream with this session's epoch and finds out where to go on.
func (l *lane) open(ctx context.Context, s *stream) error {
	ctx, cancel := context.WithTimeout(ctx, l.options.OpenTimeout)
	defer cancel()
	res, err := l.storage.OpenStream(ctx, s.sym, Epoch(l.incarnation, l.session))
	if err != nil {
		return l.fenced(s, err)
	}
	return l.resume(s, res)
}

// fenced looks at an error of OpenStream. Where the stream is open with an epoch
// of this process, an attempt whose answer was lost has got through.
func (l *lane) fenced(s *stream, err error) error {
	r := refusal.FromError(err)
	if r == nil || !errors.Is(r, refusal.ErrFenced) {
		return err
	}
	other, last := IncarnationOf(r.Epoch), uint32(r.Epoch)
	switch {
	case l.superseded(r.Epoch):
		return fmt.Errorf("%w: shard %s: stream %s was opened by another process that carries the same outbox", ErrSuperseded, l.shard, s.sym)
	case other > l.incarnation:
		return fmt.Errorf("%w: shard %s: stream %s was opened by an exchange that started after this one (incarnation %d, this one's is %d); "+
			"one at a time may run", ErrFenced, l.shard, s.sym, other, l.incarnation)
	case other < l.incarnation || last < l.session:
		return err
	case last == l.last:
		return ErrSessions
	}
	l.session = last // the next session is above it
	return err
}

// resume compares what the shard says with the outbox and goes on from there.
func (l *lane) resume(s *stream, res client.OpenResult) error {
	if err := l.compare(s, res); err != nil {
		return err
	}
	s.opened, s.next, s.stored = true, res.LastSeq+1, res.LastRecord
	s.durable = max(s.durable, res.LastSeq)
	l.countDurable(s)
	l.state.Store(int32(StateRunning))
	return nil
}

func (l *lane) compare(s *stream, res client.OpenResult) error {
	last := res.LastRecord
	if res.LastSeq == 0 || last == nil {
		return nil
	}
	if last.Global > max(l.reader.Published(), l.ahead) {
		return fmt.Errorf("%w: shard %s holds %s seq %d with global %d, and the outbox has published %d only: "+
			"another exchange has written since", ErrDiverged, l.shard, s.sym, last.Seq, last.Global, l.reader.Published())
	}
	own, ok := l.reader.At(last.Global)
	if !ok || outbox.Void(own) || bytes.Equal(own.Bytes(), last.Bytes()) {
		return nil
	}
	return Differ(l.shard, last, own)
}

// Differ returns an ErrDiverged that says in which fields a shard's record is
// another one than the outbox's of the same global.
func Differ(shard string, stored, own *record.Record) error {
	return fmt.Errorf("%w: record %d in shard %s is not what the outbox has in its place: %s: "+
		"they are of two histories; move the outbox away to go on from the stores, or give the exchange its own stores",
		ErrDiverged, stored.Global, shard, strings.Join(stored.Diff(own), ", "))
}

// moveCursor sets the cursor before the lowest global that is not durable.
func (l *lane) moveCursor() {
	done := l.reader.Position()
	if g, ok := l.batcher.oldest(); ok {
		done = min(done, g-1)
	}
	if l.link != nil {
		if g, ok := l.link.oldest(); ok {
			done = min(done, g-1)
		}
	}
	if g := l.held.Load(); g != 0 {
		done = min(done, g-1)
	}
	if done > l.reader.Cursor() {
		l.reader.SetCursor(done)
		l.cursor.raise(done)
		l.moved()
	}
	l.noteOldest()
}

// noteOldest remembers the time of the first record that is not done with, 0 for
// none: the time of one that is done with would be the age of the next one.
func (l *lane) noteOldest() {
	var t int64
	if r, ok := l.reader.At(l.reader.Cursor() + 1); ok {
		t = r.Time
	}
	l.stats.oldest.Store(t)
}
