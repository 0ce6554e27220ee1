package store

import (
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

// persistParallel is how many instruments are flushed side by side when all are:
// a file system commits syncs that arrive together in one go.
const persistParallel = 8

// Flush makes everything applied before the call durable in tables and
// manifests, and advances DurableIndex. On a full disk (ENOSPC) it fails, and may
// be called again.
func (s *Shard) Flush() error {
	if err := s.writable(); err != nil {
		return err
	}
	index := s.applied.Load()
	var g errgroup.Group
	g.SetLimit(persistParallel)
	for _, in := range s.owned.Load().sorted {
		if in.view.Load().index > in.durable.Load() {
			g.Go(func() error { return s.flushInstrument(in) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return s.checkpoint(index)
}

// checkpoint records that the directory stands on its own up to index.
func (s *Shard) checkpoint(index uint64) error {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	if index <= s.state.covered {
		return nil
	}
	if err := s.writable(); err != nil {
		return err
	}
	return s.failUnlessFull(s.writeState(s.state.ownedIndex, index, s.owned.Load()))
}

// failUnlessFull takes the shard out of service for err, unless err says that the
// disk is full: then the call has changed nothing and may be repeated.
func (s *Shard) failUnlessFull(err error) error {
	if err == nil || noRoom(err) {
		return err
	}
	s.fail(err)
	return s.writable()
}

// flushInstrument makes the instrument's current state durable.
func (s *Shard) flushInstrument(in *instrument) error {
	in.diskMu.Lock()
	defer in.diskMu.Unlock()
	return s.flushLocked(in, in.capture())
}

// flushLocked makes v, a captured view of in, durable, if it is not yet. Errors
// other than that of a full disk are fatal. The caller holds diskMu.
func (s *Shard) flushLocked(in *instrument, v *view) error {
	if in.gone || v.index <= in.disk.index {
		return nil
	}
	if err := s.writable(); err != nil {
		return err
	}
	start := time.Now()
	t, err := s.flushTo(in, v)
	if err != nil {
		return s.failUnlessFull(fmt.Errorf("instrument %s: flush: %w", in.sym, err))
	}
	if t != nil {
		s.metrics.flushes.Add(1)
		s.metrics.flushNanos.Add(uint64(time.Since(start)))
		s.metrics.flushBytes.Add(uint64(t.meta.size))
		s.installFlushed(in, t)
	}
	return nil
}

// flushTo writes the table, if v has records that are in none, and the
// manifest.
func (s *Shard) flushTo(in *instrument, v *view) (*table, error) {
	if !in.hasDir {
		if err := makeDir(s.fs, in.dir); err != nil {
			return nil, err
		}
		in.hasDir = true
	}
	metas := in.disk.tables
	var t *table
	if v.lastSeq > in.disk.lastSeq {
		meta, err := writeTable(s, in.dir, in, v, in.disk.lastSeq, in.disk.chain)
		if err != nil {
			return nil, err
		}
		t = s.cache.newTable(in.dir, in.sym, meta)
		metas = append(metas[:len(metas):len(metas)], meta)
	}
	err := s.writeManifest(in, v.manifest(in.sym, metas))
	if noRoom(err) && t != nil {
		_ = s.fs.Remove(t.path) // no manifest names it; the next attempt writes another
	}
	return t, err
}

// writeTable writes the records of v's memtable that come after seq from.
func writeTable(s *Shard, dir string, in *instrument, v *view, from uint64, chain uint32) (tableMeta, error) {
	w, err := sstable.Create(s.fs, dir, tableName(from+1, v.lastSeq), sstable.WriterOptions{Instrument: in.sym, FirstSeq: from + 1, ChainBefore: chain})
	if err != nil {
		return tableMeta{}, err
	}
	for _, r := range v.runs {
		if r.last <= from { // an earlier flush took it
			continue
		}
		for _, rs := range r.batches {
			if err := w.Append(rs); err != nil {
				w.Abort()
				return tableMeta{}, err
			}
		}
	}
	info, err := w.Finish()
	if err != nil {
		return tableMeta{}, err
	}
	if info.ChainAfter != v.chain || info.LastSeq != v.lastSeq {
		return tableMeta{}, fmt.Errorf("table of seq %d to %d: %w: its chain is %08x, the writers' batches make %08x; records changed in memory",
			info.FirstSeq, info.LastSeq, ErrCorrupt, info.ChainAfter, v.chain)
	}
	return metaOf(&info), nil
}

// writeManifest makes m the manifest in force; the caller holds diskMu.
func (s *Shard) writeManifest(in *instrument, m *manifest) error {
	if len(m.tables) > manifestTablesMax {
		return fmt.Errorf("%d tables; a manifest names at most %d", len(m.tables), manifestTablesMax)
	}
	if err := replaceFile(s.fs, in.dir, manifestFile, m.encode()); err != nil {
		return err
	}
	in.disk = m
	in.durableSeq.Store(m.lastSeq)
	in.durable.Store(m.index)
	return nil
}

// installFlushed lets readers see t in the place of the batches it holds.
func (s *Shard) installFlushed(in *instrument, t *table) {
	in.mu.Lock()
	old := in.view.Load()
	next := old.withFlushed(t, t.meta.last)
	in.publish(next)
	in.mu.Unlock()
	s.memBytes.Add(next.memBytes - old.memBytes)
	s.work.madeRoom()
	if from, to := mergeRange(next.tables, s.opts.TableBytesMax); to > from {
		s.work.merge(in)
	}
}
