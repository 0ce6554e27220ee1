package outbox

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Identity tells one use of an outbox from the next.
type Identity struct {
	Cluster string
	// Incarnation is how many times a writer opened the outbox.
	Incarnation uint64
	// ThisBoot says that the machine has not gone down since the last of them, so
	// that what is published may be read before a writer has recovered it.
	ThisBoot bool
}

// Identify reads the identity of the outbox in dir, with or without a writer. The
// error wraps ErrNotFound while there is none.
func Identify(dir string) (Identity, error) {
	c, err := openControl(filepath.Clean(dir), unix.PROT_READ)
	if err != nil {
		return Identity{}, err
	}
	boot, err := bootID()
	if err != nil {
		return Identity{}, err
	}
	h := &c.header
	return Identity{Cluster: h.cluster, Incarnation: h.incarnation, ThisBoot: h.bootID == boot}, nil
}

// Hold is the right to carry an outbox's records to where they are kept, which one
// process has at a time.
type Hold struct {
	path string
	file *os.File
}

// HoldSubscriber takes the right for the outbox in dir, which must exist. The error
// wraps ErrSubscribed, and names the process, while another one has it.
func HoldSubscriber(dir string) (*Hold, error) {
	path := filepath.Join(filepath.Clean(dir), subscriberLockName)
	f, err := lockSigned(path, ErrSubscribed)
	if err != nil {
		return nil, fmt.Errorf("outbox %s: %w", dir, err)
	}
	return &Hold{path: path, file: f}, nil
}

// Valid reports whether the outbox still is the one that was taken: somebody may
// have moved its directory away and put another one in its place.
func (h *Hold) Valid() bool {
	own, err := h.file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(h.path)
	return err == nil && os.SameFile(own, there)
}

// Close gives the right back.
func (h *Hold) Close() error { return h.file.Close() }

// lockSigned takes the lock of a file and writes into it who has it. It tries for a
// moment, because a process that was just killed may not have released it yet;
// then the error wraps taken.
func lockSigned(path string, taken error) (*os.File, error) {
	f, err := openFile(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	var ok bool
	for try := 0; try < 10 && !ok && err == nil; try++ {
		if try > 0 {
			time.Sleep(10 * time.Millisecond)
		}
		ok, err = tryLock(f)
	}
	if err == nil && !ok {
		pid, _ := io.ReadAll(io.LimitReader(f, 32))
		err = fmt.Errorf("%w: process %s", taken, strings.TrimSpace(string(pid)))
	}
	if err == nil {
		err = signLock(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
