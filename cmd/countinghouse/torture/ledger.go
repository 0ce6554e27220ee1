package torture

import (
	"fmt"
	"slices"
	"sync"

	"github.com/countinghouse/countinghouse/record"
)

// ledger notes what happened to one instrument, in memory that grows with the
// number of opened sessions and not with that of the records. It is safe for
// concurrent use.
//
// A session begins when a writer learns from OpenStream that the stream ends at
// base under its epoch. What it sends begins at base+1. Because opening an epoch
// fences all lower ones, the base of the next higher epoch is final for this
// one, so that
//
//	the records base(i)+1 … base(i+1) come from session i, and from no other.
//
// An epoch whose OpenStream was carried out but whose answer was lost does not
// matter: nothing was sent under it.
//
// Callers note what they are about to send before they send it, and what they
// have learned after they have learned it. Every check below then holds whatever
// the order in which goroutines get there.
type ledger struct {
	sym   record.Symbol
	found *findings

	mu        sync.Mutex
	sessions  []session // ascending by epoch
	attempted uint64    // highest epoch that anybody has tried to open
	acked     uint64    // records acknowledged, each counted once
}

// session is what is known of one opened epoch.
// Invariant: base ≤ durable ≤ sent.
type session struct {
	epoch   uint64
	writer  uint64
	base    uint64 // last seq of the stream when it was opened
	sent    uint64 // highest seq that may have been sent
	acked   uint64 // highest seq that was acknowledged
	durable uint64 // highest seq that was acknowledged or read by anybody
}

func newLedger(sym record.Symbol, f *findings) *ledger { return &ledger{sym: sym, found: f} }

func (l *ledger) report(k kind, n uint64, format string, args ...any) {
	l.found.add(k, n, "%s: %s", l.sym, fmt.Sprintf(format, args...))
}

// attempt notes that somebody is about to open the epoch.
func (l *ledger) attempt(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attempted = max(l.attempted, epoch)
}

// fenced checks the answer to an attempt, or a batch, of the given epoch that was
// refused because of a higher one.
func (l *ledger) fenced(epoch, by uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if by > l.attempted || by < epoch {
		l.report(broken, 1, "epoch %s was fenced by epoch %s; the highest that anybody tried is %s", epochName(epoch), epochName(by), epochName(l.attempted))
	}
}

// opened notes the answer to OpenStream and checks it.
func (l *ledger) opened(epoch, writer, base uint64, last *record.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, again := slices.BinarySearchFunc(l.sessions, epoch, func(s session, e uint64) int { return compare(s.epoch, e) })
	if again {
		l.report(broken, 1, "epoch %s was opened twice", epochName(epoch))
		return
	}
	l.sessions = slices.Insert(l.sessions, i, session{epoch: epoch, writer: writer, base: base, sent: base, acked: base, durable: base})
	if i > 0 {
		l.checkEnd(&l.sessions[i-1], base, epoch)
	} else if base != 0 {
		l.report(broken, base, "the first session, %s, found %d records", epochName(epoch), base)
	}
	if i+1 < len(l.sessions) {
		// A higher epoch was opened meanwhile: this one can not have sent anything.
		l.checkEnd(&l.sessions[i], l.sessions[i+1].base, l.sessions[i+1].epoch)
	}
	if last != nil {
		l.check(last, "the last record that OpenStream returned")
	}
}

// checkEnd checks the end of a session's records, stated by the opening of next.
func (l *ledger) checkEnd(s *session, end, next uint64) {
	switch {
	case end < s.durable:
		l.report(lost, s.durable-end, "opened at epoch %s, the stream ends at seq %d; up to seq %d were acknowledged or read under epoch %s",
			epochName(next), end, s.durable, epochName(s.epoch))
	case end > s.sent:
		l.report(broken, end-s.sent, "opened at epoch %s, the stream ends at seq %d; epoch %s sent up to seq %d only",
			epochName(next), end, epochName(s.epoch), s.sent)
	}
}

// find returns the session of an epoch, or nil; the caller holds mu.
func (l *ledger) find(epoch uint64) *session {
	i, ok := slices.BinarySearchFunc(l.sessions, epoch, func(s session, e uint64) int { return compare(s.epoch, e) })
	if !ok {
		return nil
	}
	return &l.sessions[i]
}

// sending notes that records up to last are about to be sent.
func (l *ledger) sending(epoch, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.find(epoch); s != nil {
		s.sent = max(s.sent, last)
	}
}

// acknowledged notes that the records up to last are acknowledged, and checks
// that they may be.
func (l *ledger) acknowledged(epoch, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.find(epoch)
	if s == nil || last > s.sent {
		l.report(broken, 1, "seq %d was acknowledged under epoch %s, which did not send it", last, epochName(epoch))
		return
	}
	if last > s.acked {
		l.acked += last - s.acked
		s.acked = last
	}
	l.raise(s, last, "acknowledged")
}

// raise notes that the records of a session up to last are durable.
func (l *ledger) raise(s *session, last uint64, how string) {
	s.durable = max(s.durable, last)
	if next := l.next(s); next != nil && last > next.base {
		l.report(lost, last-next.base, "seq %d was %s under epoch %s, although the stream ended at seq %d when epoch %s was opened",
			last, how, epochName(s.epoch), next.base, epochName(next.epoch))
	}
}

// next returns the session after s, or nil.
func (l *ledger) next(s *session) *session {
	i, _ := slices.BinarySearchFunc(l.sessions, s.epoch, func(s session, e uint64) int { return compare(s.epoch, e) })
	if i+1 < len(l.sessions) {
		return &l.sessions[i+1]
	}
	return nil
}

// sessionOf returns the session that seq must come from, or nil if none has sent
// it.
func (l *ledger) sessionOf(seq uint64) *session {
	i, _ := slices.BinarySearchFunc(l.sessions, seq, func(s session, seq uint64) int { return compare(s.base, seq) })
	if i == 0 {
		return nil
	}
	// The last one that begins before seq: those after it begin at seq or later.
	if s := &l.sessions[i-1]; seq <= s.sent {
		return s
	}
	return nil
}

// durable returns the seq up to which every record was acknowledged or read: a
// read by the leader that begins after this call must see them all.
func (l *ledger) durable() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.sessions); n > 0 {
		return l.sessions[n-1].durable
	}
	return 0
}

// acknowledgedRecords returns how many records were acknowledged.
func (l *ledger) acknowledgedRecords() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

// read checks records that a replica has returned and notes that they are
// durable: what a replica shows is committed, and must never disappear.
func (l *ledger) read(rs []record.Record, where string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range rs {
		if s := l.check(&rs[i], where); s != nil {
			l.raise(s, rs[i].Seq, "read")
		}
	}
}

// check compares a record with the one that must stand at its seq, and returns
// the session it comes from, or nil if it is wrong.
func (l *ledger) check(r *record.Record, where string) *session {
	s := l.sessionOf(r.Seq)
	if s == nil {
		l.report(broken, 1, "%s: seq %d was never sent", where, r.Seq)
		return nil
	}
	var want record.Record
	fill(&want, l.sym, origin{writer: s.writer, epoch: s.epoch, seq: r.Seq})
	if same(&want, r) {
		return s
	}
	k, what := judge(r, l.sym)
	l.report(k, 1, "%s: seq %d must be that of epoch %s: %s", where, r.Seq, epochName(s.epoch), what)
	return nil
}

// judge says what is wrong with a record that is not the one expected at its seq.
func judge(r *record.Record, sym record.Symbol) (kind, string) {
	o, whole := originOf(r, sym)
	switch {
	case !whole:
		return lost, fmt.Sprintf("its bytes are none that were sent: %x", r.Bytes())
	case o.seq < r.Seq:
		return duplicated, fmt.Sprintf("it is seq %d of epoch %s again", o.seq, epochName(o.epoch))
	case o.seq > r.Seq:
		return reordered, fmt.Sprintf("it is seq %d of epoch %s", o.seq, epochName(o.epoch))
	}
	return lost, fmt.Sprintf("it is that of epoch %s", epochName(o.epoch))
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// epochName writes an epoch as incarnation.session.
func epochName(e uint64) string { return fmt.Sprintf("%d.%d", e>>32, e&(1<<32-1)) }
