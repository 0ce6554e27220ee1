package wal

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
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

	keepBytes int64           // entries of so many bytes are still to be kept
	kept      []cache         // of the segments in chain's order; their entries are one run
	shown     func(*raft.Log) // see Options.Recovered

	buf []byte
}

// surveyed is one segment of the chain.
type surveyed struct {
	id     uint64
	path   string
	header segmentHeader
	scan
}

// surveyDir surveys dir. A log that was never written to has no chain. Of the entries
// that it reads it keeps the newest, up to so many bytes.
func surveyDir(fs vfs.FS, dir string, keepBytes int64, shown func(*raft.Log)) (*survey, error) {
	v := &survey{fs: fs, dir: dir, keepBytes: keepBytes, shown: shown}
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
	var bad error
	err := v.load(s.path, headerSize, func(l *load) {
		if l.upTo(int64(len(l.buf))) {
			s.header, bad = parseSegmentHeader(s.path, id, l.buf)
		}
	})
	if err := cmp.Or(err, bad); err != nil {
		return nil, err
	}
	return s, nil
}

// load reads the file's first most bytes, or all it has, while look looks at them.
// What it saw is good if load returns nil; the bytes are valid until the next call.
func (v *survey) load(path string, most int64, look func(*load)) error {
	f, err := v.fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return fmt.Errorf("wal: open %s: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("wal: stat %s: %w", path, err)
	}
	n := min(info.Size(), most)
	if int64(cap(v.buf)) < n {
		v.buf = make([]byte, n)
	}
	l := startLoad(f, path, v.buf[:n])
	look(l)
	return l.finish()
}

// scan scans a segment and keeps its entries, as far as there is room. It is called
// for the log's segments from the newest to the oldest.
func (v *survey) scan(l *load, s *surveyed) {
	k := newKeeper(v.keepBytes, v.shown)
	s.scan = scanFrames(l, &s.header, k)
	c := k.finish()
	v.kept = slices.Insert(v.kept, 0, c)
	v.keepBytes -= c.bytes
	if c.count < uint64(len(s.offsets)) { // what is kept is a run, and ends here
		v.keepBytes = 0
	}
}

// readNewest scans the newest segment, of which alone the end is open.
func (v *survey) readNewest(s *surveyed) error {
	var buf []byte
	damage := error(nil)
	err := v.load(s.path, s.header.fileBytes, func(l *load) {
		buf = l.buf
		if int64(len(buf)) < s.header.fileBytes {
			damage = &CorruptError{File: s.path, Offset: int64(len(buf)), Reason: fmt.Sprintf("the file ends here; it had %d bytes", s.header.fileBytes)}
			return
		}
		v.scan(l, s)
		if v.tail, damage = s.classify(l, s.header.salt); damage != nil {
			damage = &CorruptError{File: s.path, Offset: s.end, Reason: damage.Error()}
		}
	})
	if err := cmp.Or(err, damage); err != nil {
		return err
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
	if err := v.load(s.path, end, func(l *load) { v.scan(l, s) }); err != nil {
		return nil, err
	}
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
