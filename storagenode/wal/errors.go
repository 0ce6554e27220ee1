package wal

import (
	"errors"
	"fmt"
)

// The conditions that callers tell apart, by errors.Is.
var (
	// ErrCorrupt marks damage to entries that were acknowledged. It is never
	// worth a retry. The error is a *CorruptError.
	ErrCorrupt = errors.New("corrupt")
	// ErrVersion marks a segment written by a later version of this package.
	ErrVersion = errors.New("unknown format version")
	// ErrLocked marks a directory that another WAL has open.
	ErrLocked = errors.New("directory is in use")
	// ErrGap marks entries that do not follow the last one of the log.
	ErrGap = errors.New("entries are not contiguous")
	// ErrTooLarge marks an entry that does not fit into a segment.
	ErrTooLarge = errors.New("entry is too large")
	// ErrClosed is returned by calls after Close.
	ErrClosed = errors.New("log is closed")
	// ErrPoisoned marks every change after a write or an fsync failed: what the
	// disk holds from there on is unknown until the log is opened again.
	ErrPoisoned = errors.New("log is out of service after an I/O error")
)

// Remedy is the advice that a CorruptError ends with.
const Remedy = "keep a copy of the directory, remove this member from the shard and let it rejoin with an empty data directory"

// CorruptError says which file is damaged, where, and how. It matches
// ErrCorrupt.
type CorruptError struct {
	File   string // path
	Offset int64  // bytes from the start of the file
	Reason string
}

// Error names the damage and what to do about it.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("wal: %s at offset %d: %v: %s; %s", e.File, e.Offset, ErrCorrupt, e.Reason, Remedy)
}

// Unwrap returns ErrCorrupt.
func (e *CorruptError) Unwrap() error { return ErrCorrupt }
