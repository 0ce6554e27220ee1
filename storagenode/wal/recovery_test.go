package wal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// image is a log's directory as bytes, to be changed and put back.
type image map[string][]byte

func takeImage(t testing.TB, fs vfs.FS, dir string) image {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	im := image{}
	for _, n := range names {
		if n == lockName {
			continue
		}
		info, err := fs.Stat(fs.PathJoin(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		f, err := fs.Open(fs.PathJoin(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		im[n] = make([]byte, info.Size())
		if _, err := f.ReadAt(im[n], 0); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return im
}

// put makes a file system that holds the image.
func (im image) put(t testing.TB) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewMem()
	if err := fs.MkdirAll(testDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for n, b := range im {
		f, err := fs.Create(fs.PathJoin(testDir, n), categoryWAL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(slices.Clone(b)); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return fs
}

// frames returns where the frames of a segment start, and where they end.
func (im image) frames(t testing.TB, id uint64) []int64 {
	t.Helper()
	h, err := parseSegmentHeader(segmentName(id), id, im[segmentName(id)])
	if err != nil {
		t.Fatal(err)
	}
	s := scanFrames(loaded(im[segmentName(id)]), &h, nil)
	var at []int64
	for _, o := range s.offsets {
		at = append(at, int64(o)*frameAlign)
	}
	return append(at, s.end)
}

// groupsOfThree makes a log of entries 1 to 12, four groups of three, in
// segment 1, and then another segment if two is set.
func groupsOfThree(t testing.TB, two bool) image {
	t.Helper()
	fs := vfs.NewMem()
	w := mustOpen(t, fs, smallOptions)
	for i := uint64(1); i < 12; i += 3 {
		mustStore(t, w, makeRun(i, i+2, 1, 300)...)
	}
	if two {
		mustStore(t, w, makeRun(13, 15, 1, 3000)...)
	}
	mustClose(t, w)
	return takeImage(t, fs, testDir)
}

func TestRecovery(t *testing.T) {
	tests := []struct {
		name    string
		two     bool // a second segment follows
		damage  func(seg []byte, frames []int64) []byte
		last    uint64 // entries 1 to last are there
		torn    bool
		corrupt int // position of the frame that the error names, -1 for none
	}{
		{"nothing", false, func(b []byte, _ []int64) []byte { return b }, 12, false, -1},
		{"body of the last frame", false, func(b []byte, f []int64) []byte { b[f[11]+60]++; return b }, 11, true, -1},
		{"header of the last frame", false, func(b []byte, f []int64) []byte { b[f[11]+3]++; return b }, 11, true, -1},
		{"last frame gone", false, func(b []byte, f []int64) []byte { clear(b[f[11]:f[12]]); return b }, 11, true, -1},
		{"first frame of the last group, later ones on disk", false, func(b []byte, f []int64) []byte { b[f[9]+60]++; return b }, 9, true, -1},
		{"second frame of the last group, third on disk", false, func(b []byte, f []int64) []byte { clear(b[f[10]:f[11]]); return b }, 10, true, -1},
		{"last group gone", false, func(b []byte, f []int64) []byte { clear(b[f[9]:f[12]]); return b }, 9, false, -1},
		{"length of the last frame", false, func(b []byte, f []int64) []byte { b[f[11]+10] = 0xff; return b }, 11, true, -1},
		{"last frame of an earlier group", false, func(b []byte, f []int64) []byte { b[f[8]+60]++; return b }, 0, false, 8},
		{"first frame of an earlier group", false, func(b []byte, f []int64) []byte { b[f[6]+60]++; return b }, 0, false, 6},
		{"earlier group gone", false, func(b []byte, f []int64) []byte { clear(b[f[6]:f[9]]); return b }, 0, false, 6},
		{"earlier group damaged, last one torn", false, func(b []byte, f []int64) []byte { b[f[8]+60]++; clear(b[f[9]:f[11]]); return b }, 0, false, 8},
		{"very first frame", false, func(b []byte, f []int64) []byte { b[f[0]+20]++; return b }, 0, false, 0},
		{"last frame, a segment follows", true, func(b []byte, f []int64) []byte { b[f[11]+60]++; return b }, 0, false, 11},
		{"last group gone, a segment follows", true, func(b []byte, f []int64) []byte { clear(b[f[9]:f[12]]); return b }, 0, false, 9},
		{"cut short, a segment follows", true, func(b []byte, f []int64) []byte { return b[:f[11]+8] }, 0, false, 11},
		{"behind the end, a segment follows", true, func(b []byte, f []int64) []byte { b[f[12]+60]++; return b }, 15, false, -1},
		{"swapped groups", false, swapGroups, 0, false, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			im := groupsOfThree(t, tt.two)
			frames := im.frames(t, 1)
			im[segmentName(1)] = tt.damage(im[segmentName(1)], frames)
			if tt.corrupt >= 0 {
				checkCorrupt(t, im, segmentName(1), frames[tt.corrupt])
				return
			}
			checkRecovers(t, im, tt.last, tt.torn)
		})
	}
}

// swapGroups exchanges the second and the third group.
func swapGroups(b []byte, f []int64) []byte {
	second, third := slices.Clone(b[f[3]:f[6]]), slices.Clone(b[f[6]:f[9]])
	copy(b[f[3]:], third)
	copy(b[f[3]+int64(len(third)):], second)
	return b
}

func checkCorrupt(t *testing.T, im image, file string, offset int64) {
	t.Helper()
	fs := im.put(t)
	_, err := Open(fs, testDir, smallOptions)
	var c *CorruptError
	if !errors.As(err, &c) || !errors.Is(err, ErrCorrupt) {
		t.Fatalf("open: %v", err)
	}
	if !strings.HasSuffix(c.File, file) || c.Offset != offset || !strings.Contains(err.Error(), Remedy) {
		t.Fatalf("the error names %s at %d, want %s at %d: %v", c.File, c.Offset, file, offset, err)
	}
	if after := takeImage(t, fs, testDir); !sameImage(after, im) {
		t.Error("a refused directory was changed")
	}
	var found []Finding
	sum, err := Verify(fs, testDir, func(f Finding) { found = append(found, f) })
	if err != nil || sum.Damaged == 0 || len(found) == 0 || found[0].Offset != offset || found[0].Torn {
		t.Fatalf("verify: %+v %+v %v", sum, found, err)
	}
}

func sameImage(a, b image) bool {
	for n := range b {
		if !slices.Equal(a[n], b[n]) {
			return false
		}
	}
	return len(a) == len(b)
}

func checkRecovers(t *testing.T, im image, last uint64, torn bool) {
	t.Helper()
	fs := im.put(t)
	var found []Finding
	sum, err := Verify(fs, testDir, func(f Finding) { found = append(found, f) })
	if err != nil || sum.Damaged != 0 || (len(found) == 1 && found[0].Torn) != torn || sum.LastIndex != last {
		t.Fatalf("verify: %+v %+v %v", sum, found, err)
	}
	w := mustOpen(t, fs, smallOptions)
	if r := w.Recovery(); (r.TornFile != "") != torn {
		t.Errorf("recovery %+v", r)
	}
	got, err := contents(w, true)
	if err != nil || uint64(len(got)) != last {
		t.Fatalf("the log holds %s, want 1 to %d, %v", extentOf(got), last, err)
	}
	more := makeRun(last+1, last+2, 7, 300)
	mustStore(t, w, more...)
	mustClose(t, w)
	checkContents(t, mustOpen(t, fs, smallOptions), append(got, more...))
}

func TestRecoveryOfFiles(t *testing.T) {
	tests := []struct {
		name   string
		damage func(im image)
		file   string // named by the error; "" when the log is whole
	}{
		{"oldest segment gone", func(im image) { delete(im, segmentName(1)) }, segmentName(1)},
		{"middle segment gone", func(im image) { delete(im, segmentName(2)) }, segmentName(2)},
		{"newest segment gone", func(im image) { delete(im, segmentName(3)) }, segmentName(3)},
		{"prepared segment gone", func(im image) { delete(im, segmentName(4)) }, ""},
		{"unknown file", func(im image) { im["notes.txt"] = []byte("x") }, ""},
		{"unfinished preparation", func(im image) { im[prepareName] = make([]byte, 100) }, ""},
		{"file of another name", func(im image) { im["1.wal"] = nil }, ""},
		{"newest segment cut short", func(im image) { im[segmentName(3)] = im[segmentName(3)][:5000] }, segmentName(3)},
		{"newest segment empty", func(im image) { im[segmentName(3)] = nil }, segmentName(3)},
		{"segments exchanged", func(im image) {
			im[segmentName(1)], im[segmentName(2)] = im[segmentName(2)], im[segmentName(1)]
		}, segmentName(2)},
		{"header of the newest", func(im image) { im[segmentName(3)][45]++ }, segmentName(3)},
		{"header of the oldest", func(im image) { im[segmentName(1)][45]++ }, segmentName(1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			im, want := threeSegments(t)
			tt.damage(im)
			fs := im.put(t)
			w, err := Open(fs, testDir, smallOptions)
			if tt.file == "" {
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				checkContents(t, w, want)
				return
			}
			var c *CorruptError
			if !errors.As(err, &c) || !strings.HasSuffix(c.File, tt.file) {
				t.Fatalf("open: %v; want %s to be named", err, tt.file)
			}
			sum, err := Verify(fs, testDir, func(Finding) {})
			if err != nil || sum.Damaged == 0 {
				t.Fatalf("verify: %+v %v", sum, err)
			}
		})
	}
}

func threeSegments(t *testing.T) (image, []*raft.Log) {
	t.Helper()
	fs := vfs.NewMem()
	w := mustOpen(t, fs, smallOptions)
	want := makeRun(1, 10, 1, 3000)
	for i := range want {
		mustStore(t, w, want[i])
	}
	if len(w.segs) != 3 {
		t.Fatalf("%d segments", len(w.segs))
	}
	waitPrepared(w)
	mustClose(t, w)
	return takeImage(t, fs, testDir), want
}

func TestLaterFormatVersionIsRefused(t *testing.T) {
	im := groupsOfThree(t, false)
	b := im[segmentName(1)]
	h, err := parseSegmentHeader("", 1, b)
	if err != nil {
		t.Fatal(err)
	}
	h.put(b)
	b[8] = FormatVersion + 1
	putHeaderCRC(b)
	_, err = Open(im.put(t), testDir, smallOptions)
	if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "version 2") || !strings.Contains(err.Error(), segmentName(1)) {
		t.Fatalf("open: %v", err)
	}
	if _, err := Verify(im.put(t), testDir, func(Finding) {}); !errors.Is(err, ErrVersion) {
		t.Fatalf("verify: %v", err)
	}
}

// Verify goes on behind damage and finds all of it.
func TestVerifyFindsEveryDamage(t *testing.T) {
	im, _ := threeSegments(t)
	want := []string{}
	for id, at := range map[uint64]int{1: 1, 2: 2} {
		frames := im.frames(t, id)
		im[segmentName(id)][frames[at]+100]++
		want = append(want, fmt.Sprintf("%s %d", segmentName(id), frames[at]))
	}
	var got []string
	sum, err := Verify(im.put(t), testDir, func(f Finding) {
		got = append(got, fmt.Sprintf("%s %d", f.File[len(testDir)+1:], f.Offset))
	})
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) || sum.Damaged != 2 || sum.Entries != 8 {
		t.Fatalf("found %v, want %v; %+v %v", got, want, sum, err)
	}
}

// Each byte of a small log is changed in turn. The log is refused, or it is
// whole, or the last group was cut as a torn write: never anything else.
func TestEveryFlippedByte(t *testing.T) {
	im, want := smallImage(t)
	counts := map[string]int{}
	for name, b := range im {
		for i := range b {
			if (i > headerSize && i < frameStart || i > frameStart+2048) && i%32 != 0 {
				continue // bytes without a meaning: one of 32 will do
			}
			old := b[i]
			b[i] ^= 0x5a
			counts[outcomeOfFlip(t, im, want, fmt.Sprintf("%s byte %d", name, i))]++
			b[i] = old
		}
	}
	t.Logf("outcomes: %v", counts)
	for _, o := range []string{"refused", "whole", "torn"} {
		if counts[o] == 0 {
			t.Errorf("no byte led to %q", o)
		}
	}
}

// smallImage is a log with a deleted start, a deleted end, and three groups in
// its newest segment. Its last group is entries 9 and 10.
func smallImage(t *testing.T) (image, []*raft.Log) {
	t.Helper()
	fs := vfs.NewMem()
	w := mustOpen(t, fs, Options{SegmentBytes: 8 << 10})
	mustStore(t, w, makeRun(1, 4, 1, 100)...)
	mustStore(t, w, makeRun(5, 8, 1, 100)...)
	mustDelete(t, w, 7, 8)
	mustStore(t, w, makeRun(7, 8, 2, 100)...)
	mustDelete(t, w, 1, 2)
	mustStore(t, w, makeRun(9, 10, 2, 100)...)
	mustClose(t, w)
	return takeImage(t, fs, testDir), append(makeRun(3, 6, 1, 100), makeRun(7, 10, 2, 100)...)
}

func outcomeOfFlip(t *testing.T, im image, want []*raft.Log, what string) string {
	t.Helper()
	fs := im.put(t)
	sum, verr := Verify(fs, testDir, func(Finding) {})
	s, err := surveyDir(fs, testDir, 0, nil)
	switch {
	case errors.Is(err, ErrCorrupt):
		if verr != nil || sum.Damaged == 0 {
			t.Errorf("%s: refused with %v, yet Verify says %+v %v", what, err, sum, verr)
		}
		return "refused"
	case err != nil:
		t.Errorf("%s: %v", what, err)
		return "error"
	case verr != nil || sum.Damaged != 0:
		t.Errorf("%s: not refused, yet Verify says %+v %v", what, sum, verr)
	}
	if s.tail.torn {
		if s.last != 8 && s.last != 9 || s.logStart != 3 {
			t.Errorf("%s: torn, and the log is %d to %d", what, s.logStart, s.last)
		}
		return "torn"
	}
	w := mustOpen(t, fs, Options{SegmentBytes: 8 << 10})
	defer w.Close()
	got, err := contents(w, true)
	if d := difference(got, want); err != nil || d != "" {
		t.Errorf("%s: not noticed; the log holds %s, %v", what, d, err)
	}
	return "whole"
}
