package outbox

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
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
// keeper has looked after them: a store does not enter the kernel.
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
			must(t, unix.Madvise(s.data, unix.MADV_DONTNEED))
		}
		if !k.refresh() {
			t.Fatal(k.lastError())
		}
		for g := w.Published() + 1; g <= w.Published()+freshRecords; g++ {
			s, i := k.ready(k.h.number(g)), k.h.slot(g)
			if !present(t, unsafe.Pointer(&s.slots[i])) || !present(t, unsafe.Pointer(&s.checks[i])) {
				t.Fatalf("published %d: the page of global %d is not there", w.Published(), g)
			}
		}
		if last := k.live[len(k.live)-1]; present(t, unsafe.Pointer(&last.slots[n-1])) {
			t.Fatal("the last page of all is there, so the test shows nothing")
		}
	}
}

// present reports whether the process has the page that p is in.
func present(t *testing.T, p unsafe.Pointer) bool {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	must(t, err)
	defer f.Close()
	entry := make([]byte, 8)
	_, err = f.ReadAt(entry, int64(uintptr(p)/pageBytes*8))
	must(t, err)
	return binary.LittleEndian.Uint64(entry)>>63 == 1
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
