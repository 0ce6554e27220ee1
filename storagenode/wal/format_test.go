package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

var rewrite = flag.Bool("rewrite", false, "write the golden directory anew")

const goldenDir = "testdata/v1"

// A log as version 1 wrote it is read for as long as version 1 is.
func TestGoldenDirectory(t *testing.T) {
	if *rewrite {
		writeGolden(t)
	}
	im := image{}
	files, err := filepath.Glob(filepath.Join(goldenDir, "*"+segmentSuffix))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		im[filepath.Base(f)] = b
	}
	w := mustOpen(t, im.put(t), Options{SegmentBytes: 8 << 10})
	checkContents(t, w, append(makeRun(3, 6, 1, 100), makeRun(7, 40, 2, 150)...))
}

func writeGolden(t *testing.T) {
	t.Helper()
	fs := vfs.NewMem()
	w := mustOpen(t, fs, Options{SegmentBytes: 8 << 10})
	mustStore(t, w, makeRun(1, 4, 1, 100)...)
	mustStore(t, w, makeRun(5, 8, 1, 100)...)
	mustDelete(t, w, 7, 8)
	mustStore(t, w, makeRun(7, 30, 2, 150)...)
	mustDelete(t, w, 1, 2)
	mustStore(t, w, makeRun(31, 40, 2, 150)...)
	waitPrepared(w)
	mustClose(t, w)
	if err := errors.Join(os.RemoveAll(goldenDir), os.MkdirAll(goldenDir, 0o755)); err != nil {
		t.Fatal(err)
	}
	for name, b := range takeImage(t, fs, testDir) {
		if err := os.WriteFile(filepath.Join(goldenDir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// The offsets of the fields, as the tables in segment.go and frame.go have them.
func TestLayout(t *testing.T) {
	const salt = 0x1122334455667788
	page := make([]byte, frameStart)
	h := segmentHeader{state: stateStarted, id: 2, salt: salt, fileBytes: 8 << 10, firstIndex: 4, logStart: 3, previous: 1, previousEnd: 5000}
	h.put(page)
	if got, err := parseSegmentHeader("x", 2, page); err != nil || got != h {
		t.Fatalf("%+v, %v", got, err)
	}
	for at, want := range map[int]uint64{16: 2, 24: salt, 32: 8 << 10, 40: 4, 48: 3, 56: 1, 64: 5000} {
		if got := binary.LittleEndian.Uint64(page[at:]); got != want {
			t.Errorf("segment header at %d: %d, want %d", at, got, want)
		}
	}
	f := frameHeader{dataLen: 5, extLen: 3, index: 7, term: 8, appendedAt: 9, group: 10, kind: frameEntry, logType: raft.LogBarrier, flags: flagGroupEnd}
	b := appendFrame(nil, &f, []byte("ext"), []byte("data!"), salt)
	if len(b) != 56 || string(b[48:]) != "extdata!" || b[44] != 1 || b[45] != byte(raft.LogBarrier) || b[46] != 1 {
		t.Fatalf("%x", b)
	}
	for at, want := range map[int]uint64{16: 7, 24: 8, 32: 9} {
		if got := binary.LittleEndian.Uint64(b[at:]); got != want {
			t.Errorf("frame header at %d: %d, want %d", at, got, want)
		}
	}
	if got, ok := parseHeader(b, salt); !ok || got != f || !bodyOK(b, &got, salt) {
		t.Fatalf("%+v, %v", got, ok)
	}
	if _, ok := parseHeader(b, salt+1); ok {
		t.Error("the header passes under another salt")
	}
	if bodyOK(b, &f, salt+1<<32) {
		t.Error("the body passes under another salt")
	}
}

func FuzzScanFrames(f *testing.F) {
	h := segmentHeader{state: stateStarted, id: 1, salt: 42, fileBytes: 8 << 10, firstIndex: 1, logStart: 1}
	good := appendFrame(nil, &frameHeader{dataLen: 4, index: 1, group: 1, kind: frameEntry, flags: flagGroupEnd}, nil, []byte("data"), h.salt)
	f.Add(good)
	f.Add(append(bytes.Clone(good), good...))
	f.Add(append(make([]byte, 64), good...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frames []byte) {
		buf := append(make([]byte, frameStart), frames...)
		s := scanFrames(loaded(buf), &h, nil)
		if s.end > int64(len(buf)) || s.groupStart > s.end || s.next != h.firstIndex+uint64(len(s.offsets)) {
			t.Fatalf("%+v of %d bytes", s, len(buf))
		}
		if tl, err := s.classify(loaded(buf), h.salt); err == nil && (tl.end < s.end || tl.end > int64(len(buf))) {
			t.Fatalf("%+v behind %d of %d bytes", tl, s.end, len(buf))
		}
		for i := range s.offsets {
			fr, ok := parseHeader(buf[int64(s.offsets[i])*frameAlign:], h.salt)
			if !ok || fr.index != h.firstIndex+uint64(i) {
				t.Fatalf("offset %d of %+v", i, s)
			}
		}
	})
}

// Whatever the newest segment file holds, Open and Verify agree on it, and what
// Open takes it can go on with.
func FuzzOpenSegment(f *testing.F) {
	page := make([]byte, frameStart)
	h := segmentHeader{state: stateStarted, id: 1, salt: 42, fileBytes: 8 << 10, firstIndex: 1, logStart: 1}
	h.put(page)
	b := bytes.Clone(page)
	for g := range uint64(3) {
		b = appendFrame(b, &frameHeader{dataLen: 4, index: g + 1, group: uint32(g + 1), kind: frameEntry, flags: flagGroupEnd}, nil, []byte("data"), h.salt)
	}
	f.Add(b[:headerSize], b[frameStart:], true)
	f.Add(b[:headerSize], b[frameStart+8:], true)
	f.Add([]byte("CHWALSEG"), []byte{}, false)
	f.Fuzz(func(t *testing.T, header, frames []byte, sum bool) {
		file := make([]byte, 8<<10)
		copy(file[:headerSize], header)
		if sum { // a checksum that holds lets the fuzzer at the fields
			putHeaderCRC(file)
		}
		copy(file[frameStart:], frames)
		openFuzzed(t, image{segmentName(1): file})
	})
}

func openFuzzed(t *testing.T, im image) {
	fs := im.put(t)
	sum, verr := Verify(fs, testDir, func(Finding) {})
	w, err := Open(fs, testDir, Options{SegmentBytes: 8 << 10})
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatal(err)
		}
		if verr == nil && sum.Damaged == 0 {
			t.Fatalf("open: %v; verify: %+v", err, sum)
		}
		return
	}
	defer w.Close()
	if verr != nil || sum.Damaged != 0 {
		t.Fatalf("opened, yet verify says %+v %v", sum, verr)
	}
	got, err := contents(w, true)
	if err != nil || sum.LastIndex != w.last || sum.FirstIndex != w.first {
		t.Fatalf("%v; the log is %d to %d, verify says %+v", err, w.first, w.last, sum)
	}
	next := w.last + 1
	if w.last == 0 {
		next = 1
	}
	mustStore(t, w, makeEntry(next, 1, 10))
	mustClose(t, w)
	checkContents(t, mustOpen(t, fs, Options{SegmentBytes: 8 << 10}), append(got, makeEntry(next, 1, 10)))
}
