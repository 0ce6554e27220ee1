package replica

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/stablestore"
	"github.com/countinghouse/countinghouse/storagenode/store"
	"github.com/countinghouse/countinghouse/storagenode/wal"
)

// Finding is one thing that VerifyDataDir found.
type Finding struct {
	File   string // path
	Offset int64  // bytes from the start of the file
	What   string // what is damaged, what is lost, and what to do
	// Harmless marks what a crash leaves and a start cleans up.
	Harmless bool
}

// VerifySummary counts what VerifyDataDir read.
type VerifySummary struct {
	Cluster, Shard, ID string
	Files, Bytes       uint64
	Records            uint64 // in tables
	LogEntries         uint64
	LogFirst, LogLast  uint64
	Snapshots          int
	Damaged            int // findings that are damage
}

// verification is one run of VerifyDataDir.
type verification struct {
	fs     vfs.FS
	dir    string
	report func(Finding)
	sum    VerifySummary
	// What logExtent compares. unknown is set once a part that it needs is damaged.
	extent  logExtent
	bolt    boltLog
	applied uint64
	unknown bool
}

// VerifyDataDir checks everything in the data directory of a stopped node: its
// identity, the live store's tables and manifests, term and vote, the Raft log,
// the snapshots.
// It changes nothing. Damage is reported; the error says that the check itself
// could not go on, as when the directory is none of a storage node.
func VerifyDataDir(fs vfs.FS, dir string, report func(Finding)) (VerifySummary, error) {
	v := &verification{fs: fs, dir: dir, report: report}
	unlock, err := v.lock()
	if err != nil {
		return v.sum, err
	}
	defer unlock()
	for _, check := range []func() error{v.identity, v.recoveries, v.store, v.stable, v.log, v.snapshots, v.lost} {
		if err := check(); err != nil {
			return v.sum, fmt.Errorf("verify %s: %w", dir, err)
		}
	}
	return v.sum, nil
}

// lock keeps a node from starting meanwhile, and notices one that runs. A
// directory that was never a node's is not given a lock file.
func (v *verification) lock() (unlock func(), err error) {
	path := v.fs.PathJoin(v.dir, lockFile)
	if _, err := v.fs.Stat(path); err != nil {
		return nil, fmt.Errorf("%s is not the data directory of a storage node: %w", v.dir, err)
	}
	closer, err := v.fs.Lock(path)
	if err != nil {
		return nil, fmt.Errorf("%s is in use by a running node; verify it through the node: %w", v.dir, err)
	}
	return func() { _ = closer.Close() }, nil
}

func (v *verification) found(f Finding) {
	if !f.Harmless {
		v.sum.Damaged++
	}
	v.report(f)
}

func (v *verification) path(name string) string { return v.fs.PathJoin(v.dir, name) }

func (v *verification) identity() error {
	id, err := ReadIdentity(v.fs, v.dir)
	if err != nil {
		v.found(Finding{File: v.path(identityFile), What: err.Error()})
		return nil
	}
	v.sum.Cluster, v.sum.Shard, v.sum.ID = id.Cluster, id.Shard, id.ID
	return nil
}

func (v *verification) recoveries() error {
	all, err := ReadRecoveries(v.fs, v.dir)
	if err != nil {
		v.found(Finding{File: v.path(recoveryFile), What: err.Error()})
	} else if n := len(all); n > 0 && !all[n-1].Done {
		v.found(Finding{File: v.path(recoveryFile), What: fmt.Sprintf("recovery %s was decided; the next start carries it out", all[n-1].Token), Harmless: true})
	}
	return nil
}

func (v *verification) store() error {
	name, err := currentStore(v.fs, v.dir)
	if err != nil {
		v.found(Finding{File: v.path(currentFile), What: err.Error() + "; replace the member"})
		return nil
	}
	if name == "" {
		f := Finding{File: v.path(currentFile), What: "missing: no store was made yet; a start makes an empty one", Harmless: true}
		if err := checkNoStore(v.fs, v.dir); err != nil {
			f = Finding{File: f.File, What: err.Error()}
		}
		v.found(f)
		return nil
	}
	sum, err := store.Verify(v.fs, v.path(name), func(f store.Finding) {
		v.found(Finding{File: f.File, Offset: f.Offset, What: f.What})
	})
	v.sum.Files += sum.Files
	v.sum.Bytes += sum.Bytes
	v.sum.Records += sum.Records
	v.applied = sum.Index
	return err
}

// lost compares the extent of the log with what the store holds; see logExtent.
func (v *verification) lost() error {
	if v.unknown {
		return nil
	}
	if err := v.bolt.checkMissing(v.extent.snapshot); err != nil {
		v.found(Finding{File: v.path(boltLogFile), What: err.Error()})
	}
	if err := v.extent.check(v.applied); err != nil {
		v.found(Finding{File: v.dir, What: err.Error()})
	}
	return nil
}

func (v *verification) log() error {
	if _, err := v.fs.Stat(v.path(boltLogFile)); err == nil {
		return v.boltLog()
	}
	if _, err := v.fs.Stat(v.path(walDir)); isNotExist(err) {
		return nil // lost tells a node that was only begun from one that lost its log
	}
	sum, err := wal.Verify(v.fs, v.path(walDir), func(f wal.Finding) {
		v.found(Finding{File: f.File, Offset: f.Offset, What: f.Reason, Harmless: f.Torn})
	})
	v.sum.Files += uint64(sum.Segments)
	v.sum.Bytes += uint64(sum.Bytes)
	v.sum.LogEntries, v.sum.LogFirst, v.sum.LogLast = sum.Entries, sum.FirstIndex, sum.LastIndex
	v.extent.first, v.extent.last, v.unknown = sum.FirstIndex, sum.LastIndex, v.unknown || sum.Damaged > 0
	return err
}

// stable checks the term and vote. bbolt opens files of the operating system only,
// so those on another file system are left to whoever put them there.
func (v *verification) stable() error {
	if v.fs != vfs.Default {
		return nil
	}
	name := v.path(stableFile)
	if err := stablestore.Check(name); err != nil {
		v.found(Finding{File: name, What: err.Error()})
	}
	v.sum.Files++
	return nil
}

// boltLog checks the entries of a log in bbolt.
func (v *verification) boltLog() error {
	name := v.path(boltLogFile)
	l, err := readBoltLog(name)
	v.bolt = l
	v.sum.Files++
	v.sum.Bytes += uint64(l.bytes)
	v.sum.LogEntries, v.sum.LogFirst, v.sum.LogLast = l.entries, l.first, l.last
	v.extent.first, v.extent.last, v.unknown = l.first, l.last, v.unknown || err != nil
	if errors.Is(err, record.ErrCorrupt) || errors.Is(err, record.ErrVersion) {
		v.found(Finding{File: name, What: err.Error()})
		return nil
	}
	return err
}

func (v *verification) snapshots() error {
	dir := v.path(snapshotsDir)
	names, err := v.fs.List(dir)
	if isNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		switch {
		case name == stagingName:
			v.found(Finding{File: v.fs.PathJoin(dir, name), What: "a part of a snapshot that was being received; the next transfer goes on with it", Harmless: true})
		case unfinishedName(name):
			v.found(Finding{File: v.fs.PathJoin(dir, name), What: "an unfinished snapshot; a start removes it", Harmless: true})
		default:
			v.snapshot(dir, name)
		}
	}
	return nil
}

func (v *verification) snapshot(all, name string) {
	v.sum.Snapshots++
	dir := v.fs.PathJoin(all, name)
	meta, err := (&snapshotStore{fs: v.fs, dir: all}).readMeta(name)
	if err != nil {
		v.unknown = true
		v.found(Finding{File: v.fs.PathJoin(dir, metaFile), What: fmt.Sprintf("%v; take another snapshot", err)})
		return
	}
	v.extent.snapshot = max(v.extent.snapshot, meta.Raft.Index)
	listing, err := store.VerifyDir(v.fs, v.fs.PathJoin(dir, dataDir))
	if err != nil {
		v.found(Finding{File: dir, What: fmt.Sprintf("%v; take another snapshot", err)})
		return
	}
	v.sum.Files += uint64(len(listing.Files))
	v.sum.Bytes += uint64(listing.Bytes())
}
