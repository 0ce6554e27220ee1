package sstable

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
)

// LookupStats counts what a lookup read.
type LookupStats struct {
	Blocks         int // blocks that were searched
	FalsePositives int // blocks that were searched in vain
}

// Lookup calls yield with the records that carry id, in order of seq, some at a
// time. The slice is valid until Close. An error of yield ends the lookup and is
// returned as it is.
func (t *Table) Lookup(id record.ID, yield func([]record.Record) error) (LookupStats, error) {
	var st LookupStats
	if r := t.foot.IDs[id.Kind-1]; id.Value < r.Min || id.Value > r.Max || id.Value == 0 {
		return st, nil
	}
	hash := hashID(id)
	for g := range int(t.foot.groups) {
		c, err := t.candidates(g, hash)
		if err != nil {
			return st, err
		}
		for w, word := range c {
			for ; word != 0; word &= word - 1 {
				block := g*groupBlocks + w*64 + bits.TrailingZeros64(word)
				if err := t.search(block, id, &st, yield); err != nil {
					return st, err
				}
			}
		}
	}
	return st, nil
}

func (t *Table) search(block int, id record.ID, st *LookupStats, yield func([]record.Record) error) error {
	rs, err := t.Block(block)
	if err != nil {
		return err
	}
	st.Blocks++
	found, err := Select(rs, id, yield)
	if !found {
		st.FalsePositives++
	}
	return err
}

// Select calls yield with each run of neighbours in rs that carry id, and
// reports whether there was one.
func Select(rs []record.Record, id record.ID, yield func([]record.Record) error) (found bool, err error) {
	for {
		start := record.IndexID(rs, id)
		if start < 0 {
			return found, nil
		}
		end := start + 1
		for end < len(rs) && rs[end].HasID(id) {
			end++
		}
		found = true
		if err := yield(rs[start:end]); err != nil {
			return true, err
		}
		rs = rs[end:]
	}
}

// candidates returns the blocks of group g that may hold the id with the given
// hash.
func (t *Table) candidates(g int, hash uint64) (candidates, error) {
	if t.mapped != nil && !t.filterAsked.Swap(true) { // rows lie far apart
		advise(t.mapped[t.foot.filterOff:][:t.foot.filterLen], unix.MADV_WILLNEED)
	}
	group := t.group(g)
	var c candidates
	for block := range min(groupBlocks, t.Blocks()-g*groupBlocks) {
		c[block/64] |= 1 << (block % 64)
	}
	for i := range uint32(filterProbes) {
		row, err := t.filterBytes(group.off+uint64(probe(hash, i, group.rows))*uint64(group.rowBytes), int(group.rowBytes))
		if err != nil {
			return c, err
		}
		if !c.and(row) {
			break
		}
	}
	return c, nil
}

// filterBytes returns n bytes, at most 64, at off of the filter section, from
// pages whose checksum is right.
func (t *Table) filterBytes(off uint64, n int) ([]byte, error) {
	first, last := off/filterPage, (off+uint64(n)-1)/filterPage
	if t.mapped != nil {
		for page := first; page <= last; page++ {
			if t.pageOK[page/64].Load()&(1<<(page%64)) != 0 {
				continue
			}
			if _, err := t.filterPage(page); err != nil {
				return nil, err
			}
			t.pageOK[page/64].Or(1 << (page % 64))
		}
		return t.mapped[t.foot.filterOff+off:][:n], nil
	}
	var both []byte
	for page := first; page <= last; page++ {
		b, err := t.filterPage(page)
		if err != nil {
			return nil, err
		}
		both = append(both, b...)
	}
	return both[off-first*filterPage:][:n], nil
}

// filterPage returns a page of the filter section after checking it.
func (t *Table) filterPage(page uint64) ([]byte, error) {
	off := t.foot.filterOff + page*filterPage
	size := min(filterPage, t.foot.filterLen-page*filterPage)
	var b []byte
	if t.mapped != nil {
		b = t.mapped[off:][:size]
	} else {
		b = make([]byte, size)
		if err := t.readAt(b, int64(off)); err != nil {
			return nil, err
		}
	}
	got, err := t.checksum(b)
	if err != nil {
		return nil, err
	}
	entry := int(t.foot.blocks)*blockEntrySize + int(t.foot.groups)*groupEntrySize + int(page)*4
	if want := binary.LittleEndian.Uint32(t.index[entry:]); got != want {
		c := t.corrupt(int64(off), "filter page %d: CRC32C is %08x, stored is %08x; searches by id fail in this table, scans by seq and time do not", page, got, want)
		c.FirstSeq, c.LastSeq = 0, 0
		return nil, c
	}
	return b, nil
}
