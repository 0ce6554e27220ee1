package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

// fsm applies committed entries to the store. It implements raft.BatchingFSM.
//
// Invariant: applied is the index of the last entry of the log, of those that
// Raft shows to an FSM, whose effect readers of live can see.
type fsm struct {
	fs        vfs.FS
	dataDir   string
	options   store.Options
	snapshots *snapshotStore
	log       *slog.Logger
	fatal     func(error)
	full      func()              // asks for a snapshot; must not block
	members   func([]raft.Server) // told of each membership that is in force; must not block
	metrics   *metrics
	// durable waits until the log has the entry at an index on disk.
	durable func(ctx context.Context, index uint64) error

	live            atomic.Pointer[liveStore]
	failed          atomic.Bool   // an entry could not be applied: nothing is any more
	membershipIndex atomic.Uint64 // of the last applied change of the membership

	bytesMax int64 // of log entries between two snapshots
	bytes    int64 // applied since the last snapshot; FSM goroutine only
	// handed is the index up to which the present Raft instance has handed entries
	// over; after a start that is behind what the store holds. FSM goroutine only.
	handed uint64
	// replayEnd is the last entry of those that the log held at the start, and replayed
	// is called once it was handed over. FSM goroutine only; nil from then on.
	replayEnd uint64
	replayed  func()
	// skipped says that the log dropped entries that the present Raft instance takes
	// for committed: it is handed nothing more, and is about to be replaced. FSM
	// goroutine, and between instances.
	skipped bool

	mu      sync.Mutex
	applied uint64        // guarded by mu
	changed chan struct{} // closed when applied grows; guarded by mu
}

var _ raft.BatchingFSM = (*fsm)(nil)

// appendResult is the response to a batch that was stored.
type appendResult struct{ lastSeq uint64 }

// appliedIndex returns applied and a channel that is closed when it has grown.
func (f *fsm) appliedIndex() (uint64, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied, f.changed
}

func (f *fsm) setApplied(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if index == f.applied {
		return
	}
	f.applied = index
	close(f.changed)
	f.changed = make(chan struct{})
}

// advance is setApplied for entries: a Raft instance that was restarted hands
// over again what was applied already.
func (f *fsm) advance(index uint64) {
	if now, _ := f.appliedIndex(); index > now {
		f.setApplied(index)
	}
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. A response is an appendResult, a
// store.OpenResult, nil, or an error: a *refusal.Error, or one that has ended the
// node.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	if err := f.durable(context.Background(), logs[len(logs)-1].Index); err != nil {
		f.skipped = true
	}
	if f.skipped {
		for i := range out {
			out[i] = refusal.ErrUnavailable
		}
		return out
	}
	for i, l := range logs {
		out[i] = f.applyOne(l)
	}
	if f.failed.Load() {
		return out
	}
	f.handed = logs[len(logs)-1].Index
	f.advance(f.handed)
	f.noteReplay()
	if f.bytesMax > 0 && f.bytes >= f.bytesMax {
		f.bytes = 0
		f.full()
	}
	return out
}

func (f *fsm) applyOne(l *raft.Log) any {
	if f.failed.Load() {
		return refusal.ErrUnavailable
	}
	if l.Type == raft.LogConfiguration {
		f.membershipIndex.Store(l.Index)
		f.members(raft.DecodeConfiguration(l.Data).Servers)
		return nil
	}
	f.bytes += int64(len(l.Data))
	result, err := f.command(l)
	if err == nil {
		return result
	}
	var refused *refusal.Error
	if errors.As(err, &refused) {
		return refused
	}
	if errors.Is(err, store.ErrInterrupted) { // the node is being closed, and the log has the entry
		f.failed.Store(true)
		return refusal.ErrUnavailable
	}
	f.fail(fmt.Errorf("apply log entry %d: %w", l.Index, err))
	return err
}

// fail stops the replica: an entry that was committed could not be applied, and
// to go on without it would make this replica differ from the others.
func (f *fsm) fail(err error) {
	if !f.failed.Swap(true) {
		f.fatal(err)
	}
}

func (f *fsm) command(l *raft.Log) (any, error) {
	kind, err := kindOf(l)
	if err != nil {
		return nil, err
	}
	shard := f.live.Load().shard
	switch kind {
	case commandBatch:
		return f.batch(shard, l)
	case commandOpenStream:
		sym, epoch, err := parseOpen(l)
		if err != nil {
			return nil, err
		}
		return shard.OpenStream(l.Index, sym, epoch)
	default:
		instruments, err := parseOwned(l)
		if err != nil {
			return nil, err
		}
		return nil, shard.SetOwned(l.Index, instruments)
	}
}

// batch checks the bytes again although the leader has: between its check and
// this one they crossed a network and a log. What this process has checked since they
// came from the log is not checked twice.
func (f *fsm) batch(shard *store.Shard, l *raft.Log) (any, error) {
	parse := record.ParseBatch
	if wasCheckedAhead(l) {
		parse = record.TrustBatch
	}
	b, err := parse(l.Data)
	if err != nil {
		return nil, err
	}
	last, err := shard.Append(l.Index, b)
	if err != nil {
		return nil, err
	}
	f.metrics.appliedRecords.Add(float64(len(b.Records)))
	return appendResult{lastSeq: last}, nil
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.failed.Load() {
		return nil, errors.New("no snapshot: an entry could not be applied")
	}
	if f.skipped {
		return nil, errors.New("no snapshot: the log could not be written, and Raft is about to start again")
	}
	if err := f.mayCut(); err != nil {
		return nil, err
	}
	live := f.live.Load()
	if !live.acquire() {
		return nil, errors.New("no snapshot: the store is being closed")
	}
	f.bytes = 0
	return &fsmSnapshot{cut: live.shard.Snapshot(), live: live, metrics: f.metrics}, nil
}

// fsmSnapshot is a cut through the store that waits to be persisted.
type fsmSnapshot struct {
	cut      *store.Snapshot
	live     *liveStore
	metrics  *metrics
	released bool
}

// Persist implements raft.FSMSnapshot.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	own, ok := sink.(*snapshotSink)
	if !ok {
		return fmt.Errorf("snapshot: sink of type %T, not of this package", sink)
	}
	if err := own.persist(s.cut); err != nil {
		return err
	}
	s.metrics.snapshots.Inc()
	return nil
}

// Release implements raft.FSMSnapshot.
func (s *fsmSnapshot) Release() {
	if s.released {
		return
	}
	s.released = true
	s.cut.Release()
	s.live.release()
}

// Restore implements raft.FSM. Of the stream it reads the header only: the
// snapshot's files are on this disk already, and are linked into place. Whatever
// fails, the node ends: what is live is older than what Raft believes from here on,
// and the next start adopts the snapshot.
func (f *fsm) Restore(r io.ReadCloser) error {
	id, err := f.restore(r)
	if err != nil {
		f.fail(fmt.Errorf("restore snapshot %s: %w", id, err))
		return err
	}
	f.metrics.restores.Inc()
	return nil
}

func (f *fsm) restore(r io.Reader) (id string, err error) {
	h, _, err := readStreamHeader(r)
	if err != nil {
		return "", err
	}
	meta, err := f.snapshots.readMeta(h.ID)
	if err != nil {
		return h.ID, err
	}
	return h.ID, f.adopt(&meta)
}

// adopt makes the snapshot's data the live store. It is crash-safe: the new
// directory is complete and on disk before CURRENT names it.
func (f *fsm) adopt(meta *snapshotMeta) error {
	old := f.live.Load()
	name, err := currentStore(f.fs, f.dataDir)
	if err != nil {
		return err
	}
	name = storeAfter(name)
	dir := f.fs.PathJoin(f.dataDir, name)
	if err := f.linkSnapshot(meta.Raft.ID, dir); err != nil {
		return err
	}
	shard, err := store.Open(f.fs, dir, f.options)
	if err != nil {
		return err
	}
	if err := replaceFile(f.fs, f.fs.PathJoin(f.dataDir, currentFile), []byte(name+"\n")); err != nil {
		shard.Close()
		return err
	}
	f.live.Store(newLiveStore(f.fs, dir, shard))
	f.bytes, f.handed = 0, meta.Raft.Index
	f.membershipIndex.Store(meta.Raft.ConfigurationIndex)
	f.setApplied(max(meta.Raft.Index, meta.Covers))
	f.noteReplay()
	if old != nil {
		old.retire(true)
	}
	f.log.Info("snapshot restored", "id", meta.Raft.ID, "store", name, "applied", meta.Raft.Index)
	return nil
}

// linkSnapshot gives dir the files of a snapshot. Tables never change and are
// linked; the small rest is copied.
func (f *fsm) linkSnapshot(id, dir string) error {
	from := f.snapshots.path(id, dataDir)
	listing, err := store.ReadListing(f.fs, from)
	if err != nil {
		return err
	}
	if err := f.fs.RemoveAll(dir); err != nil {
		return err
	}
	if err := f.fs.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	dirs := map[string]bool{dir: true}
	for _, file := range listing.Files {
		if err := f.linkFile(from, dir, file.Path, dirs); err != nil {
			return err
		}
	}
	for d := range dirs {
		if err := syncDir(f.fs, d); err != nil {
			return err
		}
	}
	return syncDir(f.fs, f.dataDir)
}

func (f *fsm) linkFile(from, to, name string, dirs map[string]bool) error {
	if !localPath(name) {
		return fmt.Errorf("snapshot file %q: %w: outside of the snapshot", name, record.ErrCorrupt)
	}
	source, target := f.fs.PathJoin(from, name), f.fs.PathJoin(to, name)
	if err := mkdirs(f.fs, to, f.fs.PathDir(target), dirs); err != nil {
		return err
	}
	if hasTableSuffix(name) {
		return f.fs.Link(source, target)
	}
	content, err := readFile(f.fs, source)
	if err != nil {
		return err
	}
	return writeFileSync(f.fs, target, content)
}
