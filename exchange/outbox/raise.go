package outbox

import (
	"fmt"

	"github.com/countinghouse/countinghouse/record"
)

// raise brings published up to every global that is known to be used: those
// that a cursor has passed and Options.StartGlobal. They are lost here, and to
// give them out again would number two records alike.
func (r *recovered) raise() error {
	published := r.control.published.Load()
	to := max(published, r.options.StartGlobal)
	for _, c := range r.cursors {
		to = max(to, c.Global)
	}
	if to == published {
		return nil
	}
	r.report.VoidRecords = to - published
	if len(r.segments) == 0 || r.drained(published) {
		return r.rebase(to)
	}
	return r.fillVoids(published, to)
}

// rebase makes an outbox without anything to read go on after global. It can be
// interrupted at any point: what it has done by then, raise takes up again.
func (r *recovered) rebase(global uint64) error {
	for _, c := range r.cursors {
		if c.Global < global {
			if err := r.moveCursor(c.Name, global); err != nil {
				return err
			}
		}
	}
	r.unmapAll()
	numbers, err := listSegments(r.dir)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if err := remove(segmentPath(r.dir, n)); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
	// Interrupted in between, trust sees published below the base and no segment.
	h := r.control.header
	h.base = global
	if err := r.control.writeHeader(h); err != nil {
		return err
	}
	r.control.publish(global)
	return nil
}

// moveCursor sets a cursor that no reader has open.
func (r *recovered) moveCursor(name string, global uint64) error {
	f, err := holdCursor(r.dir, name)
	if err != nil {
		return fmt.Errorf("%w; stop that reader, then open the outbox again", err)
	}
	defer f.Close()
	return writeWhole(cursorPath(r.dir, name), encodeCursor(global))
}

// fillVoids publishes a void for each global after from up to to. Records
// before them wait for a reader, so the numbering of the slots has to stay.
func (r *recovered) fillVoids(from, to uint64) error {
	h := &r.control.header
	first := r.segments[0].number
	if need := int(h.number(to) - first + 1); need > r.options.quotaSegments() {
		return fmt.Errorf("outbox %s: globals %d to %d are used elsewhere but lost here, and records before them wait for readers; "+
			"to bridge them takes %d segments and QuotaBytes allows %d: raise it, or drain the outbox first", r.dir, from+1, to, need, r.options.quotaSegments())
	}
	for g := from + 1; g <= to; g++ {
		s := r.segment(h.number(g))
		if s == nil {
			var err error
			if s, err = createSegment(r.dir, h, h.number(g)); err != nil {
				return err
			}
			r.segments = append(r.segments, s)
		}
		i := h.slot(g)
		storing(stepRecord)
		s.slots[i] = record.Record{Header: record.Header{Global: g, Flags: record.FlagLast}}
		storing(stepCheck)
		s.checks[i] = checkWord(&s.slots[i])
	}
	for n := h.number(from + 1); n <= h.number(to); n++ {
		if err := syncMap(segmentPath(r.dir, n), r.segment(n).data); err != nil {
			return err
		}
	}
	r.control.publish(to)
	return r.control.sync()
}
