package wal

import "fmt"

// scan is what a walk over a segment's frames found.
type scan struct {
	offsets  []uint32 // of entries, in units of frameAlign
	end      int64    // after the last good frame
	next     uint64   // index that the next entry must have
	logStart uint64   // from the segment's log start frames; 0 for none

	group      uint32 // of the last good frame; 0 for none
	groupStart int64  // where that group starts
	complete   bool   // the last good frame ends its group
}

// scanFrames walks the frames of l, a segment from its first byte up to the
// end of what may hold frames, and stops at the first that is not good, not the
// next in order, or not of the next group. Good frames from frameStart to
// scan.end are contiguous and without a gap in their indexes. A keeper, if there is
// one, is shown the entries.
func scanFrames(l *load, h *segmentHeader, k *keeper) scan {
	s := scan{end: frameStart, groupStart: frameStart, next: h.firstIndex, complete: true}
	if h.firstIndex == 0 {
		return s // the header was not written with the first group: none was acknowledged
	}
	for s.step(l, h.salt, k) {
	}
	return s
}

// step takes the frame at s.end in, and reports whether it belongs there.
func (s *scan) step(l *load, salt uint64, k *keeper) bool {
	if !l.upTo(s.end + frameHeaderSize) {
		return false
	}
	b := l.buf[s.end:]
	f, ok := parseHeader(b, salt)
	if !ok || f.group != s.wantGroup() || !l.upTo(s.end+f.size()) || !bodyOK(b, &f, salt) {
		return false
	}
	switch f.kind {
	case frameEntry:
		if f.index != s.next {
			return false
		}
		s.offsets = append(s.offsets, uint32(s.end/frameAlign))
		s.next++
		k.take(b, &f)
	case frameLogStart:
		s.logStart = max(s.logStart, f.index)
	}
	if s.complete {
		s.groupStart = s.end
	}
	s.group, s.complete = f.group, f.flags&flagGroupEnd != 0
	s.end += f.size()
	return true
}

// wantGroup returns the group that the frame at s.end belongs to, if there is
// one.
func (s *scan) wantGroup() uint32 {
	if s.complete {
		return s.group + 1
	}
	return s.group
}

// tail is what lies behind the last good frame of the newest segment.
type tail struct {
	torn bool  // the last write did not reach the disk as a whole
	end  int64 // after the last remnant of it
}

// classify looks at what lies behind s.end. Writes are synced one after
// another, so only the last one can be torn; a frame header of a later group
// than that of the bad frame proves that the bad one's group was synced, and
// with that damaged afterwards. A header is proof enough: whatever became of
// its body, its group was not written before the earlier one was synced.
func (s *scan) classify(l *load, salt uint64) (tail, error) {
	t := tail{torn: !s.complete, end: s.end}
	for at := s.end; l.upTo(at + frameHeaderSize); {
		if !mayBeHeader(l.buf[at:]) {
			at += frameAlign
			continue
		}
		f, ok := parseHeader(l.buf[at:], salt)
		if !ok {
			at += frameAlign
			continue
		}
		if f.group > s.wantGroup() {
			return t, fmt.Errorf("no good frame, yet one of a later write (entry %d, write %d after %d) stands at offset %d", f.index, f.group, s.group, at)
		}
		t = tail{torn: true, end: at + f.size()}
		if l.upTo(t.end) && bodyOK(l.buf[at:], &f, salt) {
			at += f.size()
		} else {
			at += frameAlign
		}
	}
	return t, nil
}
