package wal

import (
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"golang.org/x/sys/unix"
)

// An append that needs a segment must not wait until it is filled with zeroes, which
// at this rate takes days; and what it is given is a segment like any other.
func TestAnAppendDoesNotWaitForZeroes(t *testing.T) {
	fs, opts := vfs.NewMem(), Options{SegmentBytes: 1 << 20, RecycleFiles: -1, zeroRate: 1}
	w := mustOpen(t, fs, opts)
	run := makeRun(1, 40, 1, 200<<10)
	for _, e := range run {
		mustStore(t, w, e)
	}
	rolls := float64(len(w.segs) - 1)
	if rolls < 5 {
		t.Fatalf("%g segments were rolled to", rolls)
	}
	if n := counterValue(t, w.metrics.unfilled); n < rolls {
		t.Errorf("%g of %g segments were taken before they were filled", n, rolls)
	}
	for _, s := range w.segs {
		if info, err := fs.Stat(s.path); err != nil || info.Size() != opts.SegmentBytes {
			t.Errorf("%s: %v, %v", s.path, info, err)
		}
	}
	checkContents(t, w, run)
	mustClose(t, w) // which does not wait for them either
	checkContents(t, mustOpen(t, fs, opts), run)
}

// Where blocks can not be reserved, only zeroes keep the appends from meeting a full
// disk, so they are all written.
func TestWithoutReservationAllZeroesAreWritten(t *testing.T) {
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFilePreallocate {
			return unix.EOPNOTSUPP
		}
		return nil
	}))
	w := mustOpen(t, fs, Options{SegmentBytes: 1 << 20, RecycleFiles: -1, zeroRate: 1})
	for _, e := range makeRun(1, 40, 1, 200<<10) {
		mustStore(t, w, e)
	}
	if n := counterValue(t, w.metrics.unfilled); n != 0 {
		t.Errorf("%g segments were taken before they were filled", n)
	}
}

// A disk may be short of the room that dead segments give back: they are taken in while
// the next segment, at this rate, is filled for days.
func TestDeadSegmentsGoWhileZeroesAreWritten(t *testing.T) {
	fs, opts := vfs.NewMem(), Options{SegmentBytes: 1 << 20, RecycleFiles: -1, zeroRate: 1}
	w := mustOpen(t, fs, opts)
	for _, e := range makeRun(1, 40, 1, 200<<10) {
		mustStore(t, w, e)
	}
	var dead []string
	for _, s := range w.segs[:len(w.segs)-1] {
		dead = append(dead, s.path)
	}
	mustDelete(t, w, 1, w.active().header.firstIndex)
	deadline := time.Now().Add(10 * time.Second)
	for _, path := range dead {
		for _, err := fs.Stat(path); err == nil; _, err = fs.Stat(path) {
			if time.Now().After(deadline) {
				t.Fatalf("%s is still there", path)
			}
			runtime.Gosched()
		}
	}
}
