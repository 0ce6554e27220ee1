package replica

import (
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/bbolt"

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
	for _, check := range []func() error{v.identity, v.store, v.stable, v.log, v.snapshots} {
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

func (v *verification) store() error {
	name, err := currentStore(v.fs, v.dir)
	if err != nil {
		v.found(Finding{File: v.path(currentFile), What: err.Error() + "; replace the member"})
		return nil
	}
	if name == "" {
		v.found(Finding{File: v.path(currentFile), What: "missing: no store was made yet, or it was removed; a start makes an empty one", Harmless: true})
		return nil
	}
	sum, err := store.Verify(v.fs, v.path(name), func(f store.Finding) {
		v.found(Finding{File: f.File, Offset: f.Offset, What: f.What})
	})
	v.sum.Files += sum.Files
	v.sum.Bytes += sum.Bytes
	v.sum.Records += sum.Records
	return err
}

func (v *verification) log() error {
	if _, err := v.fs.Stat(v.path(boltLogFile)); err == nil {
		return v.boltLog()
	}
	sum, err := wal.Verify(v.fs, v.path(walDir), func(f wal.Finding) {
		v.found(Finding{File: f.File, Offset: f.Offset, What: f.Reason, Harmless: f.Torn})
	})
	v.sum.Files += uint64(sum.Segments)
	v.sum.Bytes += uint64(sum.Bytes)
	v.sum.LogEntries, v.sum.LogFirst, v.sum.LogLast = sum.Entries, sum.FirstIndex, sum.LastIndex
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

// boltLog checks the pages of a log in bbolt, which keeps no checksums of its
// values; those of the batches are checked when they are read.
func (v *verification) boltLog() error {
	db, err := bbolt.Open(v.path(boltLogFile), 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		v.found(Finding{File: v.path(boltLogFile), What: fmt.Sprintf("%v; replace the member", err)})
		return nil
	}
	defer db.Close()
	v.sum.Files++
	return db.View(func(tx *bbolt.Tx) error {
		v.sum.Bytes += uint64(tx.Size())
		for err := range tx.Check() {
			v.found(Finding{File: v.path(boltLogFile), What: fmt.Sprintf("%v; replace the member", err)})
		}
		return nil
	})
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
		if strings.HasPrefix(name, tmpPrefix) || strings.HasPrefix(name, stagingPrefix) {
			v.found(Finding{File: v.fs.PathJoin(dir, name), What: "an unfinished snapshot; a start removes it", Harmless: true})
			continue
		}
		v.snapshot(dir, name)
	}
	return nil
}

func (v *verification) snapshot(all, name string) {
	v.sum.Snapshots++
	dir := v.fs.PathJoin(all, name)
	if _, err := (&snapshotStore{fs: v.fs, dir: all}).readMeta(name); err != nil {
		v.found(Finding{File: v.fs.PathJoin(dir, metaFile), What: fmt.Sprintf("%v; take another snapshot", err)})
		return
	}
	listing, err := store.VerifyDir(v.fs, v.fs.PathJoin(dir, dataDir))
	if err != nil {
		v.found(Finding{File: dir, What: fmt.Sprintf("%v; take another snapshot", err)})
		return
	}
	v.sum.Files += uint64(len(listing.Files))
	v.sum.Bytes += uint64(listing.Bytes())
}
