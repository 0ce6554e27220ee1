package wal

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// longLog makes a log of entries 3 to n in several segments, with extensions of some.
func longLog(t *testing.T, n uint64) (image, []*raft.Log) {
	t.Helper()
	fs := vfs.NewMem()
	w := mustOpen(t, fs, smallOptions)
	want := makeRun(1, n, 1, 700)
	for i := uint64(0); i < n; i += 4 {
		mustStore(t, w, want[i:min(i+4, n)]...)
	}
	mustDelete(t, w, 1, 2)
	mustClose(t, w)
	return takeImage(t, fs, testDir), want[2:]
}

// Open keeps the end of the log in memory, as much as may be, and gives up what is
// more than the cache when the replay has ended.
func TestOpenKeepsTheEndOfTheLog(t *testing.T) {
	im, want := longLog(t, 90)
	all := int64(0)
	for _, l := range want {
		all += entryBytes(l)
	}
	for _, replay := range []int64{-1, 0, 1, 500, 5000, 16 << 10, 17 << 10, 40 << 10, all - 1, all, 1 << 20} {
		shown := map[uint64]bool{}
		opts := smallOptions
		opts.ReplayBytes = replay
		opts.Recovered = func(l *raft.Log) {
			shown[l.Index] = true
			if !sameEntry(l, makeEntry(l.Index, 1, 700)) || uintptr(unsafe.Pointer(&l.Data[0]))%8 != 0 {
				t.Errorf("%d bytes: shown entry %d as %+v", replay, l.Index, l)
			}
		}
		w := mustOpen(t, im.put(t), opts)
		checkKept(t, w, want, max(replay, smallOptions.CacheBytes), shown)
		if got, err := contents(w, false); err != nil || difference(got, want) != "" {
			t.Errorf("%d bytes: %v, %s", replay, err, difference(got, want))
		}
		if misses := int(testutil.ToFloat64(w.metrics.cacheMisses)); misses != len(want)-int(w.cache.count) {
			t.Errorf("%d bytes: %d entries kept of %d, %d read again", replay, w.cache.count, len(want), misses)
		}
		w.EndReplay()
		checkKept(t, w, want, smallOptions.CacheBytes, shown)
		next := makeEntry(91, 1, 700)
		mustStore(t, w, next)
		checkContents(t, w, append(want[:len(want):len(want)], next))
	}
}

// checkKept looks whether w holds as much of the end of want as fits, and no more.
func checkKept(t *testing.T, w *WAL, want []*raft.Log, most int64, shown map[uint64]bool) {
	t.Helper()
	bytes, first := int64(0), len(want)
	for first > 0 && bytes+entryBytes(want[first-1]) <= most {
		first--
		bytes += entryBytes(want[first])
	}
	if w.cache.bytes != bytes || w.cache.count != uint64(len(want)-first) || w.cache.bytesMax != most {
		t.Errorf("%d entries of %d bytes are kept, of at most %d; expected %d of %d bytes", w.cache.count, w.cache.bytes, w.cache.bytesMax, len(want)-first, bytes)
	}
	for _, l := range want[first:] {
		if !shown[l.Index] {
			t.Errorf("entry %d is kept and was not shown", l.Index)
		}
	}
}

// An entry may be marked by other extensions that are equal; the mark stays with the
// entry in memory.
func TestRecoveredMarksEntries(t *testing.T) {
	im, want := longLog(t, 20)
	mark := []byte("ext-20")
	opts := smallOptions
	opts.Recovered = func(l *raft.Log) {
		if l.Index == 20 {
			l.Extensions = mark
		}
	}
	w := mustOpen(t, im.put(t), opts)
	var l raft.Log
	if err := w.GetLog(20, &l); err != nil || unsafe.SliceData(l.Extensions) != unsafe.SliceData(mark) {
		t.Errorf("%+v, %v", l, err)
	}
	checkContents(t, w, want)
}

// piecesImage is a log whose segments are read in several pieces, with frames across
// all their boundaries.
func piecesImage(t *testing.T) (image, Options, []*raft.Log) {
	t.Helper()
	opts := Options{SegmentBytes: 4 * loadPieceBytes, CacheBytes: -1, ReplayBytes: 1 << 30}
	fs := vfs.NewMem()
	w := mustOpen(t, fs, opts)
	want := makeRun(1, 50, 1, 150_000)
	for _, l := range want {
		mustStore(t, w, l)
	}
	mustClose(t, w)
	return takeImage(t, fs, testDir), opts, want
}

// A flipped bit in what is read ahead of the checks is the same error, of the same
// frame, wherever it lies, and nothing of the log is handed out.
func TestDamageInWhatIsReadAhead(t *testing.T) {
	im, opts, want := piecesImage(t)
	checkContents(t, mustOpen(t, im.put(t), opts), want)
	name := segmentName(1)
	frames := im.frames(t, 1)
	flips := []int64{}
	for piece := int64(1); piece < 4; piece++ {
		flips = append(flips, piece*loadPieceBytes-1, piece*loadPieceBytes)
	}
	for _, at := range frames[:len(frames)-1] {
		flips = append(flips, at+1, at+20, at+frameHeaderSize, at+100_000)
	}
	for _, at := range flips {
		im[name][at] ^= 1
		frame := frames[0]
		for _, f := range frames[:len(frames)-1] {
			if f <= at {
				frame = f
			}
		}
		w, err := Open(im.put(t), testDir, opts)
		var damage *CorruptError
		if !errors.As(err, &damage) || damage.Offset != frame || damage.File != "log/"+name {
			t.Errorf("flip at %d, in the frame at %d: %v", at, frame, err)
		}
		if err == nil {
			w.Close()
		}
		im[name][at] ^= 1
	}
}

// What changes on the disk after Open is noticed where it is read from there; what
// Open has kept is what it checked.
func TestDamageAfterOpen(t *testing.T) {
	im, want := longLog(t, 60)
	fs := im.put(t)
	opts := smallOptions
	opts.ReplayBytes = 20 << 10
	w := mustOpen(t, fs, opts)
	kept := w.cache.first
	if kept <= want[0].Index+10 || w.segs[0].header.firstIndex > kept {
		t.Fatalf("entries are kept from %d on", kept)
	}
	for _, s := range w.segs {
		for i := range s.count() {
			from, _ := s.span(i)
			flipByte(t, fs, s.path, from+frameHeaderSize+200)
		}
	}
	for _, l := range want {
		var got raft.Log
		err := w.GetLog(l.Index, &got)
		s := w.segs[w.find(l.Index)]
		from, _ := s.span(l.Index - s.header.firstIndex)
		reason := fmt.Sprintf("entry %d does not match its checksum", l.Index)
		var damage *CorruptError
		switch {
		case l.Index >= kept && (err != nil || !sameEntry(&got, l)):
			t.Errorf("entry %d was kept: %v", l.Index, err)
		case l.Index < kept && (!errors.As(err, &damage) || *damage != CorruptError{File: s.path, Offset: from, Reason: reason}):
			t.Errorf("entry %d is damaged: %v", l.Index, err)
		}
	}
}

func flipByte(t *testing.T, fs vfs.FS, path string, at int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(path, categoryWAL)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// unreadable fails one read of a file: the one that brings left to 0.
type unreadable struct {
	vfs.FS
	name string
	left *int
}

func (u unreadable) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := u.FS.Open(name, opts...)
	if err == nil && u.PathBase(name) == u.name {
		f = unreadableFile{f, u.left}
	}
	return f, err
}

type unreadableFile struct {
	vfs.File
	left *int
}

func (u unreadableFile) ReadAt(b []byte, at int64) (int, error) {
	if *u.left--; *u.left == 0 {
		return 0, syscall.EIO
	}
	return u.File.ReadAt(b, at)
}

// A disk that fails in the middle of a segment is not taken for the end of the log, nor
// for damage.
func TestAReadErrorIsNotDamage(t *testing.T) {
	im, opts, _ := piecesImage(t)
	for _, id := range []uint64{1, 2} {
		for n := 1; n <= 5; n++ { // the header, and four pieces
			left := n
			_, err := Open(unreadable{im.put(t), segmentName(id), &left}, testDir, opts)
			if !errors.Is(err, syscall.EIO) || errors.Is(err, ErrCorrupt) {
				t.Errorf("segment %d, read %d: %v", id, n, err)
			}
		}
	}
}

// When the end of the log is cut, a leader has come whose log goes on otherwise: the
// replay may never come to its end.
func TestACutEndsTheReplay(t *testing.T) {
	im, want := longLog(t, 60)
	last := want[len(want)-1].Index
	for _, first := range []uint64{last, want[0].Index} { // a part, and all of it
		opts := smallOptions
		opts.CacheBytes, opts.ReplayBytes = 1, 1<<20
		w := mustOpen(t, im.put(t), opts)
		if w.cache.count != uint64(len(want)) {
			t.Fatalf("%d entries of %d are kept", w.cache.count, len(want))
		}
		mustDelete(t, w, first, last)
		if w.cache.bytesMax != 1 || w.cache.count != 0 {
			t.Errorf("from %d on: %d entries are kept, of %d bytes", first, w.cache.count, w.cache.bytesMax)
		}
	}
}
