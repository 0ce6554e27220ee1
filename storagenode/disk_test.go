package storagenode_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/diskfault"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// boundedCluster starts three members, each on a disk of so many bytes.
func boundedCluster(t *testing.T, bytes int64, change func(*replica.Config)) (*cluster, map[string]*diskfault.Bounded) {
	t.Helper()
	disks := map[string]*diskfault.Bounded{}
	c := newCluster(t, 3, func(cfg *replica.Config) {
		disk := diskfault.NewBounded(vfs.Default, bytes)
		disks[cfg.ID] = disk
		cfg.FS, cfg.DiskCheckInterval = disk, 5*time.Millisecond
		cfg.WAL.SegmentBytes, cfg.WAL.RecycleFiles = 64<<10, -1
		cfg.Store.MemtableBytesMax, cfg.Store.FullDiskRetry = 32<<10, 5*time.Millisecond
		if change != nil {
			change(cfg)
		}
	})
	return c, disks
}

// notEnded fails the test if a member has ended.
func (c *cluster) notEnded() {
	c.t.Helper()
	for _, m := range c.members {
		select {
		case err := <-m.fatal:
			c.t.Errorf("member %s has ended: %v", m.id, err)
		default:
		}
	}
}

// A member whose disk has not a byte left, the leader or a follower, does not end, and
// is no hindrance to the others. It catches up by itself when there is room.
func TestAMemberWithoutAByteLeft(t *testing.T) {
	for _, role := range []string{"leader", "follower"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			c, disks := boundedCluster(t, 64<<20, nil)
			full := c.leader()
			eventually(t, "the followers are in contact", func() bool { return safe(t, full).Safe })
			if role == "follower" {
				full = c.followers()[0]
			}
			w, stop, done := startWriter(c, "A")
			w.await(t, 500)
			disks[full.id].SetFree(0)
			eventually(t, "the member says that its disk is full", func() bool { return status(t, full).DiskFull })
			eventually(t, "another member leads", func() bool {
				for _, m := range c.members {
					if m != full && m.leads() {
						return true
					}
				}
				return false
			})
			w.await(t, 500)
			if _, err := scan(t, full, &storagepb.ScanRequest{Instrument: "A", Stale: true}); err != nil {
				t.Errorf("a stale read with a full disk: %v", err)
			}
			c.notEnded()
			disks[full.id].SetFree(64 << 20)
			last := w.finish(t, stop, done)
			c.same("A", last)
			c.notEnded()
			t.Logf("%d records; %d operations did not fit", last, disks[full.id].Refused())
		})
	}
}

// A leader with room does not use up what the reserve of a quorum is there for.
func TestAQuorumWithoutRoomRefusesAppends(t *testing.T) {
	const reserve = 8 << 20
	c, disks := boundedCluster(t, 256<<20, func(cfg *replica.Config) { cfg.DiskReserveBytes = reserve })
	leader := c.leader()
	write(t, leader, "A", 1, 100, 10)
	eventually(t, "the followers are in contact", func() bool { return safe(t, leader).Safe })
	followers := c.followers()
	disks[followers[0].id].SetFree(reserve / 2)
	eventually(t, "the follower says that its disk is full", func() bool { return status(t, followers[0]).DiskFull })
	write(t, leader, "A", 2, 100, 10) // the other two are a quorum
	disks[followers[1].id].SetFree(reserve / 2)
	refused := func() *refusal.Error {
		_, err := c.leader().ingest().OpenStream(testContext(t), &storagepb.OpenStreamRequest{Instrument: "A", Epoch: 1 << 30})
		return refusal.FromError(err)
	}
	eventually(t, "appends are refused", func() bool {
		e := refused()
		return e != nil && e.Code == storagepb.Code_CODE_DISK_FULL && strings.Contains(e.Message, followers[1].id)
	})
	for _, f := range followers {
		if free := disks[f.id].Free(); free == 0 {
			t.Errorf("member %s has used up its reserve", f.id)
		}
	}
	if got, err := scan(t, leader, &storagepb.ScanRequest{Instrument: "A"}); err != nil || len(got) != 200*record.Size {
		t.Errorf("a read: %d bytes, %v", len(got), err)
	}
	disks[followers[1].id].SetFree(256 << 20)
	eventually(t, "appends are taken", func() bool {
		_, err := c.leader().ingest().OpenStream(testContext(t), &storagepb.OpenStreamRequest{Instrument: "A", Epoch: 1 << 31})
		return err == nil
	})
	c.same("A", write(t, c.leader(), "A", 1<<20, 100, 10))
	c.notEnded()
}

// A leader whose disk hangs, whatever it was about to write, ends and another one
// leads and takes writes.
func TestALeaderWithAHungDiskIsReplaced(t *testing.T) {
	for _, file := range []string{"/wal/", ".sst.tmp", "META"} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			var hung atomic.Pointer[string] // id of the member whose disk hangs
			release := make(chan struct{})
			c := newCluster(t, 3, func(cfg *replica.Config) {
				id := cfg.ID
				cfg.FS = diskfault.Wrap(vfs.Default, func(op diskfault.Op) diskfault.Fault {
					if on := hung.Load(); on != nil && *on == id && op.Kind == diskfault.Sync && strings.Contains(op.Path, file) {
						<-release
					}
					return diskfault.Fault{}
				})
				cfg.HungDiskTimeout = 2 * time.Second // a disk of this machine may be slow for half of one
				cfg.Store.MemtableBytesMax = 8 << 10
				cfg.SnapshotEntries, cfg.SnapshotInterval = 50, 20*time.Millisecond
			})
			c.leader()
			w, stop, done := startWriter(c, "A")
			w.await(t, 200)
			old := c.leader()
			hung.Store(&old.id)
			eventually(t, "the leader ends", func() bool {
				select {
				case err := <-old.fatal:
					return strings.Contains(err.Error(), "hangs")
				default:
					return false
				}
			})
			cleanUp := old.end()
			defer func() {
				close(release)
				cleanUp()
			}()
			if leader := c.leader(); leader == old {
				t.Error("the leader with the hung disk leads on")
			}
			w.await(t, 500)
			c.same("A", w.finish(t, stop, done))
		})
	}
}

// end does to a member what the end of its process does, as far as others can see.
// It returns what takes away the rest, which waits for the disk.
func (m *member) end() (cleanUp func()) {
	n := m.running.Swap(nil)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		n.server.Stop()
	}()
	n.replica.Transport().Stop()
	n.conn.Close()
	return func() {
		n.replica.Close()
		<-stopped
	}
}
