package replica

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

// A snapshot on its way is one stream of bytes:
//
//	offset size meaning
//	     0    8 magic "CHSNAP1\n"
//	     8    4 n, the length of the header, little-endian
//	    12    n streamHeader as JSON
//	  12+n    … the content of each file, in the header's order, without gaps
const (
	streamMagic          = "CHSNAP1\n"
	streamHeaderBytesMax = 16 << 20
	streamFilesMax       = 1 << 20
)

// streamHeader says whose snapshot it is and what files follow.
type streamHeader struct {
	Version int          `json:"version"`
	Cluster string       `json:"cluster"`
	Shard   string       `json:"shard"`
	ID      string       `json:"id"` // of the snapshot at its sender
	Files   []streamFile `json:"files"`
}

type streamFile struct {
	Path string `json:"path"` // relative, '/' between its parts
	Size int64  `json:"size"` // bytes
	CRC  uint32 `json:"crc"`  // CRC32C
}

const streamVersion = 1

// encode returns the bytes of the stream before the first file.
func (h *streamHeader) encode() ([]byte, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(streamMagic)+4+len(body))
	out = append(out, streamMagic...)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(body)))
	return append(out, body...), nil
}

// readStreamHeader reads what encode wrote and checks it.
func readStreamHeader(r io.Reader) (*streamHeader, int64, error) {
	fixed := make([]byte, len(streamMagic)+4)
	if _, err := io.ReadFull(r, fixed); err != nil {
		return nil, 0, fmt.Errorf("snapshot stream: %w", noEOF(err))
	}
	if string(fixed[:len(streamMagic)]) != streamMagic {
		return nil, 0, fmt.Errorf("snapshot stream: %w: magic %q, not %q", record.ErrCorrupt, fixed[:len(streamMagic)], streamMagic)
	}
	n := binary.LittleEndian.Uint32(fixed[len(streamMagic):])
	if n > streamHeaderBytesMax {
		return nil, 0, fmt.Errorf("snapshot stream: %w: header of %d bytes; at most %d are allowed", record.ErrCorrupt, n, streamHeaderBytesMax)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, 0, fmt.Errorf("snapshot stream: header: %w", noEOF(err))
	}
	h := new(streamHeader)
	if err := json.Unmarshal(body, h); err != nil {
		return nil, 0, fmt.Errorf("snapshot stream: header: %w: %w", record.ErrCorrupt, err)
	}
	return h, int64(len(fixed)) + int64(n), h.check()
}

func (h *streamHeader) check() error {
	if h.Version != streamVersion {
		return fmt.Errorf("snapshot stream: %w %d (this build reads version %d)", record.ErrVersion, h.Version, streamVersion)
	}
	if len(h.Files) > streamFilesMax {
		return fmt.Errorf("snapshot stream: %w: %d files", record.ErrCorrupt, len(h.Files))
	}
	for _, f := range h.Files {
		if !localPath(f.Path) || f.Size < 0 {
			return fmt.Errorf("snapshot stream: %w: file %q of %d bytes", record.ErrCorrupt, f.Path, f.Size)
		}
	}
	return nil
}

// localPath reports whether p stays inside the directory it is relative to.
func localPath(p string) bool {
	return p != "." && filepath.IsLocal(p) && path.Clean(p) == p && !strings.Contains(p, "\\")
}

// noEOF tells an early end apart from a proper one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// streamReader reads the stream of the files in dir.
type streamReader struct {
	fs    vfs.FS
	dir   string
	head  []byte // rest of the encoded header
	files []streamFile
	open  vfs.File // files[0], nil before its first byte
	left  int64    // bytes of open not yet read

	crc     hash.Hash32 // of what was read of open
	damaged func(error) // told when a file is not what it should be
	err     error       // ends the stream before its first byte
}

// Read implements io.Reader.
func (r *streamReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(r.head) > 0 {
		n := copy(p, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	if err := r.next(); err != nil {
		return 0, err
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.open.Read(p)
	r.left -= int64(n)
	r.crc.Write(p[:n])
	if err = r.check(err); errors.Is(err, record.ErrCorrupt) {
		r.damaged(err)
	}
	return n, err
}

// check judges the present file by what was read of it: the receiver would find
// the damage too, but only this end can do something about it.
func (r *streamReader) check(err error) error {
	f := &r.files[0]
	switch {
	case r.left == 0 && r.crc.Sum32() != f.CRC:
		return fmt.Errorf("snapshot file %s: %w: CRC32C is %08x, it was written with %08x", f.Path, record.ErrCorrupt, r.crc.Sum32(), f.CRC)
	case r.left > 0 && errors.Is(err, io.EOF):
		return fmt.Errorf("snapshot file %s: %w: ends %d bytes early", f.Path, record.ErrCorrupt, r.left)
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// next makes sure that open has bytes left, or returns io.EOF after the last.
func (r *streamReader) next() error {
	for r.open == nil || r.left == 0 {
		if r.open != nil {
			r.open.Close()
			r.open, r.files = nil, r.files[1:]
		}
		if len(r.files) == 0 {
			return io.EOF
		}
		f, err := r.fs.Open(r.fs.PathJoin(r.dir, filepath.FromSlash(r.files[0].Path)), vfs.SequentialReadsOption)
		if err != nil {
			return err
		}
		r.open, r.left = f, r.files[0].Size
		r.crc.Reset()
	}
	return nil
}

// Close implements io.Closer.
func (r *streamReader) Close() error {
	if r.open == nil {
		return nil
	}
	err := r.open.Close()
	r.open, r.files = nil, nil
	return err
}

// unpack writes the files of a stream below dir and checks size and CRC of each.
// What it wrote is on disk when it returns.
func unpack(fs vfs.FS, dir string, h *streamHeader, r io.Reader) error {
	dirs := map[string]bool{dir: true}
	for _, f := range h.Files {
		name := fs.PathJoin(dir, filepath.FromSlash(f.Path))
		if err := mkdirs(fs, dir, fs.PathDir(name), dirs); err != nil {
			return err
		}
		if err := unpackFile(fs, name, f, r); err != nil {
			return err
		}
	}
	for d := range dirs {
		if err := syncDir(fs, d); err != nil {
			return err
		}
	}
	return nil
}

// mkdirs creates d, which is root or below it, and notes all directories between.
func mkdirs(fs vfs.FS, root, d string, seen map[string]bool) error {
	if seen[d] {
		return nil
	}
	for p := d; p != root && !seen[p]; p = fs.PathDir(p) {
		seen[p] = true
	}
	return fs.MkdirAll(d, dirMode)
}

func unpackFile(fs vfs.FS, name string, f streamFile, r io.Reader) error {
	w, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer w.Close()
	crc := crc32.New(record.Castagnoli)
	// The checksum first: a vfs.File may change the bytes that it is given.
	if _, err := io.CopyN(io.MultiWriter(crc, w), r, f.Size); err != nil {
		return fmt.Errorf("snapshot file %s: %w", f.Path, noEOF(err))
	}
	if crc.Sum32() != f.CRC {
		return fmt.Errorf("snapshot file %s: %w: CRC32C is %08x, the header says %08x", f.Path, record.ErrCorrupt, crc.Sum32(), f.CRC)
	}
	return w.Sync()
}

// fileCRC returns the size and CRC32C of a file.
func fileCRC(fs vfs.FS, name string) (int64, uint32, error) {
	f, err := fs.Open(name, vfs.SequentialReadsOption)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	crc := crc32.New(record.Castagnoli)
	n, err := io.Copy(crc, bufio.NewReaderSize(f, snapshotChunkBytes))
	return n, crc.Sum32(), err
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
