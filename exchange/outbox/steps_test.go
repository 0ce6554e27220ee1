package outbox

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

// memoryDir returns a directory that is not synced to a disk where the machine
// has one: these tests judge contents, and wait for no device.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "outbox-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// image is what the files of an outbox hold at one instant. Mapped memory is
// the page cache: it is what a killed writer leaves.
type image map[string][]byte

func capture(t testing.TB, dir string) image {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	im := image{}
	for _, e := range entries {
		if e.Name() == lockName { // the process id in it tells images apart that are the same
			im[lockName] = nil
			continue
		}
		if im[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return im
}

func (im image) restore(t testing.TB, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if im == nil {
		return
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range im {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// key is the same for images that hold the same, whatever temporary files are
// called.
func (im image) key() [32]byte {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(im)) {
		shown := name
		if strings.HasPrefix(name, "spare-tmp-") {
			shown = "spare-tmp"
		}
		fmt.Fprintf(h, "%s %d\n", shown, len(im[name]))
		h.Write(im[name])
	}
	return [32]byte(h.Sum(nil))
}

// torn returns im with a random part of the words that next holds in their
// place: stores between two steps may be done in part, and in any order. It
// returns nil when no more than one word differs, which is done at once.
func (im image) torn(rng *rand.Rand, next image) image {
	mixed, words := maps.Clone(im), 0
	for name, before := range im {
		after, ok := next[name]
		if !ok || len(after) != len(before) || bytes.Equal(before, after) {
			continue
		}
		mixed[name] = bytes.Clone(before)
		for off := 0; off+8 <= len(before); off += 8 {
			if w := after[off : off+8]; !bytes.Equal(before[off:off+8], w) {
				words++
				if rng.IntN(2) == 0 {
					copy(mixed[name][off:], w)
				}
			}
		}
	}
	if words < 2 {
		return nil
	}
	return mixed
}

// expectation says what a recovery may find.
type expectation struct {
	options Options
	ends    []uint64 // of the committed transactions; the first is where it began
	open    uint64   // end of the transaction that is being committed, 0 for none
	voids   [2]uint64
	cursors map[string][]uint64 // what the value may be
}

func (e *expectation) clone() expectation {
	c := *e
	c.ends = slices.Clone(e.ends)
	c.cursors = map[string][]uint64{}
	for name, values := range e.cursors {
		c.cursors[name] = slices.Clone(values)
	}
	return c
}

// published returns what the counter may be after a recovery.
func (e *expectation) published() []uint64 {
	values := []uint64{max(e.ends[len(e.ends)-1], e.options.StartGlobal)}
	if e.open != 0 {
		values = append(values, max(e.open, e.options.StartGlobal))
	}
	return values
}

func (e *expectation) check(r *record.Record, g uint64) error {
	if g > e.voids[0] && g <= e.voids[1] {
		if r.Global != g || !Void(r) {
			return fmt.Errorf("global %d is not a void: %+v", g, r.Header)
		}
		return nil
	}
	last := g == e.open || slices.Contains(e.ends, g)
	if marked := r.Flags&record.FlagLast != 0; marked != last {
		return fmt.Errorf("global %d: last in its transaction: %v, want %v", g, marked, last)
	}
	return checkFilled(r, g)
}

// script is a writer and two readers at work, step by step the same each time:
// what the keeper's goroutine does is called in between.
type script struct {
	t       testing.TB
	dir     string
	expect  expectation
	writer  *Writer
	readers map[string]*Reader
}

func scriptOptions(segmentRecords int) Options {
	return Options{Cluster: "test", SegmentRecords: segmentRecords, QuotaBytes: 8 * segmentBytes(uint64(segmentRecords)), AheadSegments: 1,
		HeadroomRecords: -1, BootID: testBoot, Cursors: []string{"a", "b"}}
}

func newScript(t testing.TB, dir string, segmentRecords int) *script {
	return &script{t: t, dir: dir, readers: map[string]*Reader{}, expect: expectation{
		options: scriptOptions(segmentRecords), ends: []uint64{0}, cursors: map[string][]uint64{"a": {0}, "b": {0}},
	}}
}

func (s *script) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) open() {
	o := s.expect.options
	s.check(o.complete())
	w, err := openWriter(s.dir, o)
	s.check(err)
	s.writer = w
	close(w.keeper.done) // it does not run
	for name := range s.expect.cursors {
		r, err := OpenReader(s.dir, name)
		s.check(err)
		s.readers[name] = r
	}
}

func (s *script) close() {
	for name, r := range s.readers {
		s.check(r.Close())
		delete(s.readers, name)
	}
	s.check(s.writer.Close())
}

// leave fills n slots and does not commit them.
func (s *script) leave(n int) {
	for range n {
		fill(s.writer.Next())
	}
}

func (s *script) publish(n int) {
	s.writer.keeper.prepare()
	if !s.writer.Reserve(n) {
		s.t.Fatalf("no room for %d records: %+v", n, s.writer.Stats())
	}
	s.leave(n)
	s.expect.open = s.writer.global
	s.writer.Commit()
	s.expect.ends, s.expect.open = append(s.expect.ends, s.writer.global), 0
}

func (s *script) setCursor(name string, global uint64) {
	s.expect.cursors[name] = append(s.expect.cursors[name], global)
	s.readers[name].SetCursor(global)
	s.expect.cursors[name] = []uint64{global}
}

// run plays all of a writer's life: creation, transactions within a segment and
// over several, recycling, trimming, a torn tail, a change of the boot, moving
// on to a higher number with nothing and with something left to read.
func (s *script) run() {
	s.open()
	for _, n := range []int{20, 25, 1, 40, 12} {
		s.publish(n)
	}
	s.setCursor("a", 45)
	s.setCursor("b", 50)
	s.publish(30)
	s.publish(31)
	s.setCursor("b", 98)
	for range 2 {
		s.publish(25)
	}
	s.setCursor("a", 190)
	s.setCursor("b", 209)
	s.writer.keeper.trim()
	s.publish(3)
	s.leave(28) // over the segment's end
	s.close()

	s.open() // behind a torn tail
	s.publish(7)
	s.leave(2)
	s.close()

	s.expect.options.BootID = "boot-2"
	s.open()
	s.publish(33)
	for _, name := range []string{"a", "b"} {
		s.setCursor(name, s.writer.Published())
	}
	s.close()

	s.raise(1000, false)
	s.publish(40)
	s.setCursor("a", 1040)
	s.close()

	s.raise(1075, true)
	s.publish(5)
	s.close()
}

// raise opens with a StartGlobal. Where b still waits for records, voids take
// the place of those that are skipped; else the cursors are moved.
func (s *script) raise(to uint64, voids bool) {
	s.expect.options.StartGlobal = to
	if voids {
		s.expect.voids = [2]uint64{s.expect.ends[len(s.expect.ends)-1], to}
	} else {
		for name := range s.expect.cursors {
			s.expect.cursors[name] = append(s.expect.cursors[name], to)
		}
	}
	s.open()
	s.expect.ends = append(s.expect.ends, to)
	if !voids {
		for name := range s.expect.cursors {
			s.expect.cursors[name] = []uint64{to}
		}
	}
}

// stepping runs f and calls before ahead of each of its steps.
func stepping(f func(), before func(s step, path, to string) error) {
	onStep = before
	defer func() { onStep = nil }()
	f()
}

// moment is a state at which a process can end.
type moment struct {
	n      int
	step   step
	image  image
	expect expectation
}

func (m *moment) String() string { return fmt.Sprintf("step %d (%s)", m.n, m.step) }

// moments plays the script and returns the state before each step.
func moments(t testing.TB, dir string) []moment {
	var all []moment
	s := newScript(t, dir, 32)
	stepping(s.run, func(at step, _, _ string) error {
		all = append(all, moment{len(all) + 1, at, capture(t, dir), s.expect.clone()})
		return nil
	})
	return append(all, moment{len(all) + 1, "the end", capture(t, dir), s.expect.clone()})
}

// mustRecover demands that an outbox in the state of m opens, twice, with every
// committed transaction and nothing else, and with its cursors in place.
func (m *moment) mustRecover(t *testing.T, dir string) {
	t.Helper()
	m.image.restore(t, dir)
	m.mustRecoverIn(t, dir)
}

// mustRecoverIn is mustRecover for what lies in dir.
func (m *moment) mustRecoverIn(t *testing.T, dir string) {
	t.Helper()
	var first uint64
	for round := range 2 {
		w, err := openWriter(dir, m.completed(t))
		if err != nil {
			t.Fatalf("%v, recovery %d: %v", m, round+1, err)
		}
		got := w.Published()
		if !slices.Contains(m.expect.published(), got) || round == 1 && got != first {
			t.Fatalf("%v, recovery %d: published %d, before %d, want one of %d", m, round+1, got, first, m.expect.published())
		}
		first = got
		m.mustServe(t, dir, got)
		stop(t, w)
	}
}

func (m *moment) completed(t *testing.T) Options {
	t.Helper()
	o := m.expect.options
	must(t, o.complete())
	return o
}

// stop closes a writer whose keeper does not run.
func stop(t testing.TB, w *Writer) {
	t.Helper()
	close(w.keeper.done)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func (m *moment) mustServe(t *testing.T, dir string, published uint64) {
	t.Helper()
	for name, values := range m.expect.cursors {
		r, err := OpenReader(dir, name)
		if err != nil {
			t.Fatalf("%v: cursor %s: %v", m, name, err)
		}
		if raised := max(r.Cursor(), m.expect.options.StartGlobal); !slices.Contains(values, r.Cursor()) && !slices.Contains(values, raised) {
			t.Fatalf("%v: cursor %s is at %d, want one of %d", m, name, r.Cursor(), values)
		}
		for rs := r.Peek(); len(rs) > 0; rs = r.Peek() {
			for i := range rs {
				if err := m.expect.check(&rs[i], r.Position()+uint64(i)+1); err != nil {
					t.Fatalf("%v: cursor %s: %v", m, name, err)
				}
			}
			r.Advance(len(rs))
		}
		if r.Err() != nil || r.Position() != published {
			t.Fatalf("%v: cursor %s: read up to %d of %d: %v", m, name, r.Position(), published, r.Err())
		}
		r.Close()
	}
}

// The writer is stopped before every single step, and between steps with a part
// of the stores in between done. Recovery is the same from all of them.
func TestWriterStoppedAtEveryStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	base := memoryDir(t)
	all := moments(t, filepath.Join(base, "play"))
	dir, seen, torn := filepath.Join(base, "again"), map[[32]byte]bool{}, 0
	for i := range all {
		m := &all[i]
		m.mustRecover(t, dir)
		seen[m.image.key()] = true
		if i+1 < len(all) && m.step != stepRename { // which is done at once
			if mixed := m.image.torn(rng, all[i+1].image); mixed != nil {
				torn++
				(&moment{m.n, m.step + ", half-way to the next", mixed, m.expect}).mustRecover(t, dir)
			}
		}
	}
	t.Logf("%d steps, %d different states, and %d states between two steps", len(all)-1, len(seen), torn)
}

// A recovery that is itself stopped at any step leaves what the next one needs.
func TestRecoveryStoppedAtEveryStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	base := memoryDir(t)
	all := moments(t, filepath.Join(base, "play"))
	dir, again := filepath.Join(base, "first"), filepath.Join(base, "second")
	seen, steps, sampled := map[[32]byte]bool{}, 0, 0
	for i := rng.IntN(20); i < len(all); i += 10 + rng.IntN(20) {
		m := &all[i]
		sampled++
		m.image.restore(t, dir)
		var stops []moment
		stepping(func() {
			w, err := openWriter(dir, m.completed(t))
			if err != nil {
				t.Fatalf("%v: %v", m, err)
			}
			stop(t, w)
		}, func(at step, _, _ string) error {
			steps++
			im := capture(t, dir)
			if key := im.key(); !seen[key] {
				seen[key] = true
				stops = append(stops, moment{m.n, m.step + ", recovery up to " + at, im, m.expect})
			}
			return nil
		})
		for j := range stops {
			stops[j].mustRecover(t, again)
		}
	}
	t.Logf("%d recoveries of %d steps together, %d different states", sampled, steps, len(seen))
}

// childScript plays the script and kills itself at the step that it was told.
func childScript() {
	at, _ := strconv.Atoi(os.Getenv(seedVar))
	n := 0
	stepping(newScript(&failing{}, os.Getenv(dirVar), 32).run, func(step, string, string) error {
		if n++; n == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	})
	childFail(fmt.Errorf("the script has %d steps, not %d", n, at))
}

// failing is what a child has in place of a *testing.T.
type failing struct{ testing.TB }

func (*failing) Helper()                   {}
func (*failing) Fatal(args ...any)         { childFail(fmt.Errorf("%s", fmt.Sprint(args...))) }
func (*failing) Fatalf(f string, a ...any) { childFail(fmt.Errorf(f, a...)) }

// The states that the tests above start from are those that a killed process
// leaves: byte for byte, for a sample of steps.
func TestKilledProcessLeavesTheSameFiles(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	base := memoryDir(t)
	all := moments(t, filepath.Join(base, "play"))
	const sample = 16
	for range sample {
		m := &all[rng.IntN(len(all)-1)]
		dir := filepath.Join(base, "child")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		cmd := child(t, "script", dir, uint64(m.n))
		if err := cmd.Run(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%v: the child was not killed: %v", m, err)
		}
		if got := capture(t, dir); got.key() != m.image.key() {
			t.Fatalf("%v: the child left %s", m, differences(got, m.image))
		}
	}
	t.Logf("%d of %d steps", sample, len(all)-1)
}

func differences(a, b image) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if !bytes.Equal(a[name], b[name]) {
			list = append(list, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b)) {
		if _, ok := a[name]; !ok {
			list = append(list, name+" (missing)")
		}
	}
	return strings.Join(list, ", ")
}

// A counter that was damaged to stand before the lowest segment must not make
// recovery take the segments for a begun tail and drop them.
func TestCounterBeforeTheLowestSegment(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "outbox")
	s := newScript(t, dir, 32)
	s.open()
	for range 8 {
		s.publish(25)
	}
	s.setCursor("a", 100)
	s.setCursor("b", 110)
	for range 3 {
		s.publish(10)
	}
	s.close()
	if _, err := os.Stat(segmentPath(dir, 0)); err == nil {
		t.Fatal("the first segment was to be recycled")
	}
	for _, low := range []uint64{0, 1, 7, 40, 99} {
		setPublished(t, dir, low)
		s.open()
		if got := s.writer.Published(); got != 230 {
			t.Fatalf("counter at %d: published %d", low, got)
		}
		s.close()
	}
}

// Who must act on a change of the boot is told before the outbox forgets it.
func TestBootChangeIsToldBeforeItIsForgotten(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "outbox")
	told := 0
	o := scriptOptions(32)
	o.BootChanged = func() error { told++; return nil }
	open(t, dir, o).Close()
	if told != 0 {
		t.Fatal("a fresh outbox knows of no other boot")
	}
	o.BootID = "boot-2"
	for want := 1; want <= 2; want++ {
		o.BootChanged = func() error { told++; return fmt.Errorf("note %d failed", want) }
		if _, err := Open(dir, o); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("note %d failed", want)) || told != want {
			t.Fatalf("told %d times: %v", told, err)
		}
	}
	o.BootChanged = func() error { told++; return nil }
	open(t, dir, o).Close()
	open(t, dir, o).Close()
	if told != 3 {
		t.Fatalf("told %d times", told)
	}
}
