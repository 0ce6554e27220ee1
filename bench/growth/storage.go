package growth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/bench/calm"
	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

// shard is a store and the index of its last entry.
type shard struct {
	*store.Shard
	dir     string
	streams []history.Stream
	next    []uint64
	index   uint64
}

func openShard(dir string, instruments int) (*shard, error) {
	s := &shard{dir: dir, streams: history.Streams(instruments), next: make([]uint64, instruments), index: 1}
	var err error
	if s.Shard, err = store.Open(vfs.Default, dir, store.Options{}); err != nil {
		return nil, err
	}
	if err := s.SetOwned(s.index, history.Symbols(s.streams)); err != nil {
		return nil, err
	}
	for i := range s.streams {
		s.index++
		s.next[i] = 1
		if _, err := s.OpenStream(s.index, s.streams[i].Symbol, 1); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// write adds n records to a stream and returns how long the store took.
func (s *shard) write(stream, n int) (time.Duration, error) {
	raw, err := s.streams[stream].Batch(1, s.next[stream], n)
	if err != nil {
		return 0, err
	}
	b, err := record.TrustBatch(raw)
	if err != nil {
		return 0, err
	}
	s.next[stream] += uint64(n)
	s.index++
	begin := time.Now()
	_, err = s.Append(s.index, b)
	return time.Since(begin), err
}

// reopen flushes and closes the store, and returns how long the flush took, and until
// the store was open again.
func (s *shard) reopen() (flush, open time.Duration, err error) {
	begin := time.Now()
	if err := s.Flush(); err != nil {
		return 0, 0, err
	}
	flush = time.Since(begin)
	if err := s.Close(); err != nil {
		return 0, 0, err
	}
	begin = time.Now()
	s.Shard, err = store.Open(vfs.Default, s.dir, store.Options{})
	return flush, time.Since(begin), err
}

const (
	appendRecords = 10
	appendsMin    = 10_000
)

// instruments measures the appends of a store to all its instruments in turn.
func instruments(ctx context.Context, b *measure.Bench, z size) error {
	c := measure.Case{Name: "instruments of a shard: append of 10 records, to each instrument in turn", Unit: "ns", LowerIsBetter: true}
	return rows(ctx, b, c, "instruments", "storagenode/store, records in memtables; then all are flushed, and the store is opened again; "+exponentNote, z.instruments,
		func(_ context.Context, n int) (s measure.Sample, err error) {
			dir, remove, err := b.Dir()
			if err != nil {
				return s, err
			}
			defer remove()
			return appendTo(filepath.Join(dir, "store"), n)
		})
}

func appendTo(dir string, instruments int) (out measure.Sample, err error) {
	before := memory()
	s, err := openShard(dir, instruments)
	if err != nil {
		return out, err
	}
	defer func() {
		if s.Shard != nil {
			_ = s.Close() // nothing of it is used again
		}
	}()
	bare := memory() - before
	h := measure.NewHistogram()
	var total time.Duration
	appends := max(instruments, appendsMin)
	for i := range appends {
		took, err := s.write(i%instruments, appendRecords)
		if err != nil {
			return out, err
		}
		h.Record(took)
		total += took
	}
	flush, open, err := s.reopen()
	if err != nil {
		return out, err
	}
	return measure.Sample{Value: float64(total) / float64(appends), Latency: h, More: map[string]float64{
		"bytes an empty instrument": bare / float64(instruments),
		"flush ms":                  flush.Seconds() * 1e3, "open ms": open.Seconds() * 1e3,
		"open µs an instrument": open.Seconds() * 1e6 / float64(instruments),
	}}, nil
}

// histories measures reads by id from one instrument with a longer and longer past,
// and says what is to be expected of two further decades.
func histories(ctx context.Context, b *measure.Bench, z size) error {
	c := measure.Case{Name: "records of an instrument: read by order id", Unit: "ns", LowerIsBetter: true}
	note := "one instrument, all records in tables, warm; a table is merged up to 1 GiB, 8.4 M records, and has 32 groups of filters then; " +
		"extrapolated: a further table costs its look at the range of ids, which was measured with an id that no table can hold; filters and time to open grow with the records and the tables; " + exponentNote
	return rows(ctx, b, c, "records", note, z.records, func(ctx context.Context, n int) (s measure.Sample, err error) {
		dir, remove, err := b.Dir()
		if err != nil {
			return s, err
		}
		defer remove()
		return readFrom(ctx, filepath.Join(dir, "store"), n, z.operations/20)
	})
}

func readFrom(ctx context.Context, dir string, records, reads int) (out measure.Sample, err error) {
	s, err := openShard(dir, 1)
	if err != nil {
		return out, err
	}
	defer func() {
		if s.Shard != nil {
			_ = s.Close() // nothing of it is used again
		}
		_ = os.RemoveAll(dir) // b.Dir's own removal reports nothing either
	}()
	const batch = 4000
	for n := 0; n < records; n += batch {
		if _, err := s.write(0, min(batch, records-n)); err != nil {
			return out, err
		}
	}
	if err := errors.Join(s.Flush(), calm.AwaitWrites(ctx)); err != nil {
		return out, err
	}
	_, open, err := s.reopen()
	if err != nil {
		return out, err
	}
	if err := errors.Join(calm.AwaitWrites(ctx), s.warm()); err != nil {
		return out, err
	}
	st, err := s.Stats(s.streams[0].Symbol)
	if err != nil {
		return out, err
	}
	h := measure.NewHistogram()
	var total, missed time.Duration
	groups := uint64(records / history.Group)
	for i := range 2 * reads {
		took, err := s.read(ctx, s.streams[0].Order(uint64(i)*7919%groups, i%3), true)
		if err != nil {
			return out, err
		}
		if i >= reads { // the first half warms up
			h.Record(took)
			total += took
		}
	}
	for range reads {
		took, err := s.read(ctx, idMax, false)
		if err != nil {
			return out, err
		}
		missed += took
	}
	perTable := float64(missed) / float64(reads) / float64(st.Tables)
	out = measure.Sample{Value: float64(total) / float64(reads), Latency: h, More: map[string]float64{
		"tables": float64(st.Tables), "open ms": open.Seconds() * 1e3, "ns a table passed by": perTable,
		"filter and index bytes a record": (float64(st.TableBytes) - float64(records)*record.Size) / float64(records),
	}}
	if records >= 1_000_000 {
		more := float64(1_000_000_000-records) * record.Size / (1 << 30)
		out.More["extrapolated to 1G records: ns"] = out.Value + more*perTable
	}
	return out, nil
}

// warm reads all records once.
func (s *shard) warm() error {
	it, err := s.Scan(s.streams[0].Symbol, store.ScanOptions{})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.Next() {
	}
	return it.Err()
}

// idMax is above every id that is given.
const idMax = 1<<64 - 1

func (s *shard) read(ctx context.Context, order uint64, there bool) (time.Duration, error) {
	found := 0
	q := store.GetQuery{Instrument: s.streams[0].Symbol, ID: record.ID{Kind: record.OrderID, Value: order}}
	begin := time.Now()
	err := s.Get(ctx, q, func(rs []record.Record) error {
		found += len(rs)
		return nil
	})
	took := time.Since(begin)
	if err == nil && (found > 0) != there {
		err = fmt.Errorf("%d records of order %d", found, order)
	}
	return took, err
}
