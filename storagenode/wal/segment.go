package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/storagenode/directio"
)

// A segment file starts with a header page; frames follow from frameStart.
// Only the first headerSize bytes of the page mean something. They lie in one
// 512-byte sector, which a disk writes whole or not at all.
//
//	offset size
//	     0    8  magic "CHWALSEG"
//	     8    2  format version
//	    10    2  header size
//	    12    4  state: 0 prepared, 1 started
//	    16    8  segment id, as in the file's name
//	    24    8  salt of the frames' checksums, drawn at random
//	    32    8  size of the file in bytes
//	  from here on zero until the segment is started:
//	    40    8  first index: that of the segment's first entry; 0: the log was empty
//	    48    8  log start: first index of the log when the segment was started
//	    56    8  previous: id of the segment that holds the entry before; 0 for none
//	    64    8  end of the previous segment's frames, bytes
//	    72   52  zero
//	   124    4  CRC32C of bytes 0 to 123
const (
	headerSize = 128
	frameStart = 4096
)

// FormatVersion is the version of the segment format that this package writes.
// It refuses any other.
const FormatVersion = 1

const segmentMagic = "CHWALSEG"

const (
	statePrepared = 0
	stateStarted  = 1
)

type segmentHeader struct {
	state       uint32
	id          uint64
	salt        uint64
	fileBytes   int64
	firstIndex  uint64
	logStart    uint64
	previous    uint64
	previousEnd int64
}

// put writes h to the start of page.
func (h *segmentHeader) put(page []byte) {
	clear(page[:headerSize])
	copy(page, segmentMagic)
	binary.LittleEndian.PutUint16(page[8:], FormatVersion)
	binary.LittleEndian.PutUint16(page[10:], headerSize)
	binary.LittleEndian.PutUint32(page[12:], h.state)
	binary.LittleEndian.PutUint64(page[16:], h.id)
	binary.LittleEndian.PutUint64(page[24:], h.salt)
	binary.LittleEndian.PutUint64(page[32:], uint64(h.fileBytes))
	binary.LittleEndian.PutUint64(page[40:], h.firstIndex)
	binary.LittleEndian.PutUint64(page[48:], h.logStart)
	binary.LittleEndian.PutUint64(page[56:], h.previous)
	binary.LittleEndian.PutUint64(page[64:], uint64(h.previousEnd))
	putHeaderCRC(page)
}

func putHeaderCRC(page []byte) {
	binary.LittleEndian.PutUint32(page[124:], crc32.Checksum(page[:124], castagnoli))
}

// parseSegmentHeader reads the header of the segment that path names as id.
func parseSegmentHeader(path string, id uint64, b []byte) (segmentHeader, error) {
	bad := func(format string, args ...any) (segmentHeader, error) {
		return segmentHeader{}, &CorruptError{File: path, Reason: fmt.Sprintf("segment header: "+format, args...)}
	}
	if len(b) < headerSize {
		return bad("the file has %d bytes, fewer than the header's %d", len(b), headerSize)
	}
	if string(b[:8]) != segmentMagic {
		return bad("magic is %q, not %q", b[:8], segmentMagic)
	}
	if crc32.Checksum(b[:124], castagnoli) != binary.LittleEndian.Uint32(b[124:]) {
		return bad("checksum does not match")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != FormatVersion {
		return segmentHeader{}, fmt.Errorf("wal: %s: %w %d; this build reads version %d", path, ErrVersion, v, FormatVersion)
	}
	h := segmentHeader{
		state:       binary.LittleEndian.Uint32(b[12:]),
		id:          binary.LittleEndian.Uint64(b[16:]),
		salt:        binary.LittleEndian.Uint64(b[24:]),
		fileBytes:   int64(binary.LittleEndian.Uint64(b[32:])),
		firstIndex:  binary.LittleEndian.Uint64(b[40:]),
		logStart:    binary.LittleEndian.Uint64(b[48:]),
		previous:    binary.LittleEndian.Uint64(b[56:]),
		previousEnd: int64(binary.LittleEndian.Uint64(b[64:])),
	}
	switch {
	case h.id != id:
		return bad("it is of segment %d", h.id)
	case h.state > stateStarted || h.previous >= h.id:
		return bad("state %d, previous segment %d", h.state, h.previous)
	case h.fileBytes < segmentBytesLeast || h.fileBytes > segmentBytesMost:
		return bad("file size %d", h.fileBytes)
	}
	return h, nil
}

const (
	segmentSuffix = ".wal"
	prepareName   = "prepare.tmp"
	lockName      = "LOCK"
)

func segmentName(id uint64) string { return fmt.Sprintf("%016d%s", id, segmentSuffix) }

// parseSegmentName returns the id in a segment file's name.
func parseSegmentName(name string) (id uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) < 16 {
		return 0, false
	}
	id, err := strconv.ParseUint(digits, 10, 64)
	return id, err == nil && id > 0 && segmentName(id) == name
}

// segment is an open segment file.
type segment struct {
	header segmentHeader
	path   string
	file   vfs.File
	// out writes what is appended, past the page cache where that is possible, through
	// a file of its own: reads of a direct file would have to be aligned. nil in
	// segments that take no more.
	out *output

	// reading is held while the file is read; the recycler takes it in full
	// once the segment is out of the index.
	reading sync.RWMutex

	// Of the writer.
	group     uint32 // of the last write
	headerDue bool   // the header is written with the next group
	fresh     bool   // the header on disk does not say yet that it was started
	tail      []byte // of the frames, from the last multiple of frameStart to end

	// Guarded by WAL.mu. Invariant: offsets[i]*frameAlign is where the frame of
	// entry header.firstIndex+i starts, and lies in [frameStart, end).
	offsets []uint32
	end     int64 // of the frames that are on disk
}

// count returns how many entries the segment holds.
func (s *segment) count() uint64 { return uint64(len(s.offsets)) }

// room returns how many bytes of frames still fit.
func (s *segment) room() int64 { return s.header.fileBytes - s.end }

// span returns where the frame of entry i starts, and where the frames after
// it do.
func (s *segment) span(i uint64) (from, to int64) {
	from, to = int64(s.offsets[i])*frameAlign, s.end
	if i+1 < s.count() {
		to = int64(s.offsets[i+1]) * frameAlign
	}
	return from, to
}

// writeAt writes all of b. A file system that takes a part of it without an error has
// failed as well.
func writeAt(f io.WriterAt, b []byte, at int64) error {
	n, err := f.WriteAt(b, at)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// output is the file through which a segment is appended to.
type output struct {
	directio.Writer
	file vfs.File
}

func openOutput(fs vfs.FS, path string) (*output, error) {
	f, err := fs.OpenReadWrite(path, categoryWAL)
	if err != nil {
		return nil, fmt.Errorf("wal: open %s for writing: %w", path, err)
	}
	return &output{directio.NewWriter(f), f}, nil
}

// closeOutput is called when the segment takes no more.
func (s *segment) closeOutput() {
	if s.out != nil {
		s.out.file.Close()
		s.out = nil
	}
}

// readTail reads tail from the file.
func (s *segment) readTail() error {
	n := s.end % frameStart
	s.tail = make([]byte, n, frameStart)
	if _, err := s.file.ReadAt(s.tail, s.end-n); err != nil && n > 0 {
		return fmt.Errorf("wal: read %s at offset %d: %w", s.path, s.end-n, err)
	}
	return nil
}

// close closes the file once nobody reads it.
func (s *segment) close() {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.closeOutput()
	s.file.Close()
}
