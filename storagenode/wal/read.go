package wal

import (
	"fmt"
	"sort"

	"github.com/hashicorp/raft"
)

// GetLog fills log with the entry at index, or returns raft.ErrLogNotFound.
// Recent entries come from memory: their Data is shared and must not be
// changed. Older ones are read from disk and checked; damage is a
// *CorruptError.
func (w *WAL) GetLog(index uint64, log *raft.Log) error {
	w.mu.RLock()
	if err := w.open(); err != nil {
		w.mu.RUnlock()
		return err
	}
	if index < w.first || index > w.last || index == 0 {
		w.mu.RUnlock()
		return raft.ErrLogNotFound
	}
	if w.cache.get(index, log) {
		w.mu.RUnlock()
		w.metrics.cacheHits.Inc()
		return nil
	}
	s := w.segs[w.find(index)]
	from, to := s.span(index - s.header.firstIndex)
	s.reading.RLock()
	w.mu.RUnlock()
	defer s.reading.RUnlock()
	w.metrics.cacheMisses.Inc()
	return s.read(index, from, to, log)
}

// find returns the position in segs of the segment that holds index, which
// lies in the log. The caller holds mu or writing.
func (w *WAL) find(index uint64) int {
	after := sort.Search(len(w.segs), func(i int) bool { return w.segs[i].header.firstIndex > index })
	return after - 1
}

// read fills log from the frame in [from, to) of the file. The caller holds
// reading.
func (s *segment) read(index uint64, from, to int64, log *raft.Log) error {
	b := make([]byte, to-from)
	if _, err := s.file.ReadAt(b, from); err != nil {
		return fmt.Errorf("wal: %s: read entry %d at offset %d: %w", s.path, index, from, err)
	}
	f, ok := parseHeader(b, s.header.salt)
	if !ok || f.kind != frameEntry || f.index != index || !bodyOK(b, &f, s.header.salt) {
		return &CorruptError{File: s.path, Offset: from, Reason: fmt.Sprintf("entry %d does not match its checksum", index)}
	}
	f.entry(b, log)
	return nil
}
