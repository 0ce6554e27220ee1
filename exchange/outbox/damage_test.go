package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

// original is an outbox at rest, and what its readers have to be served.
type original struct {
	moment
	dir       string
	first     uint64 // the lowest global kept
	published uint64
	inc       uint64
	cursors   map[string]uint64
}

// atRest leaves an outbox whose first segments are recycled, with both copies
// of everything written.
func atRest(t *testing.T) *original {
	t.Helper()
	o := &original{dir: filepath.Join(memoryDir(t), "outbox"), cursors: map[string]uint64{"a": 100, "b": 118}}
	s := newScript(t, o.dir, 32)
	s.open()
	for _, n := range []int{20, 25, 1, 40, 12} {
		s.publish(n)
	}
	s.setCursor("a", 90)
	s.setCursor("b", 98)
	for range 3 {
		s.publish(20)
	}
	s.close()
	s.open()
	s.setCursor("a", 100)
	s.setCursor("b", 118)
	s.publish(20)
	o.published, o.inc = s.writer.Published(), s.writer.Incarnation()
	s.close()
	o.image, o.expect = capture(t, o.dir), s.expect.clone()
	numbers, err := listSegments(o.dir)
	must(t, err)
	if o.first = numbers[0]*32 + 1; o.first == 1 {
		t.Fatal("the first segment was to be recycled")
	}
	return o
}

// damage puts the original in place with one byte of a file changed.
func (o *original) damage(t *testing.T, file string, off int64, xor byte) {
	t.Helper()
	o.image.restore(t, o.dir)
	patch(t, filepath.Join(o.dir, file), off, []byte{o.image[file][off] ^ xor})
	o.step = step(fmt.Sprintf("%s offset %d xor %#x", file, off, xor))
}

// read returns how far the readers are served what was written, the error that
// then stops them, and whether a cursor has gone back.
func (o *original) read(t *testing.T) (uint64, error) {
	t.Helper()
	least, first := o.published, error(nil)
	for name, was := range o.cursors {
		r, err := OpenReader(o.dir, name)
		if err != nil {
			return 0, err
		}
		if r.Cursor() > was {
			t.Fatalf("%v: cursor %s is at %d, it was at %d", o, name, r.Cursor(), was)
		}
		for rs := r.PeekWhole(7); len(rs) > 0; rs = r.PeekWhole(7) {
			for i := range rs {
				if err := o.expect.check(&rs[i], r.Position()+uint64(i)+1); err != nil {
					t.Fatalf("%v: cursor %s is served: %v", o, name, err)
				}
			}
			r.Advance(len(rs))
		}
		if least = min(least, r.Position()); r.Err() != nil {
			first = r.Err()
		}
		r.Close()
	}
	return least, first
}

// mustName demands an error of damage that names the file.
func (o *original) mustName(t *testing.T, err error, names ...string) {
	t.Helper()
	if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
		t.Fatalf("%v: not an error of damage: %v", o, err)
	}
	for _, name := range names {
		if !strings.Contains(err.Error(), name) {
			t.Fatalf("%v: %q is not in: %v", o, name, err)
		}
	}
}

// meaning is everything that the package ever reads of a page.
func meaning(file string, page []byte, o *original) string {
	switch {
	case file == controlName:
		h, err := readHeader(page)
		return fmt.Sprint(h, err, word64(page, publishedOffset).Load())
	case strings.HasPrefix(file, cursorPrefix):
		v, err := decodeCursor(page)
		return fmt.Sprint(v, err)
	}
	h, err := readHeader(o.image[controlName])
	var number uint64
	_, _ = fmt.Sscanf(strings.TrimPrefix(file, segmentPrefix), "%d", &number)
	return fmt.Sprint(err, checkSegmentHeader(page, &h, number))
}

// Every byte of the control page, of a cursor and of segment headers is flipped.
// Either nothing that is read changes by it, or a start refuses and names the
// file, or everything is served as it was.
func TestEveryFlippedByteOfAPage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	o := atRest(t)
	files := []string{controlName, cursorPrefix + "a", filepath.Base(segmentPath("", 3)), filepath.Base(segmentPath("", 5))}
	outcomes := map[string]int{}
	for _, file := range files {
		before := meaning(file, o.image[file][:pageBytes], o)
		for off := range pageBytes {
			masks := []byte{byte(1 + rng.IntN(255))}
			if file == controlName && off >= publishedOffset && off < publishedOffset+8 {
				masks = []byte{1, 2, 4, 8, 16, 32, 64, 128, masks[0]} // it has no checksum
			}
			for _, xor := range masks {
				page := bytes.Clone(o.image[file][:pageBytes])
				page[off] ^= xor
				if meaning(file, page, o) == before {
					outcomes["not read"]++
					continue
				}
				o.damage(t, file, int64(off), xor)
				outcomes[o.start(t, file)]++
			}
		}
	}
	t.Logf("%d files: %v", len(files), outcomes)
	if outcomes["refused"] == 0 || outcomes["served"] == 0 {
		t.Error("the flips prove nothing")
	}
}

// start opens a damaged outbox in the boot that it was left in.
func (o *original) start(t *testing.T, file string) string {
	t.Helper()
	info, inspected := Inspect(o.dir)
	w, err := openWriter(o.dir, o.completed(t))
	if err != nil {
		o.mustName(t, err, filepath.Join(o.dir, file), "offset")
		if inspected == nil && !slices.ContainsFunc(info.Problems, func(p Problem) bool { return !p.Harmless }) {
			t.Fatalf("%v: Inspect finds nothing that is lost: %+v; a start says: %v", o, info.Problems, err)
		}
		return "refused"
	}
	if got := w.Published(); got != o.published || w.Incarnation() <= o.inc {
		t.Fatalf("%v: published %d in incarnation %d, it was %d in %d", o, got, w.Incarnation(), o.published, o.inc)
	}
	if got, err := o.read(t); err != nil || got != o.published {
		t.Fatalf("%v: read up to %d of %d: %v", o, got, o.published, err)
	}
	stop(t, w)
	return "served"
}

// Bytes of records and of check words are flipped. No reader is served one of
// them: PeekWhole ends before it and says where it is, Inspect finds it, and
// after the machine went down recovery ends before its transaction.
func TestFlippedRecords(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	o := atRest(t)
	const flips = 600
	outcomes := map[string]int{}
	for range flips {
		g := o.first + rng.Uint64N(o.published-o.first+1)
		i, number := (g-1)%32, (g-1)/32
		file, at := filepath.Base(segmentPath("", number)), slotOffset(i)
		off := at + rng.Int64N(record.Size)
		if rng.IntN(4) == 0 {
			at = segmentHeader + 32*record.Size + int64(i)*checkBytes
			off = at + rng.Int64N(checkBytes)
		}
		xor := byte(1 + rng.IntN(255))
		o.damage(t, file, off, xor)
		o.mustFind(t, file, at)
		unread := g <= o.cursors["a"]
		served, err := o.read(t)
		if unread && err != nil || !unread && served != g-1 {
			t.Fatalf("%v: read up to %d: %v", o, served, err)
		}
		if !unread {
			o.mustName(t, err, filepath.Join(o.dir, file), fmt.Sprintf("offset %d", at))
		}
		outcomes[o.restart(t, file, g)]++
		o.damage(t, file, off, xor)
		o.reboot(t, g)
	}
	t.Logf("%d flips: %v", flips, outcomes)
}

// mustFind demands that Inspect names the place.
func (o *original) mustFind(t *testing.T, file string, at int64) {
	t.Helper()
	info, err := Inspect(o.dir)
	if err != nil || len(info.Problems) != 1 {
		t.Fatalf("%v: %+v %v", o, info, err)
	}
	p := info.Problems[0]
	if p.File != filepath.Join(o.dir, file) || p.Harmless || !strings.Contains(p.String(), fmt.Sprintf("offset %d", at)) {
		t.Fatalf("%v: Inspect says %v", o, p)
	}
	if whole := o.published - o.first; info.CheckedRecords != whole {
		t.Fatalf("%v: Inspect finds %d whole records, not %d", o, info.CheckedRecords, whole)
	}
}

// restart opens the outbox in the same boot. It looks at the last record only;
// the others are looked at when they are read.
func (o *original) restart(t *testing.T, file string, g uint64) string {
	t.Helper()
	w, err := openWriter(o.dir, o.completed(t))
	if err != nil {
		if g != o.published {
			t.Fatalf("%v: %v", o, err)
		}
		o.mustName(t, err, filepath.Join(o.dir, file), "offset", "move the directory away", "after global 100, is then lost")
		return "refused by a start"
	}
	defer stop(t, w)
	if w.Published() != o.published {
		t.Fatalf("%v: published %d", o, w.Published())
	}
	if served, err := o.read(t); err == nil && served == o.published {
		return "passed by every cursor"
	}
	return "found by a reader"
}

// reboot opens the outbox after the machine went down.
func (o *original) reboot(t *testing.T, g uint64) {
	t.Helper()
	options := o.completed(t)
	options.BootID = "after a reboot"
	w, err := openWriter(o.dir, options)
	if err != nil {
		t.Fatalf("%v: %v", o, err)
	}
	defer stop(t, w)
	want := o.published
	if g > o.cursors["a"] {
		want = o.cursors["a"]
		for _, end := range o.expect.ends {
			if end < g {
				want = max(want, end)
			}
		}
	}
	raised := max(want, o.cursors["b"]) // that cursor has passed what is cut
	if rep := w.Recovery(); !rep.BootChanged || rep.CutRecords != o.published-want || rep.Published != raised {
		t.Fatalf("%v: recovered %+v, want %d and %d cut", o, rep, raised, o.published-want)
	}
}

// Inspect says of every global whether it is there.
func TestInspectSaysWhatIsGood(t *testing.T) {
	o := atRest(t)
	o.image.restore(t, o.dir)
	info, err := Inspect(o.dir)
	must(t, err)
	if len(info.Problems) != 0 || !slices.Equal(info.Whole, []Run{{o.first, o.published}}) {
		t.Fatalf("%+v", info)
	}
	for g := uint64(110); g < 115; g++ {
		number, off := slotOf(g)
		patch(t, segmentPath(o.dir, number), off+80, []byte{0xff, 0xfe})
	}
	patch(t, segmentPath(o.dir, 4), 20, []byte{1})
	patch(t, cursorPath(o.dir, "a"), cursorB, []byte{1})
	patch(t, filepath.Join(o.dir, controlName), headerCopyB+3, []byte{1})
	info, err = Inspect(o.dir)
	must(t, err)
	if !slices.Equal(info.Whole, []Run{{o.first, 109}, {115, 128}, {161, o.published}}) || len(info.Problems) != 4 {
		t.Fatalf("%+v", info)
	}
	for i, says := range []string{"this copy of the header", "one of the two values", "globals 110 to 114 are damaged", "it held globals 129 to 160"} {
		if p := info.Problems[i]; !strings.Contains(p.What, says) || p.Harmless != (i < 2) {
			t.Errorf("%q is not in %+v", says, p)
		}
	}
}
