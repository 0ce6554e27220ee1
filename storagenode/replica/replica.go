package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"golang.org/x/sync/semaphore"

	"github.com/countinghouse/countinghouse/storagenode/stablestore"
	"github.com/countinghouse/countinghouse/storagenode/store"
	"github.com/countinghouse/countinghouse/storagenode/wal"
)

const (
	boltLockTimeout = time.Second
	closeGrace      = 5 * time.Second
	tableSuffix     = ".sst"
)

func hasTableSuffix(name string) bool { return strings.HasSuffix(name, tableSuffix) }

// Replica is one member of a shard: its log, its store, and its part in Raft.
// All methods may be called from any goroutine.
type Replica struct {
	cfg       Config
	transport *Transport
	snapshots *snapshotStore
	fsm       *fsm
	logs      *writeBehind
	bolt      boltLog // what was read of a log in bbolt when it was opened
	stable    *guardedStable
	closers   []io.Closer // of what Open opened, in that order
	// recoveries that were carried out, oldest first; not changed after Open.
	recoveries []Recovery
	fs         vfs.FS      // cfg.FS, watched by guard
	stuckFull  atomic.Bool // the disk is full, and it was said that no other voter can lead
	guard      *diskGuard
	disk       *diskWatch
	noRoom     atomic.Pointer[string] // why appends are refused although disk has room; see withoutRoom
	metrics    *metrics
	inFlight   *semaphore.Weighted
	check      leaderCheck
	budget     int64 // bytes of inFlight
	wantsCut   chan struct{}

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	background sync.WaitGroup
	fatalOnce  sync.Once
	broken     atomic.Bool // the node must not go on
	closed     atomic.Bool

	// gate is held for reading while a proposal is handed to Raft, and for
	// writing while the Raft instance is replaced.
	gate       sync.RWMutex
	current    atomic.Pointer[instance]
	pending    atomic.Int64 // proposals that Raft has not answered
	restarting sync.Mutex

	leadMu   sync.Mutex
	leadEnds chan struct{} // closed when the node ceases to lead; guarded by leadMu

	endReplay func() // called when the FSM has been handed what the log held at the start

	transferring  sync.Mutex                // held during a transfer of leadership
	transferStuck atomic.Pointer[time.Time] // since when entries are refused because of one; nil while none are
}

// Open opens the member's data directory, or creates it, and starts to take part
// in the shard. The returned replica's Transport must be registered with a gRPC
// server that serves cfg.Address.
//
// Errors say what to correct; some match ErrLocked, ErrIdentity, ErrFormat or
// record.ErrCorrupt.
func Open(cfg Config) (*Replica, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := newReplica(cfg.withDefaults())
	if err := r.open(); err != nil {
		r.closeFiles()
		return nil, err
	}
	return r, nil
}

func newReplica(cfg Config) *Replica {
	r := &Replica{
		cfg: cfg, metrics: newMetrics(),
		budget: cfg.InFlightBytes, inFlight: semaphore.NewWeighted(cfg.InFlightBytes),
		wantsCut: make(chan struct{}, 1), leadEnds: make(chan struct{}), endReplay: func() {},
	}
	r.ctx, r.cancel = context.WithCancel(WithIdentity(context.Background(), cfg.Cluster, cfg.Shard))
	return r
}

func (r *Replica) open() error {
	if err := r.openFiles(); err != nil {
		return err
	}
	if err := r.recover(); err != nil {
		return err
	}
	if err := r.bootstrap(); err != nil {
		return err
	}
	if err := r.watchReplay(); err != nil {
		return err
	}
	if err := r.startRaft(); err != nil {
		return err
	}
	r.transport.setReceiver(r)
	r.transport.setGenerations(r)
	r.disk.start(r.cfg.DiskCheckInterval, r.leaveFullDisk)
	r.background.Go(r.takeWantedSnapshots)
	r.background.Go(r.watchDamage)
	r.background.Go(r.watchRoom)
	return nil
}

// openFiles opens everything that a Raft instance needs.
func (r *Replica) openFiles() error {
	// First of all: also the start makes room on a full disk, and must not hang.
	r.disk = newDiskWatch(&r.cfg)
	r.guard = newDiskGuard(r.cfg.HungDiskTimeout, r.fatal, r.metrics, r.disk)
	r.fs = &guardedFS{FS: r.cfg.FS, guard: r.guard}
	lock, err := lockDataDir(r.fs, r.cfg.DataDir)
	if err != nil {
		return err
	}
	r.closers = append(r.closers, lock)
	if _, err := claim(r.fs, r.cfg.DataDir, r.identity()); err != nil {
		return err
	}
	r.disk.check()
	r.guard.slow, r.guard.log = r.cfg.HeartbeatTimeout/2, r.cfg.Logger
	if err := r.openLogs(); err != nil {
		return err
	}
	if err := r.openStore(); err != nil {
		return err
	}
	r.transport = NewTransport(r.cfg.Transport)
	r.transport.log = r.logs
	return nil
}

func (r *Replica) identity() Identity {
	return Identity{
		Cluster: r.cfg.Cluster, Shard: r.cfg.Shard, ID: r.cfg.ID,
		LogStore: r.cfg.LogStore, Peers: r.cfg.Peers,
	}
}

// fatal reports the first error after which the node must not go on.
func (r *Replica) fatal(err error) {
	r.fatalOnce.Do(func() {
		r.broken.Store(true)
		r.cfg.Logger.Error("the node must stop", "error", err)
		r.cfg.OnFatal(err)
	})
}

func (r *Replica) path(name string) string { return r.cfg.FS.PathJoin(r.cfg.DataDir, name) }

func (r *Replica) openLogs() error {
	stable, err := r.cfg.OpenStable(r.cfg.FS, filepath.Clean(r.path(stableFile)))
	if err != nil {
		return err
	}
	r.closers = append(r.closers, stable)
	r.stable = &guardedStable{StableStore: stable, guard: r.guard}
	var logs interface {
		raft.LogStore
		io.Closer
	}
	if r.cfg.LogStore == LogStoreBolt {
		logs, r.bolt, err = openBolt(r.path(boltLogFile))
	} else {
		logs, err = r.openWAL()
	}
	if err != nil {
		return err
	}
	r.closers = append(r.closers, logs)
	guarded := &guardedLog{LogStore: logs, guard: r.guard, noRoom: walIsFull}
	if r.cfg.LogStore == LogStoreBolt {
		guarded.noRoom = boltIsFull
	}
	r.logs = newWriteBehind(guarded, r.metrics, r.entriesLost)
	r.closers = append(r.closers, r.logs)
	return r.checkTerm()
}

// checkTerm refuses a log without the term that it was written in: with the stable
// store the member has lost its vote, and might give it twice.
func (r *Replica) checkTerm() error {
	last, err := r.logs.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	var entry raft.Log
	if err := r.logs.GetLog(last, &entry); err != nil {
		return err
	}
	term, err := r.stable.GetUint64([]byte("CurrentTerm"))
	if err != nil && !notStored(err) {
		return err
	}
	if term < entry.Term {
		return fmt.Errorf("%s: %w: the current term in it is %d, but the log's last entry, %d, is of term %d: replace the member",
			r.path(stableFile), stablestore.ErrCorrupt, term, last, entry.Term)
	}
	return nil
}

func (r *Replica) openWAL() (*wal.WAL, error) {
	o := r.cfg.WAL
	o.OnFatal = r.fatal
	if o.ReplayBytes == 0 {
		o.ReplayBytes = replayBytes(r.cfg.Store.MemtablesMax(), debug.SetMemoryLimit(-1))
	}
	o.Recovered = checkAhead
	w, err := wal.Open(r.fs, r.path(walDir), o)
	if err == nil {
		r.endReplay = w.EndReplay
	}
	return w, err
}

// openStore opens the live store, and the snapshots beside it.
func (r *Replica) openStore() error {
	var err error
	fs := r.fs
	r.snapshots, err = openSnapshots(fs, r.path(snapshotsDir), r.cfg.Cluster, r.cfg.Shard, r.cfg.Logger)
	if err != nil {
		return err
	}
	r.snapshots.now = r.cfg.WallClock
	r.snapshots.reserve = r.cfg.DiskReserveBytes
	r.snapshots.suspect = func() bool { return r.damage() != nil }
	r.fsm = &fsm{
		fs: fs, dataDir: r.cfg.DataDir, options: r.storeOptions(), snapshots: r.snapshots, log: r.cfg.Logger,
		fatal: r.fatal, full: r.wantSnapshot, members: r.forgetOthers, metrics: r.metrics, bytesMax: r.cfg.SnapshotBytes,
		durable: r.logs.awaitDurable, changed: make(chan struct{}),
	}
	name, err := currentStore(fs, r.cfg.DataDir)
	if err != nil {
		return err
	}
	fresh := name == ""
	if fresh {
		if err := checkNoStore(fs, r.cfg.DataDir); err != nil {
			return err
		}
		name = storeAfter("")
	}
	if err := dropOtherStores(fs, r.cfg.DataDir, name); err != nil {
		return err
	}
	shard, err := store.Open(fs, r.path(name), r.fsm.options)
	if err != nil {
		return err
	}
	r.fsm.live.Store(newLiveStore(fs, r.path(name), shard))
	if fresh {
		if err := replaceFile(fs, r.path(currentFile), []byte(name+"\n")); err != nil {
			return err
		}
	}
	return r.recoverStore()
}

func (r *Replica) storeOptions() store.Options {
	o := r.cfg.Store
	o.OnFatal = r.fatal
	return o
}

// recoverStore brings the store up to the newest snapshot, which makes it right
// to tell Raft not to restore that snapshot itself. Why nothing is lost or
// applied twice:
//
//   - A snapshot of the own store exists only after store.Snapshot.Persist, which
//     makes the cut durable in the live store first. The live store is then at or
//     beyond the snapshot, and nothing is to be done.
//   - A snapshot from a leader is made visible before it is adopted. A crash in
//     between leaves a live store that is behind the snapshot: its DurableIndex is
//     below what the snapshot covers. The adoption is done again, here. A crash in
//     the middle of it leaves an unfinished directory that CURRENT does not name.
//   - Raft sets its applied index to the snapshot's and hands over all committed
//     entries after it. The store may be ahead of that, because it also flushes
//     between snapshots: for each instrument it skips the entries up to the index
//     that it covers. An entry is thus applied once, whether it is met in the
//     table, in the replay, or in both.
//   - During such a replay no snapshot is taken, because its data would be ahead of
//     its index.
//   - The log is shortened up to a snapshot only, so every entry that the live
//     store has not made durable is still in the log.
func (r *Replica) recoverStore() error {
	newest, err := r.snapshots.newest()
	if err != nil {
		return err
	}
	r.snapshots.visible = func(m *raft.SnapshotMeta) { r.logs.last.Store(&entryID{m.Index, m.Term}) }
	durable := r.fsm.live.Load().shard.DurableIndex()
	r.fsm.setApplied(durable)
	if newest != nil {
		if err := r.catchUpWith(newest, durable); err != nil {
			return err
		}
	}
	return r.checkLog(newest)
}

// catchUpWith brings a store that is durable up to the given index up to a
// snapshot; see recoverStore.
func (r *Replica) catchUpWith(newest *snapshotMeta, durable uint64) error {
	r.snapshots.visible(&newest.Raft)
	r.fsm.membershipIndex.Store(newest.Raft.ConfigurationIndex)
	if durable < newest.Covers {
		return r.fsm.adopt(newest)
	}
	r.fsm.advance(newest.Raft.Index)
	return nil
}

// bootstrap gives an empty member its first membership. Every first voter does
// this with the same list, so that they all begin with the same log entry.
func (r *Replica) bootstrap() error {
	has, err := raft.HasExistingState(r.logs, r.stable, r.snapshots)
	if err == nil && has && !r.cfg.Join {
		has, err = r.undoBootstrap()
	}
	if err != nil || has || r.cfg.Join {
		return err
	}
	if len(r.cfg.Peers) == 0 {
		return fmt.Errorf("%s holds no data yet: name the shard's first voters (--peers) or start the node to be added later (--join)", r.cfg.DataDir)
	}
	var c raft.Configuration
	for _, p := range r.cfg.Peers {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Address)})
	}
	return raft.BootstrapCluster(r.cfg.raftConfig(nil), r.logs, r.stable, r.snapshots, r.transport, c)
}

// undoBootstrap takes back what an interrupted bootstrap has left, and reports
// whether there is more than that. raft.BootstrapCluster stores the term 1 first and
// the membership after it; a member with the term alone would never have a
// membership. The term can have come from nowhere else: the first election is
// held in term 2.
func (r *Replica) undoBootstrap() (more bool, err error) {
	last, err := r.logs.LastIndex()
	if err != nil || last > 0 {
		return true, err
	}
	snapshots, err := r.snapshots.List()
	if err != nil || len(snapshots) > 0 {
		return true, err
	}
	term, err := r.stable.GetUint64([]byte("CurrentTerm"))
	if err != nil || term != 1 {
		return true, err
	}
	return false, r.stable.SetUint64([]byte("CurrentTerm"), 0)
}

// Transport returns the replica's transport, to be registered with the node's
// gRPC server.
func (r *Replica) Transport() *Transport { return r.transport }

// ID returns the member's id.
func (r *Replica) ID() string { return r.cfg.ID }

// Cluster returns the name of the cluster.
func (r *Replica) Cluster() string { return r.cfg.Cluster }

// Shard returns the name of the shard.
func (r *Replica) Shard() string { return r.cfg.Shard }

// forgetOthers closes the connections to who is no member any more.
func (r *Replica) forgetOthers(members []raft.Server) {
	addresses := make(map[raft.ServerAddress]bool, len(members))
	for _, m := range members {
		addresses[m.Address] = true
	}
	r.transport.retain(addresses)
}

// wantSnapshot asks for a snapshot soon; asking twice is the same as once.
func (r *Replica) wantSnapshot() {
	select {
	case r.wantsCut <- struct{}{}:
	default:
	}
}

func (r *Replica) takeWantedSnapshots() {
	for {
		select {
		case <-r.wantsCut:
			if _, err := r.Snapshot(r.ctx); err != nil {
				r.cfg.Logger.Warn("snapshot failed", "error", err)
			}
		case <-r.ctx.Done():
			return
		}
	}
}

// Close stops the replica and releases the data directory. It does not hand
// leadership over; call TransferLeadership before. Readers that do not let go
// within a few seconds are reported by an error.
func (r *Replica) Close() error {
	r.fsm.live.Load().shard.Interrupt() // Raft's end waits for an entry that waits for room
	r.restarting.Lock()
	again := r.closed.Swap(true)
	r.restarting.Unlock()
	if again {
		return nil
	}
	r.stopRaft()
	r.cancel()
	r.transport.Stop()
	r.disk.close()
	r.background.Wait()
	return r.closeFiles()
}

// closeFiles closes what open has opened, however far it came.
func (r *Replica) closeFiles() error {
	r.cancel()
	var errs []error
	if r.snapshots != nil {
		r.snapshots.close()
	}
	if r.fsm != nil {
		errs = append(errs, r.closeStore())
	}
	if r.transport != nil {
		r.transport.Stop()
	}
	if r.guard != nil {
		r.guard.close()
	}
	for i := len(r.closers) - 1; i >= 0; i-- {
		errs = append(errs, r.closers[i].Close())
	}
	return errors.Join(errs...)
}

func (r *Replica) closeStore() error {
	live := r.fsm.live.Load()
	if live == nil {
		return nil
	}
	var err error
	if !r.broken.Load() {
		err = live.shard.Flush() // so that the next start has little to replay
	}
	if walIsFull(err) { // the log has what was not flushed
		r.cfg.Logger.Warn("the disk is full: the next start replays more of the log", "error", err)
		err = nil
	}
	live.retire(false)
	select {
	case <-live.closed:
		return errors.Join(err, live.err)
	case <-time.After(closeGrace):
		return errors.Join(err, errors.New("store: readers did not let go of it"))
	}
}
