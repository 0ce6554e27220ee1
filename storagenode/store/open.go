package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

// Open opens the shard in dir, or creates an empty one. It locks the directory
// against other processes, drops files that no manifest names, and fails with an
// error that wraps ErrCorrupt if what the manifests promise is not there. After
// it the caller replays its log from DurableIndex()+1.
func Open(fs vfs.FS, dir string, opts Options) (*Shard, error) {
	s := &Shard{fs: fs, dir: dir, opts: opts.withDefaults()}
	s.cache = &tableCache{fs: fs, max: s.opts.OpenTablesMax}
	s.work.init()
	if err := makeDir(fs, dir); err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	lock, err := fs.Lock(fs.PathJoin(dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("store %s: lock: another process has it open: %w", dir, err)
	}
	s.lock = lock
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("store %s: %w", dir, err), lock.Close())
	}
	s.work.start(s)
	return s, nil
}

func (s *Shard) load() error {
	if err := makeDir(s.fs, s.fs.PathJoin(s.dir, instrumentsDir)); err != nil {
		return err
	}
	state, err := readShard(s.fs, s.dir)
	if oserror.IsNotExist(err) {
		state, err = s.create()
	}
	if err != nil {
		return err
	}
	s.state = state
	s.covered.Store(state.covered)
	s.applied.Store(state.covered)
	if err := s.dropForeign(); err != nil {
		return err
	}
	set := &ownedSet{bySymbol: make(map[record.Symbol]*instrument, len(state.entries))}
	for i := range state.entries {
		in, err := s.loadInstrument(&state.entries[i])
		if err != nil {
			return err
		}
		set.add(in)
	}
	s.owned.Store(set)
	return s.removeListing()
}

func (o *ownedSet) add(in *instrument) {
	o.bySymbol[in.sym] = in
	o.sorted = append(o.sorted, in)
}

// create writes the SHARD file of an empty shard. Where instruments have
// directories already, the file was lost.
func (s *Shard) create() (*shardState, error) {
	names, err := listDir(s.fs, s.fs.PathJoin(s.dir, instrumentsDir))
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		return nil, fmt.Errorf("file %s: %w: it is missing, though there are instruments; restore the replica from a snapshot", s.fs.PathJoin(s.dir, shardFile), ErrCorrupt)
	}
	state := &shardState{}
	return state, replaceFile(s.fs, s.dir, shardFile, state.encode())
}

// Used reports whether the shard in dir has had an effect of any log entry. What a
// crash leaves of the making of an empty one has not. A shard that can not be read
// counts as used.
func Used(fs vfs.FS, dir string) (bool, error) {
	state, err := readShard(fs, dir)
	if err == nil {
		return state.highestIndex() > 0 || len(state.entries) > 0, nil
	}
	if !oserror.IsNotExist(err) {
		return true, err
	}
	names, err := listDir(fs, fs.PathJoin(dir, instrumentsDir))
	if oserror.IsNotExist(err) {
		return false, nil
	}
	return len(names) > 0 || err != nil, err
}

// removeListing takes away what marks the directory as a snapshot: from now on
// it changes.
func (s *Shard) removeListing() error {
	path := s.fs.PathJoin(s.dir, ListingName)
	if err := s.fs.Remove(path); err != nil && !oserror.IsNotExist(err) {
		return fmt.Errorf("file %s: remove: %w", path, err)
	}
	return nil
}

// dropForeign removes the directories of instruments that are not on the list.
// A crash between SetOwned's two steps leaves such; they hold no records.
func (s *Shard) dropForeign() error {
	root := s.fs.PathJoin(s.dir, instrumentsDir)
	names, err := listDir(s.fs, root)
	if err != nil {
		return err
	}
	for _, name := range names {
		sym, err := symbolOf(name)
		if err != nil {
			return fmt.Errorf("directory %s: %w; move it elsewhere", s.fs.PathJoin(root, name), err)
		}
		if _, owned := s.state.find(sym); owned {
			continue
		}
		dir := s.fs.PathJoin(root, name)
		if m, err := readManifest(s.fs, dir, sym); err == nil && m.lastSeq > 0 {
			return fmt.Errorf("directory %s: %w: it holds %d records of an instrument that is not on the shard's list", dir, ErrCorrupt, m.lastSeq)
		} else if err != nil && !oserror.IsNotExist(err) {
			return err
		}
		if err := s.fs.RemoveAll(dir); err != nil {
			return fmt.Errorf("directory %s: remove: %w", dir, err)
		}
	}
	return sstable.SyncDir(s.fs, root)
}

func (s *shardState) find(sym record.Symbol) (int, bool) {
	return slices.BinarySearchFunc(s.entries, sym, func(e shardEntry, sym record.Symbol) int { return compareSymbols(e.instrument, sym) })
}

// loadInstrument reads what is stored of one instrument.
func (s *Shard) loadInstrument(e *shardEntry) (*instrument, error) {
	in := newInstrument(instrumentPath(s.fs, s.dir, e.instrument), e.instrument, e.since)
	names, err := s.fs.List(in.dir)
	switch {
	case err == nil:
		in.hasDir = true
	case !oserror.IsNotExist(err):
		return nil, fmt.Errorf("directory %s: list: %w", in.dir, err)
	}
	m := in.disk
	if slices.Contains(names, manifestFile) {
		if m, err = readManifest(s.fs, in.dir, in.sym); err != nil {
			return nil, err
		}
	}
	if m.lastSeq < e.durableSeq || m.index < e.since {
		return nil, fmt.Errorf("instrument %s: %w: its manifest in %s reaches seq %d, but seq %d was durable; records in between are lost here, restore the replica from a snapshot",
			in.sym, ErrCorrupt, in.dir, m.lastSeq, e.durableSeq)
	}
	if err := dropOrphans(s.fs, in.dir, names, m); err != nil {
		return nil, err
	}
	return in, s.adopt(in, m)
}

// adopt makes m the state of in.
func (s *Shard) adopt(in *instrument, m *manifest) error {
	tables := make([]*table, len(m.tables))
	for i, meta := range m.tables {
		t := s.cache.newTable(in.dir, in.sym, meta)
		if err := statTable(s.fs, t.path, meta); err != nil {
			return err
		}
		tables[i] = t
	}
	in.disk = m
	in.durableSeq.Store(m.lastSeq)
	in.durable.Store(m.index)
	in.view.Store(viewOf(m, tables))
	return nil
}

func statTable(fs vfs.FS, path string, meta tableMeta) error {
	info, err := fs.Stat(path)
	switch {
	case oserror.IsNotExist(err):
		return fmt.Errorf("table %s: %w: it is missing; records seq %d to %d are lost here, restore the replica from a snapshot", path, ErrCorrupt, meta.first, meta.last)
	case err != nil:
		return fmt.Errorf("table %s: stat: %w", path, err)
	case info.Size() != meta.size:
		return fmt.Errorf("table %s: %w: it has %d bytes, the manifest says %d; records seq %d to %d may be lost here, restore the replica from a snapshot",
			path, ErrCorrupt, info.Size(), meta.size, meta.first, meta.last)
	}
	return nil
}

// dropOrphans removes files that a crash left behind: temporary ones, and tables
// that m does not name.
func dropOrphans(fs vfs.FS, dir string, names []string, m *manifest) error {
	live := make(map[string]bool, len(m.tables))
	for _, t := range m.tables {
		live[tableName(t.first, t.last)] = true
	}
	for _, name := range names {
		orphan := strings.HasSuffix(name, tempSuffix) || strings.HasSuffix(name, tableSuffix) && !live[name]
		if !orphan {
			continue
		}
		if err := fs.Remove(fs.PathJoin(dir, name)); err != nil {
			return fmt.Errorf("file %s: remove: %w", fs.PathJoin(dir, name), err)
		}
	}
	return nil
}
