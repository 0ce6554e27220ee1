package reads

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/record"
)

// Suite returns the suite "reads", which reads from the store, from pebble, and from a node over gRPC.
func Suite() measure.Suite {
	return measure.Suite{
		Name:  "reads",
		About: "records by id, ranges, whole streams, and the end of a stream as it grows; aims: by id p99 ≤ 50 µs, ranges ≥ 10 M records/s",
		Run:   run,
	}
}

const streamCount = 4

// size is how much is stored and how long it is read.
type size struct {
	records  uint64 // of all streams, in tables
	young    uint64 // of all streams, written after that: in memtables
	remote   uint64 // of all streams, in the node
	duration time.Duration
	coldMax  uint64 // reads from a cold disk
	window   uint64 // records of a range
	few      bool   // the cases that show most
}

func sizeOf(b *measure.Bench) size {
	if b.Quick {
		return size{records: 1_000_000, young: 40_000, remote: 200_000, duration: 500 * time.Millisecond, coldMax: 500, window: 1000, few: true}
	}
	return size{records: 4_000_000, young: 80_000, remote: 1_000_000, duration: 2 * time.Second, coldMax: 2000, window: 1000}
}

func run(ctx context.Context, b *measure.Bench) error { return runSize(ctx, b, sizeOf(b)) }

func runSize(ctx context.Context, b *measure.Bench, z size) (err error) {
	dir, remove, err := b.Dir()
	if err != nil {
		return err
	}
	defer remove()
	s := &suite{bench: b, size: z, dir: dir}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.build(); err != nil {
		return err
	}
	if err := s.local(ctx); err != nil {
		return err
	}
	return s.remote(ctx)
}

// suite is one run of all cases.
type suite struct {
	bench   *measure.Bench
	size    size
	dir     string
	engines []*filled
}

func (s *suite) close() error {
	var errs []error
	for _, f := range s.engines {
		errs = append(errs, f.close())
	}
	s.engines = nil
	return errors.Join(errs...)
}

// build makes both engines with the same records, all of them in tables.
func (s *suite) build() error {
	streams := history.Streams(streamCount)
	o, err := openOurs(filepath.Join(s.dir, "store"), streams)
	if err != nil {
		return err
	}
	s.add(o, "countinghouse", true, fmt.Sprintf("storagenode/store as a node opens it, called in this process; %s records, 4 instruments; tables are mapped", measure.Number(float64(s.size.records))))
	p, err := openPeer(filepath.Join(s.dir, "pebble"), streams, int64(s.size.records)*record.Size*4)
	if err != nil {
		return err
	}
	s.add(p, "pebble", false, peerNote)
	for _, f := range s.engines {
		start := time.Now()
		if err := f.fill(s.size.records / streamCount); err != nil {
			return err
		}
		if err := f.flush(); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(s.bench.Progress, "%s: filled in %s\n", f.system, time.Since(start).Round(time.Millisecond))
	}
	return nil
}

func (s *suite) add(e engine, system string, ours bool, note string) {
	f := &filled{engine: e, system: system, ours: ours, note: note, streams: history.Streams(streamCount), next: make([]uint64, streamCount)}
	for i := range f.next {
		f.next[i] = 1
	}
	s.engines = append(s.engines, f)
}

const (
	unitNanos   = "ns/read"
	unitRecords = "records/s"
)

// local runs the cases in this process.
func (s *suite) local(ctx context.Context) error {
	if err := s.cold(ctx); err != nil {
		return err
	}
	for _, f := range s.engines {
		if err := f.fill(s.size.young / streamCount); err != nil {
			return err
		}
		if err := f.warm(ctx); err != nil {
			return err
		}
	}
	order := func(f *filled) read { return point(f, record.OrderID) }
	trade := func(f *filled) read { return point(f, record.TradeID) }
	windows := func(f *filled) read { return window(f, s.size.window) }
	whole := func(f *filled) read { return window(f, 0) }
	for _, c := range []struct {
		name   string
		make   func(*filled) read
		figure perRead
		busy   bool // in the quick mode too
	}{
		{"by order id", order, nanosPerRead, true},
		{"by trade id", trade, nanosPerRead, false},
		{fmt.Sprintf("ranges of %d records", s.size.window), windows, recordsPerSecond, false},
		{"a whole stream", whole, recordsPerSecond, false},
	} {
		if err := s.compare(ctx, c.name, c.make, c.figure, false); err != nil {
			return err
		}
		if s.size.few && !c.busy {
			continue
		}
		if err := s.compare(ctx, c.name, c.make, c.figure, true); err != nil {
			return err
		}
	}
	return s.tails(ctx)
}

func caseOf(name, unit string, busy bool) measure.Case {
	if busy {
		name += ", while 50k records/s are written"
	}
	return measure.Case{Name: name, Unit: unit, LowerIsBetter: unit != unitRecords}
}

// compare measures one kind of read with both engines.
func (s *suite) compare(ctx context.Context, name string, makeRead func(*filled) read, figure perRead, busy bool) error {
	unit := unitNanos
	if figure(1, 1, time.Second) == 1 {
		unit = unitRecords
	}
	l := limit{duration: s.size.duration}
	return s.contest(ctx, caseOf(name, unit, busy), func(ctx context.Context, f *filled) (measure.Sample, error) {
		r := makeRead(f)
		do := func(ctx context.Context) (measure.Sample, error) { return repeat(ctx, r, l, figure) }
		if busy {
			return f.beside(ctx, do)
		}
		return do(ctx)
	})
}

func (s *suite) contest(ctx context.Context, c measure.Case, run func(context.Context, *filled) (measure.Sample, error)) error {
	var who []measure.Contestant
	for _, f := range s.engines {
		who = append(who, measure.Contestant{
			System: f.system, Ours: f.ours, Note: f.note,
			Run: func(ctx context.Context) (measure.Sample, error) { return run(ctx, f) },
		})
	}
	return s.bench.Compare(ctx, c, who...)
}

// cold measures the first reads after the store was opened, with no file in the page
// cache: each block that is met comes from the disk, and is checked.
func (s *suite) cold(ctx context.Context) error {
	c := caseOf("by order id, first reads after opening, page cache dropped", unitNanos, false)
	return s.contest(ctx, c, func(ctx context.Context, f *filled) (measure.Sample, error) {
		if err := f.reopen(evict); err != nil {
			return measure.Sample{}, err
		}
		return repeat(ctx, point(f, record.OrderID), limit{duration: s.size.duration, reads: s.size.coldMax}, nanosPerRead)
	})
}

// tails measures how late a follower sees what is written.
func (s *suite) tails(ctx context.Context) error {
	for _, busy := range []bool{false, true} {
		if busy && s.size.few {
			continue
		}
		c := caseOf("tail: 10 records each ms, from the begin of the write to seen", "ns p50", busy)
		err := s.contest(ctx, c, func(ctx context.Context, f *filled) (measure.Sample, error) {
			return tail(ctx, f, s.size.duration, busy)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// remote runs the cases over gRPC, which have no peer.
func (s *suite) remote(ctx context.Context) error {
	r, err := startRemote(ctx, filepath.Join(s.dir, "node"), history.Streams(streamCount), s.size.remote/streamCount)
	if err != nil {
		return err
	}
	defer r.node.Close()
	for _, c := range []struct {
		name   string
		read   read
		figure perRead
		unit   string
	}{
		{"over gRPC: by order id", r.point(record.OrderID), nanosPerRead, unitNanos},
		{"over gRPC: by trade id", r.point(record.TradeID), nanosPerRead, unitNanos},
		{fmt.Sprintf("over gRPC: ranges of %d records", s.size.window), r.window(s.size.window), recordsPerSecond, unitRecords},
		{"over gRPC: a whole stream", r.window(0), recordsPerSecond, unitRecords},
	} {
		do := func(ctx context.Context) (measure.Sample, error) {
			return repeat(ctx, c.read, limit{duration: s.size.duration}, c.figure)
		}
		if err := s.alone(ctx, caseOf(c.name, c.unit, false), do); err != nil {
			return err
		}
		if s.size.few {
			continue
		}
		busy := func(ctx context.Context) (measure.Sample, error) { return r.beside(ctx, do) }
		if err := s.alone(ctx, caseOf(c.name, c.unit, true), busy); err != nil {
			return err
		}
	}
	c := caseOf("over gRPC: tail: 10 records each ms to each instrument, from sent to seen", "ns p50", false)
	return s.alone(ctx, c, func(ctx context.Context) (measure.Sample, error) { return r.tail(ctx, s.size.duration) })
}

func (s *suite) alone(ctx context.Context, c measure.Case, run func(context.Context) (measure.Sample, error)) error {
	return s.bench.Compare(ctx, c, measure.Contestant{
		System: "countinghouse, gRPC", Ours: true, Note: remoteNote + fmt.Sprintf("; %s records", measure.Number(float64(s.size.remote))),
		Durable: "writes: on the one replica's disk", Run: run,
	})
}
