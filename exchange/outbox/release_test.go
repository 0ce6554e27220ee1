package outbox

import (
	"path/filepath"
	"sync/atomic"
	"testing"
)

func TestReleaseStores(t *testing.T) {
	var p [3]atomic.Uint64
	release(&p[1], 42, 0, 0)
	release(&p[1], 43, ^uintptr(0)>>1, claimAhead) // no address of anything
	if p[0].Load() != 0 || p[1].Load() != 43 || p[2].Load() != 0 {
		t.Errorf("%d %d %d", p[0].Load(), p[1].Load(), p[2].Load())
	}
}

// A reader that sees the counter sees, without any other synchronisation, all of
// every record up to it, while the writer goes on at full speed.
func TestWhatIsPublishedIsSeenWhole(t *testing.T) {
	const transactions = 100_000
	dir := filepath.Join(t.TempDir(), "outbox")
	w := open(t, dir, Options{Cluster: "test", SegmentRecords: 8192, QuotaBytes: 64 << 20, Cursors: []string{"r"}})
	r := openReader(t, dir, "r")
	last := make(chan uint64, 1)
	go func() {
		for i := range transactions {
			n := 1 + i%3
			for !w.Reserve(n) { // the reader is what makes room
			}
			for range n {
				fill(w.Next())
			}
			w.Commit()
		}
		last <- w.Published()
	}()
	read := uint64(0)
	for end := uint64(0); end == 0 || read < end; {
		if end == 0 {
			select {
			case end = <-last:
			default:
			}
		}
		rs := r.PeekWhole(1000)
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		for i := range rs {
			if err := checkFilled(&rs[i], read+uint64(i)+1); err != nil {
				t.Fatal(err)
			}
		}
		read += uint64(len(rs))
		r.Advance(len(rs))
		r.SetCursor(read)
	}
	if want := uint64(transactions / 3 * 6); read < want {
		t.Errorf("%d records, want at least %d", read, want)
	}
}
