package store

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

// Finding is one damage that Verify found.
type Finding struct {
	File   string
	Offset int64
	What   string // what is damaged, what is lost, and what to do
}

// Summary counts what Verify has read.
type Summary struct {
	Files    uint64
	Bytes    uint64
	Records  uint64
	Findings uint64
	// Index is the Raft index of the latest entry whose effect the files hold; see
	// Shard.HighestIndex. Verify of a directory sets it.
	Index uint64
}

// Verify re-reads a shard's directory that no process has open and checks every
// checksum, the sequence numbers and the chain, calling report for each damage.
// The error says that the check itself could not go on.
func Verify(fs vfs.FS, dir string, report func(Finding)) (Summary, error) {
	c := &check{fs: fs, report: report, deep: true}
	err := c.dir(dir)
	return c.sum, err
}

// Verify does the same for an open shard: its live tables, manifests and
// memtables. progress, if not nil, is called after each block that was read.
func (s *Shard) Verify(ctx context.Context, report func(Finding), progress func(Summary)) (Summary, error) {
	c := &check{fs: s.fs, report: report, progress: progress, ctx: ctx, deep: true, shard: s}
	for _, in := range s.owned.Load().sorted {
		if err := c.live(in); err != nil {
			return c.sum, err
		}
	}
	return c.sum, nil
}

// check is one Verify under way.
type check struct {
	fs       vfs.FS
	ctx      context.Context // nil: never ends early
	report   func(Finding)
	progress func(Summary) // may be nil
	deep     bool          // read the tables' blocks too
	shard    *Shard        // open; nil for a directory for a directory
	sum      Summary
}

// damage turns an error about file into a finding, unless it is the file
// system's own.
func (c *check) damage(file string, err error) error {
	var at *sstable.CorruptError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &at):
		c.found(file, at.Offset, "%s", at.Error())
	case errors.Is(err, ErrCorrupt), errors.Is(err, record.ErrVersion), oserror.IsNotExist(err):
		c.found(file, 0, "%v", err)
	default:
		return err
	}
	return nil
}

func (c *check) found(file string, off int64, format string, args ...any) {
	c.sum.Findings++
	f := Finding{File: file, Offset: off, What: fmt.Sprintf(format, args...)}
	if c.shard != nil {
		c.shard.noteDamage(fmt.Errorf("%s at offset %d: %w: %s", f.File, f.Offset, ErrCorrupt, f.What))
	}
	c.report(f)
}

func (c *check) advance(bytes, records int) error {
	c.sum.Bytes += uint64(bytes)
	c.sum.Records += uint64(records)
	if c.progress != nil {
		c.progress(c.sum)
	}
	if c.ctx != nil {
		return c.ctx.Err()
	}
	return nil
}

// dir checks a shard's directory.
func (c *check) dir(dir string) error {
	path := c.fs.PathJoin(dir, shardFile)
	state, err := readShard(c.fs, dir)
	if err != nil {
		return c.damage(path, err)
	}
	c.sum.Files++
	c.sum.Index = state.highestIndex()
	for i := range state.entries {
		if err := c.instrument(dir, &state.entries[i]); err != nil {
			return err
		}
	}
	return c.foreign(dir, state)
}

// foreign reports directories of instruments that the shard does not own.
func (c *check) foreign(dir string, state *shardState) error {
	root := c.fs.PathJoin(dir, instrumentsDir)
	names, err := listDir(c.fs, root)
	if err != nil {
		return c.damage(root, err)
	}
	for _, name := range names {
		path := c.fs.PathJoin(root, name)
		sym, err := symbolOf(name)
		if err != nil {
			c.found(path, 0, "%v", err)
			continue
		}
		if _, owned := state.find(sym); owned {
			continue
		}
		if m, err := readManifest(c.fs, path, sym); err == nil && m.lastSeq > 0 {
			c.found(path, 0, "it holds %d records of an instrument that is not on the shard's list", m.lastSeq)
		}
	}
	return nil
}

func (c *check) instrument(dir string, e *shardEntry) error {
	dir = instrumentPath(c.fs, dir, e.instrument)
	path := c.fs.PathJoin(dir, manifestFile)
	m, err := readManifest(c.fs, dir, e.instrument)
	if oserror.IsNotExist(err) && e.durableSeq == 0 {
		return nil
	}
	if err != nil {
		c.found(path, 0, "%v; without it none of the instrument's records up to seq %d can be read here: restore the replica from a snapshot", err, e.durableSeq)
		return nil
	}
	c.sum.Files++
	c.sum.Index = max(c.sum.Index, m.index)
	if m.lastSeq < e.durableSeq {
		c.found(path, 0, "instrument %s: the manifest reaches seq %d, but seq %d was durable: restore the replica from a snapshot", e.instrument, m.lastSeq, e.durableSeq)
	}
	var chain uint32
	for _, meta := range m.tables {
		path := c.fs.PathJoin(dir, tableName(meta.first, meta.last))
		if err := c.damage(path, c.table(path, e.instrument, meta, chain)); err != nil {
			return err
		}
		chain = meta.chain
	}
	return nil
}

// table checks one table, which follows records with the given chain.
func (c *check) table(path string, sym record.Symbol, meta tableMeta, chain uint32) error {
	if err := statTable(c.fs, path, meta); err != nil {
		return err
	}
	t, err := sstable.Open(c.fs, path)
	if err != nil {
		return err
	}
	err = c.opened(t, sym, meta, chain)
	return errors.Join(err, t.Close())
}

func (c *check) opened(t *sstable.Table, sym record.Symbol, meta tableMeta, chain uint32) error {
	c.sum.Files++
	if err := meta.matches(t, sym); err != nil {
		return err
	}
	info := t.Info()
	if info.ChainBefore != chain {
		c.found(t.Path(), 0, "table of seq %d to %d follows chain %08x, but the records before it have %08x", meta.first, meta.last, info.ChainBefore, chain)
	}
	if !c.deep {
		return nil
	}
	return t.Verify(
		func(e *sstable.CorruptError) { c.found(e.File, e.Offset, "%s", e.Error()) },
		func(records int) error { return c.advance(records*record.Size, records) },
	)
}

// live checks an instrument of an open shard: its manifest, its tables, read
// anew, and its batches in memory.
func (c *check) live(in *instrument) error {
	path := c.fs.PathJoin(in.dir, manifestFile)
	in.diskMu.Lock()
	if in.disk.index > in.since && !in.gone {
		_, err := readManifest(c.fs, in.dir, in.sym)
		if err := c.damage(path, err); err != nil {
			in.diskMu.Unlock()
			return err
		}
		c.sum.Files++
	}
	v := in.capture()
	in.diskMu.Unlock()
	var chain uint32
	for next := uint64(1); next <= v.tablesEnd(); {
		t := v.tables[v.tableOf(next)]
		if !t.hold() { // merged away: the merge read it, and wrote what is read now
			if v = in.capture(); v.tables[v.tableOf(next)].meta.first != next {
				next, chain = 1, 0
			}
			continue
		}
		err := c.damage(t.path, c.table(t.path, in.sym, t.meta, chain))
		t.drop()
		if err != nil {
			return err
		}
		next, chain = t.meta.last+1, t.meta.chain
	}
	return c.memtable(in, v, chain)
}

func (c *check) memtable(in *instrument, v *view, chain uint32) error {
	for _, r := range v.runs {
		for _, rs := range r.batches {
			chain = crc32.Update(chain, record.Castagnoli, record.SliceBytes(rs))
			if err := c.advance(len(rs)*record.Size, len(rs)); err != nil {
				return err
			}
		}
	}
	if chain != v.chain {
		c.found(in.dir, 0, "instrument %s: records in memory up to seq %d have chain %08x, the writers' batches make %08x: restart the process, the log has them", in.sym, v.lastSeq, chain, v.chain)
	}
	return nil
}
