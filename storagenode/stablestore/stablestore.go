// Package stablestore keeps a Raft server's term and vote.
//
// hashicorp/raft stores a vote in two writes, first the term, then the
// candidate. A crash in between leaves the term of a vote that was never cast
// beside the candidate of an earlier one, and after the restart that candidate
// gets a vote for the asking, without a look at its log: a server that lacks
// committed entries may become leader. Store makes the two writes one.
package stablestore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// The keys that hashicorp/raft keeps a vote under, and ours for both of them.
const (
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
	keyVote          = "countinghouse.Vote"
)

// lockTimeout bounds how long Open waits for another process to let go of the
// file.
const lockTimeout = time.Second

// ErrCorrupt marks a stored vote that can not be read. Without its vote a
// server must not take part in elections.
var ErrCorrupt = errors.New("stored vote is corrupt")

// Store is a raft.StableStore over another one. Its methods may be called from
// any goroutine.
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
// write. A vote that inner holds already, as hashicorp/raft wrote it, is taken
// over; from the first vote stored here on, inner's own keys are out of date.
func New(inner raft.StableStore) *Store {
	return &Store{inner: inner, close: func() error { return nil }}
}

// Open returns a Store over the raft-boltdb file at path, which is made if it
// does not exist. It fails when another process has the file open.
func Open(path string) (*Store, error) {
	bolt, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: lockTimeout}})
	if err != nil {
		return nil, fmt.Errorf("stable store %s: %w", path, err)
	}
	s := New(bolt)
	s.close = bolt.Close
	return s, nil
}

// Close closes what Open opened.
func (s *Store) Close() error { return s.close() }

// Set stores val under key. A vote's candidate is stored together with the term
// that was set before it.
func (s *Store) Set(key, val []byte) error {
	if string(key) != keyVoteCandidate {
		return s.inner.Set(key, val)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.vote()
	if err != nil && !notFound(err) {
		return err
	}
	if s.held {
		v.term, s.held = s.heldTerm, false
	}
	v.candidate = val
	return s.inner.Set([]byte(keyVote), v.encode())
}

// Get returns the value under key, or raft-boltdb's "not found" error.
func (s *Store) Get(key []byte) ([]byte, error) {
	if string(key) != keyVoteCandidate {
		return s.inner.Get(key)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.vote()
	if notFound(err) {
		return s.inner.Get(key)
	}
	return v.candidate, err
}

// SetUint64 stores val under key. A vote's term is held back for its candidate.
func (s *Store) SetUint64(key []byte, val uint64) error {
	if string(key) != keyVoteTerm {
		return s.inner.SetUint64(key, val)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heldTerm, s.held = val, true
	return nil
}

// GetUint64 returns the number under key, or raft-boltdb's "not found" error.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	if string(key) != keyVoteTerm {
		return s.inner.GetUint64(key)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.vote()
	if notFound(err) {
		return s.inner.GetUint64(key)
	}
	return v.term, err
}

// vote is a vote as it is stored:
//
//	offset size
//	     0    1  format version, 1
//	     1    8  term, little-endian
//	     9    n  candidate
//	   9+n    4  CRC32C of the bytes before, little-endian
type vote struct {
	term      uint64
	candidate []byte
}

const (
	voteVersion  = 1
	voteOverhead = 1 + 8 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// vote reads the stored vote. The caller holds mu.
func (s *Store) vote() (vote, error) {
	b, err := s.inner.Get([]byte(keyVote))
	if err != nil {
		return vote{}, err
	}
	if len(b) == 0 {
		return vote{}, raftboltdb.ErrKeyNotFound
	}
	return decodeVote(b)
}

func (v vote) encode() []byte {
	b := append(make([]byte, 0, voteOverhead+len(v.candidate)), voteVersion)
	b = binary.LittleEndian.AppendUint64(b, v.term)
	b = append(b, v.candidate...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeVote(b []byte) (vote, error) {
	if len(b) < voteOverhead {
		return vote{}, fmt.Errorf("stable store: %w: %d bytes", ErrCorrupt, len(b))
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(body):]) {
		return vote{}, fmt.Errorf("stable store: %w: checksum does not match", ErrCorrupt)
	}
	if body[0] != voteVersion {
		return vote{}, fmt.Errorf("stable store: %w: format version %d; this build reads version %d", ErrCorrupt, body[0], voteVersion)
	}
	return vote{term: binary.LittleEndian.Uint64(body[1:]), candidate: body[9:]}, nil
}

// notFound reports whether err says that a key has no value. hashicorp/raft
// itself goes by the text, for there is no common error value.
func notFound(err error) bool {
	return err != nil && (errors.Is(err, raftboltdb.ErrKeyNotFound) || err.Error() == "not found")
}
