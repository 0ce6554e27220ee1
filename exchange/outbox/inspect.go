package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
)

// Info is what Inspect finds.
type Info struct {
	Dir            string
	Cluster        string
	Incarnation    uint64
	BootID         string
	SegmentRecords uint64
	Base           uint64 // the global before the first slot
	Published      uint64
	First          uint64 // the lowest global kept, Published+1 when none is
	WriterPID      int    // of the last writer, 0 if not known; it may have ended
	Segments       int
	SegmentBytes   int64
	Cursors        []Cursor  // those that can be read
	CheckedRecords uint64    // whole records from First on
	Whole          []Run     // where they stand, ascending
	Problems       []Problem // empty when all is well

	oldest uint64 // of the cursors, or the base
}

// Run is a run of globals, both ends included.
type Run struct{ First, Last uint64 }

// Problem is a place in a file that is not what an outbox writes.
type Problem struct {
	File   string
	Offset int64
	What   string
	// Harmless means that nothing is lost by it: another copy is whole. A writer
	// that was killed leaves such places, too.
	Harmless bool
}

func (p Problem) String() string { return fmt.Sprintf("%s: offset %d: %s", p.File, p.Offset, p.What) }

// Is reports whether dir is an outbox, however damaged.
func Is(dir string) bool {
	for _, name := range []string{controlName, cursorLockName} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() {
			return true
		}
	}
	return false
}

// Inspect reads the outbox in dir without changing it or holding anything up,
// and checks every published record that is kept. A writer and readers may be
// at work; segments that they recycle meanwhile are left out. It returns an
// error only when the control file can not be used.
func Inspect(dir string) (*Info, error) {
	dir = filepath.Clean(dir)
	c, err := openControl(dir, unix.PROT_READ)
	if err != nil {
		return nil, err
	}
	h := &c.header
	info := &Info{
		Dir: dir, Cluster: h.cluster, Incarnation: h.incarnation, BootID: h.bootID,
		SegmentRecords: h.segmentRecords, Base: h.base, Published: c.published.Load(), WriterPID: lastWriter(dir),
	}
	info.First = info.Published + 1
	info.checkHeaders(c)
	numbers, err := listSegments(dir)
	if err != nil {
		return nil, err
	}
	info.Segments, info.SegmentBytes = len(numbers), int64(len(numbers))*segmentBytes(h.segmentRecords)
	// After the names: what a cursor does not need now may be gone from them.
	if err := info.checkCursors(dir); err != nil {
		return nil, err
	}
	behind := info.Published
	for _, n := range numbers {
		behind = info.checkSegment(dir, h, n, behind)
	}
	info.checkMissing(dir, h, numbers)
	if now := c.published.Load(); behind > max(now, info.Published) {
		info.problem(c.path, publishedOffset, true, "the published counter is %d, and whole transactions up to global %d stand behind it; a start takes them in", now, behind)
	}
	return info, nil
}

func (info *Info) problem(file string, offset int64, harmless bool, format string, args ...any) {
	info.Problems = append(info.Problems, Problem{file, offset, fmt.Sprintf(format, args...), harmless})
}

// checkHeaders looks at both copies; one of them is whole.
func (info *Info) checkHeaders(c *control) {
	for _, off := range []int{0, headerCopyB} {
		b := c.data[off : off+headerBytes]
		if len(bytes.TrimLeft(b, "\x00")) == 0 {
			continue // not written yet
		}
		if _, err := decodeHeader(b); err != nil {
			info.problem(c.path, int64(off), true, "this copy of the header is not whole, the other one is: %v", err)
		}
	}
	if info.Published < info.Base {
		info.problem(c.path, publishedOffset, false, "the published counter is %d, below the base %d", info.Published, info.Base)
	}
}

func (info *Info) checkCursors(dir string) error {
	names, err := cursorNames(dir)
	if err != nil {
		return err
	}
	info.oldest = info.Base
	for _, name := range names {
		page, err := readPage(cursorPath(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		var global uint64
		if err == nil {
			global, err = decodeCursor(page)
		}
		if err != nil {
			info.problem(cursorPath(dir, name), 0, false, "%v", err)
			continue
		}
		if len(info.Cursors) == 0 || global < info.oldest {
			info.oldest = global
		}
		info.Cursors = append(info.Cursors, Cursor{name, global})
		for _, off := range []int{cursorA, cursorB} {
			if !wholeCursor(page, off) {
				info.problem(cursorPath(dir, name), int64(off), true, "one of the two values is not whole; the other one is %d", global)
			}
		}
	}
	return nil
}

// checkSegment checks a segment's records. behind is the last global of whole
// transactions, published ones included, that it goes on from, if it can.
func (info *Info) checkSegment(dir string, h *header, number, behind uint64) uint64 {
	path := segmentPath(dir, number)
	s, err := mapSegment(dir, h, number, unix.PROT_READ, 0)
	if err != nil {
		if _, gone := os.Stat(path); !errors.Is(gone, fs.ErrNotExist) && h.first(number) <= info.Published {
			info.problem(path, 0, false, "%v; it held globals %d to %d", err, h.first(number), min(h.last(number), info.Published))
		}
		return behind
	}
	defer unmap(s.data)
	runs := runs{info: info, segment: s, path: path}
	for i := range uint64(len(s.slots)) {
		g := h.first(number) + i
		err := s.checkSlot(i, g)
		if g <= info.Published {
			runs.add(i, g, err)
			continue
		}
		if err != nil {
			break
		}
		if s.slots[i].Flags&record.FlagLast != 0 {
			behind = g
		}
	}
	runs.end()
	if checkSegmentHeader(s.data, h, number) != nil { // recycled meanwhile
		return behind
	}
	runs.keep()
	return behind
}

// runs gathers what follows each other, whole or damaged, within a segment.
type runs struct {
	info     *Info
	segment  *segment
	path     string
	whole    []Run
	problems []Problem
	bad      Run
	slot     uint64
	first    error // why the first of bad is damaged
}

func (r *runs) add(slot, g uint64, err error) {
	switch n := len(r.whole); {
	case err != nil && r.first == nil:
		r.bad, r.slot, r.first = Run{g, g}, slot, err
	case err != nil:
		r.bad.Last = g
	case n > 0 && r.whole[n-1].Last+1 == g:
		r.whole[n-1].Last = g
	default:
		r.whole = append(r.whole, Run{g, g})
	}
	if err == nil {
		r.end()
	}
}

// end closes a run of damaged records.
func (r *runs) end() {
	if r.first == nil {
		return
	}
	what := r.first.Error()
	if r.bad.Last > r.bad.First {
		what = fmt.Sprintf("globals %d to %d are damaged, the first of them: %s", r.bad.First, r.bad.Last, what)
	}
	r.problems = append(r.problems, Problem{File: r.path, Offset: slotOffset(r.slot), What: what})
	r.first = nil
}

func (r *runs) keep() {
	info := r.info
	info.Problems = append(info.Problems, r.problems...)
	for _, run := range r.whole {
		info.First = min(info.First, run.First)
		info.CheckedRecords += run.Last - run.First + 1
		if n := len(info.Whole); n > 0 && info.Whole[n-1].Last+1 == run.First {
			info.Whole[n-1].Last = run.Last
			continue
		}
		info.Whole = append(info.Whole, run)
	}
}

// checkMissing looks for segments that readers still need and that are not there.
func (info *Info) checkMissing(dir string, h *header, numbers []uint64) {
	if info.oldest < h.base || info.oldest >= info.Published {
		return
	}
	there := map[uint64]bool{}
	for _, n := range numbers {
		there[n] = true
	}
	missing := uint64(0)
	first, last := h.number(info.oldest+1), h.number(info.Published)
	for n := first; n <= last && missing < uint64(len(numbers))+1; n++ {
		if there[n] {
			continue
		}
		missing++
		info.problem(segmentPath(dir, n), 0, false, "the file is missing; it held globals %d to %d", h.first(n), min(h.last(n), info.Published))
	}
}

func lastWriter(dir string) int {
	f, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return 0
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 32))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}
