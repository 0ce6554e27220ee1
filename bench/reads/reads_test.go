package reads

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/bench/child"
	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/record"
)

func TestMain(m *testing.M) {
	child.Main()
	os.Exit(m.Run())
}

// Every case runs to its end with little in the stores.
func TestSuite(t *testing.T) {
	b := &measure.Bench{Runs: 1, Root: t.TempDir(), Progress: io.Discard}
	z := size{records: 40_000, young: 8_000, remote: 8_000, duration: 20 * time.Millisecond, coldMax: 10, window: 100}
	if err := runSize(t.Context(), b, z); err != nil {
		t.Fatal(err)
	}
	r := b.Report(Suite(), measure.Machine{}, time.Now())
	if len(r.Points) < 29 || len(r.Comparisons) != 11 {
		t.Errorf("%d points, %d comparisons", len(r.Points), len(r.Comparisons))
	}
	for _, p := range r.Points {
		if p.Value <= 0 || p.Latency == nil {
			t.Errorf("%s: %s: %v", p.Case, p.System, p.Value)
		}
	}
	if left, err := filepath.Glob(filepath.Join(b.Root, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func engines(t *testing.T) []*filled {
	t.Helper()
	s := &suite{bench: &measure.Bench{Progress: io.Discard}, size: size{records: 16_000}, dir: t.TempDir()}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.build(); err != nil {
		t.Fatal(err)
	}
	for _, f := range s.engines { // a part of it in memtables
		if err := f.fill(1000); err != nil {
			t.Fatal(err)
		}
	}
	return s.engines
}

// Both engines give the records that the history says there are, to the last byte.
func TestEnginesAgreeWithTheHistory(t *testing.T) {
	for _, f := range engines(t) {
		for i := range f.streams {
			rs := make([]record.Record, f.records)
			f.streams[i].Fill(rs, 1)
			var whole, part answer
			for k := range rs {
				whole.add(rs[k].Bytes())
				if k >= 99 && k < 4700 {
					part.add(rs[k].Bytes())
				}
			}
			if got, err := f.scan(i, 1, f.records); err != nil || got != whole {
				t.Errorf("%s: stream %d: %+v, expected %+v, %v", f.system, i, got, whole, err)
			}
			if got, err := f.scan(i, 100, 4700); err != nil || got != part {
				t.Errorf("%s: part of stream %d: %+v, expected %+v, %v", f.system, i, got, part, err)
			}
			for _, id := range someIDs(&f.streams[i], f.records) {
				var want answer
				for k := range rs {
					if rs[k].HasID(id) {
						want.add(rs[k].Bytes())
					}
				}
				if got, err := f.byID(t.Context(), i, id); err != nil || got != want || want.records == 0 {
					t.Errorf("%s: stream %d, %s %d: %+v, expected %+v, %v", f.system, i, id.Kind, id.Value, got, want, err)
				}
			}
		}
	}
}

func someIDs(s *history.Stream, records uint64) (ids []record.ID) {
	for group := uint64(0); group < records/history.Group; group += 37 {
		ids = append(ids, record.ID{Kind: record.OrderID, Value: s.Order(group, int(group%3))}, record.ID{Kind: record.TradeID, Value: s.Trade(group)})
	}
	return ids
}

func TestAFollowerSeesEveryRecord(t *testing.T) {
	for _, f := range engines(t) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		from, end := f.next[0], f.next[0]+99
		done := make(chan error, 1)
		go func() {
			done <- f.follow(ctx, 0, from, func(last uint64) {
				if last == end {
					cancel()
				}
			})
		}()
		for range 10 {
			if err := f.write(0, 10); err != nil {
				t.Fatal(err)
			}
		}
		<-ctx.Done()
		if err := <-done; err != nil || ctx.Err() != context.Canceled {
			t.Errorf("%s: %v, %v", f.system, err, ctx.Err())
		}
	}
}

func TestAStopwatchCountsEveryBatchOnce(t *testing.T) {
	w := newStopwatch(100, 3)
	for _, last := range []uint64{110, 120, 130} {
		w.start(last)
	}
	w.stop(115) // the first batch, and half of the second
	if w.seen != 1 {
		t.Errorf("%d batches seen", w.seen)
	}
	w.stop(130)
	s, err := w.sample(t.Context(), nil)
	if err != nil || s.Latency.Latency().Samples != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	w = newStopwatch(0, 1)
	failed := make(chan error, 1)
	failed <- io.ErrUnexpectedEOF
	if _, err := w.sample(t.Context(), failed); err == nil || !strings.Contains(err.Error(), "follower") {
		t.Errorf("%v", err)
	}
}

// BenchmarkByID is for a profile of one engine: -bench ByID/countinghouse -cpuprofile.
func BenchmarkByID(b *testing.B) {
	s := &suite{bench: &measure.Bench{Progress: io.Discard}, size: size{records: 1_000_000}, dir: b.TempDir()}
	defer func() {
		if err := s.close(); err != nil {
			b.Error(err)
		}
	}()
	if err := s.build(); err != nil {
		b.Fatal(err)
	}
	for _, f := range s.engines {
		if err := errors.Join(f.fill(50_000), f.warm(b.Context())); err != nil {
			b.Fatal(err)
		}
	}
	for _, f := range s.engines {
		for _, kind := range []record.IDKind{record.OrderID, record.TradeID} {
			b.Run(f.system+"/"+kind.String(), func(b *testing.B) {
				r := point(f, kind)
				for b.Loop() {
					if _, err := r(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
