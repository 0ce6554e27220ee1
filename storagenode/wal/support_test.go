package wal

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

const testDir = "log"

var smallOptions = Options{SegmentBytes: 16 << 10, CacheBytes: 2 << 10}

// makeEntry returns the entry that tests store at index in term; its content
// follows from both.
func makeEntry(index, term uint64, size int) *raft.Log {
	l := &raft.Log{
		Index: index, Term: term, Type: raft.LogType(index % 2 * uint64(raft.LogBarrier)),
		AppendedAt: time.Unix(1_700_000_000, int64(index)),
	}
	if size > 0 {
		l.Data = bytes.Repeat([]byte(fmt.Sprintf("%d/%d;", index, term)), size/4+1)[:size]
	}
	if index%5 == 0 {
		l.Extensions = []byte(fmt.Sprintf("ext-%d", index))
	}
	return l
}

func makeRun(from, to, term uint64, size int) []*raft.Log {
	var ls []*raft.Log
	for i := from; i <= to; i++ {
		ls = append(ls, makeEntry(i, term, size))
	}
	return ls
}

func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

func mustOpen(t testing.TB, fs vfs.FS, opts Options) *WAL {
	t.Helper()
	w, err := Open(fs, testDir, opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func mustStore(t testing.TB, w *WAL, logs ...*raft.Log) {
	t.Helper()
	if err := w.StoreLogs(logs); err != nil {
		t.Fatalf("store: %v", err)
	}
}

func mustDelete(t testing.TB, w *WAL, lowest, highest uint64) {
	t.Helper()
	if err := w.DeleteRange(lowest, highest); err != nil {
		t.Fatalf("delete %d to %d: %v", lowest, highest, err)
	}
}

func mustClose(t testing.TB, w *WAL) {
	t.Helper()
	if err := w.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// contents reads the log back, from disk where uncached is set.
func contents(w *WAL, uncached bool) ([]*raft.Log, error) {
	first, err := w.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := w.LastIndex()
	if err != nil {
		return nil, err
	}
	if uncached {
		w.mu.Lock()
		w.cache.clear()
		w.mu.Unlock()
	}
	var out []*raft.Log
	for i := first; i <= last && i > 0; i++ {
		l := new(raft.Log)
		if err := w.GetLog(i, l); err != nil {
			return out, fmt.Errorf("entry %d of %d to %d: %w", i, first, last, err)
		}
		out = append(out, l)
	}
	return out, nil
}

// difference says how got differs from want, "" if it does not.
func difference(got, want []*raft.Log) string {
	for i := range min(len(got), len(want)) {
		if !sameEntry(got[i], want[i]) {
			return fmt.Sprintf("position %d: entry %d/%d, want %d/%d", i, got[i].Index, got[i].Term, want[i].Index, want[i].Term)
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("%s, want %s", extentOf(got), extentOf(want))
	}
	return ""
}

func extentOf(ls []*raft.Log) string {
	if len(ls) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%d to %d", ls[0].Index, ls[len(ls)-1].Index)
}

func checkContents(t testing.TB, w *WAL, want []*raft.Log) {
	t.Helper()
	for _, uncached := range []bool{false, true} {
		got, err := contents(w, uncached)
		if err != nil {
			t.Fatalf("read back: %v", err)
		}
		if d := difference(got, want); d != "" {
			t.Fatalf("the log (uncached %v) holds %s", uncached, d)
		}
	}
}

func checkVerify(t testing.TB, fs vfs.FS, first, last uint64) {
	t.Helper()
	sum, err := Verify(fs, testDir, func(f Finding) { t.Errorf("verify: %+v", f) })
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	want := uint64(0)
	if last > 0 {
		want = last - first + 1
	}
	if sum.FirstIndex != first || sum.LastIndex != last || sum.Entries != want {
		t.Fatalf("verify: %+v, want entries %d to %d", sum, first, last)
	}
}
