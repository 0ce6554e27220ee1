package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
)

func TestStoreAndReadBack(t *testing.T) {
	fs := vfs.NewMem()
	w := mustOpen(t, fs, smallOptions)
	checkContents(t, w, nil)
	var want []*raft.Log
	for i := uint64(1); i <= 300; i += 3 {
		run := makeRun(i, i+2, 1, int(i%7)*40)
		mustStore(t, w, run...)
		want = append(want, run...)
	}
	checkContents(t, w, want)
	if err := w.GetLog(301, new(raft.Log)); err != raft.ErrLogNotFound { //nolint:errorlint // raft compares by ==
		t.Fatalf("entry behind the last: %v", err)
	}
	if len(w.segs) < 3 {
		t.Fatalf("%d segments: the test wants several", len(w.segs))
	}
	mustClose(t, w)
	checkVerify(t, fs, 1, 300)
	w = mustOpen(t, fs, smallOptions)
	checkContents(t, w, want)
	if r := w.Recovery(); r.Entries != 300 || r.TornBytesCut != 0 {
		t.Fatalf("recovery %+v", r)
	}
}

func TestRealFiles(t *testing.T) {
	dir := t.TempDir()
	opts := Options{SegmentBytes: 4 << 20}
	w, err := Open(vfs.Default, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	var want []*raft.Log
	for i := uint64(1); i <= 64; i++ {
		l := makeEntry(i, 1, 200<<10)
		mustStore(t, w, l)
		want = append(want, l)
	}
	mustDelete(t, w, 41, 64) // ends a segment early: its rest is given back
	mustDelete(t, w, 1, 25)
	mustStore(t, w, makeEntry(41, 2, 100))
	want = append(want[25:40:40], makeEntry(41, 2, 100))
	checkContents(t, w, want)
	if _, err := Open(vfs.Default, dir, opts); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second open: %v", err)
	}
	mustClose(t, w)
	if w, err = Open(vfs.Default, dir, opts); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	checkContents(t, w, want)
}

func TestRefusals(t *testing.T) {
	w := mustOpen(t, vfs.NewMem(), smallOptions)
	mustStore(t, w, makeRun(5, 9, 1, 10)...)
	tests := []struct {
		name string
		logs []*raft.Log
		want error
		says string
	}{
		{"gap", makeRun(11, 12, 1, 1), ErrGap, "entry 11 after last entry 9"},
		{"overlap", makeRun(9, 12, 1, 1), ErrGap, "entry 9 after last entry 9"},
		{"gap inside", []*raft.Log{makeEntry(10, 1, 1), makeEntry(12, 1, 1)}, ErrGap, "entry 12 after entry 10"},
		{"too large", []*raft.Log{makeEntry(10, 1, 20<<10)}, ErrTooLarge, "entry 10 has 20486 bytes"},
	}
	for _, tt := range tests {
		err := w.StoreLogs(tt.logs)
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if err := w.DeleteRange(6, 8); err == nil || !strings.Contains(err.Error(), "hole") {
		t.Errorf("a hole: %v", err)
	}
	for _, r := range [][2]uint64{{1, 4}, {10, 20}, {8, 7}} {
		mustDelete(t, w, r[0], r[1])
	}
	checkContents(t, w, makeRun(5, 9, 1, 10))
	mustDelete(t, w, 1, 100)
	if err := w.StoreLog(&raft.Log{}); !errors.Is(err, ErrGap) {
		t.Errorf("index 0: %v", err)
	}
	for _, size := range []int64{1, 4096, 10_000, 1 << 40} {
		if _, err := Open(vfs.NewMem(), testDir, Options{SegmentBytes: size}); err == nil {
			t.Errorf("SegmentBytes %d was taken", size)
		}
	}
}

func TestLargestEntryAndLargestGroup(t *testing.T) {
	fs := vfs.NewMem()
	w := mustOpen(t, fs, smallOptions)
	large := makeEntry(1, 1, int(w.MaxEntryBytes()))
	mustStore(t, w, large)
	want := append([]*raft.Log{large}, makeRun(2, 60, 1, 1000)...)
	mustStore(t, w, want[1:]...) // more than fits into a segment
	checkContents(t, w, want)
	mustClose(t, w)
	checkContents(t, mustOpen(t, fs, smallOptions), want)
}

// A group that fits into a segment is written and synced once.
func TestOneWriteAndOneSyncForAGroup(t *testing.T) {
	w := mustOpen(t, vfs.NewMem(), smallOptions)
	for i := uint64(1); i < 400; i += 20 {
		before := counterValue(t, w.metrics.groups)
		mustStore(t, w, makeRun(i, i+19, 1, 100)...)
		if n := counterValue(t, w.metrics.groups) - before; n != 1 {
			t.Fatalf("%v writes for one group at %d", n, i)
		}
	}
}

func TestDelete(t *testing.T) {
	tests := []struct {
		name            string
		lowest, highest uint64
	}{
		{"first entry", 1, 1},
		{"first segments", 1, 40},
		{"all but the last", 1, 99},
		{"last entry", 100, 100},
		{"last segments", 30, 100},
		{"all but the first", 2, 100},
		{"all", 1, 100},
		{"more than all", 1, 1000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fs := vfs.NewMem()
			w := mustOpen(t, fs, smallOptions)
			all := makeRun(1, 100, 1, 1000)
			mustStore(t, w, all...)
			mustDelete(t, w, tt.lowest, tt.highest)
			var want []*raft.Log
			for _, l := range all {
				if l.Index < tt.lowest || l.Index > tt.highest {
					want = append(want, l)
				}
			}
			checkContents(t, w, want)
			mustClose(t, w)
			w = mustOpen(t, fs, smallOptions)
			checkContents(t, w, want)
			next := uint64(500)
			if len(want) > 0 {
				next = want[len(want)-1].Index + 1
			}
			more := makeRun(next, next+20, 2, 700)
			mustStore(t, w, more...)
			want = append(want, more...)
			checkContents(t, w, want)
			mustClose(t, w)
			checkVerify(t, fs, want[0].Index, next+20)
			checkContents(t, mustOpen(t, fs, smallOptions), want)
		})
	}
}

func TestSegmentsAreRecycled(t *testing.T) {
	fs := vfs.NewMem()
	w := mustOpen(t, fs, smallOptions)
	for i := uint64(1); i <= 400; i += 10 {
		mustStore(t, w, makeRun(i, i+9, 1, 1000)...)
		if i > 20 {
			mustDelete(t, w, 1, i-20)
		}
	}
	if n := counterValue(t, w.metrics.recycled); n < 10 {
		t.Fatalf("%v segments were recycled", n)
	}
	checkContents(t, w, makeRun(372, 400, 1, 1000))
	mustClose(t, w)
	names, err := fs.List(testDir)
	if err != nil || len(names) > 10 {
		t.Fatalf("files %v, %v", names, err)
	}
	checkContents(t, mustOpen(t, fs, smallOptions), makeRun(372, 400, 1, 1000))
}

// The options may change from one process to the next.
func TestOtherSegmentSize(t *testing.T) {
	fs := vfs.NewMem()
	var want []*raft.Log
	for i, size := range []int64{16 << 10, 8 << 10, 64 << 10, 8 << 10} {
		w := mustOpen(t, fs, Options{SegmentBytes: size})
		run := makeRun(uint64(i*50+1), uint64(i*50+50), 1, 500)
		mustStore(t, w, run...)
		want = append(want, run...)
		checkContents(t, w, want)
		mustClose(t, w)
	}
	checkVerify(t, fs, 1, 200)
}

func TestMatchesInmemStore(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { matchInmemStore(t, seed) })
	}
}

func matchInmemStore(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	fs := vfs.NewMem()
	w := mustOpen(t, fs, smallOptions)
	model := raft.NewInmemStore()
	for step := range 120 {
		first, _ := model.FirstIndex()
		last, _ := model.LastIndex()
		switch op := rng.IntN(20); {
		case op < 13:
			from := last + 1
			if last == 0 {
				from = 1 + rng.Uint64N(1000)
			}
			run := makeRun(from, from+rng.Uint64N(12), uint64(step), rng.IntN(900))
			mustStore(t, w, run...)
			_ = model.StoreLogs(run)
		case last == 0:
		case op < 15:
			to := first + rng.Uint64N(last-first+1)
			mustDelete(t, w, first, to)
			_ = model.DeleteRange(first, to)
		case op < 17:
			from := last - rng.Uint64N(min(last-first+1, 20))
			mustDelete(t, w, from, last)
			_ = model.DeleteRange(from, last)
		case op < 18:
			mustDelete(t, w, first, last)
			_ = model.DeleteRange(first, last)
		default:
			mustClose(t, w)
			w = mustOpen(t, fs, smallOptions)
		}
		compareStores(t, w, model)
	}
}

func compareStores(t *testing.T, w *WAL, model raft.LogStore) {
	t.Helper()
	first, _ := model.FirstIndex()
	last, _ := model.LastIndex()
	var want []*raft.Log
	for i := first; i <= last && i > 0; i++ {
		l := new(raft.Log)
		if err := model.GetLog(i, l); err != nil {
			t.Fatal(err)
		}
		want = append(want, l)
	}
	checkContents(t, w, want)
}

func TestReadersBesideTheWriter(t *testing.T) {
	w := mustOpen(t, vfs.NewMem(), Options{SegmentBytes: 16 << 10, CacheBytes: -1})
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 2))
			for {
				select {
				case <-stop:
					return
				default:
				}
				readSome(t, w, rng)
			}
		})
	}
	for i := uint64(1); i < 1000; i += 5 {
		mustStore(t, w, makeRun(i, i+4, 1, 600)...)
		switch {
		case i%50 == 1 && i > 100:
			mustDelete(t, w, 1, i-80)
		case i%70 == 1:
			mustDelete(t, w, i+2, i+4)
			mustStore(t, w, makeRun(i+2, i+4, 1, 600)...)
		}
	}
	close(stop)
	readers.Wait()
}

func readSome(t *testing.T, w *WAL, rng *rand.Rand) {
	first, _ := w.FirstIndex()
	last, _ := w.LastIndex()
	if last == 0 || first > last {
		return
	}
	i := first + rng.Uint64N(last-first+1)
	var l raft.Log
	switch err := w.GetLog(i, &l); {
	case errors.Is(err, raft.ErrLogNotFound):
	case err != nil:
		t.Errorf("entry %d: %v", i, err)
	case !sameEntry(&l, makeEntry(i, 1, 600)):
		t.Errorf("entry %d differs", i)
	}
}

func TestCallsAfterClose(t *testing.T) {
	w := mustOpen(t, vfs.NewMem(), smallOptions)
	mustStore(t, w, makeEntry(1, 1, 1))
	mustClose(t, w)
	mustClose(t, w)
	for name, err := range everyCall(w) {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// everyCall makes each call that can fail once.
func everyCall(w *WAL) map[string]error {
	_, firstErr := w.FirstIndex()
	_, lastErr := w.LastIndex()
	return map[string]error{
		"FirstIndex": firstErr, "LastIndex": lastErr,
		"StoreLogs":   w.StoreLogs(makeRun(2, 3, 1, 1)),
		"StoreLog":    w.StoreLog(makeEntry(2, 1, 1)),
		"GetLog":      w.GetLog(1, new(raft.Log)),
		"DeleteRange": w.DeleteRange(1, 1),
	}
}

func TestMetrics(t *testing.T) {
	w := mustOpen(t, vfs.NewMem(), Options{SegmentBytes: 16 << 10, MetricLabels: prometheus.Labels{"shard": "s1"}})
	mustStore(t, w, makeRun(1, 50, 1, 1000)...)
	checkContents(t, w, makeRun(1, 50, 1, 1000))
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(w.Metrics())
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	want := map[string]float64{
		"countinghouse_wal_entries_total": 50, "countinghouse_wal_cache_hits_total": 50, "countinghouse_wal_cache_misses_total": 50,
		"countinghouse_wal_segments": 5, "countinghouse_wal_fsync_seconds": 6, "countinghouse_wal_last_index": 50,
		"countinghouse_wal_out_of_service": 0, "countinghouse_wal_torn_bytes_cut_total": 0,
	}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v (all: %v)", name, got[name], v, got)
		}
	}
}

func counterValue(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetCounter().GetValue()
}
