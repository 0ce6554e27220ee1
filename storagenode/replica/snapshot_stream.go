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
	streamHeaderBytesMax = 128 << 20
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
	if len(h.Files) > streamFilesMax || len(body) > streamHeaderBytesMax {
		return nil, fmt.Errorf("snapshot %s: a list of %d files in %d bytes; up to %d files in %d bytes can be sent: divide the shard's instruments",
			h.ID, len(h.Files), len(body), streamFilesMax, streamHeaderBytesMax)
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

// heldFile says that a receiver has the first bytes of a file.
type heldFile struct {
	file  int // place in the stream's header
	bytes int64
}

// streamReader reads the stream of the files in dir.
type streamReader struct {
	fs    vfs.FS
	dir   string
	begin []byte // the encoded header
	read  int    // bytes of begin that were read
	files []streamFile
	at    int           // place in files
	skip  map[int]int64 // first bytes of files that are not read, by place
	open  vfs.File      // files[at], nil before its first byte
	left  int64         // bytes of open not yet read

	crc     hash.Hash32 // of what was read of open
	damaged func(error) // told when a file is not what it should be
	err     error       // ends the stream before its first byte
}

// head implements snapshotSource.
func (r *streamReader) head() []byte { return r.begin }

// after implements snapshotSource.
func (r *streamReader) after(held []heldFile) (io.Reader, error) {
	last := -1
	r.skip = make(map[int]int64, len(held))
	for _, k := range held {
		if k.file <= last || k.file >= len(r.files) || k.bytes < 0 || k.bytes > r.files[k.file].Size {
			return nil, fmt.Errorf("snapshot stream: the receiver claims %d bytes of file %d; there are %d files", k.bytes, k.file, len(r.files))
		}
		last = k.file
		r.skip[k.file] = k.bytes
	}
	r.read = len(r.begin)
	return r, nil
}

// Read implements io.Reader.
func (r *streamReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.read < len(r.begin) {
		n := copy(p, r.begin[r.read:])
		r.read += n
		return n, nil
	}
	if err := r.next(); err != nil {
		return 0, err
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.take(p)
	return n, err
}

// take reads bytes of the present file.
func (r *streamReader) take(p []byte) (int, error) {
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
	f := &r.files[r.at]
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
			r.open = nil
			r.at++
		}
		for r.at < len(r.files) && r.skip[r.at] == r.files[r.at].Size {
			r.at++
		}
		if r.at >= len(r.files) {
			return io.EOF
		}
		if err := r.openNext(); err != nil {
			return err
		}
	}
	return nil
}

// openNext opens the present file behind what is not sent of it, which is read
// all the same: without it the file's CRC can not be checked.
func (r *streamReader) openNext() error {
	f, err := r.fs.Open(r.fs.PathJoin(r.dir, filepath.FromSlash(r.files[r.at].Path)), vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	r.open, r.left = f, r.files[r.at].Size
	r.crc.Reset()
	buffer := make([]byte, min(r.skip[r.at], snapshotChunkBytes))
	for skip := r.skip[r.at]; skip > 0; {
		n, err := r.take(buffer[:min(skip, int64(len(buffer)))])
		if skip -= int64(n); err != nil {
			return err
		}
	}
	return nil
}

// Close implements io.Closer.
func (r *streamReader) Close() error {
	if r.open == nil {
		return nil
	}
	err := r.open.Close()
	r.open, r.at = nil, len(r.files)
	return err
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
