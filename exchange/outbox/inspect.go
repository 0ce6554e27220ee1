package outbox

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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
	Cursors        []Cursor
	CheckedRecords uint64   // whole records from First on
	Problems       []string // each names a file; empty when all is well
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
	if info.Cursors, err = ListCursors(dir); err != nil {
		info.Problems = append(info.Problems, err.Error())
	}
	numbers, err := listSegments(dir)
	if err != nil {
		return nil, err
	}
	info.Segments, info.SegmentBytes = len(numbers), int64(len(numbers))*segmentBytes(h.segmentRecords)
	info.First = info.Published + 1
	for _, n := range numbers {
		if h.first(n) <= info.Published {
			info.checkSegment(dir, h, n)
		}
	}
	return info, nil
}

func (info *Info) checkSegment(dir string, h *header, number uint64) {
	s, err := mapSegment(dir, h, number, unix.PROT_READ, 0)
	if err != nil {
		if _, gone := os.Stat(segmentPath(dir, number)); !errors.Is(gone, os.ErrNotExist) {
			info.Problems = append(info.Problems, err.Error())
		}
		return
	}
	defer unmap(s.data)
	var whole uint64
	for i := range s.slots {
		g := h.first(number) + uint64(i)
		if g > info.Published {
			break
		}
		if err := s.checkSlot(uint64(i), g); err != nil {
			if checkSegmentHeader(s.data, h, number) == nil {
				info.Problems = append(info.Problems, segmentPath(dir, number)+": "+err.Error())
			}
			return
		}
		whole++
	}
	info.First = min(info.First, h.first(number))
	info.CheckedRecords += whole
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
