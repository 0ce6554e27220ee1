package outbox

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// step names a place where the order of things matters: a store to mapped
// memory, or a call of the file system.
type step string

const (
	// Stores to mapped memory.
	stepRecord      step = "store of a record"
	stepLast        step = "store of a last record's flag"
	stepCheck       step = "store of a check word"
	stepPublish     step = "store of the published counter"
	stepCursor      step = "store of a cursor's value"
	stepCursorCheck step = "store of a cursor's check word"
	stepHeader      step = "store of a header"
	stepClear       step = "clearing of slots"

	// Calls of the file system.
	stepMkdir    step = "mkdir"
	stepOpen     step = "open"
	stepCreate   step = "create"
	stepStat     step = "stat"
	stepRead     step = "read"
	stepReadDir  step = "read directory"
	stepWrite    step = "write"
	stepTruncate step = "truncate"
	stepAllocate step = "fallocate"
	stepMap      step = "mmap"
	stepPrefault step = "madvise"
	stepSyncMap  step = "msync"
	stepSync     step = "fsync"
	stepSyncDir  step = "sync directory"
	stepRename   step = "rename"
	stepRemove   step = "remove"
	stepLock     step = "flock"
)

// onStep is set by tests only, while nothing of the package is at work. It is
// called before every step. What it returns stands for the error of a call of
// the file system, which is then not made; to is the second path of a rename.
var onStep func(s step, path, to string) error

// storing precedes a store to mapped memory. It is inlined, and costs the
// trading path one comparison that never holds.
func storing(s step) {
	if onStep != nil {
		_ = onStep(s, "", "")
	}
}

// calling precedes a call of the file system.
func calling(s step, path string) error {
	if onStep == nil {
		return nil
	}
	return asPathError(s, path, onStep(s, path, ""))
}

func asPathError(s step, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: string(s), Path: path, Err: err}
}

func openFile(path string, flag int) (*os.File, error) {
	s := stepOpen
	if flag&os.O_CREATE != 0 {
		s = stepCreate
	}
	if err := calling(s, path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, flag, 0o644)
}

func stat(path string) error {
	if err := calling(stepStat, path); err != nil {
		return err
	}
	_, err := os.Stat(path)
	return err
}

func rename(from, to string) error {
	if onStep != nil {
		if err := onStep(stepRename, from, to); err != nil {
			return asPathError(stepRename, from, err)
		}
	}
	return os.Rename(from, to)
}

func remove(path string) error {
	if err := calling(stepRemove, path); err != nil {
		return err
	}
	return os.Remove(path)
}

func readDir(dir string) ([]os.DirEntry, error) {
	if err := calling(stepReadDir, dir); err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	return entries, nil
}

// makeDir makes the outbox's directory, unless it is there, and waits until its
// name is on disk.
func makeDir(dir string) error {
	if err := calling(stepMkdir, dir); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	err := os.Mkdir(dir, 0o755)
	if os.IsExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		_ = remove(dir) // one that stays would be taken for synced
		return fmt.Errorf("outbox %s: %w", dir, err)
	}
	return nil
}

// syncMap waits until a mapping of the file at path is on disk.
func syncMap(path string, data []byte) error {
	err := calling(stepSyncMap, path)
	if err == nil {
		err = unix.Msync(data, unix.MS_SYNC)
	}
	if err != nil {
		return fmt.Errorf("outbox: sync %s: %w", path, err)
	}
	return nil
}

func syncFile(f *os.File) error {
	if err := calling(stepSync, f.Name()); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	if err := calling(stepSyncDir, dir); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
