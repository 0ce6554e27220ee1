package sstable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
)

// Table reads one table. Its methods may be called from any goroutine, but none
// during or after Close.
type Table struct {
	path   string
	foot   footer
	mapped []byte   // the whole file, or nil
	file   vfs.File // where there is no mapping
	index  []byte
	// A set bit says that the block or filter page had its checksum right
	// when it was first read. Invariant: no byte of the mapping leaves the
	// package while its bit is clear.
	blockOK []atomic.Uint64
	pageOK  []atomic.Uint64

	filterAsked atomic.Bool // the kernel was asked to read the filters ahead
}

// Open opens a table and checks footer and index. A mapped table holds no file
// descriptor.
func Open(fs vfs.FS, path string) (*Table, error) {
	file, err := fs.Open(path)
	if err != nil {
		return nil, fmt.Errorf("table %s: open: %w", path, err)
	}
	t := &Table{path: path, file: file}
	if err := t.load(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Table) load() error {
	stat, err := t.file.Stat()
	if err != nil {
		return fmt.Errorf("table %s: stat: %w", t.path, err)
	}
	size := stat.Size()
	b := make([]byte, FooterSize)
	if err := t.readAt(b, max(0, size-FooterSize)); err != nil {
		return err
	}
	foot, err := parseFooter(b, size)
	if err != nil {
		return t.footerError(err, size)
	}
	t.foot = *foot
	t.index = make([]byte, foot.indexLen)
	if err := t.readAt(t.index, int64(foot.indexOff)); err != nil {
		return err
	}
	if err := t.checkIndex(); err != nil {
		return err
	}
	t.blockOK = make([]atomic.Uint64, (foot.blocks+63)/64)
	t.pageOK = make([]atomic.Uint64, (foot.pages+63)/64)
	return t.mmap()
}

func (t *Table) footerError(err error, size int64) error {
	if errors.Is(err, record.ErrCorrupt) {
		return &CorruptError{File: t.path, Offset: max(0, size-FooterSize), Block: -1, What: err.Error()}
	}
	return fmt.Errorf("table %s: %w", t.path, err)
}

// readAt fills b from the file; a file that ends early is corrupt.
func (t *Table) readAt(b []byte, off int64) error {
	n, err := t.file.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return t.corrupt(off+int64(n), "the file ends early")
	}
	return fmt.Errorf("table %s: read at offset %d: %w", t.path, off, err)
}

func (t *Table) corrupt(off int64, format string, args ...any) *CorruptError {
	return &CorruptError{
		File: t.path, Offset: off, Block: -1, What: fmt.Sprintf(format, args...),
		FirstSeq: t.foot.FirstSeq, LastSeq: t.foot.LastSeq,
	}
}

func (t *Table) checkIndex() error {
	f := &t.foot
	if got := crc32.Checksum(t.index, record.Castagnoli); got != f.indexCRC {
		return t.corrupt(int64(f.indexOff), "index CRC32C is %08x, stored is %08x", got, f.indexCRC)
	}
	// What follows can fail only for a table that was written wrong; it keeps
	// every later access inside the file.
	left := f.Records()
	for i := range int(f.blocks) {
		want := min(left, BlockRecords)
		if n := binary.LittleEndian.Uint32(t.index[i*blockEntrySize+4:]); uint64(n) != want {
			return t.corrupt(int64(f.indexOff)+int64(i*blockEntrySize), "the index gives block %d %d records, %d expected", i, n, want)
		}
		left -= want
	}
	end := uint64(0)
	for i := range int(f.groups) {
		g := t.group(i)
		blocks := min(uint32(groupBlocks), f.blocks-uint32(i)*groupBlocks)
		if g.off != end || g.rows < filterRowsMin || g.rows > filterRowsMax || g.rowBytes != (blocks+7)/8 {
			return t.corrupt(int64(f.indexOff), "filter group %d: offset %d, %d rows of %d bytes", i, g.off, g.rows, g.rowBytes)
		}
		end += g.size()
	}
	if end != f.filterLen {
		return t.corrupt(int64(f.indexOff), "filter groups have %d bytes, the section %d", end, f.filterLen)
	}
	return nil
}

func (t *Table) group(i int) filterGroup {
	b := t.index[int(t.foot.blocks)*blockEntrySize+i*groupEntrySize:]
	return filterGroup{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])}
}

// mmap maps the file and closes it, if it has a descriptor.
func (t *Table) mmap() error {
	fd := t.file.Fd()
	if fd == vfs.InvalidFd {
		return nil
	}
	m, err := unix.Mmap(int(fd), 0, int(t.foot.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("table %s: mmap of %d bytes: %w", t.path, t.foot.Size, err)
	}
	t.mapped = m
	file := t.file
	t.file = nil
	if err := file.Close(); err != nil {
		return fmt.Errorf("table %s: close: %w", t.path, err)
	}
	return nil
}

// advise tells the kernel what is about to be read of the mapping, so that it reads it
// as a whole and not page by page. It changes nothing else: what the disk can not
// deliver, or a kernel does not know, shows when the bytes are read.
func advise(b []byte, advice int) {
	if len(b) == 0 {
		return
	}
	before := int(uintptr(unsafe.Pointer(&b[0])) % uintptr(os.Getpagesize()))
	_ = unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(&b[0]), -before)), len(b)+before), advice)
}

// Close releases the mapping; records that were handed out are no longer valid.
func (t *Table) Close() error {
	var err error
	if t.mapped != nil {
		err = unix.Munmap(t.mapped)
		t.mapped = nil
	}
	if t.file != nil {
		err = errors.Join(err, t.file.Close())
		t.file = nil
	}
	if err != nil {
		return fmt.Errorf("table %s: close: %w", t.path, err)
	}
	return nil
}

// Info describes the table.
func (t *Table) Info() Info { return t.foot.Info }

// Path returns the name the table was opened by.
func (t *Table) Path() string { return t.path }

// Blocks returns the number of blocks.
func (t *Table) Blocks() int { return int(t.foot.blocks) }

// BlockOf returns the block that holds seq, which must be in the table.
func (t *Table) BlockOf(seq uint64) int { return int((seq - t.foot.FirstSeq) / BlockRecords) }

// BlockFirstSeq returns the seq of the first record of block i.
func (t *Table) BlockFirstSeq(i int) uint64 { return t.foot.FirstSeq + uint64(i)*BlockRecords }

func (t *Table) blockEntry(i int) (crc uint32, count int, lo, hi int64) {
	b := t.index[i*blockEntrySize:][:blockEntrySize]
	le := binary.LittleEndian
	return le.Uint32(b), int(le.Uint32(b[4:])), int64(le.Uint64(b[8:])), int64(le.Uint64(b[16:]))
}

// NextBlockInTime returns the first block at or after i with a record that may
// lie in from ≤ time ≤ to, or Blocks() if there is none.
func (t *Table) NextBlockInTime(i int, from, to int64) int {
	n := t.Blocks()
	if t.foot.TimesAscend {
		for lo, hi := i, n; ; {
			if lo >= hi {
				i = lo
				break
			}
			mid := lo + (hi-lo)/2
			if _, _, _, last := t.blockEntry(mid); last < from {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
	}
	for ; i < n; i++ {
		_, _, lo, hi := t.blockEntry(i)
		if lo <= to && hi >= from {
			return i
		}
		if t.foot.TimesAscend && lo > to {
			return n
		}
	}
	return n
}

// Block returns the records of block i, 0 ≤ i < Blocks(), without copying them
// where the file is mapped. They must not be changed and are valid until Close.
// An error that wraps record.ErrCorrupt is a *CorruptError.
func (t *Table) Block(i int) ([]record.Record, error) {
	crc, count, _, _ := t.blockEntry(i)
	off, size := int64(i)*BlockSize, count*record.Size
	if t.mapped == nil {
		rs := make([]record.Record, count)
		if err := t.readAt(record.SliceBytes(rs), off); err != nil {
			return nil, t.blockError(i, err)
		}
		if got := crc32.Checksum(record.SliceBytes(rs), record.Castagnoli); got != crc {
			return nil, t.blockMismatch(i, got, crc)
		}
		return rs, nil
	}
	b := t.mapped[off : off+int64(size)]
	if !t.blockRead(i) {
		// Asked for first, or a fault reads around it as much as the device's
		// read-ahead says, which may be megabytes, and waits for that.
		advise(b, unix.MADV_WILLNEED)
		advise(b, unix.MADV_POPULATE_READ)
		got, err := t.checksum(b)
		if err != nil {
			return nil, t.blockError(i, err)
		}
		if got != crc {
			return nil, t.blockMismatch(i, got, crc)
		}
		t.blockOK[i/64].Or(1 << (i % 64))
	}
	return record.View(b)
}

// blockRead reports whether block i of a mapped table was read before.
func (t *Table) blockRead(i int) bool { return t.blockOK[i/64].Load()&(1<<(i%64)) != 0 }

// aheadBlocks is how many blocks, 2 MiB, BlockAhead has the kernel read at once.
const aheadBlocks = 32

// BlockAhead is Block for who reads the blocks from i up to end, exclusive, one after
// the other: what was not read before is asked for before it is needed, unless single
// blocks among it were read; then up to half a window is asked for block by block.
func (t *Table) BlockAhead(i, end int) ([]record.Record, error) {
	if t.mapped != nil && !t.blockRead(i) {
		if from, to := ahead(i, min(end, t.Blocks()), i == 0 || !t.blockRead(i-1)); from < to {
			advise(t.mapped[int64(from)*BlockSize:min(int64(to)*BlockSize, int64(t.foot.filterOff))], unix.MADV_WILLNEED)
		}
	}
	return t.Block(i)
}

// ahead returns which blocks, from and up to, a reader on its way to end asks for at
// block i: where it begins a whole window, and then each half of a window the half
// behind the next.
func ahead(i, end int, begins bool) (from, to int) {
	switch {
	case begins:
		return i, min(i+aheadBlocks, end)
	case i%(aheadBlocks/2) == 0:
		return i + aheadBlocks/2, min(i+aheadBlocks, end)
	}
	return i, i
}

func (t *Table) blockMismatch(i int, got, want uint32) error {
	return t.blockError(i, t.corrupt(int64(i)*BlockSize, "CRC32C is %08x, stored is %08x", got, want))
}

// blockError narrows a corruption down to block i.
func (t *Table) blockError(i int, err error) error {
	var c *CorruptError
	if !errors.As(err, &c) {
		return err
	}
	_, count, _, _ := t.blockEntry(i)
	c.Block, c.FirstSeq = i, t.BlockFirstSeq(i)
	c.LastSeq = c.FirstSeq + uint64(count) - 1
	return c
}

// checksum is the first look at a part of the mapping. A disk that can not
// deliver a page raises a fault here, which becomes an error.
func (t *Table) checksum(b []byte) (crc uint32, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			fault, ok := r.(runtime.Error)
			if _, hasAddr := r.(interface{ Addr() uintptr }); !ok || !hasAddr {
				panic(r) //nolint:forbidigo // not ours: it goes on as it came
			}
			err = fmt.Errorf("table %s: read of mapped file failed: %w", t.path, fault)
		}
	}()
	return crc32.Checksum(b, record.Castagnoli), nil
}
