package store

import (
	"fmt"
	"hash/crc32"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

// Snapshot is a consistent cut through all instruments. Its methods may be
// called from one goroutine at a time.
type Snapshot struct {
	shard      *Shard
	index      uint64
	ownedIndex uint64
	cuts       []*cut

	mu   sync.Mutex
	held []*table // whose files must stay
}

// cut is one instrument in a snapshot.
type cut struct {
	in *instrument
	v  *view // without open batches; its tables are held
}

// Snapshot captures the state at AppliedIndex without I/O. FSM goroutine only.
// The caller must Release it.
func (s *Shard) Snapshot() *Snapshot {
	set := s.owned.Load()
	c := &Snapshot{shard: s, index: s.applied.Load(), cuts: make([]*cut, 0, len(set.sorted))}
	s.stateMu.Lock()
	c.ownedIndex = s.state.ownedIndex
	s.stateMu.Unlock()
	for _, in := range set.sorted {
		v := in.capture()
		for !c.holdAll(v.tables) { // a merge took one away since
			v = in.capture()
		}
		c.cuts = append(c.cuts, &cut{in, v})
	}
	return c
}

// holdAll holds the tables, or none of them.
func (c *Snapshot) holdAll(tables []*table) bool {
	for i, t := range tables {
		if !t.hold() {
			for _, t := range tables[:i] {
				t.drop()
			}
			return false
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = append(c.held, tables...)
	return true
}

// Index returns the Raft index of the cut.
func (c *Snapshot) Index() uint64 { return c.index }

// Release lets go of the tables and memory that the cut holds. It may be called
// twice.
func (c *Snapshot) Release() {
	c.mu.Lock()
	held := c.held
	c.held, c.cuts = nil, nil
	c.mu.Unlock()
	for _, t := range held {
		t.drop()
	}
}

// Persist makes the cut durable in the shard itself (DurableIndex reaches
// Index), then writes it to dir, whose parent must exist on the shard's file
// system and which must not exist: hard links to tables, manifests at exactly
// the cut, and last the file SNAPSHOT that lists all others with size and
// CRC32C. The shard must not be closed before it returns. After an error dir may
// be there in part, without SNAPSHOT.
func (c *Snapshot) Persist(dir string) (Listing, error) {
	s := c.shard
	fs := s.fs
	if _, err := fs.Stat(dir); err == nil {
		return Listing{}, fmt.Errorf("snapshot directory %s: it exists already", dir)
	}
	for _, d := range []string{dir, fs.PathJoin(dir, instrumentsDir)} {
		if err := makeDir(fs, d); err != nil {
			return Listing{}, fmt.Errorf("snapshot: %w", err)
		}
	}
	parts := make([][]ListedFile, len(c.cuts))
	var g errgroup.Group
	g.SetLimit(persistParallel)
	for i, cut := range c.cuts {
		g.Go(func() (err error) {
			parts[i], err = c.persistCut(cut, dir)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return Listing{}, err
	}
	if err := s.checkpoint(c.index); err != nil {
		return Listing{}, err
	}
	l, err := c.finish(dir, slices.Concat(parts...))
	if err == nil {
		s.metrics.snapshots.Add(1)
	}
	return l, err
}

// finish writes SHARD and, when all else is durable, SNAPSHOT.
func (c *Snapshot) finish(dir string, files []ListedFile) (Listing, error) {
	fs := c.shard.fs
	state := &shardState{ownedIndex: c.ownedIndex, covered: c.index}
	for _, cut := range c.cuts {
		state.entries = append(state.entries, shardEntry{instrument: cut.in.sym, since: cut.in.since, durableSeq: cut.v.lastSeq})
	}
	b := state.encode()
	if err := replaceFile(fs, dir, shardFile, b); err != nil {
		return Listing{}, fmt.Errorf("snapshot: %w", err)
	}
	if err := sstable.SyncDir(fs, fs.PathJoin(dir, instrumentsDir)); err != nil {
		return Listing{}, fmt.Errorf("snapshot: %w", err)
	}
	l := Listing{Index: c.index, Files: append(files, listed(shardFile, b))}
	slices.SortFunc(l.Files, compareListed)
	if err := replaceFile(fs, dir, ListingName, l.encode()); err != nil {
		return Listing{}, fmt.Errorf("snapshot: %w", err)
	}
	return l, nil
}

func listed(path string, b []byte) ListedFile {
	return ListedFile{Path: path, Size: int64(len(b)), CRC: crc32.Checksum(b, record.Castagnoli)}
}

// persistCut makes one instrument durable and writes its part of the directory.
func (c *Snapshot) persistCut(cut *cut, dir string) ([]ListedFile, error) {
	s, fs, in, v := c.shard, c.shard.fs, cut.in, cut.v
	tables, err := c.settle(cut)
	if err != nil {
		return nil, err
	}
	if v.index == in.since { // nothing has happened to it
		return nil, nil
	}
	to := instrumentPath(fs, dir, in.sym)
	if err := fs.MkdirAll(to, 0o755); err != nil {
		return nil, fmt.Errorf("snapshot: directory %s: make: %w", to, err)
	}
	var files []ListedFile
	metas := make([]tableMeta, 0, len(tables)+1)
	list := func(meta tableMeta) {
		metas = append(metas, meta)
		files = append(files, ListedFile{Path: listedPath(in.sym, tableName(meta.first, meta.last)), Size: meta.size, CRC: meta.crc})
	}
	for _, t := range tables {
		if err := fs.Link(t.path, fs.PathJoin(to, tableName(t.meta.first, t.meta.last))); err != nil {
			return nil, fmt.Errorf("snapshot: table %s: link into %s: %w", t.path, to, err)
		}
		list(t.meta)
	}
	if end, chain := endOf(tables); end < v.lastSeq {
		meta, err := writeTable(s, to, in, v, end, chain)
		if err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
		list(meta)
	}
	b := v.manifest(in.sym, metas).encode()
	if err := replaceFile(fs, to, manifestFile, b); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return append(files, listed(listedPath(in.sym, manifestFile), b)), nil
}

func endOf(tables []*table) (seq uint64, chain uint32) {
	if n := len(tables); n > 0 {
		return tables[n-1].meta.last, tables[n-1].meta.chain
	}
	return 0, 0
}

// settle makes the cut durable in the shard and returns tables that hold its
// first records; what they lack is in the cut's own runs. Mostly they hold all:
// the live tables do, unless one of them spans the cut because of a flush or
// merge since.
func (c *Snapshot) settle(cut *cut) ([]*table, error) {
	in, v := cut.in, cut.v
	in.diskMu.Lock()
	defer in.diskMu.Unlock()
	if err := c.shard.flushLocked(in, v); err != nil {
		return nil, err
	}
	live := in.view.Load() // its tables change under diskMu only
	if v.lastSeq > 0 && live.tablesEnd() >= v.lastSeq {
		n := live.tableOf(v.lastSeq) + 1
		if live.tables[n-1].meta.last == v.lastSeq && c.holdAll(live.tables[:n]) {
			return live.tables[:n], nil
		}
	}
	return v.tables, nil
}
