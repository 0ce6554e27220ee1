package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

const (
	// mergeTables is the number of neighbouring tables of one tier or below
	// that are merged.
	mergeTables = 8
	// mergeTierBytes is the largest size of a table of tier 0; each further
	// tier is mergeTables times as large.
	mergeTierBytes = 1 << 20
)

// mergeRange returns the tables, from … to−1, that are to be merged next, or
// 0, 0. Lower tiers go first. A record is rewritten once a tier, so about
// log8(TableBytesMax / 1 MiB) times in all, and an instrument has fewer than
// mergeTables tables of each tier, beside the full ones.
func mergeRange(tables []*table, bytesMax int64) (from, to int) {
	for tier := int64(mergeTierBytes); ; tier = min(tier*mergeTables, bytesMax/2) {
		if from, to := mergeRangeTier(tables, tier, bytesMax); to > from {
			return from, to
		}
		if tier >= bytesMax/2 {
			return 0, 0
		}
	}
}

// mergeRangeTier returns the first run of at least mergeTables neighbours of at
// most tier bytes each, cut off where it grows above bytesMax.
func mergeRangeTier(tables []*table, tier, bytesMax int64) (from, to int) {
	for from < len(tables) {
		for to = from; to < len(tables) && tables[to].meta.size <= tier; to++ {
		}
		if to-from >= mergeTables {
			var sum int64
			for i := from; i < to; i++ {
				if sum += tables[i].meta.size; sum > bytesMax {
					to = i
				}
			}
			if to-from >= 2 {
				return from, to
			}
		}
		from = to + 1
	}
	return 0, 0
}

// mergeInstrument merges until nothing is left to merge. Only the merge
// goroutine calls it, and nothing else takes tables away, so that the tables it
// picked stay neighbours while flushes add further ones.
func (s *Shard) mergeInstrument(in *instrument) {
	for s.writable() == nil && !s.work.stopped() {
		v := in.view.Load()
		from, to := mergeRange(v.tables, s.opts.TableBytesMax)
		if to == from {
			return
		}
		parts := slices.Clone(v.tables[from:to])
		meta, err := s.mergeTables(in, parts)
		switch {
		case errors.Is(err, errClosed):
			return
		case errors.Is(err, ErrCorrupt), noRoom(err):
			// Nothing is lost that was not before: a damaged table stays as it
			// is, readers are told what it lacks and verify finds it; without
			// room the parts stay until the next flush asks again.
			s.gaveUp(err)
			return
		}
		if err == nil {
			if err = s.installMerged(in, parts, meta); noRoom(err) {
				_ = s.fs.Remove(s.fs.PathJoin(in.dir, tableName(meta.first, meta.last))) // no manifest names it
				s.gaveUp(err)
				return
			}
		}
		if err != nil {
			s.fail(fmt.Errorf("instrument %s: merge: %w", in.sym, err))
			return
		}
	}
}

// mergeTables writes the parts' records into one table.
func (s *Shard) mergeTables(in *instrument, parts []*table) (tableMeta, error) {
	first, last := parts[0].meta.first, parts[len(parts)-1].meta.last
	var w *sstable.Writer
	for _, t := range parts {
		if err := s.mergePart(in, t, &w, first, last); err != nil {
			if w != nil {
				w.Abort()
			}
			return tableMeta{}, err
		}
	}
	info, err := w.Finish()
	if err != nil {
		return tableMeta{}, err
	}
	if want := parts[len(parts)-1].meta.chain; info.ChainAfter != want {
		return tableMeta{}, fmt.Errorf("merged table of seq %d to %d: %w: its chain is %08x, its parts end with %08x", first, last, ErrCorrupt, info.ChainAfter, want)
	}
	s.metrics.merges.Add(1)
	s.metrics.mergeBytes.Add(uint64(info.Size))
	return metaOf(&info), nil
}

// mergePart copies the blocks of one part. The first part starts the table.
func (s *Shard) mergePart(in *instrument, t *table, w **sstable.Writer, first, last uint64) error {
	open, err := t.pin()
	if err != nil {
		return err
	}
	defer t.unpin()
	if *w == nil {
		o := sstable.WriterOptions{Instrument: in.sym, FirstSeq: first, ChainBefore: open.Info().ChainBefore}
		if *w, err = sstable.Create(s.fs, in.dir, tableName(first, last), o); err != nil {
			return err
		}
	}
	for i := range open.Blocks() {
		if s.work.stopped() {
			return errClosed
		}
		rs, err := open.BlockAhead(i, open.Blocks())
		if err != nil {
			return err
		}
		if err := (*w).Append(rs); err != nil {
			return err
		}
	}
	return nil
}

// installMerged puts the merged table in its parts' place, first on disk, then
// for readers, and lets go of the parts.
func (s *Shard) installMerged(in *instrument, parts []*table, meta tableMeta) error {
	in.diskMu.Lock()
	defer in.diskMu.Unlock()
	v := in.view.Load() // its tables change under diskMu only
	from := slices.Index(v.tables, parts[0])
	to := from + len(parts)
	m := *in.disk
	m.tables = slices.Concat(m.tables[:from], []tableMeta{meta}, m.tables[to:])
	if err := s.writeManifest(in, &m); err != nil {
		return err
	}
	in.mu.Lock()
	in.publish(in.view.Load().withMerged(s.cache.newTable(in.dir, in.sym, meta), from, to))
	in.mu.Unlock()
	for _, t := range parts {
		t.drop()
	}
	return nil
}

// gaveUp counts a merge that was given up, and notes the damage that it has met.
func (s *Shard) gaveUp(err error) {
	s.metrics.mergeFailures.Add(1)
	if errors.Is(err, ErrCorrupt) {
		s.noteDamage(err)
	}
}
