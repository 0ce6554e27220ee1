package fire

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is a file system in memory that can lose power: what was synced stays, of
// the rest a random part. It can also stall, fail a sync, and be full.
type disk struct {
	*vfs.MemFS

	// clone keeps Link, Lock and ReuseForWrite, which take MemFS's own lock twice,
	// from running while MemFS is cloned: they would wait for each other for ever.
	clone sync.RWMutex

	mu        sync.Mutex
	after     *disk         // what a power failure has left; not nil: the machine is off
	countdown int           // writing calls until onZero; 0: none
	onZero    func()        // called once, before the call that reaches zero
	stalled   chan struct{} // syncs wait until it is closed; nil: they do not
	failures  int           // syncs that are to fail
	failed    []string      // files whose sync has failed
	full      bool
}

func newDisk(mem *vfs.MemFS) *disk { return &disk{MemFS: mem} }

const (
	diskFreeBytes     = 1 << 40
	diskFullFreeBytes = 1 << 10
	diskReserveBytes  = 1 << 20
)

// crash returns the disk as it is after a power failure at this instant: what
// was synced, and of the rest each block and directory entry with a chance of
// keepPercent. Further calls of the old one go on as if nothing had happened, for
// a library that panics when its disk fails would take all members with it; the
// machine is cut off from the network before, so that nobody learns of them. A
// disk crashes once only.
func (d *disk) crash(keepPercent int, rng *rand.Rand) *disk {
	d.clone.Lock()
	defer d.clone.Unlock()
	if after := d.wreck(); after != nil {
		return after
	}
	after := newDisk(d.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keepPercent, RNG: rng}))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.after = after
	d.unstallLocked()
	return after
}

// wreck returns what the power failure has left, nil if there was none.
func (d *disk) wreck() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.after
}

// crashAfter has onZero called before the n-th writing call from now. It must not
// wait for other calls of the disk.
func (d *disk) crashAfter(n int, onZero func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.countdown, d.onZero = n, onZero
}

// stall makes syncs wait until the returned function is called.
func (d *disk) stall() (end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stalled != nil || d.after != nil {
		return func() {}
	}
	d.stalled = make(chan struct{})
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.unstallLocked()
	}
}

func (d *disk) unstallLocked() {
	if d.stalled != nil {
		close(d.stalled)
		d.stalled = nil
	}
}

// failSync makes the next sync fail.
func (d *disk) failSync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures++
}

// repair takes back the faults that are to come, and ends those that last.
func (d *disk) repair() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.countdown, d.failures, d.full = 0, 0, false
	d.unstallLocked()
}

// syncFailures returns the files whose sync has failed.
func (d *disk) syncFailures() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.failed...)
}

func (d *disk) setFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

// writing is called before each call that changes the disk.
func (d *disk) writing() {
	d.mu.Lock()
	zero := false
	if d.countdown > 0 {
		d.countdown--
		zero = d.countdown == 0
	}
	onZero := d.onZero
	d.mu.Unlock()
	if zero {
		onZero()
	}
}

// syncing is called before each sync of name.
func (d *disk) syncing(name string, mayFail bool) error {
	d.writing()
	d.mu.Lock()
	stalled := d.stalled
	fail := d.failures > 0 && mayFail && d.after == nil
	if fail {
		d.failures--
		d.failed = append(d.failed, name)
	}
	d.mu.Unlock()
	if stalled != nil {
		<-stalled
	}
	if fail {
		return fmt.Errorf("sync %s: %w", name, syscall.EIO)
	}
	return nil
}

// GetDiskUsage implements vfs.FS.
func (d *disk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	free := uint64(diskFreeBytes)
	if d.full {
		free = diskFullFreeBytes
	}
	return vfs.DiskUsage{AvailBytes: free, TotalBytes: 2 * diskFreeBytes, UsedBytes: 2*diskFreeBytes - free}, nil
}

// Create implements vfs.FS.
func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	d.writing()
	return d.wrap(name)(d.MemFS.Create(name, c))
}

// Open implements vfs.FS.
func (d *disk) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return d.wrap(name)(d.MemFS.Open(name, opts...))
}

// OpenReadWrite implements vfs.FS.
func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	d.writing()
	return d.wrap(name)(d.MemFS.OpenReadWrite(name, c, opts...))
}

// OpenDir implements vfs.FS.
func (d *disk) OpenDir(name string) (vfs.File, error) { return d.wrap(name)(d.MemFS.OpenDir(name)) }

// ReuseForWrite implements vfs.FS.
func (d *disk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	d.writing()
	d.clone.RLock()
	defer d.clone.RUnlock()
	return d.wrap(to)(d.MemFS.ReuseForWrite(from, to, c))
}

// Lock implements vfs.FS.
func (d *disk) Lock(name string) (io.Closer, error) {
	d.clone.RLock()
	defer d.clone.RUnlock()
	return d.MemFS.Lock(name)
}

// Link implements vfs.FS.
func (d *disk) Link(from, to string) error {
	d.writing()
	d.clone.RLock()
	defer d.clone.RUnlock()
	return d.MemFS.Link(from, to)
}

// Rename implements vfs.FS.
func (d *disk) Rename(from, to string) error {
	d.writing()
	return d.MemFS.Rename(from, to)
}

// Remove implements vfs.FS.
func (d *disk) Remove(name string) error {
	d.writing()
	return d.MemFS.Remove(name)
}

// RemoveAll implements vfs.FS.
func (d *disk) RemoveAll(name string) error {
	d.writing()
	return d.MemFS.RemoveAll(name)
}

// MkdirAll implements vfs.FS.
func (d *disk) MkdirAll(name string, perm os.FileMode) error {
	d.writing()
	return d.MemFS.MkdirAll(name, perm)
}

// Unwrap implements vfs.FS.
func (d *disk) Unwrap() vfs.FS { return d.MemFS }

func (d *disk) wrap(name string) func(vfs.File, error) (vfs.File, error) {
	return func(f vfs.File, err error) (vfs.File, error) {
		if err != nil {
			return nil, err
		}
		return &file{File: f, disk: d, name: name}, nil
	}
}

// file is an open file of a disk.
type file struct {
	vfs.File
	disk *disk
	name string
	lost bool // a sync has failed; guarded by disk.mu
}

// Write implements vfs.File. The bytes are copied, for MemFS changes them after it
// has taken them when the race detector is on.
func (f *file) Write(b []byte) (int, error) {
	f.disk.writing()
	return f.File.Write(bytes.Clone(b))
}

// WriteAt implements vfs.File.
func (f *file) WriteAt(b []byte, at int64) (int, error) {
	f.disk.writing()
	return f.File.WriteAt(b, at)
}

// Sync implements vfs.File. After one that failed, the kernel has dropped the
// pages and reports success for the next, which stores nothing.
func (f *file) Sync() error {
	err := f.disk.syncing(f.name, true)
	f.disk.mu.Lock()
	lost := f.lost
	f.lost = f.lost || err != nil
	f.disk.mu.Unlock()
	if err != nil || lost {
		return err
	}
	return f.File.Sync()
}

// SyncData implements vfs.File.
func (f *file) SyncData() error { return f.Sync() }

// save copies the disk to a directory of the operating system.
func (d *disk) save(dir string) error {
	_, err := vfs.Clone(d.MemFS, vfs.Default, "/", dir)
	return err
}
