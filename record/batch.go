package record

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const (
	// BatchHeaderSize is the number of bytes before a batch's records.
	BatchHeaderSize = 64
	// BatchVersion is the batch version that this package writes and reads.
	BatchVersion = 1
	// MaxBatchRecords bounds a batch: 8192 records are 1 MiB.
	MaxBatchRecords = 8192
	// MaxBatchBytes is the size of the largest batch.
	MaxBatchBytes = BatchHeaderSize + MaxBatchRecords*Size
)

const batchMagic = "CHB1"

// Castagnoli is the CRC32C table used for every checksum of this project.
var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Batch is a checked batch. Its records share the memory of the bytes it was
// parsed from, which must not change while it is in use.
type Batch struct {
	Instrument Symbol
	Epoch      uint64
	FirstSeq   uint64
	CRC        uint32
	Records    []Record // 1 … MaxBatchRecords, seq ascending from FirstSeq
	Bytes      []byte   // header and records
}

// LastSeq returns the seq of the last record.
func (b *Batch) LastSeq() uint64 { return b.FirstSeq + uint64(len(b.Records)) - 1 }

// AppendBatch appends to dst the batch of the given records, which must be of
// one instrument, valid, and consecutive in seq, and returns the result. It is
// the one place that computes a batch's checksum.
func AppendBatch(dst []byte, epoch uint64, rs []Record) ([]byte, error) {
	if len(rs) == 0 || len(rs) > MaxBatchRecords {
		return dst, fmt.Errorf("batch: %d records; a batch has 1 to %d", len(rs), MaxBatchRecords)
	}
	if epoch == 0 {
		return dst, fmt.Errorf("batch: epoch 0; epochs start at 1")
	}
	if err := checkRun(rs, rs[0].Instrument, rs[0].Seq); err != nil {
		return dst, err
	}
	start := len(dst)
	var h [BatchHeaderSize]byte
	copy(h[0:], batchMagic)
	binary.LittleEndian.PutUint16(h[4:], BatchVersion)
	binary.LittleEndian.PutUint16(h[6:], BatchHeaderSize)
	copy(h[8:], rs[0].Instrument[:])
	binary.LittleEndian.PutUint64(h[24:], epoch)
	binary.LittleEndian.PutUint64(h[32:], rs[0].Seq)
	binary.LittleEndian.PutUint32(h[40:], uint32(len(rs)))
	dst = append(dst, h[:]...)
	dst = append(dst, SliceBytes(rs)...)
	binary.LittleEndian.PutUint32(dst[start+44:], batchCRC(dst[start:]))
	return dst, nil
}

// ParseBatch checks b, bytes from outside, in full: framing, checksum, and for
// every record version, type, instrument and seq. The result shares b's memory.
// Errors wrap ErrCorrupt or ErrVersion.
func ParseBatch(b []byte) (Batch, error) {
	batch, err := parseBatchHeader(b)
	if err != nil {
		return Batch{}, err
	}
	if got := batchCRC(b); got != batch.CRC {
		return Batch{}, fmt.Errorf("batch %s seq %d: %w: CRC32C is %08x, the header says %08x", batch.Instrument, batch.FirstSeq, ErrCorrupt, got, batch.CRC)
	}
	if batch.Records, err = View(b[BatchHeaderSize:]); err != nil {
		return Batch{}, err
	}
	if err := checkRun(batch.Records, batch.Instrument, batch.FirstSeq); err != nil {
		return Batch{}, err
	}
	return batch, nil
}

// TrustBatch is ParseBatch without the checksum and without a look at each
// record, for bytes that this process has checked before.
func TrustBatch(b []byte) (Batch, error) {
	batch, err := parseBatchHeader(b)
	if err != nil {
		return Batch{}, err
	}
	batch.Records, err = View(b[BatchHeaderSize:])
	return batch, err
}

func parseBatchHeader(b []byte) (Batch, error) {
	if len(b) < BatchHeaderSize {
		return Batch{}, fmt.Errorf("batch: %w: %d bytes; the header alone has %d", ErrCorrupt, len(b), BatchHeaderSize)
	}
	if string(b[:4]) != batchMagic {
		return Batch{}, fmt.Errorf("batch: %w: magic %q, not %q", ErrCorrupt, b[:4], batchMagic)
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != BatchVersion {
		return Batch{}, fmt.Errorf("batch: %w %d (this build reads version %d)", ErrVersion, v, BatchVersion)
	}
	if n := binary.LittleEndian.Uint16(b[6:]); n != BatchHeaderSize {
		return Batch{}, fmt.Errorf("batch: %w: header size %d, not %d", ErrCorrupt, n, BatchHeaderSize)
	}
	out := Batch{
		Epoch:    binary.LittleEndian.Uint64(b[24:]),
		FirstSeq: binary.LittleEndian.Uint64(b[32:]),
		CRC:      binary.LittleEndian.Uint32(b[44:]),
		Bytes:    b,
	}
	copy(out.Instrument[:], b[8:24])
	count := binary.LittleEndian.Uint32(b[40:])
	switch {
	case count == 0 || count > MaxBatchRecords:
		return Batch{}, fmt.Errorf("batch: %w: count %d; a batch has 1 to %d records", ErrCorrupt, count, MaxBatchRecords)
	case len(b) != BatchHeaderSize+int(count)*Size:
		return Batch{}, fmt.Errorf("batch: %w: %d bytes for %d records, not %d", ErrCorrupt, len(b), count, BatchHeaderSize+int(count)*Size)
	case out.Epoch == 0:
		return Batch{}, fmt.Errorf("batch: %w: epoch 0; epochs start at 1", ErrCorrupt)
	}
	return out, nil
}

// batchCRC covers everything but the four bytes it is stored in.
func batchCRC(b []byte) uint32 {
	crc := crc32.Update(0, Castagnoli, b[:44])
	return crc32.Update(crc, Castagnoli, b[48:])
}

// checkRun reports whether rs are valid records of one instrument with seqs
// that ascend from first without a gap.
func checkRun(rs []Record, instrument Symbol, first uint64) error {
	if err := instrument.Check(); err != nil {
		return err
	}
	for i := range rs {
		r := &rs[i]
		if err := r.checkHeader(); err != nil {
			return err
		}
		if r.Instrument != instrument {
			if err := r.Instrument.Check(); err != nil {
				return err
			}
			return fmt.Errorf("batch %s: %w: record %d is of instrument %s", instrument, ErrCorrupt, i, r.Instrument)
		}
		if r.Seq != first+uint64(i) {
			return fmt.Errorf("batch %s: %w: record %d has seq %d, expected %d", instrument, ErrCorrupt, i, r.Seq, first+uint64(i))
		}
	}
	return nil
}
