package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/exchange/rebuild"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// Cursors that hold the outbox's records while a history reads them.
const (
	recoveryCursor = "recovery"
	claimCursor    = "claim"
)

// history is what an outbox still holds, as far as the recovery looks at it. It
// is for one goroutine.
type history struct {
	dir    string
	cursor string
	reader *outbox.Reader
	owner  map[record.Symbol]string // shard by stream
	// began is what was delivered when the history was opened, by shard. A
	// comparison goes by that: what another process delivers meanwhile may be more
	// than the stores held when they were asked.
	began map[string]uint64
}

// openHistory opens the outbox's records, which stay until close. No other
// history may have that cursor.
func openHistory(dir, cursor string, m *client.Map) (*history, error) {
	if err := dropCursor(dir, cursor); err != nil {
		return nil, err
	}
	reader, err := outbox.OpenReader(dir, cursor)
	if err != nil {
		return nil, err
	}
	h := &history{dir: dir, cursor: cursor, reader: reader, owner: make(map[record.Symbol]string)}
	for i := range m.Shards {
		for _, name := range m.Shards[i].Instruments {
			h.owner[record.MustSymbol(name)] = m.Shards[i].Name
		}
	}
	if h.began, err = h.delivered(m); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

func (h *history) close() error {
	err := h.reader.Close()
	return errors.Join(err, outbox.RemoveCursor(h.dir, h.cursor))
}

// dropCursor removes a cursor that an exchange which was killed has left. It
// would hold the outbox's records for ever.
func dropCursor(dir, cursor string) error {
	if err := outbox.RemoveCursor(dir, cursor); err != nil && !errors.Is(err, outbox.ErrNotFound) {
		return err
	}
	return nil
}

// complete reports whether every record from the first on is still there.
func (h *history) complete() bool { return h.reader.Cursor() == 0 }

// delivered returns, for each shard, the global up to which all its records are
// durable.
func (h *history) delivered(m *client.Map) (map[string]uint64, error) {
	list, err := outbox.ListCursors(h.dir)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]uint64, len(list))
	for _, c := range list {
		byName[c.Name] = c.Global
	}
	cursors := make(map[string]uint64, len(m.Shards))
	for i := range m.Shards {
		name := m.Shards[i].Name
		cursors[name] = byName[subscriber.CursorName(name)]
	}
	return cursors, nil
}

// records is a source of the outbox's records after a global. With cursors it
// leaves out what is delivered.
func (h *history) records(after uint64, cursors map[string]uint64) (rebuild.Source, error) {
	if err := h.reader.Seek(max(after, h.reader.Cursor())); err != nil {
		return nil, err
	}
	return &outboxSource{h: h, cursors: cursors}, nil
}

// undelivered is a source of the records that are not delivered to their shards.
func (h *history) undelivered(cursors map[string]uint64) (rebuild.Source, error) {
	lowest := h.reader.Published()
	for _, global := range cursors {
		lowest = min(lowest, global)
	}
	return h.records(lowest, cursors)
}

type outboxSource struct {
	h       *history
	cursors map[string]uint64 // nil for all records
	records []record.Record
	at      int
}

// Next returns the next record, passing over voids.
func (s *outboxSource) Next() (*record.Record, error) {
	for {
		if s.at == len(s.records) {
			s.h.reader.Advance(s.at)
			s.records, s.at = s.h.reader.PeekWhole(progressRecords), 0
			if len(s.records) == 0 {
				if err := s.h.reader.Err(); err != nil {
					return nil, err
				}
				return nil, io.EOF
			}
		}
		r := &s.records[s.at]
		s.at++
		if wanted, err := s.wanted(r); wanted || err != nil {
			return r, err
		}
	}
}

func (s *outboxSource) wanted(r *record.Record) (bool, error) {
	if outbox.Void(r) {
		return false, nil
	}
	if s.cursors == nil {
		return true, nil
	}
	shard, ok := s.h.owner[r.Instrument]
	if !ok {
		return false, fmt.Errorf("%w: the outbox holds %s seq %d, but the shard map gives %s to no shard: correct the shard map",
			ErrDiverged, r.Instrument, r.Seq, r.Instrument)
	}
	return r.Global > s.cursors[shard], nil
}

// compare checks, before anything is delivered, that what the outbox holds and
// what the stores hold is one history. Where records wait for delivery, all that
// is stored from the first of them on is read: another exchange that went on from
// the stores has used their numbers, in whichever stream.
func (h *history) compare(ctx context.Context, c *client.Client, stored ends) error {
	if err := h.compareLast(ctx, c, stored); err != nil {
		return err
	}
	waiting, err := h.waiting(stored, h.began)
	if err != nil || waiting == (span{}) {
		return err
	}
	overlap, err := from(ctx, c, stored, waiting.first)
	if err != nil {
		return err
	}
	own, err := h.undelivered(h.began)
	if err != nil {
		return err
	}
	src := openStreams(ctx, c, overlap, own)
	defer src.close()
	return h.checkOverlap(src, waiting)
}

// span is a range of global numbers, both ends included; zero for none.
type span struct{ first, last uint64 }

// checkOverlap reads records that stand in the outbox, in the stores, or in both,
// and checks that they are one history: each stream counts on, nobody else wrote
// under the outbox's numbers, or gave up what waits in it.
func (h *history) checkOverlap(src rebuild.Source, waiting span) error {
	last := make(map[record.Symbol]record.Header)
	for {
		r, err := src.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, record.ErrCorrupt):
			return fmt.Errorf("%w: %w: another exchange has written since; move the outbox %s away to go on from the stores", ErrDiverged, err, h.dir)
		case err != nil:
			return err
		}
		before, known := last[r.Instrument]
		if known && r.Seq != before.Seq+1 {
			return fmt.Errorf("%w: %s has seq %d with global %d and then seq %d with global %d",
				ErrDiverged, r.Instrument, before.Seq, before.Global, r.Seq, r.Global)
		}
		last[r.Instrument] = r.Header
		if own, ok := h.reader.At(r.Global); ok && !outbox.Void(own) && *own != *r {
			return subscriber.Differ(h.owner[r.Instrument], r, own)
		}
		if r.Type == record.TypeHistoryCut && r.HistoryCut().From < waiting.last && r.HistoryCut().To >= waiting.first {
			return fmt.Errorf("%w: another exchange has given up records %d to %d, of which the outbox %s still holds some; move it away to go on from the stores",
				ErrDiverged, r.HistoryCut().From+1, r.HistoryCut().To, h.dir)
		}
	}
}

// from returns the stored records with a global of first or more.
func from(ctx context.Context, c *client.Client, stored ends, first uint64) ([]part, error) {
	parts := make([]part, 0, len(stored))
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, end := range stored {
		if end.seq == 0 || end.global < first {
			continue
		}
		g.Go(func() error {
			seq, err := seqFrom(ctx, c, end, first)
			mu.Lock()
			defer mu.Unlock()
			parts = append(parts, part{end: end, first: seq})
			return err
		})
	}
	return parts, g.Wait()
}

// seqFrom returns the seq of a stream's first record with a global of first or
// more; its last one has.
func seqFrom(ctx context.Context, c *client.Client, end streamEnd, first uint64) (uint64, error) {
	low, high := uint64(1), end.seq // it lies in low … high
	for low < high {
		middle := low + (high-low)/2
		global := uint64(0)
		err := c.Scan(ctx, end.sym, client.Range{FromSeq: middle, ToSeq: middle}, end.from, func(rs []record.Record) error {
			global = rs[0].Global
			return nil
		})
		switch {
		case err != nil:
			return 0, err
		case global == 0:
			return 0, fmt.Errorf("%w: the shard of %s ends with seq %d and lacks seq %d: restore the shard's data", ErrDiverged, end.sym, end.seq, middle)
		case global < first:
			low = middle + 1
		default:
			high = middle
		}
	}
	return low, nil
}

// waiting returns the range of the records that are not delivered, and checks that
// they go on where each stored stream ends.
func (h *history) waiting(stored ends, cursors map[string]uint64) (span, error) {
	src, err := h.undelivered(cursors)
	if err != nil {
		return span{}, err
	}
	seen := make(map[record.Symbol]bool)
	var w span
	for {
		r, err := src.Next()
		switch {
		case errors.Is(err, io.EOF):
			return w, nil
		case err != nil:
			return span{}, err
		}
		if w.last = r.Global; w.first == 0 {
			w.first = r.Global
		}
		if seen[r.Instrument] {
			continue
		}
		seen[r.Instrument] = true
		if end := stored[r.Instrument]; r.Seq > end.seq+1 {
			return span{}, fmt.Errorf("%w: the outbox goes on with %s seq %d, but shard %s holds it up to seq %d only: records %d to %d are lost there; "+
				"restore the shard's data", ErrDiverged, r.Instrument, r.Seq, h.owner[r.Instrument], end.seq, end.seq+1, r.Seq-1)
		}
	}
}

// compareLast compares the last record of every stored stream with the outbox,
// if that still holds it.
func (h *history) compareLast(ctx context.Context, c *client.Client, stored ends) error {
	last := make(chan record.Record, len(stored))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, end := range stored {
		if end.seq == 0 || end.global <= h.reader.Cursor() {
			continue
		}
		g.Go(func() error {
			return c.Scan(ctx, end.sym, client.Range{FromSeq: end.seq, ToSeq: end.seq}, end.from, func(rs []record.Record) error {
				last <- rs[0]
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	close(last)
	for r := range last {
		if own, ok := h.reader.At(r.Global); ok && !outbox.Void(own) && *own != r {
			return subscriber.Differ(h.owner[r.Instrument], &r, own)
		}
	}
	return h.reader.Err()
}
