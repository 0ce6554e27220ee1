package wal

import (
	"fmt"
	"slices"

	"github.com/cockroachdb/errors/oserror"
)

// recover brings the log to the state that the directory holds, ends what a
// crash left unfinished, and makes the result durable.
func (w *WAL) recover() error {
	v, err := surveyDir(w.fs, w.dir, w.cache.bytesMax, w.opts.Recovered)
	if err != nil {
		return err
	}
	if err := w.tidy(v); err != nil {
		return err
	}
	if len(v.chain) == 0 {
		return w.begin()
	}
	if err := w.adopt(v); err != nil {
		return err
	}
	if err := w.secure(v); err != nil {
		return err
	}
	w.recycler.request(w.active().header.id + 1)
	if v.tail.torn {
		return w.cutTorn(v)
	}
	return nil
}

// tidy gives the files that are not of the log to the recycler, and removes
// what an unfinished preparation left. Also the prepared segment goes: a
// torn first write may have left frames in it, and a fresh salt ends them.
func (w *WAL) tidy(v *survey) error {
	tmp := w.fs.PathJoin(w.dir, prepareName)
	if err := w.fs.Remove(tmp); err != nil && !oserror.IsNotExist(err) {
		return fmt.Errorf("wal: remove %s: %w", tmp, err)
	}
	for _, id := range v.ids {
		if !slices.ContainsFunc(v.chain, func(s *surveyed) bool { return s.id == id }) {
			w.recycler.keep(v.path(id))
		}
	}
	return nil
}

// begin starts a log that was never written to. Its directory may be as fresh:
// its own name is made durable, too.
func (w *WAL) begin() error {
	if err := w.syncNames(w.fs.PathDir(w.dir)); err != nil {
		return err
	}
	s, err := w.recycler.first()
	if err != nil {
		return err
	}
	w.attach(s, 0, 0, 0)
	return w.writeHeader(s)
}

// adopt opens the segments of the log.
func (w *WAL) adopt(v *survey) error {
	for _, found := range v.chain {
		f, err := w.fs.OpenReadWrite(found.path, categoryWAL)
		if err != nil {
			return fmt.Errorf("wal: open %s: %w", found.path, err)
		}
		w.segs = append(w.segs, &segment{
			header: found.header, path: found.path, file: f,
			group: found.group, offsets: found.offsets, end: found.end,
		})
	}
	w.first, w.last = v.logStart, v.last
	for i := range v.kept {
		w.cache.join(&v.kept[i])
	}
	w.cache.dropBelow(w.first)
	w.cache.dropFrom(w.last + 1)
	w.recovery = Recovery{Segments: len(v.chain)}
	if w.last != 0 {
		w.recovery.Entries = w.last - w.first + 1
		return nil
	}
	s := w.active() // the next entry says where the log starts
	s.header.firstIndex, s.header.logStart = 0, 0
	return nil
}

// secure writes the newest segment's header and last group once more and syncs
// them. Whether the process that wrote them lived to see its fdatasync return is
// not known; and after one that failed Linux shows the pages as if they were on
// disk. Groups are synced one after another: no other can be concerned.
func (w *WAL) secure(v *survey) error {
	s, at := w.active(), v.chain[len(v.chain)-1].groupStart
	var err error
	if s.out, err = openOutput(w.fs, s.path); err != nil {
		return err
	}
	if err := s.readTail(); err != nil {
		return err
	}
	if err := writeAt(s.file, v.page, 0); err != nil {
		return fmt.Errorf("wal: write %s: %w", s.path, err)
	}
	if err := writeAt(s.file, v.group, at); err != nil {
		return fmt.Errorf("wal: write %s at offset %d: %w", s.path, at, err)
	}
	if err := s.file.SyncData(); err != nil {
		return w.fail("fdatasync", s.path, err)
	}
	return w.syncDir()
}

// cutTorn ends the newest segment behind its last good frame. What goes on in
// it would stand before remnants of the torn write, under the same salt; so the
// log goes on in a fresh segment.
func (w *WAL) cutTorn(v *survey) error {
	torn := w.active()
	w.recovery.TornFile, w.recovery.TornOffset = torn.path, torn.end
	w.recovery.TornBytesCut = v.tail.end - torn.end
	w.metrics.tornBytesCut.Add(float64(w.recovery.TornBytesCut))
	next, err := w.recycler.next()
	if err != nil {
		return err
	}
	first := w.last + 1
	if w.last == 0 {
		first = 0
	}
	w.attach(next, len(w.segs), first, w.first)
	if err := w.writeHeader(next); err != nil {
		return err
	}
	if torn.count() > 0 { // otherwise the recycler has it
		torn.shrink()
	}
	return nil
}
