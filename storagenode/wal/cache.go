package wal

import (
	"unsafe"

	"github.com/hashicorp/raft"
)

// entryOverheadBytes is what an entry costs the cache besides its bytes.
const entryOverheadBytes = int64(unsafe.Sizeof(raft.Log{}))

// cache holds the newest entries of the log, as many as fit in bytesMax, in a
// ring. It refers to the entries' Data and Extensions and never reuses them:
// a state machine may refer to them, too. The caller locks.
//
// Invariant: the entries are a run of consecutive indexes that ends with the
// log's last one, or there are none.
type cache struct {
	bytesMax int64
	bytes    int64
	ring     []raft.Log // its length is a power of two; index i is at i & (len-1)
	first    uint64     // of the run; meaningless while count is 0
	count    uint64
}

const ringSlotsLeast = 64

func entryBytes(l *raft.Log) int64 {
	return int64(len(l.Data)) + int64(len(l.Extensions)) + entryOverheadBytes
}

func (c *cache) slot(index uint64) *raft.Log { return &c.ring[index&uint64(len(c.ring)-1)] }

// add appends l, which follows the run, and drops the oldest entries beyond
// bytesMax.
func (c *cache) add(l *raft.Log) {
	n := entryBytes(l)
	if n > c.bytesMax {
		c.clear()
		return
	}
	if c.count > 0 && l.Index != c.first+c.count {
		c.clear()
	}
	for c.bytes+n > c.bytesMax {
		c.dropFirst()
	}
	if c.count == uint64(len(c.ring)) {
		c.resize(max(2*len(c.ring), ringSlotsLeast))
	}
	if c.count == 0 {
		c.first = l.Index
	}
	*c.slot(l.Index) = *l
	c.count++
	c.bytes += n
}

// resize makes the ring one of so many slots, a power of two and at least count.
func (c *cache) resize(slots int) {
	old := *c
	c.ring = make([]raft.Log, slots)
	for i := range old.count {
		*c.slot(old.first + i) = *old.slot(old.first + i)
	}
}

func (c *cache) dropFirst() {
	l := c.slot(c.first)
	c.bytes -= entryBytes(l)
	*l = raft.Log{}
	c.first++
	c.count--
}

// join adds the entries of another, which follow the run.
func (c *cache) join(other *cache) {
	for i := range other.count {
		c.add(other.slot(other.first + i))
	}
}

// shrink lowers bytesMax to n and drops the oldest entries beyond it.
func (c *cache) shrink(n int64) {
	c.bytesMax = min(c.bytesMax, max(n, 0))
	for c.bytes > c.bytesMax {
		c.dropFirst()
	}
	slots := len(c.ring)
	for slots > ringSlotsLeast && c.count < uint64(slots)/4 {
		slots /= 2
	}
	if slots < len(c.ring) {
		c.resize(slots)
	}
}

// get copies the entry into log and reports whether the cache holds it.
func (c *cache) get(index uint64, log *raft.Log) bool {
	if index < c.first || index-c.first >= c.count {
		return false
	}
	*log = *c.slot(index)
	return true
}

// dropBelow forgets the entries before index.
func (c *cache) dropBelow(index uint64) {
	for c.count > 0 && c.first < index {
		c.dropFirst()
	}
}

// dropFrom forgets the entry at index and those after it.
func (c *cache) dropFrom(index uint64) {
	for c.count > 0 && c.first+c.count > index {
		l := c.slot(c.first + c.count - 1)
		c.bytes -= entryBytes(l)
		*l = raft.Log{}
		c.count--
	}
}

func (c *cache) clear() { c.dropFrom(0) }
