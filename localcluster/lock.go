package localcluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// lockFile is locked by the process that runs the cluster of the directory, and
// names it.
const lockFile = "LOCK"

// ErrInUse means that another process runs the cluster of the directory.
var ErrInUse = errors.New("directory is in use")

// lockDir keeps others from starting the cluster of the directory until the file
// is closed. The kernel does that when this process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("local cluster: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("local cluster: %s: %w by process %s: stop it, or choose another directory", dir, ErrInUse, lockHolder(path))
		}
		return nil, fmt.Errorf("local cluster: lock %s: %w", path, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("local cluster: %s: %w", path, err)
	}
	return f, nil
}

// lockHolder returns the process that the file names.
func lockHolder(path string) string {
	b, err := os.ReadFile(path)
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		if _, err := strconv.Atoi(pid); err == nil {
			return pid
		}
	}
	return "?"
}
