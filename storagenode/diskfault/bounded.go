package diskfault

import (
	"os"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// BlockBytes is what a Bounded file system gives out at a time.
const BlockBytes = 4096

// Bounded is a file system with room for a number of bytes. Files take whole
// blocks, however many names they have, and directories one each; what was
// written once can be written again. A write that does not fit is done as far as
// it does, and fails with ENOSPC. Files that were there before do not count.
type Bounded struct {
	vfs.FS

	mu       sync.Mutex
	capacity int64 // bytes
	used     int64 // bytes
	refused  int64 // operations that did not fit
	nodes    map[string]*node
}

// node is a file or a directory.
type node struct {
	bytes int64
	names int
}

// NewBounded returns fs with room for capacity bytes.
func NewBounded(fs vfs.FS, capacity int64) *Bounded {
	return &Bounded{FS: fs, capacity: capacity, nodes: make(map[string]*node)}
}

// SetFree makes the capacity such that n bytes are free.
func (b *Bounded) SetFree(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.capacity = b.used + n
}

// Free returns how many bytes are free.
func (b *Bounded) Free() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(b.capacity-b.used, 0)
}

// Refused returns how many operations did not fit.
func (b *Bounded) Refused() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refused
}

// GetDiskUsage implements vfs.FS.
func (b *Bounded) GetDiskUsage(string) (vfs.DiskUsage, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return vfs.DiskUsage{AvailBytes: uint64(max(b.capacity-b.used, 0)), TotalBytes: uint64(b.capacity), UsedBytes: uint64(b.used)}, nil
}

// full refuses an operation. REQUIRES: mu held.
func (b *Bounded) full(op, name string) error {
	b.refused++
	return &os.PathError{Op: op, Path: name, Err: unix.ENOSPC}
}

// grow makes the node at least size bytes large, as far as there is room, and
// returns how large it is. REQUIRES: mu held.
func (b *Bounded) grow(n *node, size int64) int64 {
	want := (size + BlockBytes - 1) / BlockBytes * BlockBytes
	if want <= n.bytes {
		return n.bytes
	}
	room := max(b.capacity-b.used, 0) / BlockBytes * BlockBytes
	add := min(want-n.bytes, room)
	n.bytes += add
	b.used += add
	return n.bytes
}

// drop takes a name away. REQUIRES: mu held.
func (b *Bounded) drop(name string) {
	n := b.nodes[name]
	if n == nil {
		return
	}
	delete(b.nodes, name)
	if n.names--; n.names == 0 {
		b.used -= n.bytes
		n.bytes = 0
	}
}

// add makes a node of one block. REQUIRES: mu held.
func (b *Bounded) add(op, name string) (*node, error) {
	n := &node{names: 1}
	if b.grow(n, 1) == 0 {
		return nil, b.full(op, name)
	}
	b.nodes[name] = n
	return n, nil
}

// Create implements vfs.FS.
func (b *Bounded) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(name)
	n, err := b.add("create", name)
	if err != nil {
		return nil, err
	}
	f, err := b.FS.Create(name, c)
	if err != nil {
		b.drop(name)
		return nil, err
	}
	return &boundedFile{File: f, fs: b, node: n, name: name}, nil
}

// OpenReadWrite implements vfs.FS.
func (b *Bounded) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := b.FS.OpenReadWrite(name, c, opts...)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.nodes[name]
	if n == nil {
		n = &node{names: 1}
		b.nodes[name] = n
	}
	return &boundedFile{File: f, fs: b, node: n, name: name}, nil
}

// ReuseForWrite implements vfs.FS.
func (b *Bounded) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := b.Rename(from, to); err != nil {
		return nil, err
	}
	return b.OpenReadWrite(to, c)
}

// Link implements vfs.FS.
func (b *Bounded) Link(from, to string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.FS.Link(from, to); err != nil {
		return err
	}
	if n := b.nodes[from]; n != nil {
		n.names++
		b.nodes[to] = n
	}
	return nil
}

// Rename implements vfs.FS.
func (b *Bounded) Rename(from, to string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.FS.Rename(from, to); err != nil {
		return err
	}
	b.drop(to)
	below := from + "/"
	for name, n := range b.nodes {
		if name == from {
			delete(b.nodes, name)
			b.nodes[to] = n
		} else if rest, ok := strings.CutPrefix(name, below); ok {
			delete(b.nodes, name)
			b.nodes[to+"/"+rest] = n
		}
	}
	return nil
}

// Remove implements vfs.FS.
func (b *Bounded) Remove(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.FS.Remove(name); err != nil {
		return err
	}
	b.drop(name)
	return nil
}

// RemoveAll implements vfs.FS.
func (b *Bounded) RemoveAll(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.FS.RemoveAll(name); err != nil {
		return err
	}
	for path := range b.nodes {
		if path == name || strings.HasPrefix(path, name+"/") {
			b.drop(path)
		}
	}
	return nil
}

// MkdirAll implements vfs.FS.
func (b *Bounded) MkdirAll(name string, perm os.FileMode) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.FS.Stat(name); err != nil {
		if _, err := b.add("mkdir", name); err != nil {
			return err
		}
	}
	return b.FS.MkdirAll(name, perm)
}

// Unwrap implements vfs.FS.
func (b *Bounded) Unwrap() vfs.FS { return b.FS }

type boundedFile struct {
	vfs.File
	fs   *Bounded
	node *node
	name string
	at   int64 // of the next Write
}

// fit reserves room for n bytes at an offset, and returns for how many there is.
func (f *boundedFile) fit(at, n int64) (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	have := f.fs.grow(f.node, at+n)
	if have >= at+n {
		return n, nil
	}
	return max(have-at, 0), f.fs.full("write", f.name)
}

// Write implements io.Writer.
func (f *boundedFile) Write(p []byte) (int, error) {
	fits, full := f.fit(f.at, int64(len(p)))
	n, err := f.File.Write(p[:fits])
	f.at += int64(n)
	if err == nil {
		err = full
	}
	return n, err
}

// WriteAt implements io.WriterAt.
func (f *boundedFile) WriteAt(p []byte, at int64) (int, error) {
	fits, full := f.fit(at, int64(len(p)))
	n, err := f.File.WriteAt(p[:fits], at)
	if err == nil {
		err = full
	}
	return n, err
}

// Preallocate implements vfs.File. The file gets the size, filled with zeroes.
func (f *boundedFile) Preallocate(at, n int64) error {
	f.fs.mu.Lock()
	before := f.node.bytes
	have := f.fs.grow(f.node, at+n)
	if have < at+n { // all or nothing
		f.fs.used -= have - before
		f.node.bytes = before
		err := f.fs.full("preallocate", f.name)
		f.fs.mu.Unlock()
		return err
	}
	f.fs.mu.Unlock()
	info, err := f.File.Stat()
	if err != nil || info.Size() >= at+n {
		return err
	}
	_, err = f.File.WriteAt(make([]byte, at+n-info.Size()), info.Size())
	return err
}
