package sstable

import (
	"encoding/binary"

	"github.com/countinghouse/countinghouse/record"
)

// hashID is the hash that the package comment defines.
func hashID(id record.ID) uint64 {
	x := id.Value + uint64(id.Kind)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// probe returns the i-th of the bits, out of rows many, that stand for hash.
func probe(hash uint64, i, rows uint32) uint32 {
	return uint32(uint64(uint32(hash>>32)+i*(uint32(hash)|1)) * uint64(rows) >> 32)
}

// idSet collects the distinct hashes of one block's ids.
type idSet struct {
	slots  [4096]uint64 // open addressing; more than the 2560 ids a block can have
	hashes []uint64
	zero   bool // hash 0 is there; in slots it means free
}

func (s *idSet) add(hash uint64) {
	if hash == 0 {
		if !s.zero {
			s.zero = true
			s.hashes = append(s.hashes, 0)
		}
		return
	}
	for i := hash % uint64(len(s.slots)); ; i = (i + 1) % uint64(len(s.slots)) {
		switch s.slots[i] {
		case hash:
			return
		case 0:
			s.slots[i] = hash
			s.hashes = append(s.hashes, hash)
			return
		}
	}
}

func (s *idSet) reset() {
	clear(s.slots[:])
	s.hashes, s.zero = s.hashes[:0], false
}

// filterBuilder makes the filter section of a table, group by group.
type filterBuilder struct {
	set    idSet
	hashes []uint64 // of the group's blocks, one after the other
	ends   []int    // end of each block in hashes
	out    []byte
	groups []filterGroup
	ranges [idKinds]IDRange
}

// filterGroup says where the filters of up to groupBlocks blocks are.
type filterGroup struct {
	off      uint64 // in the filter section
	rows     uint32
	rowBytes uint32
}

func (g filterGroup) size() uint64 { return uint64(g.rows) * uint64(g.rowBytes) }

// addBlock takes in the ids of a block's records.
func (f *filterBuilder) addBlock(rs []record.Record) {
	f.set.reset()
	var ids [record.MaxIDs]record.ID
	for i := range rs {
		for _, id := range ids[:rs[i].IDs(&ids)] {
			f.ranges[id.Kind-1].add(id.Value)
			f.set.add(hashID(id))
		}
	}
	f.hashes = append(f.hashes, f.set.hashes...)
	f.ends = append(f.ends, len(f.hashes))
	if len(f.ends) == groupBlocks {
		f.endGroup()
	}
}

// endGroup writes the group's filters out crosswise. Filters have the size that
// the block with the most ids needs.
func (f *filterBuilder) endGroup() {
	if len(f.ends) == 0 {
		return
	}
	most, start := 0, 0
	for _, end := range f.ends {
		most, start = max(most, end-start), end
	}
	g := filterGroup{
		off:      uint64(len(f.out)),
		rows:     uint32(max(most*filterBitsPerID, filterRowsMin)),
		rowBytes: uint32(len(f.ends)+7) / 8,
	}
	f.out = append(f.out, make([]byte, g.size())...)
	bits := f.out[g.off:]
	start = 0
	for block, end := range f.ends {
		column, bit := block/8, byte(1)<<(block%8)
		for _, hash := range f.hashes[start:end] {
			for i := range uint32(filterProbes) {
				bits[int(probe(hash, i, g.rows))*int(g.rowBytes)+column] |= bit
			}
		}
		start = end
	}
	f.groups = append(f.groups, g)
	f.hashes, f.ends = f.hashes[:0], f.ends[:0]
}

// candidates is a set of blocks of one group.
type candidates [groupBlocks / 64]uint64

// and keeps the blocks whose bit in row is set.
func (c *candidates) and(row []byte) (any bool) {
	var padded [groupBlocks / 8]byte
	if len(row) < len(padded) {
		copy(padded[:], row)
		row = padded[:]
	}
	var all uint64
	for i := range c {
		c[i] &= binary.LittleEndian.Uint64(row[8*i:])
		all |= c[i]
	}
	return all != 0
}

// Bloom is a Bloom filter over ids in memory, with the table filters' hash and
// density. Add must not run beside other calls.
type Bloom struct {
	bits []uint64
}

// NewBloom returns a filter for up to ids distinct ids.
func NewBloom(ids int) *Bloom {
	return &Bloom{bits: make([]uint64, max(1, (ids*filterBitsPerID+63)/64))}
}

// Add puts id into the filter.
func (b *Bloom) Add(id record.ID) {
	hash, n := hashID(id), uint32(len(b.bits)*64)
	for i := range uint32(filterProbes) {
		bit := probe(hash, i, n)
		b.bits[bit/64] |= 1 << (bit % 64)
	}
}

// Has reports whether id may be in the filter; false is certain.
func (b *Bloom) Has(id record.ID) bool {
	hash, n := hashID(id), uint32(len(b.bits)*64)
	for i := range uint32(filterProbes) {
		if bit := probe(hash, i, n); b.bits[bit/64]&(1<<(bit%64)) == 0 {
			return false
		}
	}
	return true
}
