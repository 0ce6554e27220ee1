package outbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
)

const (
	segmentMagic     = "CHOUTSEG"
	segmentPrefix    = "segment-"
	sparePrefix      = "spare-"
	segmentHeader    = pageBytes
	checkBytes       = 8
	segmentRecordMin = 32      // so that the check words start on a page
	segmentRecordMax = 1 << 24 // 2.1 GiB
)

func checkSegmentRecords(n uint64) error {
	if n < segmentRecordMin || n > segmentRecordMax || n%segmentRecordMin != 0 {
		return fmt.Errorf("%d records per segment; use a multiple of %d up to %d", n, segmentRecordMin, segmentRecordMax)
	}
	return nil
}

// segmentBytes returns the size of a segment file of n records.
func segmentBytes(n uint64) int64 { return segmentHeader + int64(n)*(record.Size+checkBytes) }

// segment is a mapped segment file.
type segment struct {
	number uint64
	data   []byte
	slots  []record.Record
	checks []uint64
}

func segmentPath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s%020d", segmentPrefix, number))
}

func sparePath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s%020d", sparePrefix, number))
}

// overlay views the mapping of a segment of n records.
func overlay(number uint64, data []byte, n uint64) *segment {
	return &segment{
		number: number,
		data:   data,
		slots:  unsafe.Slice((*record.Record)(unsafe.Pointer(&data[segmentHeader])), n),
		checks: unsafe.Slice((*uint64)(unsafe.Pointer(&data[segmentHeader+n*record.Size])), n),
	}
}

func encodeSegmentHeader(b []byte, h *header, number uint64) {
	copy(b, segmentMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(h.segmentRecords))
	binary.LittleEndian.PutUint64(b[16:], number)
	binary.LittleEndian.PutUint64(b[24:], h.base)
	binary.LittleEndian.PutUint32(b[32:], crc32.Checksum(b[:32], record.Castagnoli))
}

func checkSegmentHeader(b []byte, h *header, number uint64) error {
	if string(b[:8]) != segmentMagic {
		return fmt.Errorf("%w: offset 0: magic %q, not %q", ErrDamaged, b[:8], segmentMagic)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > formatVersion {
		return fmt.Errorf("offset 8: %w %d (this build reads version %d)", ErrVersion, v, formatVersion)
	}
	if binary.LittleEndian.Uint32(b[32:]) != crc32.Checksum(b[:32], record.Castagnoli) {
		return fmt.Errorf("%w: offset 0: checksum of the header differs", ErrDamaged)
	}
	n, num, base := uint64(binary.LittleEndian.Uint32(b[12:])), binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	if n != h.segmentRecords || num != number || base != h.base {
		return fmt.Errorf("%w: offset 0: it says segment %d of %d records from base %d, expected segment %d of %d from %d",
			ErrDamaged, num, n, base, number, h.segmentRecords, h.base)
	}
	return nil
}

// mapSegment maps an existing segment after a look at its header.
func mapSegment(dir string, h *header, number uint64, prot, flags int) (*segment, error) {
	path := segmentPath(dir, number)
	data, err := mapPath(path, segmentBytes(h.segmentRecords), prot, flags)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("outbox: %s: %w: the file is missing", path, ErrDamaged)
	}
	if err != nil {
		return nil, err
	}
	if err := checkSegmentHeader(data, h, number); err != nil {
		unmap(data)
		return nil, fmt.Errorf("outbox: %s: %w", path, err)
	}
	return overlay(number, data, h.segmentRecords), nil
}

// createSegment makes a zero-filled, prefaulted segment. The file gets its name
// when it is whole, so that a segment of that name always is.
func createSegment(dir string, h *header, number uint64) (*segment, error) {
	spare, size := sparePath(dir, number), segmentBytes(h.segmentRecords)
	data, err := createSpare(spare, size)
	if err == nil {
		storing(stepHeader)
		encodeSegmentHeader(data, h, number)
		if err = rename(spare, segmentPath(dir, number)); err == nil {
			return overlay(number, data, h.segmentRecords), nil
		}
		unmap(data)
		err = fmt.Errorf("outbox: %w", err)
	}
	_ = remove(spare) // what stays is a spare: recovery removes it
	return nil, err
}

// createSpare makes a file of zeros and maps it, every page in place.
func createSpare(path string, size int64) ([]byte, error) {
	f, err := openFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	defer f.Close()
	if err := allocate(f, size); err != nil {
		return nil, fmt.Errorf("outbox: allocate %d bytes for %s: %w", size, path, err)
	}
	data, err := mapFile(f, size, unix.PROT_READ|unix.PROT_WRITE, 0)
	if err != nil {
		return nil, err
	}
	if err := prefault(path, data); err != nil {
		unmap(data)
		return nil, err
	}
	return data, nil
}

// errGone means that a segment could not be recycled and is none any more.
var errGone = errors.New("its file is taken out of use")

// recycle turns s, which no reader needs, into the segment of another number.
// Zeroing it here spares the writer that, and makes its pages writable. After an
// error s is as it was, unless that is errGone.
func (s *segment) recycle(dir string, h *header, number uint64) (*segment, error) {
	spare := sparePath(dir, number)
	err := rename(segmentPath(dir, s.number), spare)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("outbox: %w; %w", err, errGone)
	}
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	storing(stepClear)
	clear(s.data[segmentHeader:])
	storing(stepHeader)
	encodeSegmentHeader(s.data, h, number)
	if err := rename(spare, segmentPath(dir, number)); err != nil {
		_ = remove(spare) // what stays is a spare: the next attempt takes its name
		return nil, fmt.Errorf("outbox: %w; %w", err, errGone)
	}
	return overlay(number, s.data, h.segmentRecords), nil
}

// prefault makes the pages of the slots from index i up to before end, and of their
// check words, writable.
func (s *segment) prefault(dir string, i, end uint64) error {
	path, checks := segmentPath(dir, s.number), segmentHeader+uint64(len(s.slots))*record.Size
	err := prefault(path, pages(s.data, segmentHeader+i*record.Size, segmentHeader+end*record.Size))
	if err != nil {
		return err
	}
	return prefault(path, pages(s.data, checks+i*checkBytes, checks+end*checkBytes))
}

// clearFrom zeroes the slots from index i on and waits until that is on disk:
// what an unfinished or cut transaction left there must never be read.
func (s *segment) clearFrom(dir string, i uint64) error {
	storing(stepClear)
	clear(s.slots[i:])
	storing(stepClear)
	clear(s.checks[i:])
	return syncMap(segmentPath(dir, s.number), s.data)
}

// listSegments returns the numbers of the segment files in dir, ascending.
func listSegments(dir string) ([]uint64, error) {
	entries, err := readDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), segmentPrefix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("outbox: %s: %w: not the name of a segment", filepath.Join(dir, e.Name()), ErrDamaged)
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers, nil
}

// removeSpares deletes what an interrupted create or recycle left behind.
func removeSpares(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, sparePrefix+"*"))
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	for _, p := range paths {
		if err := remove(p); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
	return nil
}
