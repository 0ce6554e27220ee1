package outbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pageBytes = 4096

// allocate gives f size bytes that are on disk, so that a store to the mapping
// can not fail for want of space.
func allocate(f *os.File, size int64) error {
	if err := calling(stepAllocate, f.Name()); err != nil {
		return err
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return writeZeros(f, size)
	}
	return err
}

func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// mapFile maps size bytes of f, which must have as many: touching a mapping
// beyond the end of its file kills the process.
func mapFile(f *os.File, size int64, prot, flags int) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != size {
		return nil, fmt.Errorf("outbox: %s: %w: %d bytes, not %d", f.Name(), ErrDamaged, info.Size(), size)
	}
	var data []byte
	if err = calling(stepMap, f.Name()); err == nil {
		data, err = unix.Mmap(int(f.Fd()), 0, int(size), prot, unix.MAP_SHARED|flags)
	}
	if err != nil {
		return nil, fmt.Errorf("outbox: map %s: %w", f.Name(), err)
	}
	return data, nil
}

func mapPath(path string, size int64, prot, flags int) ([]byte, error) {
	mode := os.O_RDONLY
	if prot&unix.PROT_WRITE != 0 {
		mode = os.O_RDWR
	}
	f, err := openFile(path, mode)
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	defer f.Close()
	return mapFile(f, size, prot, flags)
}

// prefault makes every page of a writable mapping of the file at path present
// and writable, so that stores to it do not fault. MAP_POPULATE does that for
// reading only. A page that can not be had is an error; a store to it would end
// the process.
func prefault(path string, data []byte) error {
	err := calling(stepPrefault, path)
	if err == nil {
		err = unix.Madvise(data, unix.MADV_POPULATE_WRITE)
	}
	if errors.Is(err, unix.EINVAL) { // a kernel before 5.14
		for off := 0; off < len(data); off += pageBytes {
			word64(data, off).Add(0)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("outbox: prepare the pages of %s: %w", path, err)
	}
	return nil
}

// pages returns the part of a mapping that bytes from up to before end are in, from
// the beginning of a page.
func pages(data []byte, from, end uint64) []byte { return data[from&^(pageBytes-1) : end] }

func word64(data []byte, off int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&data[off]))
}

// tryLock takes the exclusive lock on f without waiting and reports whether it
// got it.
func tryLock(f *os.File) (bool, error) {
	if err := calling(stepLock, f.Name()); err != nil {
		return false, err
	}
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// lockFile waits for the exclusive lock on path, which it creates if need be.
// Closing the file releases the lock. Holders keep it for microseconds.
func lockFile(path string) (*os.File, error) {
	f, err := openFile(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	for {
		if err = calling(stepLock, path); err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("outbox: lock %s: %w", path, err)
		}
	}
}

// writeWhole makes the file at path hold data, or leaves it as it is.
func writeWhole(path string, data []byte) error {
	if err := calling(stepCreate, path); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	f, err := os.CreateTemp(dirOf(path), "spare-tmp-*")
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	if err = calling(stepWrite, f.Name()); err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = syncFile(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = rename(f.Name(), path)
	}
	if err != nil {
		_ = remove(f.Name()) // what stays is a spare: recovery removes it
	} else {
		err = syncDir(dirOf(path))
	}
	if err != nil {
		return fmt.Errorf("outbox: write %s: %w", path, err)
	}
	return nil
}

func dirOf(path string) string { return path[:strings.LastIndexByte(path, os.PathSeparator)+1] }

// readPage reads a file that must be exactly one page long.
func readPage(path string) ([]byte, error) {
	f, err := openFile(path, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	defer f.Close()
	page, n := make([]byte, pageBytes+1), 0
	if err = calling(stepRead, path); err == nil {
		n, err = io.ReadFull(f, page)
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("outbox: read %s: %w", path, err)
	}
	if n != pageBytes {
		return nil, fmt.Errorf("outbox: %s: %w: it must be %d bytes long", path, ErrDamaged, pageBytes)
	}
	return page[:pageBytes], nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("outbox: boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
