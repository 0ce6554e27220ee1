package outbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIdentify(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	if _, err := Identify(dir); !errors.Is(err, ErrNotFound) {
		t.Errorf("without an outbox: %v", err)
	}
	for n, boot := range []string{"", "", "another", ""} {
		w, err := Open(dir, Options{Cluster: "test", SegmentRecords: 64, QuotaBytes: 1 << 20, BootID: boot})
		if err != nil {
			t.Fatal(err)
		}
		want := Identity{Cluster: "test", Incarnation: uint64(n + 1), ThisBoot: boot == ""}
		if id, err := Identify(dir); err != nil || id != want || id.Incarnation != w.Incarnation() {
			t.Errorf("opening %d: %+v, %v", n+1, id, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHoldSubscriber(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	if _, err := HoldSubscriber(dir); err == nil {
		t.Error("held without a directory")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h, err := HoldSubscriber(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := HoldSubscriber(dir); !errors.Is(err, ErrSubscribed) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("held twice: %v", err)
	}
	if !h.Valid() {
		t.Error("not valid")
	}
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Fatal(err)
	}
	if h.Valid() {
		t.Error("valid without its directory")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	other, err := HoldSubscriber(dir)
	if err != nil || h.Valid() || !other.Valid() {
		t.Errorf("another directory: %v", err)
	}
	if err := errors.Join(h.Close(), other.Close()); err != nil {
		t.Error(err)
	}
}

// A view, and everybody who lists the cursors, sees values that only rise while a
// reader moves them as fast as it can.
func TestViewsOfAMovingCursor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	if _, err := ViewCursor(dir, "r"); !errors.Is(err, ErrNotFound) {
		t.Errorf("without an outbox: %v", err)
	}
	w, err := Open(dir, Options{Cluster: "test", SegmentRecords: 1 << 16, Cursors: []string{"r"}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	v, err := ViewCursor(dir, "r")
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(dir, "r")
	if err != nil {
		t.Fatal(err)
	}
	const last = 100_000
	for range last {
		for !w.Reserve(1) {
		}
		w.Next()
		w.Commit()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for global := uint64(1); global <= last; global++ {
			r.SetCursor(global)
		}
	}()
	var seen, listed uint64
	for look := 0; seen < last; look++ {
		next := v.Global()
		if next < seen || next > last {
			t.Fatalf("%d after %d", next, seen)
		}
		seen = next
		if look%20 > 0 {
			continue
		}
		list, err := ListCursors(dir)
		if err != nil {
			t.Fatal(err)
		}
		if next := list[0].Global; next < listed || next > last {
			t.Fatalf("%d is listed after %d", next, listed)
		}
		listed = list[0].Global
	}
	<-done
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// A reader that comes while a writer recovers goes by what that has made of the
// outbox.
func TestReaderComesAmidARecovery(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	opened := func(start uint64) {
		w, err := Open(dir, Options{Cluster: "test", SegmentRecords: 64, QuotaBytes: 1 << 20, StartGlobal: start})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	opened(0)
	onStep = func(s step, path, _ string) error {
		if s == stepLock && filepath.Base(path) == cursorLockName {
			onStep = nil
			opened(1000) // nothing waits to be read: the numbering goes on there
		}
		return nil
	}
	defer func() { onStep = nil }()
	r, err := OpenReader(dir, "r")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Cursor() != 1000 {
		t.Errorf("the cursor is at %d", r.Cursor())
	}
}
