package outbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

// machineCrash closes w and damages its files the way a lost page cache does.
func reopenAfterBoot(t *testing.T, dir string, o Options, damage func()) *Writer {
	t.Helper()
	damage()
	o.BootID += "+"
	return open(t, dir, o)
}

func wide() Options {
	o := small()
	o.QuotaBytes = 32 * segmentBytes(32)
	o.Cursors = []string{"a", "b"}
	return o
}

// patch overwrites bytes of a file.
func patch(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func slotOf(g uint64) (number uint64, off int64) {
	return (g - 1) / 32, segmentHeader + int64((g-1)%32)*record.Size
}

// tear makes the slot of g look as if its page had not been written.
func tear(t *testing.T, dir string, g uint64, from, to int) {
	number, off := slotOf(g)
	patch(t, segmentPath(dir, number), off+int64(from), make([]byte, to-from))
}

func setPublished(t *testing.T, dir string, v uint64) {
	patch(t, filepath.Join(dir, controlName), publishedOffset, binary.LittleEndian.AppendUint64(nil, v))
}

// A crash of the machine at any place leaves whole transactions up to the first
// damaged record, and never one that was written in part.
func TestTornTailIsCutAtAWholeTransaction(t *testing.T) {
	for _, c := range []struct {
		name      string
		torn      uint64 // global; transactions of 5: 1–5, 6–10, …, up to 100
		from, to  int    // bytes of the record that were lost
		published uint64 // as the control page has it on disk
		want, cut uint64
	}{
		{"nothing lost", 0, 0, 0, 100, 100, 0},
		{"counter not written", 0, 0, 0, 0, 100, 0},
		{"counter half-way", 0, 0, 0, 60, 100, 0},
		{"last record gone", 100, 0, 128, 100, 95, 5},
		{"first of the last transaction", 96, 0, 128, 100, 95, 5},
		{"body of one record", 98, 48, 128, 100, 95, 5},
		{"half a body", 98, 88, 128, 100, 95, 5},
		{"hole in the middle", 33, 0, 128, 100, 30, 70},
		{"everything", 1, 0, 128, 100, 0, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "outbox")
			w := open(t, dir, wide())
			for range 20 {
				publish(t, w, 5)
			}
			w.Close()
			w = reopenAfterBoot(t, dir, wide(), func() {
				setPublished(t, dir, c.published)
				if c.torn > 0 {
					tear(t, dir, c.torn, c.from, c.to)
				}
			})
			rep := w.Recovery()
			if !rep.BootChanged || rep.Published != c.want || rep.CutRecords != c.cut || rep.PublishedBefore != c.published {
				t.Fatalf("%+v", rep)
			}
			publish(t, w, 3)
			r := openReader(t, dir, "a")
			if n := readAll(t, r); uint64(n) != c.want+3 {
				t.Fatalf("read %d of %d", n, c.want+3)
			}
		})
	}
}

// What lay beyond the cut must not come back when the machine goes down again.
func TestCutRecordsStayCut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, wide())
	for range 20 {
		publish(t, w, 5)
	}
	w.Close()
	w = reopenAfterBoot(t, dir, wide(), func() { tear(t, dir, 41, 0, 128) })
	publish(t, w, 1)
	w.Close()
	o := wide()
	o.BootID = "third"
	w = open(t, dir, o)
	if rep := w.Recovery(); rep.Published != 41 || rep.CutRecords != 0 {
		t.Fatalf("%+v", rep)
	}
}

// A counter that stands too low, as after damage to its page or a kill just
// before its store, must not cost whole transactions that stand behind it.
func TestTransactionsBehindTheCounterAreKept(t *testing.T) {
	for _, low := range []uint64{0, 5, 37, 64} {
		dir := filepath.Join(t.TempDir(), "outbox")
		w := open(t, dir, wide())
		for range 20 {
			publish(t, w, 5)
		}
		w.Close()
		setPublished(t, dir, low)
		if rep := open(t, dir, wide()).Recovery(); rep.BootChanged || rep.Published != 100 || rep.CutRecords != 0 {
			t.Errorf("counter at %d: %+v", low, rep)
		}
	}
}

// Slots of a transaction that was never published must not be taken for records
// after the machine goes down under the next writer.
func TestUnpublishedSlotsAreCleared(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, wide())
	publish(t, w, 5)
	publish(t, w, 5)
	w.Close()
	tear(t, dir, 10, 2, 4)  // killed before the last slot was marked
	setPublished(t, dir, 5) // and so before the store
	w = open(t, dir, wide())
	if rep := w.Recovery(); rep.BootChanged || rep.Published != 5 {
		t.Fatalf("%+v", rep)
	}
	waitReserve(t, w, 1)
	if r := w.Next(); *r != (record.Record{Header: record.Header{Global: 6}}) {
		t.Fatalf("a slot must be zero but for its global: %+v", r)
	}
	fill(&w.slots[w.at-1])
	w.Commit()
	publish(t, w, 1)
	w.Close()
	o := wide()
	o.BootID = "second"
	if rep := open(t, dir, o).Recovery(); rep.Published != 7 {
		t.Fatalf("%+v", rep)
	}
}

// A random subset of pages is lost: whatever is left, what is recovered is a
// prefix of what was published, and whole.
func TestRandomPageLoss(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 5))
		dir := filepath.Join(t.TempDir(), "outbox")
		w := open(t, dir, wide())
		var ends []uint64
		for range 30 {
			publish(t, w, 1+rng.IntN(20))
			ends = append(ends, w.Published())
		}
		w.Close()
		for g := uint64(1); g <= w.committed; g += 4 { // sectors of 512 bytes
			if rng.IntN(100) < 2 {
				number, off := slotOf(g)
				patch(t, segmentPath(dir, number), off, make([]byte, 4*record.Size))
			}
		}
		w = reopenAfterBoot(t, dir, wide(), func() { setPublished(t, dir, rng.Uint64N(w.committed+1)) })
		got, whole := w.Recovery().Published, false
		for _, e := range append(ends, 0) {
			whole = whole || got == e
		}
		r := openReader(t, dir, "a")
		if n := readAll(t, r); !whole || uint64(n) != got {
			t.Fatalf("seed %d: recovered %d, read %d, transactions end at %v", seed, got, n, ends)
		}
		r.Close()
	}
}

// A cursor has passed what the outbox lost: those globals are not used again.
func TestGlobalsKnownElsewhereAreNotUsedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, wide())
	for range 20 {
		publish(t, w, 5)
	}
	a := openReader(t, dir, "a")
	a.SetCursor(90)
	a.Close()
	w.Close()
	w = reopenAfterBoot(t, dir, wide(), func() { tear(t, dir, 41, 0, 128) })
	rep := w.Recovery()
	if rep.Published != 90 || rep.VoidRecords != 50 {
		t.Fatalf("%+v", rep)
	}
	publish(t, w, 3)
	b := openReader(t, dir, "b")
	for g := uint64(1); g <= 93; g++ {
		rs := b.Peek()
		if len(rs) == 0 || rs[0].Global != g || Void(&rs[0]) != (g > 40 && g <= 90) {
			t.Fatalf("global %d: %v %+v", g, b.Err(), rs[:min(1, len(rs))])
		}
		b.Advance(1)
	}
	b.Close()
	w.Close()
	o := wide()
	o.BootID = "third" // voids stand the next revalidation
	if rep := open(t, dir, o).Recovery(); rep.Published != 93 || rep.CutRecords != 0 || rep.VoidRecords != 0 {
		t.Fatalf("%+v", rep)
	}
}

func TestStartGlobal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	o := wide()
	o.StartGlobal = 1_000_000
	w := open(t, dir, o)
	publish(t, w, 40)
	r := openReader(t, dir, "a")
	if rs := r.Peek(); len(rs) != 32 || rs[0].Global != 1_000_001 {
		t.Fatalf("%d records", len(rs))
	}
	readAll(t, r)
	r.SetCursor(r.Position())
	r.Close()
	b := openReader(t, dir, "b")
	b.SetCursor(b.Published())
	b.Close()
	w.Close()
	// Everything is read: the outbox goes on at a higher place, without voids.
	o.StartGlobal = 9_000_000
	w = open(t, dir, o)
	if w.Published() != 9_000_000 || w.Incarnation() != 2 {
		t.Fatalf("published %d", w.Published())
	}
	publish(t, w, 2)
	r = openReader(t, dir, "a")
	if n := readAll(t, r); n != 2 || r.Position() != 9_000_002 {
		t.Fatalf("read %d up to %d", n, r.Position())
	}
	r.Close()
	w.Close()
	// Records wait, and the bridge would not fit.
	o.StartGlobal = 99_000_000
	if _, err := Open(dir, o); err == nil || !strings.Contains(err.Error(), "QuotaBytes") {
		t.Fatalf("got %v", err)
	}
	o.StartGlobal = 5
	if got := open(t, dir, o).Published(); got != 9_000_002 {
		t.Fatalf("published %d", got)
	}
}

func TestInterruptedRebaseGoesOn(t *testing.T) {
	for step := range 4 {
		dir := filepath.Join(t.TempDir(), "outbox")
		w := open(t, dir, wide())
		publish(t, w, 40)
		for _, name := range []string{"a", "b"} {
			r := openReader(t, dir, name)
			r.SetCursor(40)
			r.Close()
		}
		w.Close()
		o := wide()
		o.StartGlobal = 500
		// The steps of rebase, cut short after each.
		if step > 0 {
			must(t, os.WriteFile(cursorPath(dir, "a"), encodeCursor(500), 0o644))
		}
		if step > 1 {
			must(t, os.WriteFile(cursorPath(dir, "b"), encodeCursor(500), 0o644))
			for n := range uint64(8) {
				_ = os.Remove(segmentPath(dir, n))
			}
		}
		if step > 2 {
			c, err := openControl(dir, 3)
			must(t, err)
			h := c.header
			h.base = 500
			must(t, c.writeHeader(h))
		}
		w = open(t, dir, o)
		if w.Published() != 500 {
			t.Fatalf("step %d: published %d, %+v", step, w.Published(), w.Recovery())
		}
		publish(t, w, 40)
		r := openReader(t, dir, "b")
		if n := readAll(t, r); n != 40 {
			t.Fatalf("step %d: read %d", step, n)
		}
		r.Close()
		w.Close()
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestIncarnationRisesAlsoWhenAHeaderCopyIsDamaged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	last := uint64(0)
	for i := range 6 {
		w := open(t, dir, small())
		if w.Incarnation() <= last {
			t.Fatalf("incarnation %d after %d", w.Incarnation(), last)
		}
		last = w.Incarnation()
		w.Close()
		if i%2 == 1 { // the copy that counts
			off := int64(0)
			if w.control.header.generation%2 == 0 {
				off = headerCopyB
			}
			patch(t, filepath.Join(dir, controlName), off+20, []byte{0xff})
		}
	}
}

func TestDamageIsNamed(t *testing.T) {
	control := func(dir string) string { return filepath.Join(dir, controlName) }
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		is     error
		says   []string
	}{
		{"control both copies", func(t *testing.T, dir string) {
			patch(t, control(dir), 30, []byte{1})
			patch(t, control(dir), headerCopyB+30, []byte{1})
		}, ErrDamaged, []string{"control", "both copies"}},
		{"control short", func(t *testing.T, dir string) { must(t, os.Truncate(control(dir), 100)) }, ErrDamaged, []string{"control", "100 bytes"}},
		{"control gone", func(t *testing.T, dir string) { must(t, os.Remove(control(dir))) }, ErrDamaged, []string{"control", "missing"}},
		{"control of a later version", func(t *testing.T, dir string) {
			patch(t, control(dir), 8, []byte{9})
			patch(t, control(dir), headerCopyB+8, []byte{9})
		}, ErrVersion, []string{"control", "version 9"}},
		{"counter flipped up", func(t *testing.T, dir string) { setPublished(t, dir, 77|1<<20) }, ErrDamaged, []string{"missing", "globals 1 to"}},
		{"counter flipped a little", func(t *testing.T, dir string) { setPublished(t, dir, 78) }, ErrDamaged, []string{"published 78", "segment-"}},
		{"segment magic", func(t *testing.T, dir string) { patch(t, segmentPath(dir, 1), 0, []byte("x")) }, ErrDamaged,
			[]string{"segment-00000000000000000001", "magic", "globals 1 to 32 are good", "75 were published"}},
		{"segment of a later version", func(t *testing.T, dir string) { patch(t, segmentPath(dir, 0), 8, []byte{2}) }, ErrVersion, []string{"segment-", "version 2"}},
		{"segment short", func(t *testing.T, dir string) { must(t, os.Truncate(segmentPath(dir, 2), 5000)) }, ErrDamaged,
			[]string{"segment-00000000000000000002", "5000 bytes", "globals 1 to 64 are good"}},
		{"segment gone", func(t *testing.T, dir string) { must(t, os.Remove(segmentPath(dir, 0))) }, ErrDamaged, []string{"segment-00000000000000000000", "missing"}},
		{"segment renamed", func(t *testing.T, dir string) { must(t, os.Rename(segmentPath(dir, 1), segmentPath(dir, 0))) }, ErrDamaged, []string{"says segment 1"}},
		{"cursor", func(t *testing.T, dir string) {
			patch(t, cursorPath(dir, "a"), cursorA, []byte{1})
			patch(t, cursorPath(dir, "a"), cursorB, []byte{1})
		}, ErrDamaged, []string{"cursor-a", "neither"}},
		{"cursor magic", func(t *testing.T, dir string) { patch(t, cursorPath(dir, "a"), 0, []byte("x")) }, ErrDamaged, []string{"cursor-a", "magic"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "outbox")
			w := open(t, dir, wide())
			for range 15 {
				publish(t, w, 5)
			}
			w.Close()
			c.damage(t, dir)
			_, err := Open(dir, wide())
			if !errors.Is(err, c.is) {
				t.Fatalf("got %v", err)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q is not in: %v", s, err)
				}
			}
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, small())
	w.Close()
	for field, spoil := range map[string]func(*Options){
		"Cluster":         func(o *Options) { o.Cluster = "" },
		"SegmentRecords":  func(o *Options) { o.SegmentRecords = 64 },
		"QuotaBytes":      func(o *Options) { o.QuotaBytes = 1000 },
		"AheadSegments":   func(o *Options) { o.AheadSegments = -1 },
		"HeadroomRecords": func(o *Options) { o.HeadroomRecords = 1000 },
		"cursor name":     func(o *Options) { o.Cursors = []string{"../x"} },
	} {
		o := small()
		spoil(&o)
		if _, err := Open(dir, o); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
		if o.SegmentRecords == 64 {
			o.SegmentRecords = 31 // 64 would do for an outbox that is not there yet
		}
		fresh := filepath.Join(t.TempDir(), "outbox")
		if _, err := Open(fresh, o); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
		if _, err := os.Stat(fresh); err == nil {
			t.Errorf("%s: a directory was created", field)
		}
	}
	o := small()
	o.Cluster = "other"
	if _, err := Open(dir, o); !errors.Is(err, ErrWrongCluster) || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
}

func TestInspectFindsDamage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	if _, err := Inspect(dir); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	w := open(t, dir, wide())
	for range 20 {
		publish(t, w, 5)
	}
	info, err := Inspect(dir) // the writer is at work
	if err != nil || info.CheckedRecords != 100 || len(info.Problems) > 0 || info.WriterPID != os.Getpid() || len(info.Cursors) != 2 || info.Cluster != "test" {
		t.Fatalf("%v %+v", err, info)
	}
	w.Close()
	tear(t, dir, 50, 60, 61)
	patch(t, segmentPath(dir, 2), 12, []byte{1})
	before := fmt.Sprint(listing(t, dir))
	info, err = Inspect(dir)
	if err != nil || len(info.Problems) != 2 || !strings.Contains(info.Problems[0].What, "global 50 is not whole") {
		t.Fatalf("%v %+v", err, info)
	}
	if after := fmt.Sprint(listing(t, dir)); after != before {
		t.Errorf("Inspect changed the directory: %s → %s", before, after)
	}
}

func listing(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var list []string
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		list = append(list, fmt.Sprint(e.Name(), info.Size(), info.ModTime()))
	}
	return list
}

func FuzzControlAndCursorPages(f *testing.F) {
	h := header{segmentRecords: 64, generation: 1, bootID: "b", cluster: "c"}
	page := make([]byte, pageBytes)
	copy(page, h.encode())
	f.Add(page)
	f.Add(encodeCursor(7))
	f.Fuzz(func(t *testing.T, b []byte) {
		page := make([]byte, pageBytes)
		copy(page, b)
		if h, err := readHeader(page); err == nil && checkSegmentRecords(h.segmentRecords) != nil {
			t.Errorf("accepted %+v", h)
		}
		_, _ = decodeCursor(page)
		_ = checkSegmentHeader(page, &h, 3)
	})
}
