package replica

import (
	"errors"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/diskfault"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

// onBoundedDisk returns the settings of a shard of one on a disk of so many bytes.
func onBoundedDisk(bytes int64) (Config, *diskfault.Bounded, chan error) {
	m := newMachine()
	disk := diskfault.NewBounded(m, bytes)
	cfg, fatal := loneMember(m, disk)
	cfg.DiskCheckInterval, cfg.Store.FullDiskRetry = 5*time.Millisecond, 5*time.Millisecond
	return cfg, disk, fatal
}

// fillUp appends until that is refused, and returns the seq of the last record that
// was acknowledged.
func fillUp(t *testing.T, r *Replica, fatal <-chan error) (acked uint64) {
	t.Helper()
	for range 1000 {
		last, err := tryFill(t, r, 10)
		acked = max(acked, last)
		if err == nil {
			continue
		}
		neverFatal(t, fatal)
		if !errors.Is(err, refusal.ErrDiskFull) && !errors.Is(err, refusal.ErrUnavailable) && !errors.Is(err, refusal.ErrNotLeader) {
			t.Fatal(err)
		}
		return acked
	}
	t.Fatal("the disk is not full")
	return 0
}

// readable returns the seq up to which records can be read here, as they are.
func readable(t *testing.T, r *Replica) uint64 {
	t.Helper()
	v, err := r.Read(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release()
	seq, err := v.Shard.LastSeq(record.MustSymbol("A"))
	if err != nil {
		return 0
	}
	return seq
}

func neverFatal(t *testing.T, fatal <-chan error) {
	t.Helper()
	select {
	case err := <-fatal:
		t.Errorf("the node ended: %v", err)
	default:
	}
}

// On a disk without a byte left, with a reserve or without, with a ballast or
// without: the node refuses appends, reads, starts, and goes on by itself when there
// is room. Nothing acknowledged is lost.
func TestADiskWithoutAByteLeft(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"plain":               func(*Config) {},
		"reserve":             func(c *Config) { c.DiskReserveBytes = 128 << 10 },
		"ballast":             func(c *Config) { c.BallastBytes = 96 << 10 },
		"reserve and ballast": func(c *Config) { c.DiskReserveBytes, c.BallastBytes = 128<<10, 96<<10 },
		"large memtables":     func(c *Config) { c.Store.MemtableBytesMax = 8 << 20 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, disk, fatal := onBoundedDisk(1 << 20)
			change(&cfg)
			r := reopen(t, cfg)
			awaitOwner(t, r)
			acked := fillUp(t, r, fatal)
			disk.SetFree(0)
			await(t, "the status says that the disk is full", func() bool { return r.Status().DiskFull })
			if _, err := r.ProposeBatch(t.Context(), testBatch(t, 1, 1, 1)).Wait(); err == nil {
				t.Error("an append to a full disk was taken")
			}
			if got := readable(t, r); got < acked {
				t.Errorf("%d can be read, %d was acknowledged", got, acked)
			}
			if _, err := r.Snapshot(t.Context()); err != nil && !errors.Is(err, refusal.ErrUnavailable) {
				t.Errorf("a snapshot: %v", err)
			}
			disk.SetFree(0)
			if err := r.Close(); err != nil {
				t.Fatalf("close on a full disk: %v", err)
			}
			disk.SetFree(0)
			r = reopen(t, cfg)
			await(t, "what was acknowledged can be read after a start", func() bool { return readable(t, r) >= acked })
			neverFatal(t, fatal)
			disk.SetFree(2 << 20)
			await(t, "appends are taken again", func() bool {
				last, err := tryFill(t, r, 30)
				acked = max(acked, last)
				return err == nil
			})
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			neverFatal(t, fatal)
			t.Logf("%d records; %d writes did not fit", acked, disk.Refused())
			checkAcked(t, cfg.FS.Unwrap().(*machine).crash(0, nil), acked)
		})
	}
}

// A full disk that gets room again is found by the running node: it needs no start.
func TestAFullDiskThatGetsRoomNeedsNoRestart(t *testing.T) {
	cfg, disk, fatal := onBoundedDisk(1 << 20)
	r := reopen(t, cfg)
	awaitOwner(t, r)
	var acked uint64
	for range 4 {
		acked = max(acked, fillUp(t, r, fatal))
		disk.SetFree(0)
		if got := readable(t, r); got < acked {
			t.Fatalf("%d can be read, %d was acknowledged", got, acked)
		}
		disk.SetFree(512 << 10)
		await(t, "the disk has room", func() bool { return !r.Status().DiskFull })
	}
	await(t, "appends are taken", func() bool {
		last, err := tryFill(t, r, 3)
		acked = max(acked, last)
		return err == nil
	})
	neverFatal(t, fatal)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	checkAcked(t, cfg.FS.Unwrap().(*machine).crash(0, nil), acked)
}
