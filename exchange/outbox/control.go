package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
)

const (
	controlName     = "control"
	controlMagic    = "CHOUTBX1"
	formatVersion   = 1
	headerBytes     = 256
	headerCopyB     = 512
	publishedOffset = 1024
	bootIDBytes     = 40
	clusterBytes    = 64
)

// header is what the control file says about the outbox as a whole.
type header struct {
	segmentRecords uint64
	generation     uint64
	incarnation    uint64
	base           uint64
	bootID         string
	cluster        string
}

func (h *header) encode() []byte {
	b := make([]byte, headerBytes)
	copy(b, controlMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(h.segmentRecords))
	binary.LittleEndian.PutUint64(b[16:], h.generation)
	binary.LittleEndian.PutUint64(b[24:], h.incarnation)
	binary.LittleEndian.PutUint64(b[32:], h.base)
	copy(b[40:40+bootIDBytes], h.bootID)
	copy(b[80:80+clusterBytes], h.cluster)
	binary.LittleEndian.PutUint32(b[252:], crc32.Checksum(b[:252], record.Castagnoli))
	return b
}

var errHeaderCopy = errors.New("checksum differs")

func decodeHeader(b []byte) (header, error) {
	if string(b[:8]) != controlMagic {
		return header{}, fmt.Errorf("magic %q, not %q", b[:8], controlMagic)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > formatVersion {
		return header{}, fmt.Errorf("%w %d (this build reads version %d)", ErrVersion, v, formatVersion)
	}
	if binary.LittleEndian.Uint32(b[252:]) != crc32.Checksum(b[:252], record.Castagnoli) {
		return header{}, errHeaderCopy
	}
	h := header{
		segmentRecords: uint64(binary.LittleEndian.Uint32(b[12:])),
		generation:     binary.LittleEndian.Uint64(b[16:]),
		incarnation:    binary.LittleEndian.Uint64(b[24:]),
		base:           binary.LittleEndian.Uint64(b[32:]),
		bootID:         unpad(b[40 : 40+bootIDBytes]),
		cluster:        unpad(b[80 : 80+clusterBytes]),
	}
	return h, checkSegmentRecords(h.segmentRecords)
}

func unpad(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

// readHeader returns the valid copy of the higher generation. When the other
// one is damaged it may have been the latest, so its incarnation is skipped.
func readHeader(page []byte) (header, error) {
	a, errA := decodeHeader(page[:headerBytes])
	b, errB := decodeHeader(page[headerCopyB : headerCopyB+headerBytes])
	switch {
	case errors.Is(errA, ErrVersion):
		return header{}, fmt.Errorf("offset 8: %w", errA)
	case errors.Is(errB, ErrVersion):
		return header{}, fmt.Errorf("offset %d: %w", headerCopyB+8, errB)
	case errA != nil && errB != nil:
		return header{}, fmt.Errorf("%w: both copies of the header: offset 0: %w; offset %d: %w", ErrDamaged, errA, headerCopyB, errB)
	case errA != nil:
		b.incarnation += skipOver(page[:headerBytes])
		return b, nil
	case errB != nil:
		a.incarnation += skipOver(page[headerCopyB : headerCopyB+headerBytes])
		return a, nil
	case b.generation > a.generation:
		return b, nil
	}
	return a, nil
}

func skipOver(damaged []byte) uint64 {
	if len(bytes.TrimLeft(damaged, "\x00")) == 0 {
		return 0 // never written
	}
	return 1
}

// control is the mapped control file.
type control struct {
	path      string
	data      []byte
	header    header
	published *atomic.Uint64
}

func openControl(dir string, prot int) (*control, error) {
	path := filepath.Join(dir, controlName)
	data, err := mapPath(path, pageBytes, prot, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("outbox %s: %w: no control file; no writer has opened it yet", dir, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	h, err := readHeader(data)
	if err != nil {
		unmap(data)
		return nil, fmt.Errorf("outbox: %s: %w", path, err)
	}
	c := &control{path: path, data: data, header: h, published: word64(data, publishedOffset)}
	// Published may be asked for after Close, so the page stays mapped for as
	// long as somebody can ask.
	runtime.AddCleanup(c, unmap, data)
	return c, nil
}

func unmap(data []byte) { _ = unix.Munmap(data) }

func createControl(dir string, h header) error {
	page := make([]byte, pageBytes)
	copy(page, h.encode())
	binary.LittleEndian.PutUint64(page[publishedOffset:], h.base)
	return writeWhole(filepath.Join(dir, controlName), page)
}

// writeHeader replaces the older copy and waits until it is on disk.
func (c *control) writeHeader(h header) error {
	h.generation = c.header.generation + 1
	off := 0
	if h.generation%2 == 0 {
		off = headerCopyB
	}
	storing(stepHeader)
	copy(c.data[off:], h.encode())
	c.header = h
	return c.sync()
}

func (c *control) sync() error { return syncMap(c.path, c.data) }

// publish sets the counter outside of the trading path.
func (c *control) publish(global uint64) {
	storing(stepPublish)
	c.published.Store(global)
}

// number returns which segment holds global, and slot where in it.
func (h *header) number(global uint64) uint64 { return (global - h.base - 1) / h.segmentRecords }
func (h *header) slot(global uint64) uint64   { return (global - h.base - 1) % h.segmentRecords }

// first and last return the globals of a segment's first and last slot.
func (h *header) first(number uint64) uint64 { return h.base + number*h.segmentRecords + 1 }
func (h *header) last(number uint64) uint64  { return h.base + (number+1)*h.segmentRecords }
