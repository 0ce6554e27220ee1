package diskfault

import (
	"fmt"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Kind tells operations apart.
type Kind string

// The operations. A directory's Sync has a kind of its own.
const (
	Create      Kind = "create"
	Open        Kind = "open"
	OpenWrite   Kind = "open for writing"
	OpenDir     Kind = "open directory"
	Link        Kind = "link"
	Rename      Kind = "rename"
	Remove      Kind = "remove"
	RemoveAll   Kind = "remove all"
	MkdirAll    Kind = "make directory"
	List        Kind = "list"
	Stat        Kind = "stat"
	Read        Kind = "read"
	Write       Kind = "write"
	Preallocate Kind = "preallocate"
	Sync        Kind = "sync"
	SyncDir     Kind = "sync directory"
)

// Changes reports whether the operation changes the disk, or makes a change durable.
func (k Kind) Changes() bool {
	switch k {
	case Open, OpenDir, List, Stat, Read:
		return false
	}
	return true
}

// Op is one operation that is about to be done.
type Op struct {
	Kind Kind
	Path string // of a link or a rename, the one that comes to be
}

// String names the operation and its file.
func (o Op) String() string { return fmt.Sprintf("%s %s", o.Kind, o.Path) }

// Fault is what becomes of an operation. The zero value lets it be done.
type Fault struct {
	// Err is returned in place of doing the operation.
	Err error
	// Short has a write take the first half of its bytes, and then return Err, which
	// may be nil. It does nothing to other operations.
	Short bool
}

// Hook is asked before each operation, from the goroutine that does it. It may
// wait. It is not asked for Lock, and not for reads of a mapped file.
type Hook func(Op) Fault

// Wrap returns fs with the faults of hook.
func Wrap(fs vfs.FS, hook Hook) vfs.FS { return &faulty{FS: fs, hook: hook} }

type faulty struct {
	vfs.FS
	hook Hook
}

func (f *faulty) ask(kind Kind, path string) error {
	fault := f.hook(Op{kind, path})
	if fault.Short && kind != Write {
		return nil
	}
	return fault.Err
}

func (f *faulty) open(kind Kind, path string, open func() (vfs.File, error)) (vfs.File, error) {
	if err := f.ask(kind, path); err != nil {
		return nil, err
	}
	file, err := open()
	if err != nil {
		return nil, err
	}
	return &faultyFile{File: file, fs: f, path: path, dir: kind == OpenDir}, nil
}

// Create implements vfs.FS.
func (f *faulty) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open(Create, name, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

// Open implements vfs.FS.
func (f *faulty) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.open(Open, name, func() (vfs.File, error) { return f.FS.Open(name, opts...) })
}

// OpenReadWrite implements vfs.FS.
func (f *faulty) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.open(OpenWrite, name, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, opts...) })
}

// OpenDir implements vfs.FS.
func (f *faulty) OpenDir(name string) (vfs.File, error) {
	return f.open(OpenDir, name, func() (vfs.File, error) { return f.FS.OpenDir(name) })
}

// ReuseForWrite implements vfs.FS.
func (f *faulty) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open(Create, to, func() (vfs.File, error) { return f.FS.ReuseForWrite(from, to, c) })
}

// Link implements vfs.FS.
func (f *faulty) Link(from, to string) error {
	if err := f.ask(Link, to); err != nil {
		return err
	}
	return f.FS.Link(from, to)
}

// Rename implements vfs.FS.
func (f *faulty) Rename(from, to string) error {
	if err := f.ask(Rename, to); err != nil {
		return err
	}
	return f.FS.Rename(from, to)
}

// Remove implements vfs.FS.
func (f *faulty) Remove(name string) error {
	if err := f.ask(Remove, name); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// RemoveAll implements vfs.FS.
func (f *faulty) RemoveAll(name string) error {
	if err := f.ask(RemoveAll, name); err != nil {
		return err
	}
	return f.FS.RemoveAll(name)
}

// MkdirAll implements vfs.FS.
func (f *faulty) MkdirAll(name string, perm os.FileMode) error {
	if err := f.ask(MkdirAll, name); err != nil {
		return err
	}
	return f.FS.MkdirAll(name, perm)
}

// List implements vfs.FS.
func (f *faulty) List(name string) ([]string, error) {
	if err := f.ask(List, name); err != nil {
		return nil, err
	}
	return f.FS.List(name)
}

// Stat implements vfs.FS.
func (f *faulty) Stat(name string) (vfs.FileInfo, error) {
	if err := f.ask(Stat, name); err != nil {
		return nil, err
	}
	return f.FS.Stat(name)
}

// Unwrap implements vfs.FS.
func (f *faulty) Unwrap() vfs.FS { return f.FS }

type faultyFile struct {
	vfs.File
	fs   *faulty
	path string
	dir  bool
}

// Read implements io.Reader.
func (f *faultyFile) Read(p []byte) (int, error) {
	if err := f.fs.ask(Read, f.path); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

// ReadAt implements io.ReaderAt.
func (f *faultyFile) ReadAt(p []byte, at int64) (int, error) {
	if err := f.fs.ask(Read, f.path); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, at)
}

func (f *faultyFile) write(p []byte, write func([]byte) (int, error)) (int, error) {
	switch fault := f.fs.hook(Op{Write, f.path}); {
	case fault.Short:
		n, err := write(p[:len(p)/2])
		if err == nil {
			err = fault.Err
		}
		return n, err
	case fault.Err != nil:
		return 0, fault.Err
	}
	return write(p)
}

// Write implements io.Writer.
func (f *faultyFile) Write(p []byte) (int, error) { return f.write(p, f.File.Write) }

// WriteAt implements io.WriterAt.
func (f *faultyFile) WriteAt(p []byte, at int64) (int, error) {
	return f.write(p, func(p []byte) (int, error) { return f.File.WriteAt(p, at) })
}

// Preallocate implements vfs.File.
func (f *faultyFile) Preallocate(at, n int64) error {
	if err := f.fs.ask(Preallocate, f.path); err != nil {
		return err
	}
	return f.File.Preallocate(at, n)
}

func (f *faultyFile) askSync() error {
	if f.dir {
		return f.fs.ask(SyncDir, f.path)
	}
	return f.fs.ask(Sync, f.path)
}

// Sync implements vfs.File.
func (f *faultyFile) Sync() error {
	if err := f.askSync(); err != nil {
		return err
	}
	return f.File.Sync()
}

// SyncData implements vfs.File.
func (f *faultyFile) SyncData() error {
	if err := f.askSync(); err != nil {
		return err
	}
	return f.File.SyncData()
}

// SyncTo implements vfs.File.
func (f *faultyFile) SyncTo(length int64) (bool, error) {
	if err := f.askSync(); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}

var _ io.WriterAt = (*faultyFile)(nil)
