package outbox

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/rebuild"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// fault makes calls of the file system fail: the one of that number, counted
// from 1 on, and with lasting all that follow.
type fault struct {
	at      int
	lasting bool
	err     error
	n       int
	step    step // that failed first
}

func (f *fault) String() string {
	return fmt.Sprintf("%v of call %d (%s), lasting %t", f.err, f.at, f.step, f.lasting)
}

// before is called ahead of each step. Stores to mapped memory do not fail.
func (f *fault) before(s step, path, _ string) error {
	if path == "" {
		return nil
	}
	if f.n++; f.n != f.at && (!f.lasting || f.n < f.at) {
		return nil
	}
	if f.step == "" {
		f.step = s
	}
	return f.err
}

// hit reports whether the call was reached.
func (f *fault) hit() bool { return f.n >= f.at }

// faults calls try with a fault at every call that it makes, of every kind. What
// try does with a fault that is not hit is the last thing that it does.
func faults(try func(f *fault)) (n int) {
	for _, err := range []error{unix.EIO, unix.ENOSPC} {
		for _, lasting := range []bool{false, true} {
			for at := 1; ; at++ {
				f := &fault{at: at, lasting: lasting, err: err}
				try(f)
				if !f.hit() {
					break
				}
				n++
			}
		}
	}
	return n
}

// Every call of the file system that a start makes fails. The start says so, or
// goes without; the next one finds everything as it was.
func TestStartWithAnErrorAtEveryCall(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	base := memoryDir(t)
	all := moments(t, filepath.Join(base, "play"))
	dir := filepath.Join(base, "again")
	starts, injected, refused := 0, 0, 0
	steps := map[step]bool{}
	for i := range all {
		m := &all[i]
		if m.step != stepMkdir && rng.IntN(len(all)/4) != 0 { // the regular starts, and some behind a kill
			continue
		}
		starts++
		injected += faults(func(f *fault) {
			m.image.restore(t, dir)
			var w *Writer
			var err error
			stepping(func() { w, err = openWriter(dir, m.completed(t)) }, f.before)
			steps[f.step] = true
			switch {
			case err == nil:
				stop(t, w)
			case !errors.Is(err, f.err) || !strings.Contains(err.Error(), dir):
				t.Fatalf("%v: %v: the error does not say what failed: %v", m, f, err)
			default:
				refused++
			}
			m.mustRecoverIn(t, dir)
		})
	}
	t.Logf("%d starts, %d errors at %d kinds of calls: %d were refused", starts, injected, len(steps), refused)
}

// Every call that a reader makes to begin fails. It says so, and the next
// attempt begins at the same place.
func TestReaderWithAnErrorAtEveryCall(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "outbox")
	s := newScript(t, dir, 32)
	s.open()
	s.publish(40)
	s.setCursor("a", 7)
	s.close()
	for _, name := range []string{"a", "fresh"} {
		n := faults(func(f *fault) {
			if name == "fresh" {
				if err := RemoveCursor(dir, name); err != nil && !errors.Is(err, ErrNotFound) {
					t.Fatal(err)
				}
			}
			var r *Reader
			var err error
			var got int
			stepping(func() {
				if r, err = OpenReader(dir, name); err == nil {
					got, err = len(r.Peek()), r.Err()
					r.Close()
				}
			}, f.before)
			if err != nil && (!errors.Is(err, f.err) || !strings.Contains(err.Error(), dir)) || f.hit() && err == nil {
				t.Fatalf("cursor %s: %v: %v", name, f, err)
			}
			r = openReader(t, dir, name)
			want := map[string]int{"a": 33, "fresh": 40}[name]
			if again := readAll(t, r); again != want || err == nil && got == 0 {
				t.Fatalf("cursor %s: %v: read %d records, then %d of %d", name, f, got, again, want)
			}
			r.Close()
		})
		t.Logf("cursor %s: %d errors", name, n)
	}
}

// desk is an exchange in front of an outbox whose keeper is called by hand.
type desk struct {
	t        *testing.T
	writer   *Writer
	reader   *Reader
	exchange *core.Exchange
	orders   int
	refused  int
}

func newDesk(t *testing.T, dir string) *desk {
	t.Helper()
	o := scriptOptions(32)
	o.Cursors = nil
	must(t, o.complete())
	w, err := openWriter(dir, o)
	must(t, err)
	d := &desk{t: t, writer: w}
	d.reader, err = OpenReader(dir, "a")
	must(t, err)
	d.exchange = core.New(gateway.New(w, gateway.Options{HeadroomRecords: -1}))
	_, err = d.exchange.ListInstrument(1, order.Instrument{
		Symbol: record.MustSymbol("X"), TickValue: 100, TickSize: 1, PriceLimitBP: 1000, LongMarginPPM: 100_000, ShortMarginPPM: 100_000,
		FeeMode: record.FeeByLot, LowerLimit: 1, UpperLimit: 1000, MaxOrderVolume: 100,
	})
	must(t, err)
	d.exchange.OpenAccount(1, 1)
	if r := d.exchange.Deposit(1, 1, 1e15, 0); r.Reason != risk.OK {
		t.Fatalf("%+v", r)
	}
	return d
}

// submit sends n orders; each is carried out or refused for want of room.
func (d *desk) submit(n int) {
	d.t.Helper()
	for range n {
		r := d.exchange.Submit(1, &core.NewOrder{
			Instrument: record.MustSymbol("X"), Account: 1, Side: record.Buy, Offset: record.Open, Price: 500, Volume: 1,
		})
		switch r.Reason {
		case risk.OK:
			d.orders++
		case risk.BacklogFull:
			d.refused++
		default:
			d.t.Fatalf("%+v", r)
		}
	}
}

// keep does what the keeper's goroutine does in one turn.
func (d *desk) keep() {
	d.writer.keeper.prepare()
	d.writer.keeper.trim()
}

// mustEqualRebuilt demands that the outbox holds the exchange's history, whole
// and once: an exchange that is made of it is the same.
func (d *desk) mustEqualRebuilt(f *fault, history []record.Record) {
	d.t.Helper()
	b := rebuild.New()
	for i := range history {
		if err := b.Add(&history[i]); err != nil {
			d.t.Fatalf("%v: %v", f, err)
		}
	}
	again, err := b.Exchange(gateway.New(gateway.NewMemory(0, b.Global()), gateway.Options{}))
	if err != nil || b.End() != nil || again.StateHash() != d.exchange.StateHash() {
		d.t.Fatalf("%v: the records do not make the same exchange: %v %v", f, err, b.End())
	}
}

// drain appends everything published to history and lets it go.
func (d *desk) drain(f *fault, history []record.Record) []record.Record {
	d.t.Helper()
	for rs := d.reader.PeekWhole(1000); len(rs) > 0; rs = d.reader.PeekWhole(1000) {
		history = append(history, rs...)
		d.reader.Advance(len(rs))
	}
	if d.reader.Err() != nil || d.reader.Position() != d.writer.Published() {
		d.t.Fatalf("%v: read up to %d of %d: %v", f, d.reader.Position(), d.writer.Published(), d.reader.Err())
	}
	d.reader.SetCursor(d.reader.Position())
	return history
}

// Every call that the keeper makes fails, once or from then on, while orders
// come. They are refused when there is no room left; none is lost or doubled;
// and when the error goes away, orders are taken as before.
func TestOrdersWithAnErrorAtEveryCallOfTheKeeper(t *testing.T) {
	base := memoryDir(t)
	steps, refused := map[step]bool{}, 0
	n := 0
	injected := faults(func(f *fault) {
		n++
		d := newDesk(t, filepath.Join(base, fmt.Sprint(n)))
		var history []record.Record
		failed := false
		for round := range 24 {
			d.submit(7)
			stepping(d.keep, f.before)
			if f.hit() && d.writer.Stats().LastError != nil {
				failed = true
				if err := d.writer.Stats().LastError; !errors.Is(err, f.err) {
					t.Fatalf("%v: the error does not say what failed: %v", f, err)
				}
			}
			if round > 12 && round%2 == 0 { // a backlog first, then a reader that follows
				history = d.drain(f, history)
			}
		}
		if f.hit() && f.lasting {
			before := d.refused
			d.submit(100)
			if d.refused == before || !failed {
				t.Fatalf("%v: orders are taken without room: %d, %d refused; error noted: %t", f, d.orders, d.refused, failed)
			}
		}
		if f.hit() {
			steps[f.step] = true
			refused += d.refused
		}
		history = d.drain(f, history)
		d.keep()
		if err := d.writer.Stats().LastError; err != nil {
			t.Fatalf("%v: the error is gone, and still noted: %v", f, err)
		}
		before := d.orders
		d.submit(5)
		history = d.drain(f, history)
		if d.orders != before+5 {
			t.Fatalf("%v: the error is gone, and %d of 5 orders are refused", f, 5-d.orders+before)
		}
		d.mustEqualRebuilt(f, history)
		if got, files := d.writer.Stats().Segments, segmentFiles(t, d.writer.dir); got != files || files > 8 {
			t.Fatalf("%v: %d files of segments, the keeper knows of %d, the quota is 8", f, files, got)
		}
		must(t, d.reader.Close())
		stop(t, d.writer)
		d.mustGoOn(f)
	})
	t.Logf("%d errors at %d kinds of calls, %d orders refused", injected, len(steps), refused)
	for _, s := range []step{stepCreate, stepAllocate, stepMap, stepPrefault, stepRename, stepRemove, stepLock, stepReadDir, stepRead} {
		if !steps[s] {
			t.Errorf("no %s failed", s)
		}
	}
}

func segmentFiles(t *testing.T, dir string) int {
	t.Helper()
	numbers, err := listSegments(dir)
	must(t, err)
	return len(numbers)
}

// mustGoOn demands that the outbox opens where it was closed.
func (d *desk) mustGoOn(f *fault) {
	d.t.Helper()
	o := scriptOptions(32)
	o.Cursors = nil
	must(d.t, o.complete())
	w, err := openWriter(d.writer.dir, o)
	if err != nil || w.Published() != d.writer.Published() {
		d.t.Fatalf("%v: opened again: %v", f, err)
	}
	stop(d.t, w)
}
