package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/countinghouse/countinghouse/record"
)

// logBucket is where raft-boltdb keeps the entries.
const logBucket = "logs"

func boltOptions(readOnly bool) *bbolt.Options {
	return &bbolt.Options{Timeout: boltLockTimeout, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, ReadOnly: readOnly}
}

// openBolt opens a log in bbolt. It reads all of it first, from a file that is open
// for reading only: what bbolt makes of a damaged page while it opens a file for
// writing ends the process.
func openBolt(name string) (*raftboltdb.BoltStore, boltLog, error) {
	name = filepath.Clean(name)
	l, err := readBoltLog(name)
	if err != nil {
		return nil, l, err
	}
	b, err := raftboltdb.New(raftboltdb.Options{Path: name, BoltOptions: boltOptions(false)})
	if err != nil {
		return nil, l, fmt.Errorf("%s: %w", name, err)
	}
	return b, l, nil
}

// boltLog is what readBoltLog read.
type boltLog struct {
	bytes       int64 // of the file
	first, last uint64
	missing     uint64 // the last index between them that has no entry, 0 for none
	entries     uint64 // good ones
	term        uint64 // of the last of them
}

// readBoltLog reads and checks every entry of a log in bbolt, and changes nothing.
// A file that is missing or was only begun holds none. bbolt keeps no checksums of
// its values: an entry must decode, have the index that it is stored under and a
// term not below the one before, and a command's payload must be whole. Damage
// matches record.ErrCorrupt. That entries are missing is right only up to the
// newest snapshot, which a received one leaves so: see checkMissing.
func readBoltLog(name string) (boltLog, error) {
	var l boltLog
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	l.bytes = info.Size()
	err = withoutFaults(func() error { return l.read(name) })
	var own *fs.PathError
	switch {
	case err == nil:
		return l, nil
	case errors.As(err, &own), errors.Is(err, bolterrors.ErrTimeout), errors.Is(err, record.ErrVersion):
		return l, fmt.Errorf("%s: %w", name, err)
	}
	return l, fmt.Errorf("%s: %w: after %d good entries: %w: replace the member", name, record.ErrCorrupt, l.entries, err)
}

// withoutFaults turns what bbolt makes of a damaged page into an error: it panics,
// or reads outside of the file.
func withoutFaults(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return read()
}

func (l *boltLog) read(name string) error {
	db, err := bbolt.Open(name, 0o600, boltOptions(true))
	if err != nil {
		return err
	}
	defer db.Close()
	b, err := raftboltdb.New(raftboltdb.Options{Path: name, BoltOptions: boltOptions(true)})
	if err != nil {
		return err
	}
	defer b.Close()
	return db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(logBucket))
		if bucket == nil {
			return nil
		}
		return bucket.ForEach(func(key, _ []byte) error { return l.next(b, key) })
	})
}

// next takes the entry under the key that follows the last one.
func (l *boltLog) next(b *raftboltdb.BoltStore, key []byte) error {
	if len(key) != 8 {
		return fmt.Errorf("a key of %d bytes", len(key))
	}
	index := binary.BigEndian.Uint64(key)
	switch {
	case l.entries == 0:
		l.first = index
	case index <= l.last:
		return fmt.Errorf("entry %d stands behind entry %d", index, l.last)
	case index > l.last+1:
		l.missing = index - 1
	}
	if err := l.entry(b, index); err != nil {
		return err
	}
	l.last = index
	l.entries++
	return nil
}

func (l *boltLog) entry(b *raftboltdb.BoltStore, index uint64) error {
	var e raft.Log
	if err := b.GetLog(index, &e); err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	if e.Index != index || e.Term < l.term {
		return fmt.Errorf("entry %d: it says that it is entry %d of term %d, after one of term %d", index, e.Index, e.Term, l.term)
	}
	l.term = e.Term
	if err := checkEntry(&e); err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	return nil
}

// checkMissing refuses a log that lacks entries behind the newest snapshot.
func (l *boltLog) checkMissing(snapshot uint64) error {
	if l.missing <= snapshot {
		return nil
	}
	return fmt.Errorf("%w: entry %d is missing, and the newest snapshot, at %d, does not cover it: replace the member", record.ErrCorrupt, l.missing, snapshot)
}

// checkEntry checks what an entry carries. A membership that can not be decoded
// panics.
func checkEntry(e *raft.Log) error {
	switch e.Type {
	case raft.LogConfiguration:
		raft.DecodeConfiguration(e.Data)
		return nil
	case raft.LogNoop, raft.LogBarrier:
		return nil
	case raft.LogCommand:
	default:
		return fmt.Errorf("type %d", e.Type)
	}
	kind, err := kindOf(e)
	if err != nil {
		return err
	}
	switch kind {
	case commandBatch:
		_, err = record.ParseBatch(e.Data)
	case commandOpenStream:
		_, _, err = parseOpen(e)
	default:
		_, err = parseOwned(e)
	}
	return err
}
