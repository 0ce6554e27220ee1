package sstable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/directio"
)

// ErrSyncFailed marks the error of a sync: what the disk holds is unknown, and a
// second sync that succeeds says nothing. It is never worth a retry.
var ErrSyncFailed = errors.New("sync failed")

// bufferBlocks blocks are written at a time.
const bufferBlocks = directio.BulkBytes / (BlockRecords * record.Size)

// Writer writes one table. It is for one goroutine. Its memory is 128 KiB and the
// filters, 4 to 10 % of the records.
type Writer struct {
	fs        vfs.FS
	dir, name string
	file      vfs.File
	out       directio.Writer // of file
	foot      footer
	buf       []record.Record // blocks not written yet
	sealed    int             // records of buf whose block entry is made
	next      uint64          // seq of the record wanted next
	index     []byte
	filter    filterBuilder
}

// WriterOptions say what a table will hold.
type WriterOptions struct {
	Instrument  record.Symbol
	FirstSeq    uint64 // ≥ 1
	ChainBefore uint32 // CRC32C of the stream's record bytes before FirstSeq
}

// Create starts the table dir/name. Until Finish returns, the file's name ends
// in TempSuffix. The caller must call Finish or Abort.
func Create(fs vfs.FS, dir, name string, o WriterOptions) (*Writer, error) {
	w := &Writer{fs: fs, dir: dir, name: name, next: o.FirstSeq}
	w.foot.Instrument, w.foot.FirstSeq = o.Instrument, o.FirstSeq
	w.foot.ChainBefore, w.foot.ChainAfter = o.ChainBefore, o.ChainBefore
	w.foot.TimesAscend = true
	file, err := fs.Create(w.tempPath(), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("table %s: create: %w", w.tempPath(), err)
	}
	w.file = file
	w.out = directio.NewWriter(file)
	buf, err := record.View(directio.Buffer(bufferBlocks * BlockRecords * record.Size))
	if err != nil {
		return nil, err
	}
	w.buf = buf[:0]
	return w, nil
}

func (w *Writer) path() string     { return w.fs.PathJoin(w.dir, w.name) }
func (w *Writer) tempPath() string { return w.path() + TempSuffix }

// Append adds records, which it copies. They must continue the table's seqs and
// be of its instrument; otherwise the error wraps record.ErrCorrupt.
func (w *Writer) Append(rs []record.Record) error {
	for len(rs) > 0 {
		n := min(len(rs), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, rs[:n]...)
		rs = rs[n:]
		for len(w.buf)-w.sealed >= BlockRecords {
			if err := w.seal(BlockRecords); err != nil {
				return err
			}
		}
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// seal makes the block entry of the next n records of the buffer.
func (w *Writer) seal(n int) error {
	rs := w.buf[w.sealed : w.sealed+n]
	w.sealed += n
	if w.foot.blocks == maxBlocks {
		return fmt.Errorf("table %s: more than %d blocks", w.path(), maxBlocks)
	}
	if err := w.checkRun(rs); err != nil {
		return err
	}
	crc := crc32.Checksum(record.SliceBytes(rs), record.Castagnoli)
	size := int64(n) * record.Size
	w.foot.ChainAfter = CombineCRC(w.foot.ChainAfter, crc, size)
	w.foot.dataCRC = CombineCRC(w.foot.dataCRC, crc, size)
	lo, hi := w.addTimes(rs)
	w.index = binary.LittleEndian.AppendUint32(w.index, crc)
	w.index = binary.LittleEndian.AppendUint32(w.index, uint32(n))
	w.index = binary.LittleEndian.AppendUint64(w.index, uint64(lo))
	w.index = binary.LittleEndian.AppendUint64(w.index, uint64(hi))
	w.filter.addBlock(rs)
	w.foot.LastGlobal = rs[n-1].Global
	w.foot.blocks++
	return nil
}

func (w *Writer) checkRun(rs []record.Record) error {
	for i := range rs {
		r := &rs[i]
		if r.Seq != w.next || r.Instrument != w.foot.Instrument {
			return fmt.Errorf("table %s: %w: got record %s seq %d, want %s seq %d", w.path(), record.ErrCorrupt, r.Instrument, r.Seq, w.foot.Instrument, w.next)
		}
		w.next++
	}
	return nil
}

// addTimes takes a block's times into the footer and returns its least and
// greatest.
func (w *Writer) addTimes(rs []record.Record) (lo, hi int64) {
	f := &w.foot
	if f.blocks == 0 {
		f.FirstTime, f.LastTime, f.MinTime, f.MaxTime = rs[0].Time, rs[0].Time, rs[0].Time, rs[0].Time
	}
	lo, hi = rs[0].Time, rs[0].Time
	for i := range rs {
		t := rs[i].Time
		lo, hi = min(lo, t), max(hi, t)
		f.TimesAscend = f.TimesAscend && t >= f.LastTime
		f.LastTime = t
	}
	f.MinTime, f.MaxTime = min(f.MinTime, lo), max(f.MaxTime, hi)
	return lo, hi
}

// flush writes the buffer, whose records are all sealed. Write may change the
// bytes it is given, so that they are not looked at again.
func (w *Writer) flush() error {
	if err := w.write(record.SliceBytes(w.buf)); err != nil {
		return err
	}
	w.buf, w.sealed = w.buf[:0], 0
	return nil
}

func (w *Writer) write(b []byte) error {
	n, err := w.out.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("table %s: write: %w", w.tempPath(), err)
	}
	return nil
}

// Finish makes the table durable under its name and describes it. A table has
// at least one record. After an error the file is gone or has a temporary name.
func (w *Writer) Finish() (Info, error) {
	info, err := w.finish()
	if err != nil {
		w.Abort()
	}
	return info, err
}

func (w *Writer) finish() (Info, error) {
	if n := len(w.buf) - w.sealed; n > 0 {
		if err := w.seal(n); err != nil {
			return Info{}, err
		}
	}
	if w.foot.blocks == 0 {
		return Info{}, fmt.Errorf("table %s: a table needs a record", w.path())
	}
	if err := w.flush(); err != nil {
		return Info{}, err
	}
	for _, section := range w.sections() {
		if err := w.write(section); err != nil {
			return Info{}, err
		}
	}
	if err := w.publish(); err != nil {
		return Info{}, err
	}
	return w.foot.Info, nil
}

// sections returns what follows the records, and completes the footer.
func (w *Writer) sections() [][]byte {
	f := &w.foot
	f.LastSeq = w.next - 1
	w.filter.endGroup()
	f.IDs, f.groups = w.filter.ranges, uint32(len(w.filter.groups))
	for _, g := range w.filter.groups {
		w.index = binary.LittleEndian.AppendUint64(w.index, g.off)
		w.index = binary.LittleEndian.AppendUint32(w.index, g.rows)
		w.index = binary.LittleEndian.AppendUint32(w.index, g.rowBytes)
	}
	filter := w.filter.out
	f.filterOff, f.filterLen = f.Records()*record.Size, uint64(len(filter))
	f.CRC = f.dataCRC
	for off := 0; off < len(filter); off += filterPage {
		page := filter[off:min(off+filterPage, len(filter))]
		crc := crc32.Checksum(page, record.Castagnoli)
		w.index = binary.LittleEndian.AppendUint32(w.index, crc)
		f.CRC = CombineCRC(f.CRC, crc, int64(len(page)))
		f.pages++
	}
	f.indexOff, f.indexLen = f.filterOff+f.filterLen, uint64(len(w.index))
	f.indexCRC = crc32.Checksum(w.index, record.Castagnoli)
	f.Size = int64(f.indexOff+f.indexLen) + FooterSize
	foot := f.encode()
	f.CRC = CombineCRC(f.CRC, f.indexCRC, int64(len(w.index)))
	f.CRC = crc32.Update(f.CRC, record.Castagnoli, foot)
	return [][]byte{filter, w.index, foot}
}

// publish syncs the file, gives it its name, and syncs the directory.
func (w *Writer) publish() error {
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("table %s: %w: %w", w.tempPath(), ErrSyncFailed, err)
	}
	file := w.file
	w.file = nil
	if err := file.Close(); err != nil {
		return fmt.Errorf("table %s: close: %w", w.tempPath(), err)
	}
	if err := w.fs.Rename(w.tempPath(), w.path()); err != nil {
		return fmt.Errorf("table %s: rename: %w", w.path(), err)
	}
	return SyncDir(w.fs, w.dir)
}

// Abort gives the table up and removes its temporary file, best effort: a file
// left behind has a name that no reader takes for a table.
func (w *Writer) Abort() {
	if w.file != nil {
		_ = w.file.Close()
		w.file = nil
	}
	_ = w.fs.Remove(w.tempPath())
}

// SyncDir makes the names in dir durable. Its errors match ErrSyncFailed: what was
// renamed may or may not be found again.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("directory %s: open: %w: %w", dir, ErrSyncFailed, err)
	}
	if err := d.Sync(); err != nil {
		_ = d.Close()
		return fmt.Errorf("directory %s: %w: %w", dir, ErrSyncFailed, err)
	}
	if err := d.Close(); err != nil {
		return fmt.Errorf("directory %s: close: %w: %w", dir, ErrSyncFailed, err)
	}
	return nil
}
