package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

// errGone means that a merge has replaced the table since the view that named
// it was loaded; the current view has one with the same records.
var errGone = errors.New("table was merged away")

// table is one table file of an instrument. It is opened when it is first read
// and closed again when too many are open.
type table struct {
	cache *tableCache
	sym   record.Symbol
	path  string
	meta  tableMeta

	mu sync.Mutex
	// Invariant: the file exists while refs + pins > 0, and open is not nil
	// while pins > 0. The manifest that is in force has one ref.
	refs int
	pins int
	open *sstable.Table

	touched atomic.Bool // read since the cache's hand last passed
	slot    int         // in cache.opened; guarded by cache.mu
}

func (c *tableCache) newTable(dir string, sym record.Symbol, meta tableMeta) *table {
	return &table{cache: c, sym: sym, meta: meta, refs: 1, path: c.fs.PathJoin(dir, tableName(meta.first, meta.last))}
}

// pin returns the open table, which stays open until unpin.
func (t *table) pin() (*sstable.Table, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refs == 0 && t.pins == 0 {
		return nil, errGone
	}
	if t.open == nil {
		if err := t.openLocked(); err != nil {
			return nil, err
		}
	}
	t.pins++
	t.touched.Store(true)
	return t.open, nil
}

func (t *table) openLocked() error {
	open, err := sstable.Open(t.cache.fs, t.path)
	if err != nil {
		return err
	}
	if err := t.meta.matches(open, t.sym); err != nil {
		return errors.Join(err, open.Close())
	}
	t.open = open
	t.cache.admit(t)
	return nil
}

// matches reports whether the table is the one that the manifest means.
func (m *tableMeta) matches(open *sstable.Table, sym record.Symbol) error {
	info := open.Info()
	info.CRC = m.crc // not known without reading the file
	if got := metaOf(&info); got != *m || info.Instrument != sym {
		return fmt.Errorf("table %s: %w: it holds %s seq %d to %d, chain %08x; the manifest says %s seq %d to %d, chain %08x",
			open.Path(), ErrCorrupt, info.Instrument, got.first, got.last, got.chain, sym, m.first, m.last, m.chain)
	}
	return nil
}

func (t *table) unpin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pins--
	if t.pins == 0 && t.cache.closed.Load() {
		t.closeLocked()
	}
	t.removeIfUnused()
}

// hold keeps the file from being removed until drop. It reports false if the
// table is gone already.
func (t *table) hold() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refs == 0 {
		return false
	}
	t.refs++
	return true
}

func (t *table) drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refs--
	t.removeIfUnused()
}

// removeIfUnused removes the file when nothing names or reads it any more. A
// file that can not be removed is an orphan, which the next Open removes.
func (t *table) removeIfUnused() {
	if t.refs > 0 || t.pins > 0 {
		return
	}
	t.closeLocked()
	if err := t.cache.fs.Remove(t.path); err != nil {
		t.cache.removeErrors.Add(1)
	}
}

func (t *table) closeLocked() {
	if t.open != nil {
		t.cache.forget(t)
		_ = t.open.Close() // a read-only mapping; nothing can be lost
		t.open = nil
	}
}

// tableCache bounds how many tables are open that nobody is reading, by the
// clock algorithm. Lock order: table.mu, then cache.mu.
type tableCache struct {
	fs           vfs.FS
	max          int
	removeErrors atomic.Uint64
	closed       atomic.Bool // tables close when their last reader leaves
	mu           sync.Mutex
	opened       []*table
	hand         int
}

// admit takes in t, which was just opened and is locked by the caller, and
// closes others while too many are open.
func (c *tableCache) admit(t *table) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.slot = len(c.opened)
	c.opened = append(c.opened, t)
	for steps := 2 * len(c.opened); len(c.opened) > c.max && steps > 0; steps-- {
		c.hand = (c.hand + 1) % len(c.opened)
		if old := c.opened[c.hand]; old != t && !old.touched.Swap(false) {
			c.tryClose(old)
		}
	}
}

func (c *tableCache) tryClose(t *table) {
	if !t.mu.TryLock() { // its holder may be waiting for c.mu
		return
	}
	defer t.mu.Unlock()
	if t.pins == 0 && t.open != nil {
		c.forgetLocked(t)
		_ = t.open.Close()
		t.open = nil
	}
}

func (c *tableCache) forget(t *table) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgetLocked(t)
}

func (c *tableCache) forgetLocked(t *table) {
	last := len(c.opened) - 1
	c.opened[t.slot] = c.opened[last]
	c.opened[t.slot].slot = t.slot
	c.opened[last] = nil
	c.opened = c.opened[:last]
}

func (c *tableCache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.opened)
}

// closeAll closes every table, those that are being read when they no longer are.
func (c *tableCache) closeAll() {
	c.closed.Store(true)
	c.mu.Lock()
	tables := append([]*table(nil), c.opened...)
	c.mu.Unlock()
	for _, t := range tables {
		t.mu.Lock()
		if t.pins == 0 {
			t.closeLocked()
		}
		t.mu.Unlock()
	}
}
