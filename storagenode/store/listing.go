package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

const (
	// ListingName is the name of the file that lists a snapshot directory's files.
	ListingName = "SNAPSHOT"

	listingHead     = "countinghouse snapshot 1"
	listingBytesMax = 1 << 28
)

// Listing is the content of a snapshot directory: its SNAPSHOT file.
type Listing struct {
	Index uint64 // Raft index of the cut
	Files []ListedFile
}

// ListedFile is one file of a snapshot directory.
type ListedFile struct {
	Path string // relative to the directory, '/' between its parts
	Size int64  // bytes
	CRC  uint32 // CRC32C of the whole file
}

// Bytes returns the sum of the files' sizes, without SNAPSHOT itself.
func (l *Listing) Bytes() int64 {
	var n int64
	for i := range l.Files {
		n += l.Files[i].Size
	}
	return n
}

func listedPath(sym record.Symbol, name string) string {
	return instrumentsDir + "/" + dirName(sym) + "/" + name
}

func compareListed(a, b ListedFile) int { return strings.Compare(a.Path, b.Path) }

// encode writes the listing as text: head, index, a line for each file, and the
// CRC32C of all lines before.
func (l *Listing) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nindex %d\n", listingHead, l.Index)
	for _, f := range l.Files {
		fmt.Fprintf(&b, "%08x %d %s\n", f.CRC, f.Size, f.Path)
	}
	fmt.Fprintf(&b, "crc %08x\n", crc32.Checksum(b.Bytes(), record.Castagnoli))
	return b.Bytes()
}

// parseListing is the inverse of encode. What it accepts, encode writes again.
func parseListing(b []byte) (Listing, error) {
	var l Listing
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 0; lines.Scan(); n++ {
		line := lines.Text()
		switch {
		case n == 0 && strings.HasPrefix(line, listingHead[:len(listingHead)-1]) && line != listingHead:
			return Listing{}, fmt.Errorf("snapshot %w: %q", record.ErrVersion, line)
		case n == 0:
		case n == 1:
			_, _ = fmt.Sscanf(line, "index %d", &l.Index)
		case !strings.HasPrefix(line, "crc "):
			var f ListedFile
			if _, err := fmt.Sscanf(line, "%x %d %s", &f.CRC, &f.Size, &f.Path); err == nil && f.inside() {
				l.Files = append(l.Files, f)
			}
		}
	}
	if !bytes.Equal(l.encode(), b) { // a damaged or left out line, or a wrong sum
		return Listing{}, fmt.Errorf("%w: its lines do not fit its checksum", ErrCorrupt)
	}
	return l, nil
}

// inside reports whether the path can name nothing outside the directory.
func (f *ListedFile) inside() bool {
	for part := range strings.SplitSeq(f.Path, "/") {
		if part == "" || part == "." || part == ".." || strings.Contains(part, "\\") {
			return false
		}
	}
	return f.Size >= 0
}

// ReadListing reads the SNAPSHOT file of dir.
func ReadListing(fs vfs.FS, dir string) (Listing, error) {
	path := fs.PathJoin(dir, ListingName)
	b, err := readFile(fs, path, listingBytesMax)
	if err != nil {
		return Listing{}, err
	}
	l, err := parseListing(b)
	if err != nil {
		return Listing{}, fmt.Errorf("snapshot listing %s: %w", path, err)
	}
	return l, nil
}

// VerifyDir checks a snapshot directory, as after a transfer, before it is
// adopted: every listed file is there with its size and CRC, none besides, and
// manifests and tables agree. Errors wrap ErrCorrupt and name the file, unless
// they are the file system's own.
func VerifyDir(fs vfs.FS, dir string) (Listing, error) { return VerifyRest(fs, dir, nil) }

// VerifyRest is VerifyDir where the CRCs of some files, by their listed path, are
// known to be right: of these it looks at the size only.
func VerifyRest(fs vfs.FS, dir string, known func(ListedFile) bool) (Listing, error) {
	l, err := ReadListing(fs, dir)
	if err != nil {
		return Listing{}, err
	}
	buf := make([]byte, 1<<20)
	wanted := map[string]bool{ListingName: true}
	for _, f := range l.Files {
		wanted[f.Path] = true
		verify := verifyListed
		if known != nil && known(f) {
			verify = verifySize
		}
		if err := verify(fs, dir, f, buf); err != nil {
			return Listing{}, err
		}
	}
	if err := verifyNoOther(fs, dir, "", wanted); err != nil {
		return Listing{}, err
	}
	return l, verifyManifests(fs, dir)
}

func verifyListed(fs vfs.FS, dir string, f ListedFile, buf []byte) error {
	path := fs.PathJoin(dir, fs.PathJoin(strings.Split(f.Path, "/")...))
	crc, size, err := checksumFile(fs, path, buf)
	switch {
	case oserror.IsNotExist(err):
		return fmt.Errorf("snapshot file %s: %w: it is missing; transfer the snapshot again", path, ErrCorrupt)
	case err != nil:
		return fmt.Errorf("snapshot: %w", err)
	case size != f.Size || crc != f.CRC:
		return fmt.Errorf("snapshot file %s: %w: %d bytes with CRC32C %08x, listed are %d with %08x; transfer the snapshot again", path, ErrCorrupt, size, crc, f.Size, f.CRC)
	}
	return nil
}

func verifySize(fs vfs.FS, dir string, f ListedFile, _ []byte) error {
	path := fs.PathJoin(dir, fs.PathJoin(strings.Split(f.Path, "/")...))
	info, err := fs.Stat(path)
	switch {
	case oserror.IsNotExist(err):
		return fmt.Errorf("snapshot file %s: %w: it is missing; transfer the snapshot again", path, ErrCorrupt)
	case err != nil:
		return fmt.Errorf("snapshot: %w", err)
	case info.Size() != f.Size:
		return fmt.Errorf("snapshot file %s: %w: %d bytes, listed are %d; transfer the snapshot again", path, ErrCorrupt, info.Size(), f.Size)
	}
	return nil
}

// verifyNoOther reports a file that is not listed: Open would take it for the
// shard's.
func verifyNoOther(fs vfs.FS, dir, under string, wanted map[string]bool) error {
	names, err := listDir(fs, fs.PathJoin(dir, under))
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	for _, name := range names {
		path := name
		if under != "" {
			path = under + "/" + name
		}
		info, err := fs.Stat(fs.PathJoin(dir, path))
		if err != nil {
			return fmt.Errorf("snapshot file %s: stat: %w", fs.PathJoin(dir, path), err)
		}
		if info.IsDir() {
			err = verifyNoOther(fs, dir, path, wanted)
		} else if !wanted[path] {
			err = fmt.Errorf("snapshot file %s: %w: it is not listed", fs.PathJoin(dir, path), ErrCorrupt)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// verifyManifests checks that the files, each whole, are parts of one state.
func verifyManifests(fs vfs.FS, dir string) error {
	c := &check{fs: fs}
	var first error
	c.report = func(f Finding) {
		if first == nil {
			first = fmt.Errorf("snapshot file %s: %w: %s", f.File, ErrCorrupt, f.What)
		}
	}
	return errors.Join(c.dir(dir), first)
}
