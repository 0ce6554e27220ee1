package replica

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/stablestore"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

// single opens a replica of a one-member shard, or of one with absent others.
func single(t *testing.T, change func(*Config)) (*Replica, Config, chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fatal := make(chan error, 1)
	address := l.Addr().String()
	cfg := Config{
		Cluster: "test", Shard: "s1", ID: "m0", Address: address, DataDir: filepath.Join(t.TempDir(), "m0"),
		Peers: []Peer{{"m0", address}}, Instruments: []record.Symbol{record.MustSymbol("A")},
		HeartbeatTimeout: 100 * time.Millisecond, LeaderLease: 100 * time.Millisecond,
		SnapshotInterval: time.Hour, TrailingEntries: 1, DiskReserveBytes: -1, BallastBytes: -1,
		OnFatal: func(err error) {
			select {
			case fatal <- err:
			default:
			}
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	cfg.WAL.SegmentBytes = 1 << 20
	if change != nil {
		change(&cfg)
	}
	r := reopen(t, cfg)
	s := grpc.NewServer(grpc.MaxRecvMsgSize(grpcMessageBytesMax))
	r.Transport().Register(s)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return r, cfg, fatal
}

func reopen(t *testing.T, cfg Config) *Replica {
	t.Helper()
	r, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func awaitOwner(t *testing.T, r *Replica) {
	t.Helper()
	await(t, "the replica leads and owns its instruments", func() bool {
		v, err := r.Read(t.Context(), false)
		if err != nil {
			return false
		}
		defer v.Release()
		return len(v.Shard.Owned()) > 0
	})
}

func testBatch(t *testing.T, epoch, first uint64, n int) []byte {
	t.Helper()
	rs := make([]record.Record, n)
	for i := range rs {
		r := &rs[i]
		r.Version, r.Type, r.Seq, r.Global = record.Version, record.TypeDeposit, first+uint64(i), first+uint64(i)
		r.Instrument = record.MustSymbol("A")
	}
	b, err := record.AppendBatch(nil, epoch, rs)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fill appends n batches of ten records each.
func fill(t *testing.T, r *Replica, epoch uint64, n int) uint64 {
	t.Helper()
	opened, err := r.OpenStream(t.Context(), record.MustSymbol("A"), epoch)
	if err != nil {
		t.Fatal(err)
	}
	last := opened.LastSeq
	for range n {
		if last, err = r.ProposeBatch(t.Context(), testBatch(t, epoch, last+1, 10)).Wait(); err != nil {
			t.Fatal(err)
		}
	}
	return last
}

func lastSeq(t *testing.T, r *Replica) uint64 {
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

// chunkBytes is how much of a snapshot a fakeLeader sends in a message.
const chunkBytes = 4 << 10

// fakeLeader speaks to a follower as a leader of a later term would.
type fakeLeader struct {
	t      *testing.T
	tr     *Transport
	term   uint64
	target *Replica
}

func newFakeLeader(t *testing.T, target *Replica, term uint64) *fakeLeader {
	t.Helper()
	tr, _ := serve(t, TransportOptions{SnapshotChunkBytes: chunkBytes})
	return &fakeLeader{t: t, tr: tr, term: term, target: target}
}

func (f *fakeLeader) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: 3, ID: []byte("m1"), Addr: []byte(f.tr.LocalAddr())}
}

// appendNoops sends entries first to last of the given term after the previous one.
func (f *fakeLeader) appendNoops(prev, prevTerm, first, last, term, commit uint64) raft.AppendEntriesResponse {
	f.t.Helper()
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Type: raft.LogNoop})
	}
	var resp raft.AppendEntriesResponse
	err := f.tr.AppendEntries("m0", f.target.transport.LocalAddr(), &raft.AppendEntriesRequest{
		RPCHeader: f.header(), Term: f.term, PrevLogEntry: prev, PrevLogTerm: prevTerm, Entries: logs, LeaderCommitIndex: commit,
	}, &resp)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp
}

// install sends the donor's newest snapshot, cut off after the given number of
// bytes if that is not negative and changed by damage if that is not nil.
func (f *fakeLeader) install(donor *Replica, cut int64, damage func([]byte)) (*snapshotMeta, error) {
	f.t.Helper()
	newest, source := sourceOf(f.t, donor, cut, damage)
	return newest, f.send(newest, source)
}

// send sends a snapshot of source's bytes.
func (f *fakeLeader) send(m *snapshotMeta, source *fakeSource) error {
	f.t.Helper()
	var resp raft.InstallSnapshotResponse
	err := f.tr.InstallSnapshot("m0", f.target.transport.LocalAddr(), &raft.InstallSnapshotRequest{
		RPCHeader: f.header(), SnapshotVersion: 1, Term: f.term, LastLogIndex: m.Raft.Index, LastLogTerm: m.Raft.Term,
		Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
			{ID: "m0", Address: f.target.transport.LocalAddr()}, {ID: "m1", Address: f.tr.LocalAddr()}, {ID: "m2", Address: "127.0.0.1:2"},
		}}), ConfigurationIndex: 1, Size: int64(len(source.data)),
	}, &resp, source)
	if err == nil && !resp.Success {
		err = errors.New("refused")
	}
	return err
}

// fakeSource is a snapshot in memory.
type fakeSource struct {
	data  []byte
	begin int // length of the head
	files []streamFile
	cut   int64 // where it breaks off, negative for nowhere
	wait  chan struct{}

	asked chan struct{} // closed with after, when not nil
	held  []heldFile    // what the receiver had
	sent  int64         // bytes after the head that were to be sent
}

func sourceOf(t *testing.T, donor *Replica, cut int64, damage func([]byte)) (*snapshotMeta, *fakeSource) {
	t.Helper()
	newest, err := donor.snapshots.newest()
	if err != nil || newest == nil {
		t.Fatalf("the donor has no snapshot: %v", err)
	}
	meta, r, err := donor.snapshots.Open(newest.Raft.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := &fakeSource{cut: cut, begin: len(r.(*pinnedReader).begin), files: r.(*pinnedReader).files}
	if s.data, err = io.ReadAll(r); err != nil || int64(len(s.data)) != meta.Size {
		t.Fatalf("%d bytes of %d: %v", len(s.data), meta.Size, err)
	}
	if damage != nil {
		damage(s.data)
	}
	return newest, s
}

func (s *fakeSource) Read([]byte) (int, error) { panic("not read as a whole") }

func (s *fakeSource) head() []byte { return s.data[:s.begin] }

func (s *fakeSource) after(held []heldFile) (io.Reader, error) {
	s.held = held
	var parts []io.Reader
	at, broken := int64(s.begin), false
	for i, f := range s.files {
		from, end := at, at+f.Size
		if len(held) > 0 && held[0].file == i {
			from, held = at+held[0].bytes, held[1:]
		}
		s.sent += end - from
		if s.cut >= 0 && s.cut < end && !broken {
			parts = append(parts, bytes.NewReader(s.data[from:max(from, s.cut)]), failingReader{s.wait})
			broken = true
		}
		if !broken {
			parts = append(parts, bytes.NewReader(s.data[from:end]))
		}
		at = end
	}
	if s.asked != nil {
		close(s.asked)
	}
	return io.MultiReader(parts...), nil
}

// failingReader fails, once wait is closed if that is not nil.
type failingReader struct{ wait chan struct{} }

func (r failingReader) Read([]byte) (int, error) {
	if r.wait != nil {
		<-r.wait
	}
	return 0, errors.New("the leader's disk failed")
}

// followerAndDonor returns a member that can not lead, and one that has a
// snapshot of 100 records.
func followerAndDonor(t *testing.T, logStore LogStore) (follower, donor *Replica, cfg Config, fatal chan error) {
	t.Helper()
	donor, _, _ = single(t, nil)
	awaitOwner(t, donor)
	fill(t, donor, 1, 10)
	if _, err := donor.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	follower, cfg, fatal = single(t, func(c *Config) {
		c.LogStore = logStore
		c.Peers = append(c.Peers, Peer{"m1", "127.0.0.1:1"}, Peer{"m2", "127.0.0.1:2"})
		c.HeartbeatTimeout, c.LeaderLease = time.Minute, time.Minute // it stays a follower
		c.TrailingEntries = 1000
	})
	return follower, donor, cfg, fatal
}

// A follower whose log disagrees with a snapshot, or goes beyond it, would reject
// every entry after it and be sent the snapshot for ever.
func TestSnapshotOverAConflictingLog(t *testing.T) {
	for _, logStore := range []LogStore{LogStoreWAL, LogStoreBolt} {
		for name, last := range map[string]uint64{"longer": 40, "as long": 0, "shorter": 3} {
			t.Run(string(logStore)+" "+name, func(t *testing.T) {
				follower, donor, cfg, fatal := followerAndDonor(t, logStore)
				newest, err := donor.snapshots.newest()
				if err != nil {
					t.Fatal(err)
				}
				if last == 0 {
					last = newest.Raft.Index
				}
				leader := newFakeLeader(t, follower, newest.Raft.Term+7)
				// Entries of a deposed leader, of a term that lost.
				if r := leader.appendNoops(1, 1, 2, last, 1, 0); !r.Success {
					t.Fatalf("entries: %+v", r)
				}
				meta, err := leader.install(donor, -1, nil)
				if err != nil {
					t.Fatal(err)
				}
				k, term := meta.Raft.Index, meta.Raft.Term
				for i := range uint64(3) {
					if r := leader.appendNoops(k+i, termOf(term, leader.term, i), k+1+i, k+1+i, leader.term, k+1+i); !r.Success {
						t.Fatalf("entry %d after the snapshot at %d is rejected: %+v", k+1+i, k, r)
					}
				}
				if got := lastSeq(t, follower); got != 100 {
					t.Errorf("last seq %d, want 100", got)
				}
				// The leader did not get the answer, and sends the snapshot again.
				if _, err := leader.install(donor, -1, nil); err != nil {
					t.Errorf("the snapshot again: %v", err)
				}
				if r := leader.appendNoops(k+3, leader.term, k+4, k+4, leader.term, k+4); !r.Success {
					t.Errorf("entries acknowledged before the repeated snapshot are lost: %+v", r)
				}
				if err := follower.Close(); err != nil {
					t.Fatal(err)
				}
				again := reopen(t, cfg)
				if got := lastSeq(t, again); got != 100 || again.raft().LastIndex() != k+4 {
					t.Errorf("after a restart: last seq %d, last index %d; want 100, %d", got, again.raft().LastIndex(), k+4)
				}
				select {
				case err := <-fatal:
					t.Errorf("fatal: %v", err)
				default:
				}
			})
		}
	}
}

func termOf(snapshot, leader, i uint64) uint64 {
	if i == 0 {
		return snapshot
	}
	return leader
}

func TestInterruptedAndDamagedSnapshotsAreNotTaken(t *testing.T) {
	follower, donor, _, _ := followerAndDonor(t, LogStoreWAL)
	leader := newFakeLeader(t, follower, 9)
	if _, err := leader.install(donor, 3000, nil); err == nil {
		t.Fatal("half a snapshot was taken")
	}
	if _, err := leader.install(donor, -1, func(b []byte) { b[len(b)/2] ^= 1 }); err == nil || !strings.Contains(err.Error(), "corrupt") {
		t.Fatalf("a damaged snapshot: %v", err)
	}
	if _, err := leader.install(donor, -1, func(b []byte) { copy(b, "CHSNAP9") }); err == nil {
		t.Fatal("a snapshot of another format was taken")
	}
	if got := lastSeq(t, follower); got != 0 {
		t.Fatalf("last seq %d, want 0", got)
	}
	// Heartbeats went on meanwhile, and the next attempt succeeds.
	meta, err := leader.install(donor, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := lastSeq(t, follower); got != 100 {
		t.Fatalf("last seq %d, want 100", got)
	}
	names, err := follower.cfg.FS.List(follower.snapshots.dir)
	if err != nil || len(names) != 1 {
		t.Errorf("snapshots directory holds %v, %v; want one snapshot", names, err)
	}
	if r := leader.appendNoops(meta.Raft.Index, meta.Raft.Term, meta.Raft.Index+1, meta.Raft.Index+1, 9, 0); !r.Success {
		t.Errorf("entries after the snapshot: %+v", r)
	}
}

func TestASnapshotDoesNotTakeAMemberBack(t *testing.T) {
	r, _, _ := single(t, nil)
	awaitOwner(t, r)
	fill(t, r, 1, 5)
	commit := r.raft().CommitIndex()
	term, err := termAt(r.logs, commit-1)
	if err != nil {
		t.Fatal(err)
	}
	if has, err := r.has(commit-1, term); !has || err != nil {
		t.Errorf("a snapshot of entries that are here: %t, %v", has, err)
	}
	if has, err := r.has(commit+1, term); has || err != nil {
		t.Errorf("a snapshot of later entries: %t, %v", has, err)
	}
	if _, err := r.has(commit-1, term+1); err == nil {
		t.Error("a snapshot of another history must be refused")
	}
}

// CURRENT that names a store which is not there is damaged: to make an empty one,
// and to drop the others, would drop the data.
func TestCurrentMustNameAStore(t *testing.T) {
	r, cfg, _ := single(t, nil)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.DataDir, currentFile)
	if err := replaceFile(vfs.Default, path, []byte("store-000003\n")); err != nil {
		t.Fatal(err)
	}
	_, err := Open(cfg)
	if !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), path) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "store-000001")); err != nil {
		t.Errorf("the store is gone: %v", err)
	}
}

// A store that was used must not be dropped because CURRENT, which named it, is
// gone; an empty one is what a crash of the first start leaves.
func TestMissingCurrent(t *testing.T) {
	r, cfg, _ := single(t, nil)
	awaitOwner(t, r)
	fill(t, r, 1, 2)
	current := filepath.Join(cfg.DataDir, currentFile)
	if err := errors.Join(r.Close(), os.Remove(current)); err != nil {
		t.Fatal(err)
	}
	if damage := damageOf(t, cfg.DataDir); !strings.Contains(damage, current) || !strings.Contains(damage, "store-000001 holds records") {
		t.Errorf("verify says %q", damage)
	}
	if _, err := Open(cfg); !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), current) {
		t.Fatalf("got %v", err)
	}
	dir := filepath.Join(cfg.DataDir, "store-000001")
	for what, leave := range map[string]func() error{
		"an empty store": func() error {
			s, err := store.Open(vfs.Default, dir, store.Options{})
			if err != nil {
				return err
			}
			return s.Close()
		},
		"an empty directory": func() error { return os.Mkdir(dir, 0o755) },
		"no store":           func() error { return nil },
	} {
		if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(current), leave()); err != nil {
			t.Fatal(err)
		}
		if damage := damageOf(t, cfg.DataDir); damage != "" {
			t.Errorf("%s: verify says %q", what, damage)
		}
		again, err := Open(cfg)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		await(t, "the log brings the records back", func() bool { return lastSeq(t, again) == 20 })
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A member that lost its stable store has lost its vote, and must not give it
// again under the same id.
func TestLostStableStoreIsRefused(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"removed": os.Remove,
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"begun anew": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			s, err := stablestore.Open(path)
			if err != nil {
				return err
			}
			return s.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, cfg, _ := single(t, nil)
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if err := lose(filepath.Join(cfg.DataDir, stableFile)); err != nil {
				t.Fatal(err)
			}
			_, err := Open(cfg)
			if !errors.Is(err, stablestore.ErrCorrupt) || !strings.Contains(err.Error(), stableFile) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// Every flipped bit of a snapshot's META is noticed: Raft believes what it says.
func TestSnapshotMetaIsSealed(t *testing.T) {
	sealed := seal([]byte("{\"version\": 1}"))
	if b, err := unseal("META", sealed); err != nil || string(b) != "{\"version\": 1}" {
		t.Fatalf("%q, %v", b, err)
	}
	for bit := range len(sealed) * 8 {
		b := bytes.Clone(sealed)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := unseal("META", b); !errors.Is(err, record.ErrCorrupt) {
			t.Fatalf("bit %d: %v", bit, err)
		}
	}
	for n := range sealed {
		if _, err := unseal("META", sealed[:n]); err == nil {
			t.Fatalf("the first %d bytes passed", n)
		}
	}
}

// A crash may come after a received snapshot is visible and before its data is
// live.
func TestAdoptionIsFinishedAtTheNextStart(t *testing.T) {
	follower, donor, cfg, _ := followerAndDonor(t, LogStoreWAL)
	leader := newFakeLeader(t, follower, 9)
	if _, err := leader.install(donor, -1, nil); err != nil {
		t.Fatal(err)
	}
	if err := follower.Close(); err != nil {
		t.Fatal(err)
	}
	// Back to an empty live store beside the snapshot, and a half-made one.
	if err := dropOtherStores(vfs.Default, cfg.DataDir, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"store-000001", "store-000002"} {
		if err := vfs.Default.MkdirAll(filepath.Join(cfg.DataDir, name), dirMode); err != nil {
			t.Fatal(err)
		}
	}
	if err := replaceFile(vfs.Default, filepath.Join(cfg.DataDir, currentFile), []byte("store-000001\n")); err != nil {
		t.Fatal(err)
	}
	again := reopen(t, cfg)
	if got := lastSeq(t, again); got != 100 {
		t.Fatalf("last seq %d, want 100", got)
	}
}

func TestUnknownCommandsStopTheNode(t *testing.T) {
	for name, change := range map[string]func(*raft.Log){
		"kind":       func(l *raft.Log) { l.Extensions = []byte{9, 1} },
		"version":    func(l *raft.Log) { l.Extensions = []byte{1, 2} },
		"extensions": func(l *raft.Log) { l.Extensions = nil },
		"batch":      func(l *raft.Log) { l.Data = []byte("no batch") },
	} {
		t.Run(name, func(t *testing.T) {
			r, _, fatal := single(t, nil)
			awaitOwner(t, r)
			fill(t, r, 1, 1)
			bad := raft.Log{Data: testBatch(t, 1, 11, 1), Extensions: batchExtensions}
			change(&bad)
			if _, err := r.propose(t.Context(), bad).wait(); err == nil {
				t.Error("the entry was applied")
			}
			if err := <-fatal; !strings.Contains(err.Error(), "apply log entry") {
				t.Errorf("fatal: %v", err)
			}
			if _, err := r.ProposeBatch(t.Context(), testBatch(t, 1, 11, 1)).Wait(); !errors.Is(err, refusal.ErrUnavailable) {
				t.Errorf("the next batch: %v", err)
			}
			if got := lastSeq(t, r); got != 10 {
				t.Errorf("last seq %d, want 10", got)
			}
		})
	}
}

// A transfer of leadership that was interrupted can leave the library refusing
// every entry for ever.
func TestAStuckTransferRestartsRaft(t *testing.T) {
	r, _, fatal := single(t, nil)
	awaitOwner(t, r)
	fill(t, r, 1, 5)
	before := r.current.Load()
	await(t, "raft is restarted", func() bool {
		if err := r.refusalOf(raft.ErrLeadershipTransferInProgress); !errors.Is(err, refusal.ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
		return r.current.Load() != before
	})
	awaitOwner(t, r)
	if last := fill(t, r, 2, 5); last != 100 {
		t.Errorf("last seq %d, want 100", last)
	}
	if got := lastSeq(t, r); got != 100 {
		t.Errorf("last seq %d, want 100", got)
	}
	select {
	case err := <-fatal:
		t.Errorf("fatal: %v", err)
	default:
	}
}

func TestARestartOfRaftAnswersProposals(t *testing.T) {
	r, _, _ := single(t, nil)
	awaitOwner(t, r)
	fill(t, r, 1, 1)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			var waits []*Proposal
			for range 20 {
				waits = append(waits, r.ProposeBatch(context.Background(), testBatch(t, 1, 1, 1)))
			}
			for _, p := range waits {
				if _, err := p.Wait(); err == nil {
					t.Error("a duplicate was stored")
				}
			}
		}
	}()
	for range 3 {
		awaitOwner(t, r)
		r.restartRaft("test")
	}
	awaitOwner(t, r)
	close(stop)
	<-done
	if r.pending.Load() != 0 {
		t.Errorf("%d proposals are not answered", r.pending.Load())
	}
}

// fullFS is a file system whose free space is set by the test.
type fullFS struct {
	vfs.FS
	free atomic.Uint64
}

func (f *fullFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: f.free.Load(), TotalBytes: 1 << 40}, nil
}

func TestAFullDiskRefusesAppendsAndServesReads(t *testing.T) {
	fs := &fullFS{FS: vfs.Default}
	fs.free.Store(1 << 30)
	r, cfg, _ := single(t, func(c *Config) {
		c.FS, c.DiskReserveBytes, c.BallastBytes, c.DiskCheckInterval = fs, 100<<20, 1<<20, time.Millisecond
	})
	awaitOwner(t, r)
	fill(t, r, 1, 2)
	ballast := filepath.Join(cfg.DataDir, ballastFile)
	await(t, "ballast", func() bool { _, err := fs.Stat(ballast); return err == nil })
	fs.free.Store(99 << 20)
	await(t, "appends are refused", func() bool {
		_, err := r.ProposeBatch(t.Context(), testBatch(t, 1, 21, 1)).Wait()
		return errors.Is(err, refusal.ErrDiskFull)
	})
	awaitOwner(t, r) // reads go on
	if !r.Status().DiskFull {
		t.Error("the status does not say that the disk is full")
	}
	fs.free.Store(100 << 10)
	await(t, "the ballast is given up", func() bool { _, err := fs.Stat(ballast); return err != nil })
	fs.free.Store(101 << 20)
	time.Sleep(5 * time.Millisecond)
	if !r.disk.full.Load() {
		t.Error("the node flaps: appends are taken again just above the reserve")
	}
	fs.free.Store(1 << 30)
	await(t, "appends are taken again", func() bool { return !r.disk.full.Load() })
	if last := fill(t, r, 2, 1); last < 30 {
		t.Errorf("last seq %d", last)
	}
	await(t, "ballast again", func() bool { _, err := fs.Stat(ballast); return err == nil })
}

// A promotion that waits for a learner which can not be reached says why.
func TestPromotionOfAnUnreachableLearnerSaysWhy(t *testing.T) {
	r, _, _ := single(t, nil)
	awaitOwner(t, r)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	if _, err := r.AddLearner(t.Context(), "m9", address, 0); err != nil {
		t.Fatal(err)
	}
	_, err = r.Promote(t.Context(), "m9", 0)
	if err == nil || !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}

func TestSnapshotsAreTakenByBytes(t *testing.T) {
	r, _, _ := single(t, func(c *Config) { c.SnapshotBytes = 10 << 10 })
	awaitOwner(t, r)
	fill(t, r, 1, 20)
	await(t, "a snapshot", func() bool { return r.Status().SnapshotIndex > 0 })
}

func TestReadersOutliveAReplacedStore(t *testing.T) {
	follower, donor, _, _ := followerAndDonor(t, LogStoreWAL)
	view, err := follower.Read(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	leader := newFakeLeader(t, follower, 9)
	if _, err := leader.install(donor, -1, nil); err != nil {
		t.Fatal(err)
	}
	if len(view.Shard.Instruments()) != 0 {
		t.Error("the old view shows the new store")
	}
	old := view.live
	view.Release()
	<-old.closed
	if old.err != nil {
		t.Error(old.err)
	}
	if _, err := vfs.Default.Stat(old.dir); err == nil {
		t.Errorf("%s is still there", old.dir)
	}
	if got := lastSeq(t, follower); got != 100 {
		t.Errorf("last seq %d, want 100", got)
	}
}

func TestStreamHeaderRefusesOutsidePaths(t *testing.T) {
	for _, p := range []string{"../x", "/etc/passwd", "a/../../x", "", ".", "a//b", `a\..\b`} {
		h := streamHeader{Version: streamVersion, Files: []streamFile{{Path: p}}}
		b, err := h.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := readStreamHeader(bytes.NewReader(b)); !errors.Is(err, record.ErrCorrupt) {
			t.Errorf("path %q: %v", p, err)
		}
	}
}

func FuzzStreamHeader(f *testing.F) {
	h := streamHeader{Version: streamVersion, Cluster: "c", Files: []streamFile{{Path: "A/1.sst", Size: 1, CRC: 2}, {Path: store.ListingName}}}
	b, err := h.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(streamMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := readStreamHeader(bytes.NewReader(b))
		if err != nil {
			return
		}
		if n > int64(len(b)) {
			t.Fatalf("%d bytes read of %d", n, len(b))
		}
		for _, file := range h.Files {
			if !filepath.IsLocal(file.Path) {
				t.Fatalf("path %q", file.Path)
			}
		}
	})
}

// A proposal without data counts, too: its number is bounded with its bytes.
func TestSmallProposalsCount(t *testing.T) {
	r, _, _ := single(t, nil)
	awaitOwner(t, r)
	p := r.propose(t.Context(), openCommand(record.MustSymbol("A"), 5))
	if p.bytes != proposalBytesMin {
		t.Errorf("it counts for %d bytes", p.bytes)
	}
	if _, err := p.wait(); err != nil {
		t.Fatal(err)
	}
}

// What is asked of a Raft instance in the instant of its end is answered: the
// library itself may not.
func TestAnEndedInstanceKeepsNobodyWaiting(t *testing.T) {
	r, _, _ := single(t, nil)
	awaitOwner(t, r)
	old := r.current.Load()
	r.restartRaft("a test")
	for range 50 {
		if err := old.await(old.raft.VerifyLeader()); err == nil {
			t.Fatal("an instance that has ended leads")
		}
	}
}
