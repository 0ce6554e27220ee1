package recovery

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/record"
)

// floor is a file with as many bytes of records, which no program can read back
// faster than the machine does.
type floor struct {
	dir   string
	bytes int64
	made  bool
}

const chunkRecords = 8192 // 1 MiB

func (f *floor) name() string { return filepath.Join(f.dir, "floor") }

// make writes the file, once.
func (f *floor) make() (err error) {
	if f.made {
		return nil
	}
	file, err := os.Create(f.name())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	rs := make([]record.Record, chunkRecords)
	stream := history.Streams(1)[0]
	for at := int64(0); at < f.bytes; at += chunkRecords * record.Size {
		stream.Fill(rs, uint64(at/record.Size)+1)
		if _, err := file.Write(record.SliceBytes(rs)[:min(int64(len(rs))*record.Size, f.bytes-at)]); err != nil {
			return err
		}
	}
	f.made = true
	return file.Sync()
}

func (f *floor) close() error {
	if !f.made {
		return nil
	}
	return os.Remove(f.name())
}

// read reads the file from the disk.
func (f *floor) read() measure.Contestant {
	return measure.Contestant{
		System: "floor: sequential read", Note: "the same bytes of records in one file, page cache dropped",
		Run: func(context.Context) (measure.Sample, error) { return f.pass(true, func([]byte) {}) },
	}
}

// checksum reads the file, from memory where it fits, and sums it up.
func (f *floor) checksum() measure.Contestant {
	return measure.Contestant{
		System: "floor: CRC32C", Note: "the same, from the page cache, with a checksum on one core",
		Run: func(context.Context) (measure.Sample, error) {
			crc := uint32(0)
			return f.pass(false, func(b []byte) { crc = crc32.Update(crc, record.Castagnoli, b) })
		},
	}
}

func (f *floor) pass(cold bool, use func([]byte)) (measure.Sample, error) {
	if err := f.make(); err != nil {
		return measure.Sample{}, err
	}
	file, err := os.Open(f.name())
	if err != nil {
		return measure.Sample{}, err
	}
	defer file.Close()
	if cold {
		if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return measure.Sample{}, err
		}
	}
	buf := make([]byte, chunkRecords*record.Size)
	begin := time.Now()
	for {
		n, err := io.ReadFull(file, buf)
		use(buf[:n])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return measure.Sample{}, err
		}
	}
	return measure.Sample{Value: float64(f.bytes) / record.Size / time.Since(begin).Seconds()}, nil
}
