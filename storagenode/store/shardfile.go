package store

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

const (
	shardMagic      = "CHSHARD1"
	shardVersion    = 1
	shardHeaderSize = 32
	shardEntrySize  = 32
	// InstrumentsMax bounds the instruments of a shard.
	InstrumentsMax = 1 << 17
	shardBytesMax  = shardHeaderSize + InstrumentsMax*shardEntrySize + 4
)

// shardState is the file SHARD: which instruments the shard owns, and up to
// which Raft index the directory stands on its own.
type shardState struct {
	ownedIndex uint64 // of the last entry that changed the list
	covered    uint64 // every entry up to here is in manifests and tables
	entries    []shardEntry
}

// shardEntry is one owned instrument.
type shardEntry struct {
	instrument record.Symbol
	// since is the index at which the instrument was put on the list; what
	// entries up to there did to an earlier instrument of the name is void.
	since uint64
	// durableSeq is a seq that the instrument's manifest has reached. A
	// manifest below it, or none, means that files were lost.
	durableSeq uint64
}

// highestIndex returns the highest index of an entry that the file speaks of.
func (s *shardState) highestIndex() uint64 { return max(s.ownedIndex, s.covered) }

func (s *shardState) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, shardHeaderSize, shardHeaderSize+len(s.entries)*shardEntrySize+4)
	copy(b, shardMagic)
	le.PutUint16(b[8:], shardVersion)
	le.PutUint32(b[12:], uint32(len(s.entries)))
	le.PutUint64(b[16:], s.ownedIndex)
	le.PutUint64(b[24:], s.covered)
	for i := range s.entries {
		e := &s.entries[i]
		b = append(b, e.instrument[:]...)
		b = le.AppendUint64(b, e.since)
		b = le.AppendUint64(b, e.durableSeq)
	}
	return appendCRC(b)
}

func parseShard(b []byte) (*shardState, error) {
	b, err := cutCRC(b, shardHeaderSize, shardMagic, shardVersion)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if n, have := int64(le.Uint32(b[12:])), int64(len(b)-shardHeaderSize); n*shardEntrySize != have || n > InstrumentsMax {
		return nil, fmt.Errorf("%w: %d instruments in %d bytes", ErrCorrupt, n, have)
	}
	s := &shardState{ownedIndex: le.Uint64(b[16:]), covered: le.Uint64(b[24:])}
	for e := b[shardHeaderSize:]; len(e) > 0; e = e[shardEntrySize:] {
		entry := shardEntry{since: le.Uint64(e[16:]), durableSeq: le.Uint64(e[24:])}
		copy(entry.instrument[:], e)
		if err := entry.instrument.Check(); err != nil {
			return nil, err
		}
		if n := len(s.entries); n > 0 && compareSymbols(s.entries[n-1].instrument, entry.instrument) >= 0 {
			return nil, fmt.Errorf("%w: instruments %s, %s out of order", ErrCorrupt, s.entries[n-1].instrument, entry.instrument)
		}
		s.entries = append(s.entries, entry)
	}
	return s, nil
}

func compareSymbols(a, b record.Symbol) int { return slices.Compare(a[:], b[:]) }

func readShard(fs vfs.FS, dir string) (*shardState, error) {
	path := fs.PathJoin(dir, shardFile)
	b, err := readFile(fs, path, shardBytesMax)
	if err != nil {
		return nil, err
	}
	s, err := parseShard(b)
	if err != nil {
		return nil, fmt.Errorf("shard file %s: %w", path, err)
	}
	return s, nil
}
