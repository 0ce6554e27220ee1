package wal

import (
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// survey reads a directory and finds out what the log is: which segments form
// it, where it starts, and whether the last write is torn. It changes nothing.
type survey struct {
	fs  vfs.FS
	dir string
	ids []uint64 // of the segment files, ascending

	chain    []*surveyed // the log's segments, ascending
	prepared uint64      // id of the prepared segment, 0 for none
	logStart uint64      // first index of the log, 0 for an empty one
	last     uint64      // last index, 0 for an empty log
	tail     tail        // of the newest segment

	// header page and last group of the newest segment, as they were read
	page, group []byte

	buf []byte
}

// surveyed is one segment of the chain.
type surveyed struct {
	id     uint64
	path   string
	header segmentHeader
	scan
}

// surveyDir surveys dir. A log that was never written to has no chain.
func surveyDir(fs vfs.FS, dir string) (*survey, error) {
	v := &survey{fs: fs, dir: dir}
	if err := v.list(); err != nil {
		return nil, err
	}
	newest, err := v.newest()
	if err != nil || newest == nil {
		return v, err
	}
	if err := v.readNewest(newest); err != nil {
		return nil, err
	}
	if err := v.readOlder(); err != nil {
		return nil, err
	}
	return v, v.extent()
}

func (v *survey) list() error {
	names, err := v.fs.List(v.dir)
	if err != nil {
		return fmt.Errorf("wal: list %s: %w", v.dir, err)
	}
	for _, n := range names {
		if id, ok := parseSegmentName(n); ok {
			v.ids = append(v.ids, id)
		}
	}
	slices.Sort(v.ids)
	return nil
}

func (v *survey) path(id uint64) string { return v.fs.PathJoin(v.dir, segmentName(id)) }

// newest reads the header of the newest segment that was started, nil if none
// was. The file with the highest id is that segment, or one prepared behind it:
// segment n+1 is prepared once n is started, and n is removed only after n+1 is
// started.
func (v *survey) newest() (*surveyed, error) {
	if len(v.ids) == 0 {
		return nil, nil
	}
	top := v.ids[len(v.ids)-1]
	s, err := v.open(top)
	if err != nil {
		return nil, err
	}
	if s.header.state == stateStarted {
		return s, nil
	}
	v.prepared = top
	if top == 1 {
		return nil, nil
	}
	if len(v.ids) < 2 || v.ids[len(v.ids)-2] != top-1 {
		return nil, v.missing(top-1, fmt.Sprintf("segment %d was prepared behind it", top))
	}
	if s, err = v.open(top - 1); err != nil {
		return nil, err
	}
	if s.header.state != stateStarted {
		return nil, &CorruptError{File: s.path, Reason: fmt.Sprintf("the segment was never started, yet segment %d was prepared behind it", top)}
	}
	return s, nil
}

func (v *survey) missing(id uint64, why string) error {
	return &CorruptError{File: v.path(id), Reason: "the segment is missing: " + why}
}

// open reads the header of segment id.
func (v *survey) open(id uint64) (*surveyed, error) {
	s := &surveyed{id: id, path: v.path(id)}
	page, err := v.read(s.path, headerSize)
	if err != nil {
		return nil, err
	}
	if s.header, err = parseSegmentHeader(s.path, id, page); err != nil {
		return nil, err
	}
	return s, nil
}

// read returns the file's first most bytes, or all it has. The result is valid
// until the next call.
func (v *survey) read(path string, most int64) ([]byte, error) {
	f, err := v.fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return nil, fmt.Errorf("wal: open %s: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("wal: stat %s: %w", path, err)
	}
	n := min(info.Size(), most)
	if int64(cap(v.buf)) < n {
		v.buf = make([]byte, n)
	}
	b := v.buf[:n]
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, n), b); err != nil {
		return nil, fmt.Errorf("wal: read %s: %w", path, err)
	}
	return b, nil
}

// readNewest scans the newest segment, of which alone the end is open.
func (v *survey) readNewest(s *surveyed) error {
	buf, err := v.read(s.path, s.header.fileBytes)
	if err != nil {
		return err
	}
	if int64(len(buf)) < s.header.fileBytes {
		return &CorruptError{File: s.path, Offset: int64(len(buf)), Reason: fmt.Sprintf("the file ends here; it had %d bytes", s.header.fileBytes)}
	}
	s.scan = scanFrames(buf, &s.header)
	if v.tail, err = s.classify(buf, s.header.salt); err != nil {
		return &CorruptError{File: s.path, Offset: s.end, Reason: err.Error()}
	}
	v.page = slices.Clone(buf[:frameStart])
	v.group = slices.Clone(buf[s.groupStart:s.end])
	v.logStart = max(s.header.logStart, s.scan.logStart)
	v.chain = []*surveyed{s}
	return nil
}

// readOlder scans the segments before the newest, down to the one that holds
// the log's first entry. Their ends were stated when the next one was started,
// so whatever is not good in front of them is damage.
func (v *survey) readOlder() error {
	for {
		next := v.chain[0]
		if next.header.previous == 0 || next.header.firstIndex <= v.logStart {
			return nil
		}
		s, err := v.readSealed(next)
		if err != nil {
			return err
		}
		v.chain = slices.Insert(v.chain, 0, s)
	}
}

// readSealed scans the segment before next.
func (v *survey) readSealed(next *surveyed) (*surveyed, error) {
	id, end := next.header.previous, next.header.previousEnd
	if _, found := slices.BinarySearch(v.ids, id); !found {
		return nil, v.missing(id, fmt.Sprintf("segment %d continues it from entry %d", next.id, next.header.firstIndex))
	}
	s, err := v.open(id)
	if err != nil {
		return nil, err
	}
	buf, err := v.read(s.path, end)
	if err != nil {
		return nil, err
	}
	s.scan = scanFrames(buf, &s.header)
	switch {
	case s.header.state != stateStarted:
		return nil, &CorruptError{File: s.path, Reason: fmt.Sprintf("the segment was never started, yet segment %d continues it", next.id)}
	case s.end != end:
		return nil, &CorruptError{File: s.path, Offset: s.end, Reason: fmt.Sprintf("no good frame, yet good ones follow: segment %d says that frames end at offset %d", next.id, end)}
	case s.next != next.header.firstIndex:
		return nil, &CorruptError{File: next.path, Reason: fmt.Sprintf("the segment starts with entry %d; the one before, %s, ends with entry %d", next.header.firstIndex, s.path, s.next-1)}
	}
	return s, nil
}

// extent derives the log's first and last index.
func (v *survey) extent() error {
	oldest, newest := v.chain[0], v.chain[len(v.chain)-1]
	if newest.header.firstIndex == 0 {
		v.logStart = 0
		return nil
	}
	v.last = newest.next - 1
	switch {
	case oldest.header.firstIndex > v.logStart:
		return &CorruptError{File: oldest.path, Reason: fmt.Sprintf("the log starts at entry %d; its oldest segment starts at entry %d", v.logStart, oldest.header.firstIndex)}
	case v.last >= v.logStart:
		return nil
	case v.last+1 < v.logStart || len(v.chain) > 1 || newest.header.previous != 0:
		return &CorruptError{File: newest.path, Offset: newest.end, Reason: fmt.Sprintf("the log starts at entry %d, yet ends with entry %d", v.logStart, v.last)}
	}
	v.logStart, v.last = 0, 0 // the first write to an empty log was torn
	return nil
}
