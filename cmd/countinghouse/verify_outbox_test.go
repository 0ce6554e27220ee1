package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
)

// writtenOutbox returns an outbox of three segments with 80 records, and its
// writer, which is still at work.
func writtenOutbox(t *testing.T) (string, *outbox.Writer) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "outbox")
	w, err := outbox.Open(dir, outbox.Options{Cluster: "test", SegmentRecords: 64, AheadSegments: 4, HeadroomRecords: -1, Cursors: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	for range 80 {
		if !w.Reserve(1) {
			t.Fatal("no room in the outbox")
		}
		r := w.Next()
		r.Version, r.Type, r.Instrument, r.Seq = record.Version, record.TypeDeposit, record.MustSymbol("A"), r.Global
		w.Commit()
	}
	return dir, w
}

func outboxSegment(dir string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("segment-%020d", number))
}

func TestVerifyOutbox(t *testing.T) {
	dir, w := writtenOutbox(t)
	out := checkVerify(t, true, dir) // while it is written to
	for _, want := range []string{`"member":"outbox"`, `"cluster":"test"`, `"records":80`, `"published":80`, `"good":[{"first":1,"last":80}]`, `"cursors":{"a":0,"b":0}`, `"findings":[]`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
	if out, _, err := execute(t, "verify", dir); err != nil || !strings.Contains(out, "globals 1 to 80 are good") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, outboxSegment(dir, 0), 4096+9*record.Size+100)
	flip(t, outboxSegment(dir, 1), 20)
	out = checkVerify(t, false, dir)
	for _, want := range []string{outboxSegment(dir, 0), `"offset":5248`, "global 10 is not whole", outboxSegment(dir, 1), "it held globals 65 to 80", `"good":[{"first":1,"last":9},{"first":11,"last":64}]`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
	out, _, err := execute(t, "verify", dir)
	if output.ExitCode(err) != output.ExitFailed || !strings.Contains(out, "DAMAGED") || !strings.Contains(out, "globals 1 to 9, 11 to 64 are good") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A half-written copy is what a kill leaves: it is shown, and harmless.
func TestVerifyOutboxWithAHarmlessFinding(t *testing.T) {
	dir, w := writtenOutbox(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(dir, "cursor-a"), 64)
	out := checkVerify(t, true, dir)
	if !strings.Contains(out, `"harmless":true`) || !strings.Contains(out, "cursor-a") {
		t.Error(out)
	}
}

func TestVerifyOutboxWithoutControl(t *testing.T) {
	dir, w := writtenOutbox(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, spoil := range []func() error{
		func() error { return os.Truncate(filepath.Join(dir, "control"), 100) },
		func() error { return os.Remove(filepath.Join(dir, "control")) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		out, _, err := execute(t, "verify", dir)
		if output.ExitCode(err) != output.ExitFailed || !strings.Contains(out, "DAMAGED") || !strings.Contains(out, "control") {
			t.Errorf("%v\n%s", err, out)
		}
	}
	if _, _, err := execute(t, "verify", t.TempDir()); output.ExitCode(err) != output.ExitUnavailable {
		t.Errorf("a directory of neither kind: %v", err)
	}
}
