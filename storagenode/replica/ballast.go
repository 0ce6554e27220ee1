package replica

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// writeBallast makes a file that occupies size bytes of disk.
func writeBallast(fs vfs.FS, name string, size int64) error {
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer f.Close()
	if fd := f.Fd(); fd != vfs.InvalidFd {
		return unix.Fallocate(int(fd), 0, 0, size)
	}
	return f.Preallocate(0, size)
}
