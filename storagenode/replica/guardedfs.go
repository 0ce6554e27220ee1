package replica

import (
	"fmt"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// unsyncedBytesMax is what is written to a file before it is synced in between, so
// that no sync of a large file takes so long that the disk seems to hang.
const unsyncedBytesMax = 16 << 20

// guardedFS is a file system whose changes a diskGuard watches: those of the log,
// the store and the snapshots. Reads are not watched. Nor is RemoveAll, which takes
// as long as there are files.
type guardedFS struct {
	vfs.FS
	guard *diskGuard
}

func (g *guardedFS) open(op, name string, open func() (vfs.File, error)) (vfs.File, error) {
	var f vfs.File
	err := g.guard.change(op, name, 1, func() (err error) {
		f, err = open()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &guardedFile{File: f, guard: g.guard, name: name}, nil
}

// Create implements vfs.FS.
func (g *guardedFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return g.open("create", name, func() (vfs.File, error) { return g.FS.Create(name, c) })
}

// OpenReadWrite implements vfs.FS.
func (g *guardedFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return g.open("open", name, func() (vfs.File, error) { return g.FS.OpenReadWrite(name, c, opts...) })
}

// ReuseForWrite implements vfs.FS.
func (g *guardedFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return g.open("reuse", to, func() (vfs.File, error) { return g.FS.ReuseForWrite(from, to, c) })
}

// OpenDir implements vfs.FS. A directory is opened to be synced.
func (g *guardedFS) OpenDir(name string) (vfs.File, error) {
	f, err := g.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &guardedFile{File: f, guard: g.guard, name: name}, nil
}

// Link implements vfs.FS.
func (g *guardedFS) Link(from, to string) error {
	return g.guard.change("link", to, 1, func() error { return g.FS.Link(from, to) })
}

// Rename implements vfs.FS.
func (g *guardedFS) Rename(from, to string) error {
	return g.guard.change("rename", to, 1, func() error { return g.FS.Rename(from, to) })
}

// Remove implements vfs.FS.
func (g *guardedFS) Remove(name string) error {
	return g.guard.change("remove", name, 1, func() error { return g.FS.Remove(name) })
}

// RemoveAll implements vfs.FS.
func (g *guardedFS) RemoveAll(name string) error {
	if err := g.guard.usable(); err != nil {
		return err
	}
	return g.FS.RemoveAll(name)
}

// MkdirAll implements vfs.FS.
func (g *guardedFS) MkdirAll(name string, perm os.FileMode) error {
	return g.guard.change("make directory", name, 1, func() error { return g.FS.MkdirAll(name, perm) })
}

// Unwrap implements vfs.FS.
func (g *guardedFS) Unwrap() vfs.FS { return g.FS }

// guardedFile is a file that was opened for writing, or a directory.
type guardedFile struct {
	vfs.File
	guard    *diskGuard
	name     string
	unsynced int64 // bytes; of the goroutine that calls Write
}

// write hands p to one or two writes, the second of which has the rest.
func (f *guardedFile) write(p []byte, write func(p []byte, done int) (int, error)) (n int, err error) {
	err = f.guard.change("write", f.name, int64(len(p)), func() error {
		k, err := write(p[n:], n)
		n += k
		if err == nil && n < len(p) {
			return fmt.Errorf("%s: %w: %d bytes of %d", f.name, io.ErrShortWrite, n, len(p))
		}
		return err
	})
	return n, err
}

// Write implements io.Writer.
func (f *guardedFile) Write(p []byte) (int, error) {
	n, err := f.write(p, func(p []byte, _ int) (int, error) { return f.File.Write(p) })
	f.unsynced += int64(n)
	if err == nil && f.unsynced >= unsyncedBytesMax {
		err = f.SyncData()
	}
	return n, err
}

// WriteAt implements io.WriterAt.
func (f *guardedFile) WriteAt(p []byte, at int64) (int, error) {
	return f.write(p, func(p []byte, done int) (int, error) { return f.File.WriteAt(p, at+int64(done)) })
}

// Preallocate implements vfs.File.
func (f *guardedFile) Preallocate(at, n int64) error {
	return f.guard.change("reserve", f.name, n, func() error { return f.File.Preallocate(at, n) })
}

// Sync implements vfs.File.
func (f *guardedFile) Sync() error {
	f.unsynced = 0
	return f.guard.sync(f.name, f.File.Sync)
}

// SyncData implements vfs.File.
func (f *guardedFile) SyncData() error {
	f.unsynced = 0
	return f.guard.sync(f.name, f.File.SyncData)
}

// SyncTo implements vfs.File.
func (f *guardedFile) SyncTo(length int64) (full bool, err error) {
	err = f.guard.sync(f.name, func() (err error) {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, err
}
