package outbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
)

const testBoot = "boot-1"

// small is an outbox of 32-record segments, four of them at most.
func small() Options {
	return Options{Cluster: "test", SegmentRecords: 32, QuotaBytes: 4 * segmentBytes(32), HeadroomRecords: -1, BootID: testBoot}
}

func open(t *testing.T, dir string, o Options) *Writer {
	t.Helper()
	w, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func openReader(t *testing.T, dir, name string) *Reader {
	t.Helper()
	r, err := OpenReader(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// fill writes a record whose every field follows from its global.
func fill(r *record.Record) {
	g := r.Global
	r.Version, r.Type, r.Seq, r.Time = record.Version, record.TypeDeposit, g, int64(g)
	r.Instrument = record.MustSymbol(fmt.Sprintf("I%d", g%3))
	for i := range r.Body {
		r.Body[i] = byte(g + uint64(i))
	}
}

func checkFilled(r *record.Record, g uint64) error {
	var want record.Record
	want.Global = g
	fill(&want)
	got := *r
	got.Flags = 0
	if got != want {
		return fmt.Errorf("global %d: got %+v", g, got.Header)
	}
	return nil
}

// waitReserve waits for the keeper, which is at work meanwhile.
func waitReserve(t testing.TB, w *Writer, n int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !w.Reserve(n); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("no room for %d records: %+v", n, w.Stats())
		}
	}
}

func publish(t testing.TB, w *Writer, n int) {
	t.Helper()
	waitReserve(t, w, n)
	for range n {
		r := w.Next()
		if *r != (record.Record{Header: record.Header{Global: r.Global}}) {
			t.Fatalf("a slot must be zero but for its global: %+v", r)
		}
		fill(r)
	}
	w.Commit()
}

// readAll reads what is published and checks every record from the position on.
func readAll(t *testing.T, r *Reader) int {
	t.Helper()
	n := 0
	for rs := r.Peek(); len(rs) > 0; rs = r.Peek() {
		for i := range rs {
			if err := checkFilled(&rs[i], r.Position()+uint64(i)+1); err != nil {
				t.Fatal(err)
			}
		}
		r.Advance(len(rs))
		n += len(rs)
	}
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	return n
}

func TestReadsWhatIsPublished(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, small())
	r := openReader(t, dir, "a")
	if r.Peek() != nil {
		t.Fatal("an empty outbox has nothing to read")
	}
	publish(t, w, 3)
	waitReserve(t, w, 2)
	fill(w.Next())
	if n := readAll(t, r); n != 3 {
		t.Fatalf("read %d records, 3 are committed", n)
	}
	fill(w.Next())
	w.Commit()
	w.Commit() // does nothing
	rs := r.Peek()
	if len(rs) != 2 || rs[0].Flags != 0 || rs[1].Flags != record.FlagLast {
		t.Fatalf("a transaction of two must be seen whole, with the last one marked: %+v", rs)
	}
	if w.Published() != 5 || r.Published() != 5 {
		t.Fatalf("published %d, %d", w.Published(), r.Published())
	}
}

func TestTransactionStraddlesSegments(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	o := small()
	o.QuotaBytes *= 4
	w := open(t, dir, o)
	r := openReader(t, dir, "a")
	publish(t, w, 30)
	publish(t, w, 40)
	if n := readAll(t, r); n != 70 {
		t.Fatalf("read %d of 70", n)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := Inspect(dir)
	if err != nil || len(info.Problems) > 0 || info.CheckedRecords != 70 || info.First != 1 {
		t.Fatalf("%v %+v", err, info)
	}
}

func TestSegmentsAreRecycledWhenAllCursorsPassed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, small())
	a, b := openReader(t, dir, "a"), openReader(t, dir, "b")
	const total = 32 * 50
	for n := 0; n < total; n += 8 {
		publish(t, w, 8)
		readAll(t, a)
		readAll(t, b)
		a.SetCursor(a.Position())
		b.SetCursor(b.Position())
	}
	s := w.Stats()
	if s.Recycled == 0 || s.Segments > s.QuotaSegments || s.OldestCursor.Global != total {
		t.Fatalf("%+v", s)
	}
}

func TestQuotaHoldsAndHeadroomIsForUrgent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	o := small()
	o.HeadroomRecords = 10
	o.Cursors = []string{"slow"}
	w := open(t, dir, o)
	capacity := uint64(4 * 32)
	for w.Published() < capacity-10 {
		publish(t, w, 1)
	}
	if w.Reserve(1) {
		t.Fatal("an order must not use the headroom")
	}
	for range 10 {
		if !w.ReserveUrgent(1) {
			t.Fatalf("the headroom must be there for urgent records: %+v", w.Stats())
		}
		fill(w.Next())
		w.Commit()
	}
	if w.ReserveUrgent(1) || w.Next() != nil {
		t.Fatal("the quota is used up")
	}
	// The keeper finds out within its tick that the quota is the reason.
	for end := time.Now().Add(5 * time.Second); w.Stats().RefusedQuota == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		w.ReserveUrgent(1)
	}
	if s := w.Stats(); s.FreeRecords != 0 || s.Segments != 4 || s.RefusedQuota == 0 || s.OldestCursor.Name != "slow" {
		t.Fatalf("%+v", s)
	}
	r := openReader(t, dir, "slow")
	if n := readAll(t, r); n != int(capacity) {
		t.Fatalf("read %d of %d", n, capacity)
	}
	r.SetCursor(32)
	publish(t, w, 20)
	if n := readAll(t, r); n != 20 {
		t.Fatalf("read %d of 20", n)
	}
}

func TestFullOutboxOpensAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, small())
	for w.Published() < 4*32 {
		publish(t, w, 1)
	}
	w.Close()
	w = open(t, dir, small())
	if w.Reserve(1) || w.Published() != 4*32 {
		t.Fatalf("published %d", w.Published())
	}
	r := openReader(t, dir, "a")
	if n := readAll(t, r); n != 4*32 {
		t.Fatalf("read %d", n)
	}
	r.SetCursor(r.Position())
	publish(t, w, 5)
	if n := readAll(t, r); n != 5 {
		t.Fatalf("read %d", n)
	}
}

func TestBacklogGivesItsDiskSpaceBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	o := small()
	o.QuotaBytes, o.AheadSegments = 64*segmentBytes(32), AheadMin
	w := open(t, dir, o)
	for range 60 {
		publish(t, w, 32)
	}
	if s := w.Stats(); s.Segments < 60 {
		t.Fatalf("%+v", s)
	}
	r := openReader(t, dir, "a")
	r.SetCursor(w.Published())
	for end := time.Now().Add(5 * time.Second); w.Stats().Segments > 6; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", w.Stats())
		}
	}
	publish(t, w, 60)
	if n := readAll(t, r); n != 60 {
		t.Fatalf("read %d", n)
	}
}

func TestSecondWriterIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	open(t, dir, small())
	_, err := Open(dir, small())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Fatalf("got %v", err)
	}
}

func TestSecondReaderOfACursorIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	open(t, dir, small())
	r := openReader(t, dir, "a")
	if _, err := OpenReader(dir, "a"); !errors.Is(err, ErrCursorInUse) {
		t.Fatalf("got %v", err)
	}
	if err := RemoveCursor(dir, "a"); !errors.Is(err, ErrCursorInUse) {
		t.Fatalf("got %v", err)
	}
	r.Close()
	if err := RemoveCursor(dir, "a"); err != nil {
		t.Fatal(err)
	}
	if err := RemoveCursor(dir, "a"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
}

func TestCursorSurvivesAndSeekGoesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, small())
	r := openReader(t, dir, "a")
	for range 10 {
		publish(t, w, 5)
	}
	readAll(t, r)
	for g := uint64(1); g <= 40; g++ {
		r.SetCursor(g)
	}
	r.SetCursor(7)    // back: ignored
	r.SetCursor(1000) // not published: ignored
	if err := r.Seek(39); err == nil {
		t.Fatal("seek before the cursor")
	}
	if err := r.Seek(51); err == nil {
		t.Fatal("seek beyond published")
	}
	if err := r.Seek(42); err != nil || readAll(t, r) != 8 {
		t.Fatal(err)
	}
	if rec, ok := r.At(41); !ok || checkFilled(rec, 41) != nil {
		t.Fatal("At must find a record after the cursor")
	}
	if _, ok := r.At(40); ok {
		t.Fatal("At must not find what the cursor has passed")
	}
	r.Close()
	r = openReader(t, dir, "a")
	if r.Position() != 40 || readAll(t, r) != 10 {
		t.Fatalf("position %d", r.Position())
	}
}

// A process may be killed between any two stores of set: one value is whole.
func TestCursorIsWholeAtAnyInstant(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, small())
	publish(t, w, 20)
	r := openReader(t, dir, "a")
	for g := uint64(1); g <= 20; g++ {
		if g%5 == 0 {
			r.Close()
			r = openReader(t, dir, "a")
		}
		page := append([]byte(nil), r.cursor.data...)
		r.SetCursor(g)
		for _, off := range []int{cursorA, cursorB} {
			if half := word64(r.cursor.data, off).Load(); half == g {
				word64(page, off).Store(half) // the value is written, its check word is not
			}
		}
		if v, err := decodeCursor(page); err != nil || v != g-1 {
			t.Fatalf("killed on the way to %d: %d %v", g, v, err)
		}
	}
}

func TestReaderWaits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, small())
	r := openReader(t, dir, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	done := make(chan error)
	go func() { done <- r.Wait(t.Context()) }()
	publish(t, w, 1)
	if err := <-done; err != nil || len(r.Peek()) != 1 {
		t.Fatalf("got %v", err)
	}
}

func TestPublishDoesNotAllocate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, Options{Cluster: "test", SegmentRecords: 4096, QuotaBytes: 16 << 20})
	if n := testing.AllocsPerRun(2000, func() { publishOne(w) }); n != 0 {
		t.Fatalf("%v allocations for a publish", n)
	}
}

func publishOne(w *Writer) {
	if w.Reserve(1) {
		w.Next().Type = record.TypeDeposit
		w.Commit()
	}
}
