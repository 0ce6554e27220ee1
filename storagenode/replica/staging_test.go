package replica

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/storagenode/diskfault"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

// tabled returns a donor whose snapshot has several tables, and a follower.
func tabled(t *testing.T) (follower, donor *Replica, cfg Config) {
	t.Helper()
	donor, _, _ = single(t, func(c *Config) {
		c.Store.MemtableBytesMax, c.Store.TableBytesMax = 16<<10, 32<<10
	})
	awaitOwner(t, donor)
	grow(t, donor, 1)
	follower, cfg, _ = single(t, idleFollower)
	return follower, donor, cfg
}

// grow adds a table and takes a snapshot.
func grow(t *testing.T, donor *Replica, epoch uint64) {
	t.Helper()
	for k := range uint64(3) {
		fill(t, donor, 10*epoch+k, 30)
		if _, err := donor.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// idleFollower makes a member that never leads.
func idleFollower(c *Config) {
	c.Peers = append(c.Peers, Peer{"m1", "127.0.0.1:1"}, Peer{"m2", "127.0.0.1:2"})
	c.HeartbeatTimeout, c.LeaderLease = time.Minute, time.Minute
}

// sendUpTo sends a snapshot up to the cut, and fails once that has arrived but
// for less than a chunk.
func (f *fakeLeader) sendUpTo(m *snapshotMeta, source *fakeSource, cut int64) {
	f.t.Helper()
	source.cut, source.wait = cut, make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- f.send(m, source) }()
	await(f.t, "what was sent is staged", func() bool {
		return stagedBytes(f.t, f.target.cfg.DataDir) > cut-int64(source.begin)-chunkBytes
	})
	close(source.wait)
	if err := <-ended; err == nil {
		f.t.Fatal("a part of a snapshot was taken")
	}
}

func stagedBytes(t *testing.T, dataDir string) (n int64) {
	t.Helper()
	for _, info := range staged(t, dataDir) {
		if info.Name() != stagedList && !strings.HasSuffix(info.Name(), ".tmp") {
			n += info.Size()
		}
	}
	return n
}

// staged returns the files that are staged, by path.
func staged(t *testing.T, dataDir string) map[string]os.FileInfo {
	t.Helper()
	files := make(map[string]os.FileInfo)
	err := filepath.WalkDir(filepath.Join(dataDir, snapshotsDir, stagingName), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil // renamed meanwhile
		}
		files[path] = info
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return files
}

func heldBytes(s *fakeSource) (n int64) {
	for _, k := range s.held {
		n += k.bytes
	}
	return n
}

// A transfer that is cut off again and again goes on where it was, also when the
// receiver has started again in between, and loses nothing.
func TestATransferGoesOnWhereItWasCutOff(t *testing.T) {
	follower, donor, cfg := tabled(t)
	leader := newFakeLeader(t, follower, 9)
	meta, whole := sourceOf(t, donor, -1, nil)
	size := int64(len(whole.data))
	const cuts = 12
	for k := int64(1); k < cuts; k++ {
		cut := int64(whole.begin) + (size-int64(whole.begin))*k/cuts
		_, source := sourceOf(t, donor, -1, nil)
		leader.sendUpTo(meta, source, cut)
		if source.sent+heldBytes(source) != size-int64(source.begin) {
			t.Fatalf("%d bytes held and %d to be sent of %d", heldBytes(source), source.sent, size)
		}
		if k%3 == 2 {
			if err := follower.Close(); err != nil {
				t.Fatal(err)
			}
			follower = reopenServed(t, cfg)
			leader.target = follower
		}
	}
	_, source := sourceOf(t, donor, -1, nil)
	if err := leader.send(meta, source); err != nil {
		t.Fatal(err)
	}
	if source.sent > size/cuts+chunkBytes {
		t.Errorf("%d of %d bytes were sent at last", source.sent, size)
	}
	if got, want := lastSeq(t, follower), lastSeq(t, donor); got != want {
		t.Errorf("last seq %d, want %d", got, want)
	}
	if st := follower.Status(); st.SnapshotIndex != meta.Raft.Index || st.Receiving != nil {
		t.Errorf("status %v", st)
	}
	names, err := follower.cfg.FS.List(follower.snapshots.dir)
	if err != nil || len(names) != 1 {
		t.Errorf("the snapshots' directory holds %v, %v", names, err)
	}
	if got := follower.transport.transfers.resumed.Load(); got < heldBytes(source) {
		t.Errorf("%d bytes are counted as resumed, %d were", got, heldBytes(source))
	}
}

// A leader that has taken a later snapshot meanwhile sends only what is not in
// the one before.
func TestATransferOfALaterSnapshotGoesOn(t *testing.T) {
	follower, donor, _ := tabled(t)
	leader := newFakeLeader(t, follower, 9)
	meta, source := sourceOf(t, donor, -1, nil)
	leader.sendUpTo(meta, source, int64(len(source.data))-10)
	before := tablesOf(source)
	grow(t, donor, 2)
	later, source := sourceOf(t, donor, -1, nil)
	if later.Raft.Index == meta.Raft.Index {
		t.Fatal("no later snapshot")
	}
	common := commonBytes(t, before, source)
	if err := leader.send(later, source); err != nil {
		t.Fatal(err)
	}
	if held := heldBytes(source); held < common-chunkBytes-10 {
		t.Errorf("%d bytes were held, %d are the same", held, common)
	}
	if got, want := lastSeq(t, follower), lastSeq(t, donor); got != want {
		t.Errorf("last seq %d, want %d", got, want)
	}
}

// commonBytes returns the size of a snapshot's tables that are among those before.
func commonBytes(t *testing.T, before map[string]streamFile, s *fakeSource) (n int64) {
	t.Helper()
	for path, f := range tablesOf(s) {
		if before[path] == f {
			n += f.Size
		}
	}
	if n == 0 {
		t.Fatal("the snapshots have no table in common")
	}
	return n
}

func tablesOf(s *fakeSource) map[string]streamFile {
	tables := make(map[string]streamFile)
	for _, f := range s.files {
		if hasTableSuffix(f.Path) {
			tables[f.Path] = f
		}
	}
	return tables
}

// What a restart finds staged may be damaged or older than its list says. It is
// found out, and sent again.
func TestDamageOfWhatIsStagedIsNoticed(t *testing.T) {
	const seed = 11
	rng := rand.New(rand.NewPCG(seed, seed))
	_, donor, _ := tabled(t)
	for round := range 8 {
		t.Run(fmt.Sprintf("seed %d round %d", seed, round), func(t *testing.T) {
			follower, cfg, _ := single(t, idleFollower)
			leader := newFakeLeader(t, follower, 9)
			meta, source := sourceOf(t, donor, -1, nil)
			body := int64(len(source.data) - source.begin)
			leader.sendUpTo(meta, source, int64(source.begin)+body/2+rng.Int64N(body/2))
			if err := follower.Close(); err != nil {
				t.Fatal(err)
			}
			damageStaged(t, cfg.DataDir, rng)
			follower = reopenServed(t, cfg)
			leader.target = follower
			tries := 0
			for ; tries < 3; tries++ {
				_, source := sourceOf(t, donor, -1, nil)
				err := leader.send(meta, source)
				if err == nil {
					break
				}
				if !strings.Contains(err.Error(), "corrupt") {
					t.Fatal(err)
				}
			}
			if tries > 1 {
				t.Errorf("%d attempts failed", tries)
			}
			if got, want := lastSeq(t, follower), lastSeq(t, donor); got != want {
				t.Errorf("last seq %d, want %d", got, want)
			}
			if err := follower.Close(); err != nil {
				t.Fatal(err)
			}
			if damage := damageOf(t, cfg.DataDir); damage != "" {
				t.Error(damage)
			}
		})
	}
}

// damageStaged flips a bit of one of the files.
func damageStaged(t *testing.T, dataDir string, rng *rand.Rand) {
	t.Helper()
	var names []string
	for name, info := range staged(t, dataDir) {
		if info.Size() > 0 {
			names = append(names, name)
		}
	}
	if len(names) < 2 {
		t.Fatalf("staged: %v", names)
	}
	slices.Sort(names)
	name := names[rng.IntN(len(names))]
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A sender whose transfer stands still does not keep others out.
func TestALaterTransferEndsOneThatStandsStill(t *testing.T) {
	follower, donor, _ := tabled(t)
	old := newFakeLeader(t, follower, 9)
	old.tr.opts.SnapshotIdleTimeout, follower.transport.opts.SnapshotIdleTimeout = time.Hour, time.Hour // which end nothing
	meta, stuck := sourceOf(t, donor, -1, nil)
	stuck.cut, stuck.wait, stuck.asked = int64(stuck.begin)+2*chunkBytes, make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- old.send(meta, stuck) }()
	<-stuck.asked
	if x := follower.Status().Receiving; x == nil || x.Index != meta.Raft.Index || x.TotalBytes != uint64(len(stuck.data)) {
		t.Errorf("the status says %v", x)
	}
	leader := newFakeLeader(t, follower, 10)
	if _, err := leader.install(donor, -1, nil); err != nil {
		t.Fatal(err)
	}
	close(stuck.wait)
	if err := <-ended; err == nil {
		t.Error("the transfer that stood still succeeded")
	}
	if got, want := lastSeq(t, follower), lastSeq(t, donor); got != want {
		t.Errorf("last seq %d, want %d", got, want)
	}
}

// What was staged and not adopted can not be adopted once another transfer began.
func TestATokenIsOfUseOnce(t *testing.T) {
	follower, donor, _ := tabled(t)
	g := &follower.snapshots.staging
	stage := func() ([]byte, func(), *fakeSource) {
		_, source := sourceOf(t, donor, -1, nil)
		token, release, err := stageAll(follower, source)
		if err != nil {
			t.Fatal(err)
		}
		return token, release, source
	}
	token, release, _ := stage()
	if err := g.adopt([]byte("CHSTAGED77"), "tmp-77"); err == nil {
		t.Error("a token that was never given was taken")
	}
	release()
	if err := g.adopt(token, "tmp-77"); err == nil {
		t.Error("a token was taken after its transfer")
	}
	token, release, source := stage()
	defer release()
	if source.sent != 0 {
		t.Errorf("%d bytes were sent again", source.sent)
	}
	if err := g.adopt(token, "tmp-78"); err != nil {
		t.Fatal(err)
	}
	if err := g.adopt(token, "tmp-79"); err == nil {
		t.Error("a token was taken twice")
	}
}

// A transfer ends, because its leader was killed, while Raft adopts what it has
// brought: the snapshot is there, whole, or there is none.
func TestAdoptionIsWholeWhenTheTransferEnds(t *testing.T) {
	follower, donor, _ := tabled(t)
	meta, _ := sourceOf(t, donor, -1, nil)
	adopted := 0
	const rounds = 60
	for round := range rounds {
		_, source := sourceOf(t, donor, -1, nil)
		token, release, err := stageAll(follower, source)
		if err != nil {
			t.Fatal(err)
		}
		sink, err := follower.snapshots.Create(1, meta.Raft.Index, meta.Raft.Term, meta.Raft.Configuration, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sink.Write(token); err != nil {
			t.Fatal(err)
		}
		closed := make(chan error, 1)
		go func() { closed <- sink.Close() }()
		time.Sleep(time.Duration(round) * 20 * time.Microsecond) // another instant of the adoption each time
		release()
		_, source = sourceOf(t, donor, -1, nil)
		if _, again, err := stageAll(follower, source); err != nil { // the leader's next attempt
			t.Fatal(err)
		} else {
			again()
		}
		if err := <-closed; err != nil {
			continue
		}
		adopted++
		if _, err := store.VerifyDir(follower.cfg.FS, follower.snapshots.path(sink.ID(), dataDir)); err != nil {
			t.Fatal(err)
		}
		if err := follower.cfg.FS.RemoveAll(follower.snapshots.path(sink.ID())); err != nil {
			t.Fatal(err)
		}
	}
	if adopted == 0 {
		t.Error("nothing was adopted")
	}
	t.Logf("adopted in %d of %d rounds", adopted, rounds)
}

// stageAll gives a member a snapshot as the transport does.
func stageAll(r *Replica, source *fakeSource) (token []byte, release func(), err error) {
	var rest io.Reader
	in := &lateReader{first: bytes.NewReader(source.head()), next: func() io.Reader { return rest }}
	return r.snapshots.staging.stage(in, int64(len(source.data)), func(held []heldFile, _ int64) (err error) {
		rest, err = source.after(held)
		return err
	})
}

// lateReader reads first, then what next returns.
type lateReader struct {
	first io.Reader
	next  func() io.Reader
}

func (r *lateReader) Read(p []byte) (int, error) {
	n, err := r.first.Read(p)
	if n == 0 && errors.Is(err, io.EOF) {
		return r.next().Read(p)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// A snapshot for which there is no room is refused before it is sent.
func TestASnapshotLeavesTheReserve(t *testing.T) {
	donor, _, _ := single(t, nil)
	awaitOwner(t, donor)
	fill(t, donor, 1, 10)
	if _, err := donor.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	follower, _, _ := single(t, func(c *Config) {
		idleFollower(c)
		c.DiskReserveBytes = 1 << 60
	})
	leader := newFakeLeader(t, follower, 9)
	meta, source := sourceOf(t, donor, -1, nil)
	err := leader.send(meta, source)
	if refused := refusal.FromError(errors.Unwrap(err)); refused == nil || !errors.Is(refused, refusal.ErrDiskFull) || !strings.Contains(err.Error(), "give the member a larger disk") {
		t.Errorf("got %v", err)
	}
	if source.sent != 0 {
		t.Errorf("%d bytes were to be sent", source.sent)
	}
}

// Ten thousand instruments with fifteen tables each can be listed; more than a
// receiver takes are refused by the sender.
func TestSnapshotOfManyFiles(t *testing.T) {
	h := &streamHeader{Version: streamVersion, Cluster: "test", Shard: "s1", ID: "9-123456789-1790000000000"}
	for i := range 10_000 {
		for k := range 15 {
			h.Files = append(h.Files, streamFile{Path: fmt.Sprintf("%032x/%06d.sst", i, k), Size: 1 << 30, CRC: 1<<32 - 1})
		}
	}
	b, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, n, err := readStreamHeader(strings.NewReader(string(b)))
	if err != nil || n != int64(len(b)) || !slices.Equal(got.Files, h.Files) {
		t.Fatalf("%d files of %d in %d of %d bytes, %v", len(got.Files), len(h.Files), n, len(b), err)
	}
	h.Files = make([]streamFile, streamFilesMax+1)
	if _, err := h.encode(); err == nil || !strings.Contains(err.Error(), "divide the shard") {
		t.Errorf("got %v", err)
	}
}

// A receiver that claims what can not be is not believed.
func TestClaimsOfAReceiverAreChecked(t *testing.T) {
	_, donor, _ := tabled(t)
	newest, err := donor.snapshots.newest()
	if err != nil {
		t.Fatal(err)
	}
	for name, held := range map[string][]heldFile{
		"beyond the list": {{1 << 20, 1}}, "beyond the file": {{0, 1 << 40}}, "negative": {{0, -1}}, "order": {{1, 1}, {0, 1}}, "twice": {{0, 1}, {0, 1}},
	} {
		_, r, err := donor.snapshots.Open(newest.Raft.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.(snapshotSource).after(held); err == nil {
			t.Errorf("%s: it was believed", name)
		}
		r.Close()
	}
}

// bigReceiver holds many files and takes what is sent.
type bigReceiver struct {
	held []heldFile
	got  int64
}

func (r *bigReceiver) has(uint64, uint64) (bool, error) { return false, nil }
func (r *bigReceiver) installed(uint64, uint64)         {}
func (r *bigReceiver) stage(in io.Reader, size int64, want func([]heldFile, int64) error) ([]byte, func(), error) {
	if _, err := io.CopyN(io.Discard, in, 12); err != nil {
		return nil, nil, err
	}
	if err := want(r.held, 7); err != nil {
		return nil, nil, err
	}
	n, err := io.CopyN(io.Discard, in, size-12)
	r.got = n
	return []byte("token"), func() {}, err
}

type bigSource struct {
	io.Reader
	size int64
	held []heldFile
}

func (s *bigSource) head() []byte { return make([]byte, 12) }
func (s *bigSource) after(held []heldFile) (io.Reader, error) {
	s.held = held
	return io.LimitReader(zeros{}, s.size-12), nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// The list of what is held comes in as many messages as it needs, and what is
// sent takes the time that the pace asks for.
func TestTransferIsPacedAndItsListPaged(t *testing.T) {
	to, _ := serve(t, TransportOptions{})
	answer(t, to, func(any) any { return &raft.InstallSnapshotResponse{Term: 3, Success: true} })
	receiver := new(bigReceiver)
	for i := range 2*heldPage + 5 {
		receiver.held = append(receiver.held, heldFile{i, int64(i)})
	}
	to.setReceiver(receiver)
	from, _ := serve(t, TransportOptions{SnapshotBytesPerSecond: 4 << 20})
	source := &bigSource{size: 3 << 20}
	began := time.Now()
	var resp raft.InstallSnapshotResponse
	err := from.InstallSnapshot("m1", to.LocalAddr(), &raft.InstallSnapshotRequest{RPCHeader: header(from), Term: 3, LastLogIndex: 9, Size: source.size}, &resp, source)
	if err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	// The first chunk may be sent at once.
	if took, least := time.Since(began), (source.size-snapshotChunkBytes)*int64(time.Second)/(4<<20); int64(took) < least {
		t.Errorf("%d bytes took %v", source.size, took)
	}
	if !slices.Equal(source.held, receiver.held) || receiver.got != source.size-12 {
		t.Errorf("%d of %d files are known as held, %d bytes came", len(source.held), len(receiver.held), receiver.got)
	}
	if err := from.InstallSnapshot("m1", to.LocalAddr(), &raft.InstallSnapshotRequest{Size: 1}, &resp, strings.NewReader("x")); !errors.Is(err, errSnapshotSource) {
		t.Errorf("got %v", err)
	}
	c := Config{Transport: TransportOptions{SnapshotBytesPerSecond: 100}}
	if err := c.checkTimeouts(); err == nil || !strings.Contains(err.Error(), "SnapshotBytesPerSecond 100") {
		t.Errorf("got %v", err)
	}
}

// reopenServed opens a member again, at another address.
func reopenServed(t *testing.T, cfg Config) *Replica {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Address = l.Addr().String()
	r := reopen(t, cfg)
	s := grpc.NewServer(grpc.MaxRecvMsgSize(grpcMessageBytesMax))
	r.Transport().Register(s)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return r
}

// A table that is staged is synced as it grows: one sync of a large one would look
// like a disk that hangs.
func TestStagedFilesAreSyncedAsTheyGrow(t *testing.T) {
	var written, worst int64
	fs := &countingFS{FS: vfs.NewMem(), wrote: func(n int64) {
		written += n
		worst = max(worst, written)
	}, synced: func() { written = 0 }}
	s, err := openSnapshots(fs, "snapshots", "test", "s1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := fs.MkdirAll(s.staging.path(dataDir), dirMode); err != nil {
		t.Fatal(err)
	}
	const size = 5 * unsyncedBytesMax
	zero := make([]byte, size)
	f := streamFile{Path: "a.sst", Size: size, CRC: crc32.Checksum(zero, crc32.MakeTable(crc32.Castagnoli))}
	if err := s.staging.unpackFile(f, 0, bytes.NewReader(zero)); err != nil {
		t.Fatal(err)
	}
	if worst > unsyncedBytesMax+snapshotChunkBytes || written != 0 {
		t.Errorf("%d bytes were unsynced at a time, %d at the end", worst, written)
	}
}

// countingFS tells of bytes written and of syncs.
type countingFS struct {
	vfs.FS
	wrote  func(int64)
	synced func()
}

func (c *countingFS) OpenReadWrite(name string, k vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.OpenReadWrite(name, k, o...)
	return &countingFile{f, c}, err
}

type countingFile struct {
	vfs.File
	fs *countingFS
}

func (f *countingFile) WriteAt(p []byte, at int64) (int, error) {
	f.fs.wrote(int64(len(p)))
	return f.File.WriteAt(p, at)
}

func (f *countingFile) Sync() error { f.fs.synced(); return f.File.Sync() }

func (f *countingFile) SyncData() error { f.fs.synced(); return f.File.SyncData() }

// A snapshot whose last step fails leaves nothing behind, and what was received of
// it is not sent again.
func TestAFailedLastStepLeavesNothing(t *testing.T) {
	_, donor, _ := tabled(t)
	var fails atomic.Bool
	follower, _, _ := single(t, func(c *Config) {
		idleFollower(c)
		c.FS = diskfault.Wrap(vfs.Default, func(op diskfault.Op) diskfault.Fault {
			if fails.Load() && op.Kind == diskfault.Create && vfs.Default.PathBase(op.Path) == metaFile {
				return diskfault.Fault{Err: unix.EACCES}
			}
			return diskfault.Fault{}
		})
	})
	leader := newFakeLeader(t, follower, 9)
	fails.Store(true)
	for range 3 {
		if _, err := leader.install(donor, -1, nil); err == nil {
			t.Fatal("a snapshot without META was taken")
		}
		names, err := follower.cfg.FS.List(follower.snapshots.dir)
		if err != nil || !slices.Equal(names, []string{stagingName}) {
			t.Errorf("it leaves %v, %v", names, err)
		}
	}
	fails.Store(false)
	meta, source := sourceOf(t, donor, -1, nil)
	if err := leader.send(meta, source); err != nil {
		t.Fatal(err)
	}
	if source.sent != 0 {
		t.Errorf("%d bytes were sent again", source.sent)
	}
	if got, want := lastSeq(t, follower), lastSeq(t, donor); got != want {
		t.Errorf("last seq %d, want %d", got, want)
	}
}

// A member that could not read a snapshot which it has received does not say that
// it has it: it ends, and its next start adopts the snapshot.
func TestASnapshotThatIsNotLiveIsNotVouchedFor(t *testing.T) {
	_, donor, _ := tabled(t)
	var fails atomic.Bool
	follower, cfg, fatal := single(t, func(c *Config) {
		idleFollower(c)
		c.HungDiskTimeout = 300 * time.Millisecond
		c.FS = diskfault.Wrap(vfs.Default, func(op diskfault.Op) diskfault.Fault {
			if fails.Load() && op.Kind == diskfault.Open && vfs.Default.PathBase(op.Path) == metaFile {
				return diskfault.Fault{Err: unix.EIO}
			}
			return diskfault.Fault{}
		})
	})
	leader := newFakeLeader(t, follower, 9)
	fails.Store(true)
	if _, err := leader.install(donor, -1, nil); err == nil {
		t.Fatal("a snapshot was taken that could not be read")
	}
	fails.Store(false)
	if _, err := leader.install(donor, -1, nil); err == nil && lastSeq(t, follower) != lastSeq(t, donor) {
		t.Error("the leader is told that the snapshot is there, and the store does not show it")
	}
	select {
	case <-fatal:
	case <-time.After(20 * time.Second):
		t.Fatal("the member goes on")
	}
	if err := follower.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.FS = vfs.Default
	again := reopenServed(t, cfg)
	if got, want := lastSeq(t, again), lastSeq(t, donor); got != want {
		t.Errorf("last seq %d after a start, want %d", got, want)
	}
}

// Once a later leader has come, an earlier one that waits gets no place.
func TestAnEarlierLeaderGetsNoPlace(t *testing.T) {
	tr, _ := serve(t, TransportOptions{})
	done, err := tr.receiving(t.Context(), 7, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 2)
	wait := func(term uint64) {
		_, err := tr.receiving(t.Context(), term, func(error) {})
		results <- err
	}
	go wait(5)
	go wait(9)
	await(t, "the later one has come", func() bool {
		tr.receiverMu.RLock()
		defer tr.receiverMu.RUnlock()
		return tr.receiveOf == 9
	})
	done()
	for range 2 { // whichever comes first, the one of term 9 has it at last
		if err := <-results; err == nil {
			break
		}
	}
	tr.receiverMu.RLock()
	defer tr.receiverMu.RUnlock()
	if tr.reception == nil || tr.reception.term != 9 {
		t.Errorf("%+v has the place", tr.reception)
	}
}

// After its end a store of snapshots drops nothing any more: the directory may be
// another's by then.
func TestNothingExpiresAfterTheEnd(t *testing.T) {
	s, err := openSnapshots(vfs.NewMem(), "snapshots", "test", "s1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	if _, _, err := s.staging.stage(strings.NewReader("nonsense"), 8, nil); err == nil {
		t.Fatal("nonsense was taken")
	}
	if s.staging.expiry != nil {
		t.Error("a timer runs")
	}
}

// A member that has a snapshot is sent of the next one what it does not have.
func TestTheNextSnapshotIsSentAsADifference(t *testing.T) {
	follower, donor, _ := tabled(t)
	leader := newFakeLeader(t, follower, 9)
	first, source := sourceOf(t, donor, -1, nil)
	if err := leader.send(first, source); err != nil {
		t.Fatal(err)
	}
	for round := range uint64(3) {
		before := tablesOf(source)
		grow(t, donor, 2+round)
		var next *snapshotMeta
		next, source = sourceOf(t, donor, -1, nil)
		common := commonBytes(t, before, source)
		if err := leader.send(next, source); err != nil {
			t.Fatal(err)
		}
		if heldBytes(source) != common {
			t.Errorf("%d bytes were not sent, %d are the same", heldBytes(source), common)
		}
		if got, want := lastSeq(t, follower), lastSeq(t, donor); got != want {
			t.Errorf("last seq %d, want %d", got, want)
		}
	}
	// What damaged data holds is not to be trusted: everything is sent.
	follower.snapshots.suspect = func() bool { return true }
	grow(t, donor, 9)
	next, source := sourceOf(t, donor, -1, nil)
	if err := leader.send(next, source); err != nil {
		t.Fatal(err)
	}
	if heldBytes(source) != 0 {
		t.Errorf("%d bytes of a damaged member were used", heldBytes(source))
	}
	if err := follower.Close(); err != nil {
		t.Fatal(err)
	}
	if damage := damageOf(t, follower.cfg.DataDir); damage != "" {
		t.Error(damage)
	}
}
