package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"

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
// what the stores hold is one history.
func (h *history) compare(ctx context.Context, c *client.Client, stored ends) error {
	if err := h.compareLast(ctx, c, stored); err != nil {
		return err
	}
	cursors, err := h.delivered(c.Map())
	if err != nil {
		return err
	}
	overlap, err := h.overlap(stored, cursors)
	if err != nil {
		return err
	}
	own, err := h.undelivered(cursors)
	if err != nil {
		return err
	}
	src := openStreams(ctx, c, overlap, own)
	defer src.close()
	return checkOverlap(src)
}

// checkOverlap reads records that stand in the outbox, in the stores, or in
// both, and checks that each stream counts on.
func checkOverlap(src rebuild.Source) error {
	last := make(map[record.Symbol]record.Header)
	for {
		r, err := src.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, record.ErrCorrupt):
			return fmt.Errorf("%w: %w", ErrDiverged, err)
		case err != nil:
			return err
		}
		before, known := last[r.Instrument]
		if known && r.Seq != before.Seq+1 {
			return fmt.Errorf("%w: %s has seq %d with global %d and then seq %d with global %d",
				ErrDiverged, r.Instrument, before.Seq, before.Global, r.Seq, r.Global)
		}
		last[r.Instrument] = r.Header
	}
}

// overlap returns the stored records that the outbox holds as not delivered, and
// checks that the outbox goes on where each stored stream ends.
func (h *history) overlap(stored ends, cursors map[string]uint64) ([]part, error) {
	src, err := h.undelivered(cursors)
	if err != nil {
		return nil, err
	}
	seen := make(map[record.Symbol]bool)
	var parts []part
	for {
		r, err := src.Next()
		switch {
		case errors.Is(err, io.EOF):
			return parts, nil
		case err != nil:
			return nil, err
		case seen[r.Instrument]:
			continue
		}
		seen[r.Instrument] = true
		end := stored[r.Instrument]
		if r.Seq > end.seq+1 {
			return nil, fmt.Errorf("%w: the outbox goes on with %s seq %d, but shard %s holds it up to seq %d only: records %d to %d are lost there; "+
				"restore the shard's data", ErrDiverged, r.Instrument, r.Seq, h.owner[r.Instrument], end.seq, end.seq+1, r.Seq-1)
		}
		if r.Seq <= end.seq {
			parts = append(parts, part{end: end, first: r.Seq})
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
