package sstable

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/countinghouse/countinghouse/record"
)

const (
	// BlockRecords is the number of records of a block.
	BlockRecords = 512
	// BlockSize is the number of bytes of a block.
	BlockSize = BlockRecords * record.Size
	// FooterSize is the number of bytes of the footer.
	FooterSize = 256
	// Version is the table version that this package writes and reads.
	Version = 1

	magic           = "CHTABLE1"
	groupBlocks     = 512
	filterPage      = 4096
	blockEntrySize  = 24
	groupEntrySize  = 16
	flagTimesAscend = 1 << 0
	knownFlags      = flagTimesAscend
	maxBlocks       = 1 << 20 // 64 GiB of records; keeps arithmetic far from overflow
	filterRowsMax   = BlockRecords * record.MaxIDs * filterBitsPerID
	filterProbes    = 8
	filterBitsPerID = 20
	filterRowsMin   = 64
	footerCRCOffset = FooterSize - 4
	idKinds         = 3
	footerIDsOffset = 152
)

// TempSuffix is the end of the name of a table that is not whole yet.
const TempSuffix = ".tmp"

// IDRange is the least and greatest id of one kind in a table; 0, 0 for none.
type IDRange struct{ Min, Max uint64 }

func (r *IDRange) add(v uint64) {
	if r.Max == 0 {
		r.Min = v
	}
	r.Min, r.Max = min(r.Min, v), max(r.Max, v)
}

// Info describes a table.
type Info struct {
	Instrument  record.Symbol
	FirstSeq    uint64
	LastSeq     uint64
	FirstTime   int64 // Unix nanoseconds, of the first record
	LastTime    int64 // of the last record
	MinTime     int64
	MaxTime     int64
	LastGlobal  uint64
	ChainBefore uint32 // CRC32C of the stream's record bytes before the table
	ChainAfter  uint32
	TimesAscend bool             // no record is older than the one before it
	IDs         [idKinds]IDRange // by record.IDKind − 1
	Size        int64            // bytes of the file
	CRC         uint32           // CRC32C of the whole file; known to Finish only, 0 from Open
}

// Records returns the number of records.
func (i *Info) Records() uint64 { return i.LastSeq - i.FirstSeq + 1 }

// footer is the decoded footer.
type footer struct {
	Info
	blocks, groups, pages uint32
	filterOff, filterLen  uint64
	indexOff, indexLen    uint64
	indexCRC, dataCRC     uint32
}

func (f *footer) encode() []byte {
	b := make([]byte, FooterSize)
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint16(b[8:], Version)
	le.PutUint16(b[10:], FooterSize)
	le.PutUint16(b[12:], record.Size)
	le.PutUint16(b[14:], BlockRecords)
	copy(b[16:], f.Instrument[:])
	for i, v := range []uint64{f.FirstSeq, f.LastSeq, uint64(f.FirstTime), uint64(f.LastTime), uint64(f.MinTime), uint64(f.MaxTime), f.LastGlobal} {
		le.PutUint64(b[32+8*i:], v)
	}
	var flags uint32
	if f.TimesAscend {
		flags |= flagTimesAscend
	}
	for i, v := range []uint32{f.ChainBefore, f.ChainAfter, f.blocks, f.groups, f.pages, flags} {
		le.PutUint32(b[88+4*i:], v)
	}
	for i, v := range []uint64{f.filterOff, f.filterLen, f.indexOff, f.indexLen} {
		le.PutUint64(b[112+8*i:], v)
	}
	le.PutUint32(b[144:], f.indexCRC)
	le.PutUint32(b[148:], f.dataCRC)
	for i, r := range f.IDs {
		le.PutUint64(b[footerIDsOffset+16*i:], r.Min)
		le.PutUint64(b[footerIDsOffset+16*i+8:], r.Max)
	}
	le.PutUint32(b[footerCRCOffset:], crc32.Checksum(b[:footerCRCOffset], record.Castagnoli))
	return b
}

// parseFooter decodes b, the last FooterSize bytes of a file of the given size,
// and checks everything that follows from other fields. Errors wrap
// record.ErrCorrupt or record.ErrVersion.
func parseFooter(b []byte, size int64) (*footer, error) {
	le := binary.LittleEndian
	switch {
	case len(b) != FooterSize || size < FooterSize:
		return nil, fmt.Errorf("%w: %d bytes; the footer alone has %d", record.ErrCorrupt, size, FooterSize)
	case string(b[:8]) != magic:
		return nil, fmt.Errorf("%w: footer magic %q, not %q", record.ErrCorrupt, b[:8], magic)
	}
	if got, want := crc32.Checksum(b[:footerCRCOffset], record.Castagnoli), le.Uint32(b[footerCRCOffset:]); got != want {
		return nil, fmt.Errorf("%w: footer CRC32C is %08x, stored is %08x", record.ErrCorrupt, got, want)
	}
	if v := le.Uint16(b[8:]); v != Version {
		return nil, fmt.Errorf("table %w %d (this build reads version %d)", record.ErrVersion, v, Version)
	}
	if le.Uint16(b[10:]) != FooterSize || le.Uint16(b[12:]) != record.Size || le.Uint16(b[14:]) != BlockRecords {
		return nil, fmt.Errorf("table %w: footer %d, record %d, block %d", record.ErrVersion, le.Uint16(b[10:]), le.Uint16(b[12:]), le.Uint16(b[14:]))
	}
	f := &footer{}
	copy(f.Instrument[:], b[16:32])
	u64 := func(off int) uint64 { return le.Uint64(b[off:]) }
	u32 := func(off int) uint32 { return le.Uint32(b[off:]) }
	f.FirstSeq, f.LastSeq, f.LastGlobal = u64(32), u64(40), u64(80)
	f.FirstTime, f.LastTime, f.MinTime, f.MaxTime = int64(u64(48)), int64(u64(56)), int64(u64(64)), int64(u64(72))
	f.ChainBefore, f.ChainAfter = u32(88), u32(92)
	f.blocks, f.groups, f.pages = u32(96), u32(100), u32(104)
	f.filterOff, f.filterLen, f.indexOff, f.indexLen = u64(112), u64(120), u64(128), u64(136)
	f.indexCRC, f.dataCRC = u32(144), u32(148)
	for i := range f.IDs {
		f.IDs[i] = IDRange{u64(footerIDsOffset + 16*i), u64(footerIDsOffset + 16*i + 8)}
	}
	flags := u32(108)
	if flags&^uint32(knownFlags) != 0 {
		return nil, fmt.Errorf("table %w: flags %#x", record.ErrVersion, flags)
	}
	f.TimesAscend = flags&flagTimesAscend != 0
	f.Size = size
	return f, f.check()
}

// check reports whether the fields agree with each other and the file's size.
func (f *footer) check() error {
	if err := f.Instrument.Check(); err != nil {
		return err
	}
	if f.FirstSeq == 0 || f.LastSeq < f.FirstSeq {
		return fmt.Errorf("%w: footer says seqs %d to %d", record.ErrCorrupt, f.FirstSeq, f.LastSeq)
	}
	count, body := f.LastSeq-f.FirstSeq+1, uint64(f.Size-FooterSize)
	blocks := (count-1)/BlockRecords + 1
	if count > body/record.Size || blocks > maxBlocks || f.filterLen > body {
		return fmt.Errorf("%w: footer says %d records and %d filter bytes in a file of %d bytes", record.ErrCorrupt, count, f.filterLen, f.Size)
	}
	groups, pages := (blocks-1)/groupBlocks+1, (f.filterLen+filterPage-1)/filterPage
	switch {
	case uint64(f.blocks) != blocks || uint64(f.groups) != groups || uint64(f.pages) != pages:
		return fmt.Errorf("%w: footer says %d blocks, %d groups, %d pages; %d, %d, %d expected", record.ErrCorrupt, f.blocks, f.groups, f.pages, blocks, groups, pages)
	case f.filterOff != count*record.Size,
		f.indexOff != f.filterOff+f.filterLen,
		f.indexLen != blocks*blockEntrySize+groups*groupEntrySize+pages*4,
		body != f.indexOff+f.indexLen:
		return fmt.Errorf("%w: the footer's sections do not fill the file of %d bytes", record.ErrCorrupt, f.Size)
	}
	return nil
}

// CorruptError says which part of a table is not what was written. It wraps
// record.ErrCorrupt.
type CorruptError struct {
	File     string
	Offset   int64
	Block    int    // −1 when the damage is not in a block of records
	FirstSeq uint64 // the records that can not be read; 0, 0 for none
	LastSeq  uint64
	What     string
}

// Error names file, offset, block and the records lost.
func (e *CorruptError) Error() string {
	s := fmt.Sprintf("table %s: corrupt at offset %d: %s", e.File, e.Offset, e.What)
	if e.Block >= 0 {
		s += fmt.Sprintf(" (block %d)", e.Block)
	}
	if e.LastSeq != 0 {
		s += fmt.Sprintf("; records seq %d to %d can not be read here, take them from another replica", e.FirstSeq, e.LastSeq)
	}
	return s
}

// Unwrap returns record.ErrCorrupt.
func (e *CorruptError) Unwrap() error { return record.ErrCorrupt }
