package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

// sectorBytes is what a device writes as a whole; a page may be written in part.
const sectorBytes = 512

// diskFile is a file with what of it is certain to be on the disk.
type diskFile struct {
	current []byte
	synced  []byte           // nil until the first sync
	since   map[int][][]byte // versions of sectors since the last sync, by sector
}

// dirChange is what one call did to the directory's entries.
type dirChange struct{ gone, come map[string]*diskFile }

// disk follows an outbox's directory and knows what a loss of power may take.
type disk struct {
	t       testing.TB
	dir     string
	rng     *rand.Rand
	named   bool // the directory's own name is on the disk
	synced  map[string]*diskFile
	since   []dirChange
	current map[string]*diskFile
	inodes  map[uint64]*diskFile // of current
	settle  func()               // what the call under way will have synced
}

func newDisk(t testing.TB, dir string, rng *rand.Rand) *disk {
	return &disk{t: t, dir: dir, rng: rng, synced: map[string]*diskFile{}, current: map[string]*diskFile{}, inodes: map[uint64]*diskFile{}, settle: func() {}}
}

// before is called ahead of each step.
func (d *disk) before(s step, path string, im image) {
	d.settle()
	d.settle = func() {}
	d.entries(im)
	for name, f := range d.current {
		f.write(d.rng, im[name])
	}
	switch {
	case s == stepSyncDir && filepath.Clean(path) == filepath.Dir(d.dir):
		d.settle = func() { d.named = true }
	case s == stepSyncDir:
		now := maps.Clone(d.current)
		d.settle = func() { d.synced, d.since = now, nil }
	case s == stepSync || s == stepSyncMap:
		f := d.current[filepath.Base(path)]
		now := f.current
		d.settle = func() { f.synced, f.since = now, map[int][][]byte{} }
	}
}

// entries takes in which names have come and gone.
func (d *disk) entries(im image) {
	next, inodes := map[string]*diskFile{}, map[uint64]*diskFile{}
	for name := range im {
		info, err := os.Stat(filepath.Join(d.dir, name))
		if err != nil {
			d.t.Fatal(err)
		}
		ino := info.Sys().(*syscall.Stat_t).Ino
		if next[name] = d.inodes[ino]; next[name] == nil {
			next[name] = &diskFile{since: map[int][][]byte{}}
		}
		inodes[ino] = next[name]
	}
	c := dirChange{map[string]*diskFile{}, map[string]*diskFile{}}
	for name, f := range d.current {
		if next[name] != f {
			c.gone[name] = f
		}
	}
	for name, f := range next {
		if d.current[name] != f {
			c.come[name] = f
		}
	}
	if len(c.gone)+len(c.come) > 0 {
		d.since = append(d.since, c)
	}
	d.current, d.inodes = next, inodes
}

// write takes in what a file holds. A sector may also have been written
// back while it was being changed.
func (f *diskFile) write(rng *rand.Rand, content []byte) {
	for off := 0; off < len(content); off += sectorBytes {
		end := min(off+sectorBytes, len(content))
		now := image{"": content[off:end]}
		if end <= len(f.current) {
			was := image{"": f.current[off:end]}
			if bytes.Equal(was[""], now[""]) {
				continue
			}
			if mixed := was.torn(rng, now); mixed != nil {
				f.since[off/sectorBytes] = append(f.since[off/sectorBytes], mixed[""])
			}
		}
		f.since[off/sectorBytes] = append(f.since[off/sectorBytes], now[""])
	}
	f.current = content
}

// fail returns what a loss of power leaves: what is synced, and of all the rest
// any part. Each sector is whole, in any version that it had since.
func (d *disk) fail(rng *rand.Rand) image {
	if !d.named && rng.IntN(2) == 0 {
		return nil
	}
	share := rng.IntN(5) // of the unsynced that is lost: none, a quarter, …, all
	lost := func() bool { return rng.IntN(4) < share }
	names := maps.Clone(d.synced)
	for _, c := range d.since {
		if lost() {
			continue
		}
		for name, f := range c.gone {
			if names[name] == f {
				delete(names, name)
			}
		}
		maps.Copy(names, c.come)
	}
	im := image{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		im[name] = names[name].fail(rng, lost)
	}
	return im
}

func (f *diskFile) fail(rng *rand.Rand, lost func() bool) []byte {
	if f.synced == nil && lost() {
		return nil // its length was not written either
	}
	left := make([]byte, len(f.current))
	copy(left, f.synced)
	for _, sector := range slices.Sorted(maps.Keys(f.since)) {
		versions := f.since[sector]
		if off := sector * sectorBytes; off < len(left) && !lost() {
			version := versions[len(versions)-1]
			if rng.IntN(3) == 0 {
				version = versions[rng.IntN(len(versions))]
			}
			copy(left[off:], version)
		}
	}
	return left
}

// mustServePrefix demands that what a reader is served are whole transactions as
// they were written, and behind them nothing but voids.
func (m *moment) mustServePrefix(t *testing.T, dir, cursor string) {
	t.Helper()
	r, err := OpenReader(dir, cursor)
	if err != nil {
		t.Fatalf("%v: %v", m, err)
	}
	defer r.Close()
	var last record.Record
	whole := func() bool {
		return last.Global == 0 || Void(&last) || last.Global == m.expect.open || slices.Contains(m.expect.ends, last.Global)
	}
	for rs := r.Peek(); len(rs) > 0; rs = r.Peek() {
		for i := range rs {
			g := r.Position() + uint64(i) + 1
			if void := Void(&rs[i]); void && (rs[i].Global != g || !whole()) {
				t.Fatalf("%v: global %d is void behind %+v", m, g, last.Header)
			} else if err := m.expect.check(&rs[i], g); !void && err != nil {
				t.Fatalf("%v: %v", m, err)
			}
			last = rs[i]
		}
		r.Advance(len(rs))
	}
	if r.Err() != nil || r.Position() != r.Published() || !whole() {
		t.Fatalf("%v: read up to %+v of %d: %v", m, last.Header, r.Published(), r.Err())
	}
}

// mustSayWhatIsLost demands of a refusal what an operator needs to go on.
func (m *moment) mustSayWhatIsLost(t *testing.T, dir string, err error) {
	t.Helper()
	says := []string{dir + "/", "move the directory away", "is then lost"}
	if !errors.Is(err, ErrDamaged) {
		says = []string{dir, "lost here", "QuotaBytes"}
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Fatalf("%v: %q is not in: %v", m, s, err)
		}
	}
}

// The machine goes down at every step: what is recovered is whole transactions
// from the beginning on, and the report says that the machine was down. It goes
// down once more, with what was recovered, and again nothing torn is served.
func TestPowerFailureAtEveryStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	base := memoryDir(t)
	dir, again := filepath.Join(base, "play"), filepath.Join(base, "again")
	s, d := newScript(t, dir, 64), newDisk(t, dir, rng)
	var failures []moment
	stepping(s.run, func(at step, path, _ string) error {
		d.before(at, path, capture(t, dir))
		failures = append(failures, moment{len(failures) + 1, at, d.fail(rng), s.expect.clone()})
		return nil
	})
	outcomes := map[string]int{}
	for i := range failures {
		m := &failures[i]
		m.image.restore(t, again)
		outcomes[m.mustRecoverPrefix(t, again, "after the failure")]++
	}
	t.Logf("%d failures: %v", len(failures), outcomes)
	if outcomes["everything committed"] == 0 || outcomes["a prefix"] == 0 {
		t.Error("the failures lose too much or too little to prove anything")
	}
}

// mustRecoverPrefix opens an outbox in another boot and says what came of it.
func (m *moment) mustRecoverPrefix(t *testing.T, dir, boot string) string {
	t.Helper()
	o := m.completed(t)
	o.BootID = boot
	w, err := openWriter(dir, o)
	if err != nil {
		m.mustSayWhatIsLost(t, dir, err)
		return "refused"
	}
	committed := m.expect.ends[len(m.expect.ends)-1]
	rep := w.Recovery()
	if !rep.BootChanged && (!rep.Fresh || committed > 0) {
		t.Fatalf("%v: the report does not say that the machine was down: %+v", m, rep)
	}
	for name := range m.expect.cursors {
		m.mustServePrefix(t, dir, name)
	}
	before := w.Published()
	publish(t, w, 3)
	stop(t, w)
	o.BootID = boot + ", once more"
	if w, err = openWriter(dir, o); err != nil {
		t.Fatalf("%v: once more: %v", m, err)
	}
	if w.Published() != before+3 {
		t.Fatalf("%v: once more: published %d, want %d", m, w.Published(), before+3)
	}
	stop(t, w)
	switch {
	case rep.VoidRecords > 0:
		return "a prefix and voids"
	case before >= committed:
		return "everything committed"
	}
	return "a prefix"
}

// Two failures in a row: the second one while the first is being recovered from.
func TestPowerFailureDuringRecovery(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	base := memoryDir(t)
	dir, again := filepath.Join(base, "play"), filepath.Join(base, "again")
	s, d := newScript(t, dir, 64), newDisk(t, dir, rng)
	var first []moment
	stepping(s.run, func(at step, path, _ string) error {
		d.before(at, path, capture(t, dir))
		if rng.IntN(30) == 0 {
			first = append(first, moment{len(first) + 1, at, d.fail(rng), s.expect.clone()})
		}
		return nil
	})
	n, outcomes := 0, map[string]int{}
	for i := range first {
		m := &first[i]
		for _, f := range m.failuresInRecovery(t, rng, dir) {
			n++
			f.image.restore(t, again)
			outcomes[f.mustRecoverPrefix(t, again, "after the second failure")]++
		}
	}
	t.Logf("%d failures in %d recoveries: %v", n, len(first), outcomes)
}

// failuresInRecovery recovers from m, whose files are then on the disk as they
// are, and returns what failures on the way leave.
func (m *moment) failuresInRecovery(t *testing.T, rng *rand.Rand, dir string) []moment {
	t.Helper()
	m.image.restore(t, dir)
	d := newDisk(t, dir, rng)
	d.named = true
	d.entries(m.image)
	d.synced, d.since = maps.Clone(d.current), nil
	for name, f := range d.current {
		f.current, f.synced = m.image[name], m.image[name]
	}
	o := m.completed(t)
	o.BootID = "after the first failure"
	var list []moment
	stepping(func() {
		if w, err := openWriter(dir, o); err == nil {
			stop(t, w)
		}
	}, func(at step, path, _ string) error {
		im := capture(t, dir)
		d.before(at, path, im)
		if rng.IntN(3) == 0 {
			list = append(list, moment{m.n, step(fmt.Sprintf("%s, recovery up to %s", m.step, at)), d.fail(rng), m.expect})
		}
		return nil
	})
	return list
}
