// Package stablestore keeps a Raft server's term and vote.
//
// hashicorp/raft stores a vote in two writes, first the term, then the
// candidate. A crash in between leaves the term of a vote that was never cast
// beside the candidate of an earlier one, and after the restart that candidate
// gets a vote for the asking, without a look at its log: a server that lacks
// committed entries may become leader. Store makes the two writes one.
//
// bbolt keeps checksums of its two meta pages only, and is content with one of
// them. A term that reads lower than it was, or a vote that is not found, lets a
// server vote twice. So term and vote are one value, numbered and with a checksum.
// Damage to what leads to the latest of them may end at an earlier one, or none;
// Open looks through the whole file for the latest (see scan.go).
package stablestore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// The keys that hashicorp/raft keeps its term and its vote under, and ours for
// all of them.
const (
	keyTerm          = "CurrentTerm"
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
	keyState         = "countinghouse.State"
)

// lockTimeout bounds how long Open waits for another process to let go of the
// file.
const lockTimeout = time.Second

// ErrCorrupt marks a stored term and vote that can not be read. Without them a
// server must not take part in elections.
var ErrCorrupt = errors.New("stored term and vote are corrupt")

// errNotFound is what raft takes for "no value": it goes by the text.
var errNotFound = raftboltdb.ErrKeyNotFound

// Store is a raft.StableStore over another one, for the keys of hashicorp/raft
// only. Its methods are safe for concurrent use.
//
// A vote's term, when set, is held back until its candidate is set, and both
// are then one write; readers see the pair that was stored last. Whoever sets
// the term alone has stored nothing, which is what a vote without a candidate
// is worth.
type Store struct {
	inner raft.StableStore
	close func() error

	mu       sync.Mutex
	heldTerm uint64
	held     bool // heldTerm waits for its candidate
}

var _ raft.StableStore = (*Store)(nil)

// New returns a Store over inner, which keeps each key in one atomic, synced
// write. What inner holds already, as hashicorp/raft wrote it, is taken over; from
// the first write on, inner's own keys are out of date.
func New(inner raft.StableStore) *Store {
	return &Store{inner: inner, close: func() error { return nil }}
}

// Open returns a Store over the raft-boltdb file at path, which is made if it
// does not exist. It fails when another process has the file open, and with
// ErrCorrupt when it is damaged.
func Open(path string) (*Store, error) {
	latest, err := examine(path)
	if errors.Is(err, os.ErrNotExist) {
		err = create(path)
	}
	if err != nil {
		return nil, err
	}
	bolt, err := openBolt(path, false)
	if err != nil {
		return nil, err
	}
	s := New(bolt)
	s.close = bolt.Close
	if err := s.adopt(latest); err != nil {
		_ = bolt.Close()
		return nil, fmt.Errorf("stable store %s: %w", path, err)
	}
	return s, nil
}

// openBolt opens a raft-boltdb file without a list of free pages: they are found
// anew each time, from the pages that are in use.
func openBolt(path string, readOnly bool) (*raftboltdb.BoltStore, error) {
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: lockTimeout, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, ReadOnly: readOnly,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("stable store %s: %w", path, err)
	}
	return bolt, nil
}

// create makes the file under another name first, so that path is never a file
// that is only begun.
func create(path string) error {
	begun := path + ".tmp"
	if err := os.Remove(begun); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("stable store: %w", err)
	}
	bolt, err := openBolt(begun, false)
	if err != nil {
		return err
	}
	if err := bolt.Close(); err != nil {
		return fmt.Errorf("stable store %s: %w", begun, err)
	}
	if err := os.Rename(begun, path); err != nil {
		return fmt.Errorf("stable store: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("stable store: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("stable store %s: %w", path, err)
	}
	return nil
}

// Close closes what Open opened.
func (s *Store) Close() error { return s.close() }

// Set stores val under key, which must be a vote's candidate: it is stored
// together with the term that was set before it.
func (s *Store) Set(key, val []byte) error {
	if string(key) != keyVoteCandidate {
		return unknownKey(key)
	}
	if len(val) > candidateBytesMax {
		return fmt.Errorf("stable store: a candidate of %d bytes; at most %d are allowed", len(val), candidateBytesMax)
	}
	return s.update(func(st *state) {
		if s.held {
			st.voteTerm, s.held = s.heldTerm, false
		}
		st.candidate = val
	})
}

// SetUint64 stores val under key, the current term or a vote's. The latter is held
// back for its candidate.
func (s *Store) SetUint64(key []byte, val uint64) error {
	switch string(key) {
	case keyTerm:
		return s.update(func(st *state) { st.term = val })
	case keyVoteTerm:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.heldTerm, s.held = val, true
		return nil
	}
	return unknownKey(key)
}

// Get returns a vote's candidate, or raft-boltdb's "not found" error.
func (s *Store) Get(key []byte) ([]byte, error) {
	if string(key) != keyVoteCandidate {
		return nil, unknownKey(key)
	}
	st, err := s.read()
	if err == nil && len(st.candidate) == 0 {
		err = errNotFound
	}
	return bytes.Clone(st.candidate), err
}

// GetUint64 returns the current term or a vote's, or raft-boltdb's "not found"
// error.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	st, err := s.read()
	var n uint64
	switch string(key) {
	case keyTerm:
		n = st.term
	case keyVoteTerm:
		n = st.voteTerm
	default:
		return 0, unknownKey(key)
	}
	if err == nil && n == 0 {
		err = errNotFound
	}
	return n, err
}

func unknownKey(key []byte) error {
	return fmt.Errorf("stable store: %q is not a key of hashicorp/raft's", key)
}

func (s *Store) read() (state, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state()
}

func (s *Store) update(change func(*state)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.state()
	if err != nil {
		return err
	}
	st.serial++
	change(&st)
	return s.inner.Set([]byte(keyState), st.encode())
}

// state returns what is stored. REQUIRES: mu held.
func (s *Store) state() (state, error) {
	b, err := s.inner.Get([]byte(keyState))
	if notFound(err) || err == nil && len(b) == 0 {
		return s.plain()
	}
	if err != nil {
		return state{}, err
	}
	st, rest, err := decodeState(b)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%w: %d bytes too many", ErrCorrupt, len(rest))
	}
	return st, err
}

// plain returns what hashicorp/raft stored without a Store.
func (s *Store) plain() (st state, err error) {
	number := func(key string) uint64 {
		n, e := s.inner.GetUint64([]byte(key))
		if !notFound(e) {
			err = errors.Join(err, e)
		}
		return n
	}
	st.term, st.voteTerm = number(keyTerm), number(keyVoteTerm)
	var e error
	if st.candidate, e = s.inner.Get([]byte(keyVoteCandidate)); !notFound(e) {
		err = errors.Join(err, e)
	}
	return st, err
}

// state is a server's term and vote as they are stored, little-endian:
//
//	offset size
//	     0    8  magic "CHSTABLE"
//	     8    2  format version, 1
//	    10    2  n, bytes of the candidate
//	    12    8  serial: 1 for the first state that was stored, and so on
//	    20    8  current term
//	    28    8  term of the last vote, 0 if there was none
//	    36    n  its candidate
//	  36+n    4  CRC32C of the bytes before
type state struct {
	serial, term, voteTerm uint64
	candidate              []byte
}

const (
	stateMagic   = "CHSTABLE"
	stateVersion = 1
	stateHead    = 36
	stateTail    = 4

	candidateBytesMax = 1<<10 - stateHead - stateTail // a state fits into a page
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (st state) encode() []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, stateHead+len(st.candidate)+stateTail), stateMagic...)
	b = le.AppendUint16(b, stateVersion)
	b = le.AppendUint16(b, uint16(len(st.candidate)))
	b = le.AppendUint64(b, st.serial)
	b = le.AppendUint64(b, st.term)
	b = le.AppendUint64(b, st.voteTerm)
	b = append(b, st.candidate...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeState decodes the state that b begins with, and returns what follows.
// Errors wrap ErrCorrupt.
func decodeState(b []byte) (st state, rest []byte, err error) {
	le := binary.LittleEndian
	if len(b) < stateHead+stateTail || string(b[:8]) != stateMagic {
		return st, b, fmt.Errorf("%w: %d bytes that are none", ErrCorrupt, len(b))
	}
	end := stateHead + int(le.Uint16(b[10:]))
	if len(b) < end+stateTail || crc32.Checksum(b[:end], castagnoli) != le.Uint32(b[end:]) {
		return st, b, fmt.Errorf("%w: the checksum does not match", ErrCorrupt)
	}
	if v := le.Uint16(b[8:]); v != stateVersion {
		return st, b, fmt.Errorf("%w: format version %d; this build reads version %d", ErrCorrupt, v, stateVersion)
	}
	st = state{serial: le.Uint64(b[12:]), term: le.Uint64(b[20:]), voteTerm: le.Uint64(b[28:]), candidate: b[stateHead:end]}
	return st, b[end+stateTail:], nil
}

// notFound reports whether err says that a key has no value. hashicorp/raft
// itself goes by the text, for there is no common error value.
func notFound(err error) bool {
	return err != nil && (errors.Is(err, errNotFound) || err.Error() == errNotFound.Error())
}
