package wal

import (
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// DeleteRange deletes the entries from lowest to highest, both inclusive, from
// the start of the log, from its end, or all of it; a range that would leave a
// hole is refused. When it returns nil the change is on disk: no deleted entry
// is found there by a later Open.
func (w *WAL) DeleteRange(lowest, highest uint64) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	switch {
	case w.last == 0 || lowest > highest || highest < w.first || lowest > w.last:
		return nil
	case lowest <= w.first && highest >= w.last:
		return w.deleteAll()
	case lowest <= w.first:
		return w.deletePrefix(highest + 1)
	case highest >= w.last:
		return w.deleteSuffix(lowest)
	}
	return fmt.Errorf("wal: %s: delete %d to %d of %d to %d: the log can not have a hole", w.dir, lowest, highest, w.first, w.last)
}

// deletePrefix makes first the log's first entry. A frame in the active segment
// says so; segments without an entry of the log are dead.
func (w *WAL) deletePrefix(first uint64) error {
	if w.active().room() < frameHeaderSize {
		if err := w.roll(w.last+1, first); err != nil {
			return err
		}
	}
	s := w.active()
	w.beginGroup(s, frameHeaderSize)
	h := frameHeader{index: first, group: s.group + 1, kind: frameLogStart, flags: flagGroupEnd}
	w.buf = appendFrame(w.buf, &h, nil, nil, s.header.salt)
	if err := w.writeGroup(s); err != nil {
		return err
	}
	s.group++
	w.mu.Lock()
	s.end += frameHeaderSize
	w.first = first
	w.cache.dropBelow(first)
	keep := w.find(first)
	dead := w.segs[:keep]
	w.segs = slices.Clone(w.segs[keep:])
	w.mu.Unlock()
	w.recycler.retire(dead)
	w.publishGauges()
	return nil
}

// deleteSuffix makes from-1 the log's last entry. The deleted frames stay where
// they are: the header of a fresh segment says that the one before ends in
// front of them, and what follows is written there, under another salt.
func (w *WAL) deleteSuffix(from uint64) error {
	next, err := w.recycler.next()
	if err != nil {
		return err
	}
	w.mu.Lock()
	at := w.find(from - 1)
	cut := w.segs[at]
	if n := from - cut.header.firstIndex; n < cut.count() {
		cut.end = int64(cut.offsets[n]) * frameAlign
		cut.offsets = slices.Clip(cut.offsets[:n])
	}
	w.last = from - 1
	w.cache.dropFrom(from)
	w.cache.shrink(w.opts.CacheBytes) // there is a leader, and what it has replaces the log's end
	w.attach(next, at+1, from, w.first)
	w.mu.Unlock()
	if err := w.writeHeader(next); err != nil {
		return err
	}
	cut.shrink()
	w.publishGauges()
	return nil
}

// deleteAll empties the log, which then starts at any index, in a fresh
// segment that follows none.
func (w *WAL) deleteAll() error {
	next, err := w.recycler.next()
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.first, w.last = 0, 0
	w.cache.clear()
	w.cache.shrink(w.opts.CacheBytes)
	w.attach(next, 0, 0, 0)
	w.mu.Unlock()
	if err := w.writeHeader(next); err != nil {
		return err
	}
	w.publishGauges()
	return nil
}

// writeHeader writes and syncs the header of a segment that holds no frames.
func (w *WAL) writeHeader(s *segment) error {
	w.beginGroup(s, 0)
	return w.writeGroup(s)
}

// shrinkBytesLeast is the least that is worth giving back to the file system.
const shrinkBytesLeast = 1 << 20

// shrink frees the disk space behind the end of a segment that takes no more
// entries. It is an economy: where it is not possible nothing is lost.
func (s *segment) shrink() {
	if fd := s.file.Fd(); fd != vfs.InvalidFd && s.room() >= shrinkBytesLeast {
		_ = unix.Ftruncate(int(fd), s.end)
	}
}
