// Package directio writes files past the kernel's page cache, where the file system
// allows it.
//
// It is for bytes that are written once, in bulk, and seldom read soon. Through the
// cache they cost several times the processor time, drive out what readers use, and
// leave dirty pages that the next sync of any file may wait behind.
package directio

import (
	"errors"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Align is the multiple that address, length and offset of a direct write must
// have: the page size, which is at least the logical block size of disks.
const Align = 4096

// BulkBytes is how much is best written at once of what nobody waits for. A disk
// takes what is handed to it in turn, so that a small write which somebody does wait for
// waits for all that is on its way: with six writers of 1 MiB on a disk of 2 GB/s that was
// 9 ms, with writes of this size 1 ms, and the disk wrote as many bytes a second.
const BulkBytes = 128 << 10

// Writer writes one file, directly where it can, else through the cache. What is
// written both ways is in order as long as no two writes overlap. It is for one
// goroutine.
type Writer struct {
	file   vfs.File
	direct bool
}

// NewWriter returns a writer of a file that is open for writing. A file without a
// descriptor of the kernel's is written as it is.
func NewWriter(f vfs.File) Writer { return Writer{file: f, direct: set(f, true)} }

// Write appends p, which is written directly if it begins at a multiple of Align in
// memory and is a multiple of it long, and all writes before were.
func (w *Writer) Write(p []byte) (int, error) {
	return w.write(p, func() (int, error) { return w.file.Write(p) })
}

// WriteAt is Write at an offset, which must be a multiple of Align as well to be
// direct.
func (w *Writer) WriteAt(p []byte, at int64) (int, error) {
	if at%Align != 0 {
		w.Leave()
	}
	return w.write(p, func() (int, error) { return w.file.WriteAt(p, at) })
}

func (w *Writer) write(p []byte, write func() (int, error)) (int, error) {
	if w.direct && !aligned(p) {
		w.Leave()
	}
	n, err := write()
	if w.direct && n == 0 && errors.Is(err, unix.EINVAL) { // took the flag, and will not have the write
		w.Leave()
		return write()
	}
	return n, err
}

// Direct reports whether the next aligned write is direct.
func (w *Writer) Direct() bool { return w.direct }

// Leave makes all further writes go through the cache.
func (w *Writer) Leave() {
	if w.direct {
		set(w.file, false)
		w.direct = false
	}
}

// set turns the flag on or off and reports whether it could.
func set(f vfs.File, on bool) bool {
	fd := f.Fd()
	if fd == vfs.InvalidFd {
		return false
	}
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err != nil {
		return false
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(fd, unix.F_SETFL, flags)
	return err == nil
}

func aligned(p []byte) bool {
	return len(p) > 0 && len(p)%Align == 0 && uintptr(unsafe.Pointer(&p[0]))%Align == 0
}

// Buffer returns n bytes that begin at a multiple of Align.
func Buffer(n int) []byte {
	b := make([]byte, n+Align)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) % Align)
	return b[skip : skip+n : skip+n]
}
