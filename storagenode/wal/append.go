package wal

import (
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/directio"
)

// bufBytesKept bounds the write buffer between groups: one that an unusually
// large group grew is let go.
const bufBytesKept = 16 << 20

// bufBytesLeast is the least that the write buffer is made for.
const bufBytesLeast = 256 << 10

// StoreLog stores one entry, see StoreLogs.
func (w *WAL) StoreLog(log *raft.Log) error { return w.StoreLogs([]*raft.Log{log}) }

// StoreLogs appends entries, which must follow the last one without a gap
// (ErrGap) and fit into a segment each (ErrTooLarge); an empty log starts
// at any index but 0. When it returns nil the entries are on disk. They are
// written as one group: one write, one fdatasync. A group larger than a segment
// is split. On an error the entries may be stored in part; a full disk
// (ENOSPC) leaves the log usable, ErrPoisoned does not.
//
// Data and Extensions are referred to by the cache and must never be changed.
func (w *WAL) StoreLogs(logs []*raft.Log) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	if err := w.checkRun(logs); err != nil {
		return err
	}
	for len(logs) > 0 {
		n := w.fitting(logs)
		if n == 0 {
			if err := w.roll(logs[0].Index, w.firstOr(logs[0].Index)); err != nil {
				return err
			}
			continue
		}
		if err := w.appendGroup(logs[:n]); err != nil {
			return err
		}
		logs = logs[n:]
	}
	return nil
}

// checkRun refuses entries that the log can not take, before any is written.
func (w *WAL) checkRun(logs []*raft.Log) error {
	for i, l := range logs {
		switch {
		case i == 0 && w.last == 0 && l.Index == 0:
			return fmt.Errorf("wal: %s: %w: index 0; indexes start at 1", w.dir, ErrGap)
		case i == 0 && w.last != 0 && l.Index != w.last+1:
			return fmt.Errorf("wal: %s: %w: entry %d after last entry %d", w.dir, ErrGap, l.Index, w.last)
		case i > 0 && l.Index != logs[i-1].Index+1:
			return fmt.Errorf("wal: %s: %w: entry %d after entry %d", w.dir, ErrGap, l.Index, logs[i-1].Index)
		}
		if n := int64(len(l.Data)) + int64(len(l.Extensions)); n > w.MaxEntryBytes() {
			return fmt.Errorf("wal: %s: %w: entry %d has %d bytes, a segment of %d bytes takes %d", w.dir, ErrTooLarge, l.Index, n, w.opts.SegmentBytes, w.MaxEntryBytes())
		}
	}
	return nil
}

// fitting returns how many of logs the active segment takes as the next group.
// A group that fits into a segment is not split: the segment's rest is given up
// instead.
func (w *WAL) fitting(logs []*raft.Log) int {
	room := w.active().room()
	var need int64
	fit := 0
	for i, l := range logs {
		need += frameSize(int64(len(l.Extensions)), int64(len(l.Data)))
		if need <= room {
			fit = i + 1
		}
	}
	if fit < len(logs) && need <= w.opts.SegmentBytes-frameStart {
		return 0
	}
	return fit
}

// appendGroup writes logs, which fit, as one group to the active segment.
func (w *WAL) appendGroup(logs []*raft.Log) error {
	s := w.active()
	if s.header.firstIndex == 0 { // the log is empty: the group says where it starts
		s.header.firstIndex, s.header.logStart = logs[0].Index, logs[0].Index
		s.headerDue = true
	}
	var size int64
	for _, l := range logs {
		size += frameSize(int64(len(l.Extensions)), int64(len(l.Data)))
	}
	w.beginGroup(s, size)
	start := len(w.buf)
	base := s.end - int64(start)
	w.offsets = w.offsets[:0]
	for i, l := range logs {
		w.offsets = append(w.offsets, uint32((base+int64(len(w.buf)))/frameAlign))
		h := frameHeader{
			dataLen: uint32(len(l.Data)), extLen: uint32(len(l.Extensions)),
			index: l.Index, term: l.Term, appendedAt: unixNanos(l.AppendedAt),
			group: s.group + 1, kind: frameEntry, logType: l.Type,
		}
		if i == len(logs)-1 {
			h.flags = flagGroupEnd
		}
		w.buf = appendFrame(w.buf, &h, l.Extensions, l.Data, s.header.salt)
	}
	end := base + int64(len(w.buf))
	if err := w.writeGroup(s); err != nil {
		return err
	}
	s.group++
	w.metrics.entries.Add(float64(len(logs)))
	w.publish(s, logs, end)
	return nil
}

// beginGroup empties the buffer, makes room for so many bytes of frames, and puts
// first what the page that they begin in holds already: the header page if it is
// due, else the end of the frames before.
func (w *WAL) beginGroup(s *segment, frames int64) {
	need := frames + 2*frameStart
	if c := int64(cap(w.buf)); c < need || c > bufBytesKept && need <= bufBytesKept {
		w.buf = directio.Buffer(int(max(need, bufBytesLeast)))
	}
	if s.headerDue {
		w.buf = append(w.buf[:0], zeroPage[:]...)
		s.header.put(w.buf)
		return
	}
	w.buf = append(w.buf[:0], s.tail...)
}

// writeGroup writes the buffer, which fills pages from the one that begins or holds
// the end of the frames, and syncs. A page is written as a whole, with the same
// bytes as before in front and zeroes behind: a disk and the kernel would do that
// anyway, and have to read it first.
func (w *WAL) writeGroup(s *segment) error {
	at := s.end - int64(len(s.tail))
	if s.headerDue {
		at = 0
	}
	used := len(w.buf)
	rest := used % frameStart
	if rest != 0 {
		w.buf = append(w.buf, zeroPage[rest:]...)
	}
	writing := time.Now()
	w.writingSince.Store(&writing)
	defer w.writingSince.Store(nil)
	if err := writeAt(s.out, w.buf, at); err != nil {
		return w.fail(fmt.Sprintf("write of %d bytes at offset %d", len(w.buf), at), s.path, err)
	}
	began := time.Now()
	if err := s.out.file.SyncData(); err != nil {
		return w.fail("fdatasync", s.path, err)
	}
	s.tail = append(s.tail[:0], w.buf[used-rest:used]...)
	w.metrics.fsyncSeconds.Observe(time.Since(began).Seconds())
	w.metrics.bytesWritten.Add(float64(len(w.buf)))
	w.metrics.groups.Inc()
	s.headerDue = false
	if s.fresh {
		s.fresh = false
		w.started(s)
	}
	return nil
}

// started does what had to wait until the header of s was on disk: before, a
// crash would have brought the log back as it was without s.
func (w *WAL) started(s *segment) {
	w.recycler.retire(w.dead)
	w.dead = nil
	w.recycler.request(s.header.id + 1)
}

var zeroPage [frameStart]byte

// publish lets readers see what has reached the disk.
func (w *WAL) publish(s *segment, logs []*raft.Log, end int64) {
	w.mu.Lock()
	s.offsets = append(s.offsets, w.offsets...)
	s.end = end
	if w.last == 0 {
		w.first = logs[0].Index
	}
	w.last = logs[len(logs)-1].Index
	for _, l := range logs {
		w.cache.add(l)
	}
	w.mu.Unlock()
	w.publishGauges()
}

// roll makes the next prepared segment the active one. Its header, which ends
// the segment before, is written with its first group. first is the index of
// its first entry, logStart that of the log's.
func (w *WAL) roll(first, logStart uint64) error {
	next, err := w.recycler.next()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attach(next, len(w.segs), first, logStart)
	return nil
}

// attach puts next behind the first keep segments and starts it. Those after
// them, and those without an entry, are dead once its header is on disk. The
// caller holds mu.
func (w *WAL) attach(next *segment, keep int, first, logStart uint64) {
	if n := len(w.segs); n > 0 {
		w.segs[n-1].closeOutput()
	}
	for keep > 0 && w.segs[keep-1].count() == 0 {
		keep--
	}
	w.dead = append(w.dead, w.segs[keep:]...)
	w.segs = append(slices.Clip(w.segs[:keep]), next)
	next.start(w.segs[:keep], first, logStart)
}

// firstOr returns the first index of the log, or index for an empty log.
func (w *WAL) firstOr(index uint64) uint64 {
	if w.last == 0 {
		return index
	}
	return w.first
}

// start fills the header of a prepared segment that follows before, whose last
// one holds an entry. The header is due.
func (s *segment) start(before []*segment, first, logStart uint64) {
	s.header.state = stateStarted
	s.header.firstIndex, s.header.logStart = first, logStart
	s.header.previous, s.header.previousEnd = 0, 0
	if n := len(before); n > 0 {
		s.header.previous, s.header.previousEnd = before[n-1].header.id, before[n-1].end
	}
	s.headerDue, s.fresh = true, true
}
