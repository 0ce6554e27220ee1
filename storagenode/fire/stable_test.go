package fire

import (
	"encoding/json"
	"io"
	"maps"
	"os"
	"path"
	"strconv"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/stablestore"
)

// stableFile stands in for raft-boltdb, which needs a real file: each write is
// atomic and on disk when it returns, as a transaction of bbolt is, and a crash
// during it leaves the state before or after. It lies below package stablestore
// as raft-boltdb does. Its syncs stall with the disk but are not made to fail:
// hashicorp/raft panics when it can not store its term, which ends a process as it
// should and would end all members here.
type stableFile struct {
	disk *disk
	name string

	mu     sync.Mutex
	values map[string][]byte
}

// stable is what replica.Config.OpenStable returns here.
type stable struct{ *stablestore.Store }

// Close implements io.Closer.
func (stable) Close() error { return nil }

func openStable(fs vfs.FS, name string) (replica.StableStore, error) {
	s := &stableFile{disk: fs.(*disk), name: name, values: map[string][]byte{}}
	f, err := fs.Open(name)
	switch {
	case os.IsNotExist(err):
		return stable{stablestore.New(s)}, nil
	case err != nil:
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return stable{stablestore.New(s)}, json.Unmarshal(b, &s.values)
}

// Set implements raft.StableStore.
func (s *stableFile) Set(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := maps.Clone(s.values)
	next[string(key)] = append([]byte{}, value...)
	b, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := s.replace(b); err != nil {
		return err
	}
	s.values = next
	return nil
}

func (s *stableFile) replace(b []byte) error {
	tmp := s.name + ".tmp"
	f, err := s.disk.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := s.sync(f); err != nil {
		return err
	}
	if err := s.disk.Rename(tmp, s.name); err != nil {
		return err
	}
	dir, err := s.disk.OpenDir(path.Dir(s.name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return s.sync(dir)
}

func (s *stableFile) sync(f vfs.File) error {
	if err := s.disk.syncing(s.name, false); err != nil {
		return err
	}
	return f.(*file).File.Sync()
}

// Get implements raft.StableStore.
func (s *stableFile) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.values[string(key)]; ok {
		return v, nil
	}
	return nil, raftboltdb.ErrKeyNotFound
}

// SetUint64 implements raft.StableStore.
func (s *stableFile) SetUint64(key []byte, value uint64) error {
	return s.Set(key, strconv.AppendUint(nil, value, 10))
}

// GetUint64 implements raft.StableStore.
func (s *stableFile) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(v), 10, 64)
}
