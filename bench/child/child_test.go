package child

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/record"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestBatchesFor(t *testing.T) {
	for bytes, want := range map[int64]int{0: 0, 1: 1, 10 * record.Size: 1, 10*record.Size + 1: 2} {
		if got := BatchesFor(bytes, 10); got != want {
			t.Errorf("BatchesFor(%d) = %d, expected %d", bytes, got, want)
		}
	}
}

// What a writer has sent is there, also after a kill, and a load of nothing writes
// nothing.
func TestWrite(t *testing.T) {
	n, err := Start(t.Context(), t.TempDir(), history.Streams(3))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	w, err := n.Open(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	var acked []uint64
	count := func(_ int, last uint64, _ time.Duration) { acked = append(acked, last) }
	for _, batches := range []int{0, 7} {
		if err := w.Write(t.Context(), Load{Batch: 10, Batches: batches, Acked: count}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(acked, []uint64{10, 10, 10, 20, 20, 20, 30}) {
		t.Errorf("acknowledged: %v", acked)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := n.LastSeqs(t.Context(), "")
	if err != nil || !slices.Equal(got, []uint64{30, 20, 20}) || !slices.Equal(got, w.Last()) {
		t.Errorf("after the restart: %v, sent up to %v, %v", got, w.Last(), err)
	}
}

// An endless load ends with its context, and what was sent is acknowledged.
func TestAnEndlessLoadEndsWithItsContext(t *testing.T) {
	n, err := Start(t.Context(), t.TempDir(), history.Streams(1))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	w, err := n.Open(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err = w.Write(ctx, Load{Batch: 10, Endless: true, Acked: func(_ int, last uint64, _ time.Duration) {
		if last == 100 {
			cancel()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.LastSeqs(t.Context(), ""); err != nil || got[0] < 100 || !slices.Equal(got, w.Last()) {
		t.Errorf("stored %v, sent %v, %v", got, w.Last(), err)
	}
}
