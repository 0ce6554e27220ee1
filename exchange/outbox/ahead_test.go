package outbox

import (
	"errors"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
)

// hang lets no call of the file system return while it is on.
type hang struct {
	on      atomic.Bool
	waiting atomic.Int64
	over    chan struct{}
}

func (h *hang) before(_ step, path, _ string) error {
	if path != "" && h.on.Load() {
		h.waiting.Add(1)
		<-h.over
	}
	return nil
}

func (h *hang) end() {
	h.on.Store(false)
	close(h.over)
}

// await lets others run until that is true which will be.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// No call of the keeper returns any more. Records are published for as long as the
// segments last that lie ready, which are a quarter of the quota, and to the end of
// the quota when the calls return.
func TestPublishGoesOnWhileTheFileSystemHangs(t *testing.T) {
	const segments, ahead, n = 40, 10, 32
	h := &hang{over: make(chan struct{})}
	stepping(func() {
		w, err := Open(filepath.Join(t.TempDir(), "outbox"), Options{
			Cluster: "test", SegmentRecords: n, QuotaBytes: segments * segmentBytes(n), HeadroomRecords: -1, BootID: testBoot, Cursors: []string{"r"},
		})
		must(t, err)
		await(t, "segments ahead", func() bool { return w.keeper.segments.Load() == ahead+1 })
		h.on.Store(true)
		for w.Published() < (ahead+1)*n {
			if !w.Reserve(1) {
				h.end()
				t.Fatalf("refused after %d records of %d that fit into the quota: %+v", w.Published(), segments*n, w.Stats())
			}
			fill(w.Next())
			w.Commit()
			if w.Published() == n+1 {
				await(t, "the keeper hangs", func() bool { return h.waiting.Load() > 0 })
			}
		}
		if w.Reserve(1) || w.refusedRoom.Load() != 1 || w.refusedQuota.Load() != 0 {
			t.Errorf("%d published, refused %d times for want of room, %d for the quota", w.Published(), w.refusedRoom.Load(), w.refusedQuota.Load())
		}
		h.end()
		for w.Published() < segments*n {
			await(t, "room", func() bool { return w.Reserve(1) })
			fill(w.Next())
			w.Commit()
		}
		if s := w.Stats(); w.Reserve(1) || s.FreeRecords != 0 || s.Segments != segments {
			t.Errorf("the quota is used up: %+v", s)
		}
		must(t, w.Close())
	}, h.before)
}

func TestSegmentsAheadAreAQuarterOfTheQuota(t *testing.T) {
	for quota, want := range map[int]int{4: 2, 5: 2, 11: 2, 12: 3, 40: 10, 120: 30, 256: 64, 10_000: 64} {
		o := Options{SegmentRecords: 32, QuotaBytes: int64(quota) * segmentBytes(32), HeadroomRecords: -1}
		if err := o.fit(0); err != nil || o.AheadSegments != want {
			t.Errorf("quota of %d segments: %d ahead, %v; want %d", quota, o.AheadSegments, err, want)
		}
	}
	o := Options{SegmentRecords: 32, QuotaBytes: 3 * segmentBytes(32)}
	if err := o.fit(0); !errors.Is(err, ErrOptions) {
		t.Errorf("three segments: %v", err)
	}
}

// What the kernel took away of the pages before the writer is there again when the
// keeper has looked after them: a store does not enter the kernel. It takes them away
// by writing them back.
func TestPagesAheadOfTheWriterAreKept(t *testing.T) {
	const n = 2048
	w, err := openWriter(filepath.Join(t.TempDir(), "outbox"), Options{
		Cluster: "test", SegmentRecords: n, QuotaBytes: 60 * segmentBytes(n), AheadSegments: 28, HeadroomRecords: -1, BootID: testBoot, Cursors: []string{"r"},
	})
	must(t, err)
	defer stop(t, w)
	k := w.keeper
	for _, records := range []int{freshRecords/2 + 5, freshRecords / 2, freshRecords / 2} {
		if !k.prepare() {
			t.Fatal(k.lastError())
		}
		publish(t, w, records)
		for _, s := range k.live {
			must(t, unix.Msync(s.data, unix.MS_SYNC))
		}
		if !k.refresh() {
			t.Fatal(k.lastError())
		}
		if faults := faultsOf(t, k, w.Published()+1, w.Published()+freshRecords); faults > 8 { // one of another page, now and then
			t.Fatalf("published %d: %d faults in the slots behind", w.Published(), faults)
		}
		last := k.live[len(k.live)-1].number
		if faults := faultsOf(t, k, k.h.last(last)-n+1, k.h.last(last)); faults < n*record.Size/pageBytes/2 {
			t.Skipf("%d faults where the pages were written back: this file system does not see stores", faults)
		}
	}
}

// faultsOf returns how often a store to a slot from first to last, or to its check word,
// enters the kernel for its page.
func faultsOf(t *testing.T, k *keeper, first, last uint64) int64 {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_THREAD, &before))
	for g := first; g <= last; g++ {
		s, i := k.ready(k.h.number(g)), k.h.slot(g)
		s.slots[i].Time = 0 // as it is
		s.checks[i] = 0
	}
	must(t, unix.Getrusage(unix.RUSAGE_THREAD, &after))
	return after.Minflt - before.Minflt
}

// A page that can not be had is noted, and asked for again at the next look.
func TestAnErrorOfThePagesAheadIsNoted(t *testing.T) {
	o := scriptOptions(32)
	must(t, o.complete())
	w, err := openWriter(filepath.Join(t.TempDir(), "outbox"), o)
	must(t, err)
	defer stop(t, w)
	for _, at := range []int{1, 2} { // the records' pages, and those of the check words
		publish(t, w, 1)
		w.keeper.freshSince = w.keeper.freshSince.Add(-freshFor)
		f := &fault{at: at, err: unix.EIO}
		stepping(func() {
			if w.keeper.refresh() || !errors.Is(w.Stats().LastError, unix.EIO) {
				t.Errorf("call %d fails, and what is noted is: %v", at, w.Stats().LastError)
			}
		}, f.before)
		if !w.keeper.refresh() || w.Stats().LastError != nil {
			t.Errorf("call %d does not fail any more, and what is noted is: %v", at, w.Stats().LastError)
		}
	}
}

// Whatever call fails, Open fails: also that for the first of the pages ahead.
func TestOpenFailsWithoutThePagesAhead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	for at, met := 1, true; met; at++ {
		f := &fault{at: at, err: unix.EIO}
		stepping(func() {
			o := scriptOptions(32)
			must(t, o.complete())
			w, err := openWriter(dir, o)
			met = f.step != ""
			if err == nil {
				stop(t, w)
			}
			if met && err == nil {
				t.Errorf("%v, and Open succeeds", f)
			}
		}, f.before)
	}
}
