package outbox

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
)

// RecoveryReport says what Open found and did.
type RecoveryReport struct {
	Fresh bool // the outbox was created
	// BootChanged means that the machine went down since the last Open, so that
	// every record from the oldest cursor on was read again.
	BootChanged bool
	// PublishedBefore is what the control file said, Published what counts now,
	// voids included.
	PublishedBefore, Published uint64
	// CutRecords is how many records were cut off the end when the machine had
	// gone down: those known to be published but not whole on the disk, and
	// those of a transaction of which a part is missing.
	CutRecords uint64
	// VoidRecords is how many globals are filled by voids, or skipped when
	// nothing waited to be read, because others know them to be used.
	VoidRecords uint64
}

// recovered is an outbox on disk in order: segments without gaps up to the one
// of published+1, or the one before when that is not begun, and nothing in them
// beyond published.
type recovered struct {
	dir      string
	options  *Options
	control  *control
	segments []*segment
	cursors  []Cursor
	report   RecoveryReport
}

func recoverDir(dir string, o *Options) (*recovered, error) {
	r := &recovered{dir: dir, options: o}
	err := r.openControl()
	if err == nil {
		err = r.recover()
	}
	if err != nil {
		r.unmapAll()
		return nil, r.advise(err)
	}
	return r, nil
}

// advise adds to an error of damage what is at stake and what can be done.
func (r *recovered) advise(err error) error {
	if !errors.Is(err, ErrDamaged) {
		return err
	}
	lost := "what no shard has acknowledged"
	if len(r.cursors) > 0 {
		lost += fmt.Sprintf(", after global %d,", r.oldest())
	}
	return fmt.Errorf("%w; see with 'countinghouse verify %s' what is still good; "+
		"to go on from the stores move the directory away: %s is then lost", err, r.dir, lost)
}

func (r *recovered) openControl() error {
	var err error
	r.control, err = openControl(r.dir, unix.PROT_READ|unix.PROT_WRITE)
	if errors.Is(err, ErrNotFound) {
		if err = r.create(); err == nil {
			r.control, err = openControl(r.dir, unix.PROT_READ|unix.PROT_WRITE)
		}
	}
	if err != nil {
		return err
	}
	h := &r.control.header
	if h.cluster != r.options.Cluster {
		return fmt.Errorf("outbox %s: %w: %q, this is %q", r.dir, ErrWrongCluster, h.cluster, r.options.Cluster)
	}
	return r.options.fit(h.segmentRecords)
}

func (r *recovered) create() error {
	if err := r.options.fit(0); err != nil {
		return err
	}
	numbers, err := listSegments(r.dir)
	if err != nil {
		return err
	}
	if len(numbers) > 0 {
		return fmt.Errorf("outbox: %s: %w: the file is missing, but there are %d segments",
			filepath.Join(r.dir, controlName), ErrDamaged, len(numbers))
	}
	cursors, err := ListCursors(r.dir)
	if err != nil {
		return err
	}
	if len(cursors) > 0 {
		return fmt.Errorf("outbox: %s: %w: the file is missing, but cursor %q exists",
			filepath.Join(r.dir, controlName), ErrDamaged, cursors[0].Name)
	}
	r.report.Fresh = true
	return createControl(r.dir, header{
		generation:     1, // an odd one, as copy A has: the next goes to copy B
		segmentRecords: uint64(r.options.SegmentRecords),
		base:           r.options.StartGlobal,
		bootID:         r.options.BootID,
		cluster:        r.options.Cluster,
	})
}

// recover brings the directory into the order that the type promises. A second
// run after an interruption at any point gives the same result.
func (r *recovered) recover() error {
	lock, err := lockFile(filepath.Join(r.dir, cursorLockName))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := removeSpares(r.dir); err != nil {
		return err
	}
	if r.cursors, err = ListCursors(r.dir); err != nil {
		return err
	}
	before := r.control.published.Load()
	r.report.PublishedBefore = before
	r.report.BootChanged = r.control.header.bootID != r.options.BootID
	if err := r.mapSegments(); err != nil {
		return err
	}
	if r.report.BootChanged {
		err = r.revalidate()
	} else {
		err = r.trust()
	}
	if err == nil {
		err = r.clearTail()
	}
	if err == nil {
		err = r.raise()
	}
	if err != nil {
		return err
	}
	r.report.Published = r.control.published.Load()
	return r.begin()
}

// begin records this Open, on disk before anything is written under it.
func (r *recovered) begin() error {
	for _, name := range r.options.Cursors {
		if err := ensureCursor(r.dir, name, &r.control.header); err != nil {
			return err
		}
	}
	if r.report.BootChanged && r.options.BootChanged != nil {
		if err := r.options.BootChanged(); err != nil {
			return err
		}
	}
	h := r.control.header
	h.incarnation++
	h.bootID = r.options.BootID
	if err := r.control.writeHeader(h); err != nil {
		return err
	}
	if err := syncDir(r.dir); err != nil {
		return fmt.Errorf("outbox %s: %w", r.dir, err)
	}
	return nil
}

// mapSegments maps the segments from the lowest on, up to the first that is
// missing or damaged. Those that every cursor has passed may be: they go.
func (r *recovered) mapSegments() error {
	numbers, err := listSegments(r.dir)
	if err != nil {
		return err
	}
	needed := r.needed()
	for _, n := range numbers {
		if k := len(r.segments); k > 0 && n != r.segments[k-1].number+1 {
			if n > needed {
				return nil
			}
			r.unmapAll()
		}
		s, err := mapSegment(r.dir, &r.control.header, n, unix.PROT_READ|unix.PROT_WRITE, 0)
		switch {
		case err == nil:
			r.segments = append(r.segments, s)
		case !errors.Is(err, ErrDamaged):
			return err // a later version, or a file that can not be looked at: not one that is lost
		case n < needed:
			r.unmapAll()
		case r.report.BootChanged:
			return nil // revalidate ends here
		default:
			return r.withGood(err)
		}
	}
	return nil
}

// needed returns the number of the lowest segment that a reader still needs.
func (r *recovered) needed() uint64 {
	if len(r.cursors) == 0 {
		return 0
	}
	oldest := r.cursors[0].Global
	for _, c := range r.cursors {
		oldest = min(oldest, c.Global)
	}
	h := &r.control.header
	return h.number(max(oldest, h.base) + 1)
}

// withGood adds to err which records before and after the bad segment are there.
func (r *recovered) withGood(err error) error {
	h, published := &r.control.header, r.control.published.Load()
	good := "no record before it is kept"
	if n := len(r.segments); n > 0 {
		good = fmt.Sprintf("globals %d to %d are good", h.first(r.segments[0].number), h.last(r.segments[n-1].number))
	}
	return fmt.Errorf("%w; %s, %d were published", err, good, published)
}

// trust takes the published counter, after a look at its last record, and the
// whole transactions that stand behind it: a writer that was killed between the
// last slot's flag and the counter leaves one, and a counter whose page was
// damaged may stand too low, even before the lowest segment. Either way they are
// what the writer wrote.
func (r *recovered) trust() error {
	if err := r.checkPublished(); err != nil {
		return err
	}
	from := r.control.published.Load()
	if len(r.segments) > 0 {
		from = max(from, r.control.header.first(r.segments[0].number)-1)
	}
	if whole, _ := r.walk(from); whole > from {
		r.control.publish(whole)
	}
	return nil
}

// walk returns the last global of the last whole transaction of an unbroken run
// of records after g, and the last global of the run.
func (r *recovered) walk(g uint64) (whole, last uint64) {
	h := &r.control.header
	whole = g
	for {
		s := r.segment(h.number(g + 1))
		if s == nil || s.checkSlot(h.slot(g+1), g+1) != nil {
			return whole, g
		}
		g++
		if s.slots[h.slot(g)].Flags&record.FlagLast != 0 {
			whole = g
		}
	}
}

func (r *recovered) checkPublished() error {
	h, published := &r.control.header, r.control.published.Load()
	if published < h.base && len(r.segments) == 0 {
		r.control.publish(h.base) // rebase was interrupted before its last step
		return nil
	}
	if published < h.base {
		return fmt.Errorf("outbox: %s: %w: offset %d: published %d is below the base %d", r.control.path, ErrDamaged, publishedOffset, published, h.base)
	}
	if published == h.base {
		return nil
	}
	last := h.number(published)
	s := r.segment(last)
	if s == nil {
		if r.drained(published) {
			return nil // recycled, and nobody needs it
		}
		return r.withGood(fmt.Errorf("outbox: %s: %w: the file is missing, and %s at offset %d says that global %d was published",
			segmentPath(r.dir, last), ErrDamaged, r.control.path, publishedOffset, published))
	}
	if first := r.oldest() + 1; first <= published && r.segment(h.number(first)) == nil {
		return fmt.Errorf("outbox: %s: %w: the file is missing, and %s at offset %d or %d says that its reader is at %d",
			segmentPath(r.dir, h.number(first)), ErrDamaged, cursorPath(r.dir, r.oldestName()), cursorA, cursorB, first-1)
	}
	if err := s.checkSlot(h.slot(published), published); err != nil {
		return fmt.Errorf("outbox: %s: offset %d: published %d does not fit %s: %w", r.control.path, publishedOffset, published, segmentPath(r.dir, last), err)
	}
	return nil
}

// revalidate walks from the oldest cursor over whole records and cuts after the
// last whole transaction.
func (r *recovered) revalidate() error {
	h, before := &r.control.header, r.control.published.Load()
	g := r.oldest()
	if g < h.base {
		return fmt.Errorf("outbox: %s: %w: a cursor at %d is below the base %d", r.control.path, ErrDamaged, g, h.base)
	}
	whole, last := r.walk(g)
	r.report.CutRecords = max(before, last) - whole
	r.control.publish(whole)
	return r.control.sync()
}

// oldest returns the oldest cursor's place, or that before the lowest segment.
func (r *recovered) oldest() uint64 {
	oldest := r.control.header.base
	if len(r.segments) > 0 {
		oldest = r.control.header.first(r.segments[0].number) - 1
	}
	for i, c := range r.cursors {
		if i == 0 || c.Global < oldest {
			oldest = c.Global
		}
	}
	return oldest
}

// oldestName returns the name of the cursor that oldest looks at.
func (r *recovered) oldestName() string {
	for _, c := range r.cursors {
		if c.Global == r.oldest() {
			return c.Name
		}
	}
	return ""
}

// drained reports whether every cursor has reached published.
func (r *recovered) drained(published uint64) bool {
	for _, c := range r.cursors {
		if c.Global < published {
			return false
		}
	}
	return len(r.cursors) > 0
}

func (r *recovered) segment(number uint64) *segment {
	if len(r.segments) == 0 || number < r.segments[0].number {
		return nil
	}
	if i := number - r.segments[0].number; i < uint64(len(r.segments)) {
		return r.segments[i]
	}
	return nil
}

// clearTail removes everything beyond published: whole files, and slots of the
// last segment. Left there, it could be taken for records by a later recovery.
func (r *recovered) clearTail() error {
	h, published := &r.control.header, r.control.published.Load()
	next := h.number(published + 1)
	numbers, err := listSegments(r.dir)
	if err != nil {
		return err
	}
	keep := h.slot(published+1) > 0 // the segment of the next slot is begun
	for _, n := range numbers {
		if r.segment(n) != nil && (n < next || n == next && keep) {
			continue
		}
		if err := remove(segmentPath(r.dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("outbox: %w", err)
		}
		r.forget(n)
	}
	if s := r.segment(next); s != nil {
		return s.clearFrom(r.dir, h.slot(published+1))
	}
	return r.dropDetached(next, keep)
}

// dropDetached removes what is left when the segment that must be written next
// is gone although it was begun, which happens only after everything was read.
func (r *recovered) dropDetached(next uint64, begun bool) error {
	n := len(r.segments)
	if !begun && (n == 0 || r.segments[n-1].number == next-1) {
		return nil
	}
	return r.rebase(r.control.published.Load())
}

func (r *recovered) forget(number uint64) {
	for i, s := range r.segments {
		if s.number >= number {
			for _, gone := range r.segments[i:] {
				unmap(gone.data)
			}
			r.segments = r.segments[:i]
			return
		}
	}
}

func (r *recovered) unmapAll() { r.forget(0) }
