package replica

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

const (
	metaFile       = "META"
	dataDir        = "data"
	tmpPrefix      = "tmp-"
	tokenMagic     = "CHSTAGED"
	dirMode        = 0o755
	metaVersion    = 1
	tokenBytesMax  = 256
	sinkTokenUsage = "a sink takes either a staged directory's token or persist"
)

// snapshotMeta is the content of a snapshot's META file, which is sealed.
type snapshotMeta struct {
	Version int               `json:"version"`
	Raft    raft.SnapshotMeta `json:"raft"`
	// Covers is the Raft index of the last entry whose effect the data holds. It may
	// be below the snapshot's own index, which also counts entries that change no
	// data, and is never above it: see fsm.mayCut.
	Covers uint64 `json:"covers"`
}

// snapshotStore keeps snapshots as directories, "<id>/META" and "<id>/data/…",
// whose tables share their disk space with the live store by hard links. Only
// the newest snapshot is kept, and those being read.
//
// It implements raft.SnapshotStore. A directory whose name begins with tmpPrefix is
// unfinished and is dropped at the next start; another one is for staging.
type snapshotStore struct {
	fs             vfs.FS
	dir            string
	cluster, shard string
	log            *slog.Logger
	reserve        int64                    // bytes that a received snapshot leaves free; not positive: no check
	visible        func(*raft.SnapshotMeta) // called with each that becomes visible
	suspect        func() bool              // whether the member has found damage in its data
	staging        staging
	now            func() time.Time // that snapshots are named after

	mu     sync.Mutex
	stamp  int64            // the last part of the newest id
	pinned map[string]int   // readers by snapshot id
	bad    map[string]error // damage found while it was read, by snapshot id
	serial int              // makes names of unfinished directories differ
}

var _ raft.SnapshotStore = (*snapshotStore)(nil)

func openSnapshots(fs vfs.FS, dir, cluster, shard string, log *slog.Logger) (*snapshotStore, error) {
	if err := fs.MkdirAll(dir, dirMode); err != nil {
		return nil, err
	}
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasPrefix(name, tmpPrefix) {
			if err := fs.RemoveAll(fs.PathJoin(dir, name)); err != nil {
				return nil, err
			}
		}
	}
	s := &snapshotStore{
		fs: fs, dir: dir, cluster: cluster, shard: shard, log: log,
		pinned: make(map[string]int), bad: make(map[string]error), visible: func(*raft.SnapshotMeta) {}, suspect: func() bool { return false },
		now: time.Now,
	}
	for _, name := range names {
		s.stamp = max(s.stamp, stampOf(name))
	}
	s.staging.s = s
	s.staging.expire(stagingKept)
	return s, nil
}

// close ends what goes on in the background.
func (s *snapshotStore) close() { s.staging.stop() }

// id returns a name that no other snapshot here has. Of the snapshots up to one
// entry the one that was made last has the highest stamp, though the clock may
// stand still or fall back between them.
func (s *snapshotStore) id(term, index uint64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stamp = max(s.stamp+1, s.now().UnixMilli())
	return fmt.Sprintf("%d-%d-%d", term, index, s.stamp)
}

// stampOf returns the last part of a snapshot's id, 0 for another name.
func stampOf(id string) int64 {
	n, err := strconv.ParseInt(id[strings.LastIndexByte(id, '-')+1:], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (s *snapshotStore) path(elements ...string) string {
	return s.fs.PathJoin(append([]string{s.dir}, elements...)...)
}

func (s *snapshotStore) unfinished(prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	return fmt.Sprintf("%s%d", prefix, s.serial)
}

// List implements raft.SnapshotStore: newest first.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	metas, err := s.metas()
	if err != nil {
		return nil, err
	}
	out := make([]*raft.SnapshotMeta, len(metas))
	for i := range metas {
		out[i] = &metas[i].Raft
	}
	return out, nil
}

func (s *snapshotStore) metas() ([]snapshotMeta, error) {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return nil, fmt.Errorf("snapshots in %s: %w", s.dir, err)
	}
	var metas []snapshotMeta
	for _, name := range names {
		if unfinishedName(name) {
			continue
		}
		m, err := s.readMeta(name)
		if err != nil {
			return nil, err
		}
		metas = append(metas, m)
	}
	slices.SortFunc(metas, func(a, b snapshotMeta) int {
		if d := cmp.Compare(b.Raft.Term, a.Raft.Term); d != 0 {
			return d
		}
		if d := cmp.Compare(b.Raft.Index, a.Raft.Index); d != 0 {
			return d
		}
		return cmp.Compare(stampOf(b.Raft.ID), stampOf(a.Raft.ID))
	})
	return metas, nil
}

// newest returns the newest snapshot, or nil.
func (s *snapshotStore) newest() (*snapshotMeta, error) {
	metas, err := s.metas()
	if err != nil || len(metas) == 0 {
		return nil, err
	}
	return &metas[0], nil
}

func (s *snapshotStore) readMeta(id string) (snapshotMeta, error) {
	var m snapshotMeta
	name := s.path(id, metaFile)
	b, err := readFile(s.fs, name)
	if err != nil {
		return m, fmt.Errorf("snapshot %s: %w", id, err)
	}
	if b, err = unseal(name, b); err != nil {
		return m, fmt.Errorf("snapshot %s: %w", id, err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("snapshot %s: %w: %w", name, record.ErrCorrupt, err)
	}
	if m.Version != metaVersion {
		return m, fmt.Errorf("snapshot %s: %w %d (this build reads version %d)", name, record.ErrVersion, m.Version, metaVersion)
	}
	return m, nil
}

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &snapshotSink{s: s, meta: snapshotMeta{
		Version: metaVersion,
		Raft: raft.SnapshotMeta{
			Version: version, ID: s.id(term, index),
			Index: index, Term: term, Configuration: configuration, ConfigurationIndex: configurationIndex,
		},
	}}, nil
}

// Open implements raft.SnapshotStore. The snapshot stays until the reader is
// closed.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.pin(id)
	meta, r, err := s.open(id)
	if err != nil {
		s.unpin(id)
		return nil, nil, err
	}
	return meta, &pinnedReader{streamReader: r, release: sync.OnceFunc(func() { s.unpin(id) })}, nil
}

func (s *snapshotStore) open(id string) (*raft.SnapshotMeta, *streamReader, error) {
	m, err := s.readMeta(id)
	if err != nil {
		return nil, nil, err
	}
	h, err := s.header(id)
	if err != nil {
		return nil, nil, err
	}
	head, err := h.encode()
	if err != nil {
		return nil, nil, err
	}
	m.Raft.Size = int64(len(head))
	for _, f := range h.Files {
		m.Raft.Size += f.Size
	}
	r := &streamReader{fs: s.fs, dir: s.path(id, dataDir), begin: head, files: h.Files, crc: crc32.New(record.Castagnoli)}
	r.damaged = func(err error) { s.noteDamage(id, err) }
	s.mu.Lock()
	r.err = s.bad[id]
	s.mu.Unlock()
	return &m.Raft, r, nil
}

// noteDamage notes that a snapshot can not be sent. Reading it fails at once from
// then on: the leader's attempts cost nothing, and Raft makes them further and
// further apart.
func (s *snapshotStore) noteDamage(id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad[id] == nil {
		s.bad[id] = fmt.Errorf("snapshot %s is damaged and not sent: %w", id, err)
		s.log.Error("snapshot is damaged: it is not sent any more; replace the member", "id", id, "error", err)
	}
}

// damage returns damage that was found in a snapshot that is still there.
func (s *snapshotStore) damage() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, err := range s.bad {
		return err
	}
	return nil
}

// header lists the files of a snapshot for its stream.
func (s *snapshotStore) header(id string) (*streamHeader, error) {
	dir := s.path(id, dataDir)
	listing, err := store.ReadListing(s.fs, dir)
	if err != nil {
		return nil, err
	}
	h := &streamHeader{Version: streamVersion, Cluster: s.cluster, Shard: s.shard, ID: id}
	for _, f := range listing.Files {
		h.Files = append(h.Files, streamFile{Path: f.Path, Size: f.Size, CRC: f.CRC})
	}
	size, crc, err := fileCRC(s.fs, s.fs.PathJoin(dir, store.ListingName))
	if err != nil {
		return nil, err
	}
	h.Files = append(h.Files, streamFile{Path: store.ListingName, Size: size, CRC: crc})
	return h, nil
}

type pinnedReader struct {
	*streamReader
	release func()
}

// Close implements io.Closer.
func (r *pinnedReader) Close() error {
	defer r.release()
	return r.streamReader.Close()
}

func (s *snapshotStore) pin(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned[id]++
}

func (s *snapshotStore) unpin(id string) {
	s.mu.Lock()
	s.pinned[id]--
	if s.pinned[id] == 0 {
		delete(s.pinned, id)
	}
	s.mu.Unlock()
	s.reap()
}

// read returns how many snapshots are being read.
func (s *snapshotStore) read() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pinned)
}

// reap drops all snapshots but the newest and those being read.
func (s *snapshotStore) reap() {
	metas, err := s.metas()
	if err != nil || len(metas) < 2 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range metas[1:] {
		if s.pinned[m.Raft.ID] > 0 {
			continue
		}
		// Renamed first: what is half removed must not look like a snapshot.
		s.serial++
		gone := s.path(fmt.Sprintf("%s%d", tmpPrefix, s.serial))
		if err := s.fs.Rename(s.path(m.Raft.ID), gone); err != nil {
			s.log.Warn("old snapshot stays", "id", m.Raft.ID, "error", err)
			continue
		}
		delete(s.bad, m.Raft.ID)
		if err := s.fs.RemoveAll(gone); err != nil {
			s.log.Warn("old snapshot stays in part until the next start", "dir", gone, "error", err)
		}
	}
}

// snapshotSink is a snapshot in the making. Its data comes from persist, or from
// a staged directory whose token is written to it.
type snapshotSink struct {
	s     *snapshotStore
	meta  snapshotMeta
	token []byte
	name  string // unfinished directory with the data, "" before persist
	was   bool   // the data was staged
	done  bool
}

var _ raft.SnapshotSink = (*snapshotSink)(nil)

// ID implements raft.SnapshotSink.
func (k *snapshotSink) ID() string { return k.meta.Raft.ID }

// Write takes the token of a staged directory.
func (k *snapshotSink) Write(p []byte) (int, error) {
	if k.name != "" || len(k.token)+len(p) > tokenBytesMax {
		return 0, fmt.Errorf("snapshot %s: %s", k.ID(), sinkTokenUsage)
	}
	k.token = append(k.token, p...)
	return len(p), nil
}

// persist writes a cut of the shard as the snapshot's data.
func (k *snapshotSink) persist(cut *store.Snapshot) error {
	k.name = k.s.unfinished(tmpPrefix)
	if err := k.s.fs.MkdirAll(k.s.path(k.name), dirMode); err != nil {
		return err
	}
	_, err := cut.Persist(k.s.path(k.name, dataDir))
	return err
}

// Cancel implements raft.SnapshotSink.
func (k *snapshotSink) Cancel() error {
	if k.done || k.name == "" {
		return nil
	}
	k.done = true
	return k.s.fs.RemoveAll(k.s.path(k.name))
}

// Close makes the snapshot durable and visible, and drops older ones.
func (k *snapshotSink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	if err := k.adopt(); err != nil {
		return fmt.Errorf("snapshot %s: %w", k.ID(), err)
	}
	if err := k.finish(); err != nil {
		return fmt.Errorf("snapshot %s: %w", k.ID(), errors.Join(err, k.discard()))
	}
	k.s.reap()
	return nil
}

// discard gives back the space of a snapshot that could not be finished. Raft
// cancels none that it has closed.
func (k *snapshotSink) discard() error {
	if k.was {
		return k.s.staging.takeBack(k.name)
	}
	return k.s.fs.RemoveAll(k.s.path(k.name))
}

func (k *snapshotSink) adopt() error {
	if k.name != "" {
		return nil
	}
	name := k.s.unfinished(tmpPrefix)
	if err := k.s.staging.adopt(k.token, name); err != nil {
		return err
	}
	k.name, k.was = name, true
	return nil
}

func (k *snapshotSink) finish() error {
	fs := k.s.fs
	listing, err := store.ReadListing(fs, k.s.path(k.name, dataDir))
	if err != nil {
		return err
	}
	k.meta.Covers = listing.Index
	k.meta.Raft.Size = listing.Bytes()
	b, err := json.MarshalIndent(&k.meta, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFileSync(fs, k.s.path(k.name, metaFile), seal(b)); err != nil {
		return err
	}
	if k.was {
		if err := fs.Remove(k.s.path(k.name, stagedList)); err != nil {
			return err
		}
	}
	if err := syncDir(fs, k.s.path(k.name)); err != nil {
		return err
	}
	if err := fs.Rename(k.s.path(k.name), k.s.path(k.ID())); err != nil {
		return err
	}
	if err := syncDir(fs, k.s.dir); err != nil {
		return err
	}
	k.s.visible(&k.meta.Raft)
	return nil
}
