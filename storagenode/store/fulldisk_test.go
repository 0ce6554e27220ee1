package store

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/diskfault"
)

// onBoundedDisk returns a shard of one instrument with an open stream, whose disk is
// bounded.
func onBoundedDisk(t *testing.T, o Options) (*Shard, *diskfault.Bounded) {
	t.Helper()
	disk := diskfault.NewBounded(vfs.NewMem(), 1<<20)
	o.FullDiskRetry = time.Millisecond
	s := mustOpen(t, disk, "shard", o)
	if err := s.SetOwned(1, symbols[:1]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenStream(2, symbols[0], 1); err != nil {
		t.Fatal(err)
	}
	return s, disk
}

// appendTo appends batches of ten records, at indices from 3 on, up to batch n.
func appendTo(t *testing.T, s *Shard, from, n uint64) {
	t.Helper()
	for i := from; i < n; i++ {
		if _, err := s.Append(3+i, makeBatch(t, symbols[0], 1, 1+10*i, 10)); err != nil {
			t.Fatal(err)
		}
	}
}

func awaitDurable(t *testing.T, s *Shard, sym record.Symbol, seq uint64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); s.find0(sym).durableSeq.Load() < seq; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("seq %d is not flushed", seq)
		}
	}
}

func (s *Shard) find0(sym record.Symbol) *instrument { return s.owned.Load().bySymbol[sym] }

// However little room there is, down to none, a flush, a snapshot and a merge that do
// not fit leave everything as it is, and are done when there is room.
func TestAFullDiskDoesNotPoison(t *testing.T) {
	refused := 0
	for free := int64(0); ; free += diskfault.BlockBytes {
		o := smallOptions(t)
		o.MemtableBytesMax, o.MemtableTotalBytesMax = 1<<20, 4<<20
		s, disk := onBoundedDisk(t, o)
		for i := range uint64(mergeTables - 1) { // one flush from a merge
			appendTo(t, s, i, i+1)
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		disk.SetFree(free)
		n := uint64(mergeTables)
		appendTo(t, s, n-1, n)
		flushErr := s.Flush()
		snapshot := s.Snapshot()
		_, snapErr := snapshot.Persist("snap")
		snapshot.Release()
		for _, err := range []error{flushErr, snapErr} {
			if err != nil && !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("%d bytes free: %v", free, err)
			}
		}
		if got := scan(t, s, symbols[0], ScanOptions{}); len(got) != int(10*n) {
			t.Fatalf("%d bytes free: %d records can be read", free, len(got))
		}
		if flushErr != nil || snapErr != nil {
			refused++
		}
		disk.SetFree(1 << 20)
		appendTo(t, s, n, n+1)
		if err := s.Flush(); err != nil || s.DurableIndex() != 3+n {
			t.Fatalf("%d bytes free, then more: %v, durable index %d", free, err, s.DurableIndex())
		}
		mustClose(t, s)
		if _, err := Verify(disk, "shard", func(f Finding) { t.Errorf("%d bytes free: %+v", free, f) }); err != nil {
			t.Error(err)
		}
		s = mustOpen(t, disk, "shard", smallOptions(t))
		if got := scan(t, s, symbols[0], ScanOptions{}); len(got) != int(10*(n+1)) {
			t.Fatalf("%d bytes free: %d records after a start", free, len(got))
		}
		mustClose(t, s)
		if flushErr == nil && snapErr == nil {
			break
		}
	}
	t.Logf("%d amounts of room that were not enough", refused)
	if refused < 5 {
		t.Error("too few")
	}
}

// Flushes in the background go on by themselves, and the appends that wait for them,
// and an entry that changes the list.
func TestAFullDiskIsWaitedFor(t *testing.T) {
	s, disk := onBoundedDisk(t, smallOptions(t))
	disk.SetFree(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		appendTo(t, s, 0, 100) // more than the memtables may take
		if err := s.SetOwned(200, symbols[:2]); err != nil {
			t.Error(err)
		}
	}()
	awaitStall(t, s)
	disk.SetFree(4 << 20)
	<-done
	awaitDurable(t, s, symbols[0], 900)
	disk.SetFree(0)
	owned := make(chan error, 1)
	refused := disk.Refused()
	go func() { owned <- s.SetOwned(201, symbols[:3]) }()
	for disk.Refused() == refused {
		time.Sleep(time.Millisecond)
	}
	disk.SetFree(4 << 20)
	if err := <-owned; err != nil {
		t.Error(err)
	}
	mustClose(t, s)
}

func awaitStall(t *testing.T, s *Shard) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); s.metrics.stalls.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no append waits")
		}
	}
}

// Who waits for room is let go by Interrupt, without an effect.
func TestInterruptEndsTheWaitForRoom(t *testing.T) {
	s, disk := onBoundedDisk(t, smallOptions(t))
	disk.SetFree(0)
	ended := make(chan error, 1)
	var acked uint64
	go func() {
		for i := uint64(0); ; i++ {
			if _, err := s.Append(3+i, makeBatch(t, symbols[0], 1, 1+10*i, 10)); err != nil {
				acked = 10 * i
				ended <- err
				return
			}
		}
	}()
	awaitStall(t, s)
	s.Interrupt()
	if err := <-ended; !errors.Is(err, ErrInterrupted) {
		t.Errorf("append: %v", err)
	}
	if got := scan(t, s, symbols[0], ScanOptions{}); len(got) != int(acked) {
		t.Errorf("%d records, %d were appended", len(got), acked)
	}
	if err := s.SetOwned(300, symbols[:2]); !errors.Is(err, ErrInterrupted) || len(s.Owned()) != 1 {
		t.Errorf("list: %v, %v", err, s.Owned())
	}
	mustClose(t, s)
}

// A sync that fails for want of room is a failed sync: what the disk holds is unknown.
func TestASyncThatFailsForWantOfRoomPoisons(t *testing.T) {
	armed := false
	o := smallOptions(t)
	fatal := make(chan error, 1)
	o.OnFatal = func(err error) { fatal <- err }
	s := mustOpen(t, diskfault.Wrap(vfs.NewMem(), func(op diskfault.Op) diskfault.Fault {
		if armed && op.Kind == diskfault.Sync {
			return diskfault.Fault{Err: syscall.ENOSPC}
		}
		return diskfault.Fault{}
	}), "shard", o)
	if err := errors.Join(s.SetOwned(1, symbols[:1])); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenStream(2, symbols[0], 1); err != nil {
		t.Fatal(err)
	}
	appendTo(t, s, 0, 1)
	armed = true
	if err := s.Flush(); !errors.Is(err, ErrPoisoned) {
		t.Errorf("flush: %v", err)
	}
	if err := <-fatal; !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("OnFatal was told %v", err)
	}
	mustClose(t, s)
}
