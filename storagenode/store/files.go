package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

// replaceFile makes dir/name hold b, all of it or none after a crash.
func replaceFile(fs vfs.FS, dir, name string, b []byte) error {
	if err := writeSynced(fs, fs.PathJoin(dir, name+tempSuffix), b); err != nil {
		return err
	}
	if err := fs.Rename(fs.PathJoin(dir, name+tempSuffix), fs.PathJoin(dir, name)); err != nil {
		return fmt.Errorf("file %s: rename: %w", fs.PathJoin(dir, name), err)
	}
	return sstable.SyncDir(fs, dir)
}

// writeSynced creates path with b and syncs it, but not its name.
func writeSynced(fs vfs.FS, path string, b []byte) error {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("file %s: create: %w", path, err)
	}
	n, err := f.Write(slices.Clone(b)) // Write may change its argument
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err == nil {
		if err = f.Sync(); err != nil {
			err = fmt.Errorf("%w: %w", sstable.ErrSyncFailed, err)
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = fs.Remove(path) // on a full disk each byte counts
		return fmt.Errorf("file %s: write: %w", path, err)
	}
	return nil
}

// noRoom reports whether err is of a full disk, and nothing more: what was to be
// written was not, and everything is as it was. A sync that fails for want of room
// is a failed sync.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) && !errors.Is(err, sstable.ErrSyncFailed) && !errors.Is(err, ErrPoisoned)
}

// readFile returns the content of a file of at most maxBytes.
func readFile(fs vfs.FS, path string, maxBytes int64) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, fmt.Errorf("file %s: open: %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("file %s: read: %w", path, err)
	}
	if int64(len(b)) > maxBytes {
		return nil, fmt.Errorf("file %s: %w: more than %d bytes", path, ErrCorrupt, maxBytes)
	}
	return b, nil
}

// checksumFile returns the CRC32C and size of a file.
func checksumFile(fs vfs.FS, path string, buf []byte) (crc uint32, size int64, err error) {
	f, err := fs.Open(path)
	if err != nil {
		return 0, 0, fmt.Errorf("file %s: open: %w", path, err)
	}
	for {
		n, err := f.Read(buf)
		crc = crc32.Update(crc, record.Castagnoli, buf[:n])
		size += int64(n)
		if errors.Is(err, io.EOF) {
			err = nil
			n = 0
		}
		if err != nil || n == 0 {
			if err = errors.Join(err, f.Close()); err != nil {
				err = fmt.Errorf("file %s: read: %w", path, err)
			}
			return crc, size, err
		}
	}
}

// makeDir makes dir, whose parent exists, and its name durable.
func makeDir(fs vfs.FS, dir string) error {
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("directory %s: make: %w", dir, err)
	}
	return sstable.SyncDir(fs, fs.PathDir(dir))
}

func listDir(fs vfs.FS, dir string) ([]string, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, fmt.Errorf("directory %s: list: %w", dir, err)
	}
	slices.Sort(names)
	return names, nil
}
