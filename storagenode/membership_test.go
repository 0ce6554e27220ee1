package storagenode_test

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func status(t *testing.T, m *member) *storagepb.StatusResponse {
	t.Helper()
	st, err := m.admin().Status(testContext(t), &storagepb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// patient keeps a busy machine from changing the leader in tests that hold on to
// one.
func patient(cfg *replica.Config) {
	cfg.HeartbeatTimeout, cfg.LeaderLease = 800*time.Millisecond, 800*time.Millisecond
}

func takeSnapshot(t *testing.T, m *member) *storagepb.SnapshotResponse {
	t.Helper()
	r, err := m.admin().Snapshot(testContext(t), &storagepb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSnapshotShortensTheLogAndSurvivesRestart(t *testing.T) {
	for _, logStore := range []replica.LogStore{replica.LogStoreWAL, replica.LogStoreBolt} {
		t.Run(string(logStore), func(t *testing.T) {
			c := newCluster(t, 1, func(cfg *replica.Config) { cfg.LogStore = logStore })
			m := c.leader()
			write(t, m, "A", 1, 5000, 100)
			snap := takeSnapshot(t, m)
			st := status(t, m)
			if st.SnapshotIndex != snap.Index || st.FirstIndex < snap.Index-8 || snap.Bytes < 5000*128 {
				t.Fatalf("snapshot %+v, status %+v", snap, st)
			}
			if again := takeSnapshot(t, m); again.Index < snap.Index {
				t.Fatalf("a snapshot at %d after one at %d", again.Index, snap.Index)
			}
			last := write(t, m, "A", 2, 300, 100)
			m.stop()
			m.restart()
			c.leader()
			c.same("A", last)
			m.stop()
			m.restart()
			if got := write(t, c.leader(), "A", 3, 100, 10); got != last+100 {
				t.Fatalf("last seq %d, want %d", got, last+100)
			}
			c.same("A", last+100)
		})
	}
}

func TestLearnerGetsASnapshotAndIsPromoted(t *testing.T) {
	for _, logStore := range []replica.LogStore{replica.LogStoreWAL, replica.LogStoreBolt} {
		t.Run(string(logStore), func(t *testing.T) {
			c := newCluster(t, 3, func(cfg *replica.Config) { patient(cfg); cfg.LogStore = logStore })
			leader := c.leader()
			write(t, leader, "A", 1, 20000, 500)
			write(t, leader, "B", 1, 10, 1)
			takeSnapshot(t, leader)
			last := write(t, leader, "A", 2, 100, 10)
			if first := status(t, leader).FirstIndex; first < 10 {
				t.Fatalf("the log begins at %d: the learner would need no snapshot", first)
			}
			learner := c.join("m3")
			ctx := testContext(t)
			_, err := leader.admin().Promote(ctx, &storagepb.PromoteRequest{Id: "m3"})
			wantRefusal(t, err, refusal.ErrNotFound)
			if st := status(t, leader); st.MembershipPending {
				t.Fatalf("nothing changes, and the membership of index %d is said to be pending", st.MembershipIndex)
			}
			index := status(t, leader).MembershipIndex
			_, err = leader.admin().AddLearner(ctx, &storagepb.AddLearnerRequest{Id: "m3", Address: learner.address, PrevIndex: index + 1})
			wantRefusal(t, err, refusal.ErrInvalid)
			added, err := leader.admin().AddLearner(ctx, &storagepb.AddLearnerRequest{Id: "m3", Address: learner.address, PrevIndex: index})
			if err != nil {
				t.Fatal(err)
			}
			again, err := leader.admin().AddLearner(ctx, &storagepb.AddLearnerRequest{Id: "m3", Address: learner.address})
			if err != nil || again.MembershipIndex != added.MembershipIndex {
				t.Fatalf("added twice: %v, %v; want index %d", again, err, added.MembershipIndex)
			}
			_, err = leader.admin().AddLearner(ctx, &storagepb.AddLearnerRequest{Id: "m4", Address: learner.address})
			wantRefusal(t, err, refusal.ErrInvalid)
			c.same("A", last)
			c.same("B", 10)
			eventually(t, "m3 can be promoted", func() bool {
				_, err := leader.admin().Promote(ctx, &storagepb.PromoteRequest{Id: "m3"})
				if err != nil {
					wantRefusal(t, err, refusal.ErrUnavailable)
				}
				return err == nil
			})
			for _, m := range status(t, leader).Members {
				if m.Id == "m3" && !m.Voter {
					t.Error("m3 was promoted, but has no vote")
				}
			}
			learner.stop()
			last = write(t, leader, "A", 3, 100, 10)
			learner.restart()
			c.same("A", last)
			if snapshots := status(t, learner).SnapshotIndex; snapshots == 0 {
				t.Error("the learner never got a snapshot")
			}
		})
	}
}

// receiving returns what the leader says of the snapshot that it sends to a member.
func receiving(t *testing.T, leader *member, id string) *storagepb.SnapshotTransfer {
	t.Helper()
	for _, m := range status(t, leader).Members {
		if m.Id == id {
			return m.Receiving
		}
	}
	return nil
}

// While a snapshot is sent, slowly, appends are acknowledged; how far it is can be
// seen at both ends; and a receiver that is started again need not be sent what it
// has.
func TestAppendsGoOnWhileASnapshotIsSent(t *testing.T) {
	const pace = 1 << 20
	c := newCluster(t, 3, func(cfg *replica.Config) {
		patient(cfg)
		cfg.Transport.SnapshotBytesPerSecond, cfg.Transport.SnapshotChunkBytes = pace, 64<<10
		cfg.Store.TableBytesMax = 512 << 10
	})
	leader := c.leader()
	write(t, leader, "A", 1, 40000, 1000)
	snapshot := takeSnapshot(t, leader)
	if snapshot.Bytes < 4*pace {
		t.Fatalf("a snapshot of %d bytes is sent too soon", snapshot.Bytes)
	}
	write(t, leader, "A", 2, 200, 10) // so that the log begins behind it
	takeSnapshot(t, leader)
	learner := c.join("m3")
	if _, err := leader.admin().AddLearner(testContext(t), &storagepb.AddLearnerRequest{Id: "m3", Address: learner.address}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a part is sent", func() bool {
		x := receiving(t, leader, "m3")
		return x != nil && x.DoneBytes > 2*pace
	})
	last := write(t, leader, "A", 3, 2000, 10)
	during := receiving(t, leader, "m3")
	if during == nil || during.DoneBytes >= during.TotalBytes {
		t.Fatalf("200 batches took longer than the transfer: %v", during)
	}
	if own := status(t, learner).Receiving; own == nil || own.Index != during.Index || own.TotalBytes != during.TotalBytes || own.DoneBytes == 0 {
		t.Errorf("the learner says %v, the leader %v", own, during)
	}
	learner.stop()
	learner.restart()
	eventually(t, "the transfer goes on", func() bool {
		x := receiving(t, leader, "m3")
		return x != nil && x.HeldBytes > 0
	})
	c.same("A", last)
	if x := receiving(t, leader, "m3"); x != nil {
		t.Errorf("after the transfer: %v", x)
	}
}

// A learner whose snapshot takes longer than the log behind it is kept catches up
// all the same: of the next snapshot it is sent the difference.
func TestALearnerCatchesUpWithAShardThatIsWrittenTo(t *testing.T) {
	c := newCluster(t, 1, func(cfg *replica.Config) {
		patient(cfg)
		cfg.SnapshotEntries, cfg.SnapshotInterval, cfg.TrailingEntries, cfg.CaughtUpEntries = 64, 20*time.Millisecond, 8, 64
		cfg.Transport.SnapshotBytesPerSecond, cfg.Transport.SnapshotChunkBytes = 2<<20, 64<<10
		cfg.Store.TableBytesMax = 512 << 10
	})
	leader := c.leader()
	seq := write(t, leader, "A", 1, 40000, 100)
	takeSnapshot(t, leader)
	epoch := open(t, leader, "A", 1<<32).Epoch
	stop, written := make(chan struct{}), make(chan uint64)
	go func() {
		for {
			select {
			case <-stop:
				written <- seq
				return
			default:
			}
			if a := send(t, leader, batch(t, "A", epoch, seq+1, 1))[0]; a.Refusal == nil {
				seq++
			}
		}
	}()
	learner := c.join("m1")
	if _, err := leader.admin().AddLearner(testContext(t), &storagepb.AddLearnerRequest{Id: "m1", Address: learner.address}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the learner has caught up", func() bool {
		_, err := leader.admin().Promote(testContext(t), &storagepb.PromoteRequest{Id: "m1"})
		return err == nil
	})
	close(stop)
	c.same("A", <-written)
	if got := value(t, learner, "storagenode_raft_snapshot_resumed_bytes_total"); got == 0 {
		t.Error("one snapshot was enough: nothing is shown")
	}
}

func TestPromotionWaitsUntilCaughtUp(t *testing.T) {
	c := newCluster(t, 1, patient)
	leader := c.leader()
	ctx := testContext(t)
	// Nobody listens there.
	if _, err := leader.admin().AddLearner(ctx, &storagepb.AddLearnerRequest{Id: "gone", Address: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	_, err := leader.admin().Promote(ctx, &storagepb.PromoteRequest{Id: "gone"})
	wantRefusal(t, err, refusal.ErrUnavailable)
	write(t, leader, "A", 1, 10, 1) // the shard has not lost its quorum
	if _, err := leader.admin().Remove(ctx, &storagepb.RemoveRequest{Id: "gone"}); err != nil {
		t.Fatal(err)
	}
}

func TestRemovalKeepsTheQuorum(t *testing.T) {
	c := newCluster(t, 3, patient)
	leader, followers := c.leader(), c.followers()
	ctx := testContext(t)
	_, err := leader.admin().Remove(ctx, &storagepb.RemoveRequest{Id: leader.id})
	wantRefusal(t, err, refusal.ErrInvalid)
	_, err = followers[0].admin().Remove(ctx, &storagepb.RemoveRequest{Id: leader.id})
	wantRefusal(t, err, refusal.ErrNotLeader)
	_, err = leader.admin().Remove(ctx, &storagepb.RemoveRequest{Id: "nobody"})
	wantRefusal(t, err, refusal.ErrNotFound)
	eventually(t, "restarts are safe", func() bool { return safe(t, leader).Safe && safe(t, followers[0]).Safe })
	followers[0].stop()
	eventually(t, "restarts are not safe", func() bool { return !safe(t, leader).Safe && !safe(t, followers[1]).Safe })
	_, err = leader.admin().Remove(ctx, &storagepb.RemoveRequest{Id: followers[1].id})
	wantRefusal(t, err, refusal.ErrInvalid)
	if _, err := leader.admin().Remove(ctx, &storagepb.RemoveRequest{Id: followers[0].id}); err != nil {
		t.Fatalf("the member that is gone: %v", err)
	}
	if got := status(t, leader).Members; len(got) != 2 {
		t.Fatalf("members %v, want 2", got)
	}
	write(t, leader, "A", 1, 100, 10)
	c.same("A", 100)
}

func safe(t *testing.T, m *member) *storagepb.SafeToRestartResponse {
	t.Helper()
	r, err := m.admin().SafeToRestart(testContext(t), &storagepb.SafeToRestartRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestStatusOfTheMembers(t *testing.T) {
	c := newCluster(t, 3, patient)
	leader := c.leader()
	write(t, leader, "A", 1, 100, 10)
	eventually(t, "the followers have all entries", func() bool {
		st := status(t, leader)
		if st.State != "leader" || st.LeaderId != leader.id || len(st.Members) != 3 || len(st.Instruments) != 3 || st.Version != "test" {
			t.Fatalf("status %+v", st)
		}
		for _, m := range st.Members {
			if !m.Voter || m.Leader != (m.Id == leader.id) {
				t.Fatalf("member %+v", m)
			}
			if m.Lag > 0 || m.LastContactMs < 0 || m.LastContactMs > time.Minute.Milliseconds() {
				return false
			}
		}
		return true
	})
}

// fullFS is a file system whose free space is set by the test.
type fullFS struct {
	vfs.FS
	free atomic.Uint64
}

func (f *fullFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: f.free.Load(), TotalBytes: 1 << 40}, nil
}

func TestALeaderWithAFullDiskHandsOver(t *testing.T) {
	disks := map[string]*fullFS{}
	c := newCluster(t, 3, func(cfg *replica.Config) {
		disk := &fullFS{FS: vfs.Default}
		disk.free.Store(1 << 30)
		disks[cfg.ID] = disk
		cfg.FS, cfg.DiskReserveBytes, cfg.DiskCheckInterval = disk, 1<<20, 5*time.Millisecond
	})
	leader := c.leader()
	write(t, leader, "A", 1, 100, 10)
	full := c.followers()[0]
	eventually(t, "the followers are in contact", func() bool { return safe(t, leader).Safe })
	disks[full.id].free.Store(0)
	eventually(t, "the follower says that its disk is full", func() bool { return status(t, full).DiskFull })
	disks[leader.id].free.Store(0)
	eventually(t, "the one with space leads", func() bool {
		for _, m := range c.members {
			if m != leader && m != full && m.leads() {
				return true
			}
		}
		return false
	})
	if _, err := scan(t, leader, &storagepb.ScanRequest{Instrument: "A", Stale: true}); err != nil {
		t.Errorf("a stale read with a full disk: %v", err)
	}
	disks[full.id].free.Store(1 << 30) // else no quorum has room
	write(t, c.leader(), "A", 2, 100, 10)
}

// flipTables flips a bit in every table of the member's live store.
func flipTables(t *testing.T, m *member) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(m.dir, "store-*", "instruments", "*", "*.sst"))
	if err != nil || len(names) == 0 {
		t.Fatalf("tables of %s: %v, %v", m.id, names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[200] ^= 1
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A leader that has found damage in its data leaves the lead to one that has not.
func TestALeaderWithDamagedDataHandsOver(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	write(t, leader, "A", 1, 100, 10)
	damaged := []*member{c.followers()[0], leader}
	eventually(t, "the followers are in contact", func() bool { return safe(t, leader).Safe })
	for _, m := range damaged {
		eventually(t, "the member has applied all", func() bool { return status(t, m).AppliedIndex >= status(t, leader).AppliedIndex })
		if _, err := m.running.Load().replica.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		flipTables(t, m)
		if _, err := scan(t, m, &storagepb.ScanRequest{Instrument: "A", Stale: true}); err == nil {
			t.Fatal("damaged records were read")
		}
		eventually(t, "the member says that its data is damaged", func() bool { return status(t, m).Damage != "" })
	}
	eventually(t, "the one with whole data leads", func() bool {
		for _, m := range c.members {
			if m != damaged[0] && m != damaged[1] && m.leads() {
				return true
			}
		}
		return false
	})
	if _, err := scan(t, c.leader(), &storagepb.ScanRequest{Instrument: "A"}); err != nil {
		t.Errorf("read from the leader: %v", err)
	}
	write(t, c.leader(), "A", 2, 100, 10)
}
