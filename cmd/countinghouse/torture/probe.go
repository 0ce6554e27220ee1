package torture

import (
	"context"
	"errors"
	"fmt"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// probe is a batch that is wrong on purpose and must be refused.
type probe int

const (
	probeNone     probe = iota
	probeAgain          // the last batch once more
	probeGap            // one record is left out before it
	probeOldEpoch       // the epoch before, with the seq that is due
	probeCorrupt        // one bit differs
	probes
)

// probeEvery is how many batches there are to a probe.
const probeEvery = 40

func (w *writer) drawProbe() probe {
	if w.random.IntN(probeEvery) != 0 {
		return probeNone
	}
	return 1 + probe(w.random.IntN(int(probes)-1))
}

// provoke makes a batch that must be refused, about the same instrument as the
// last one sent.
func (s *appending) provoke(p probe) ([]byte, expectation, error) {
	e := s.sentAs
	e.probe = p
	if p == probeAgain {
		return s.sent, e, nil
	}
	epoch := s.epoch
	switch e.first = s.sentAs.last + 1; p {
	case probeGap:
		e.first++
	case probeOldEpoch:
		epoch--
	}
	e.last = e.first
	batch, err := s.w.batch(e, epoch)
	if p == probeCorrupt && err == nil {
		batch[record.BatchHeaderSize+s.w.random.IntN(record.Size)] ^= 1 << s.w.random.IntN(8)
	}
	return batch, e, err
}

// refused checks the answer to a probe.
func (s *appending) refused(e expectation, ack client.Ack) error {
	r := ack.Refusal
	want := map[probe]storagepb.Code{
		probeAgain: storagepb.Code_CODE_DUPLICATE, probeGap: storagepb.Code_CODE_GAP,
		probeOldEpoch: storagepb.Code_CODE_FENCED, probeCorrupt: storagepb.Code_CODE_CORRUPT,
	}[e.probe]
	what := fmt.Sprintf("%s, epoch %s: a batch of %s from seq %d that deserves %s", s.w.name(), epochName(s.epoch), e.ledger.sym, e.first, want)
	if r == nil {
		s.w.t.found.add(broken, 1, "%s was acknowledged up to seq %d", what, ack.LastSeq)
		return nil
	}
	if errors.Is(r, refusal.ErrFenced) && r.Epoch>>32 > s.w.incarnation {
		e.ledger.fenced(s.epoch, r.Epoch)
		return errFenced
	}
	switch {
	case r.Code != want:
		return fmt.Errorf("%s: %w", what, r)
	case e.probe == probeAgain && r.LastSeq < e.last,
		e.probe == probeGap && r.ExpectedSeq != e.first-1,
		e.probe == probeOldEpoch && r.Epoch != s.epoch:
		s.w.t.found.add(broken, 1, "%s was refused with expected seq %d, last seq %d, epoch %s", what, r.ExpectedSeq, r.LastSeq, epochName(r.Epoch))
	}
	s.w.t.counts.provoked.Add(1)
	return nil
}

// haunt lets a fenced writer try once more, without opening the stream: nothing
// it sends may be acknowledged.
func (w *writer) haunt(ctx context.Context) {
	c, err := w.conn.client()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	a, err := c.Append(ctx, w.shard.name)
	if err != nil {
		return
	}
	defer a.Close()
	l := w.ledgers[0]
	seq := l.durable() + 1
	batch, err := w.batch(expectation{ledger: l, first: seq, last: seq}, w.epoch())
	if err != nil || a.Send(batch) != nil {
		return
	}
	ack, err := a.Recv()
	if err == nil && ack.Refusal == nil {
		w.t.found.add(broken, 1, "%s: seq %d of %s was acknowledged although the writer was fenced", w.name(), seq, l.sym)
	}
	w.t.counts.provoked.Add(1)
}
