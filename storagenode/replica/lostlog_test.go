package replica

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/store"
	"github.com/countinghouse/countinghouse/storagenode/wal"
)

// newestSegment returns the last segment of the log: without it the log ends
// sooner.
func newestSegment(t *testing.T, dir string) string {
	t.Helper()
	ignore := func(wal.Finding) {}
	before, err := wal.Verify(vfs.Default, filepath.Join(dir, walDir), ignore)
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, walDir, "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, name := range slices.Backward(names) {
		if err := os.Rename(name, name+".away"); err != nil {
			t.Fatal(err)
		}
		after, err := wal.Verify(vfs.Default, filepath.Join(dir, walDir), ignore)
		if err := os.Rename(name+".away", name); err != nil {
			t.Fatal(err)
		}
		if err != nil || after.LastIndex < before.LastIndex {
			return name
		}
		if err := os.Remove(name); err != nil { // prepared, and not in use yet
			t.Fatal(err)
		}
	}
	t.Fatalf("%v hold no entries", names)
	return ""
}

// A member without the end of its log would vote for one that lacks what it had
// acknowledged, and would skip the entries that then come in their place.
func TestALogThatLostItsEndIsRefused(t *testing.T) {
	all := func(t *testing.T, dir string) error { return os.RemoveAll(filepath.Join(dir, walDir)) }
	for name, lose := range map[string]func(*testing.T, string) error{
		"all": all,
		"newest segment": func(t *testing.T, dir string) error {
			return os.Remove(newestSegment(t, dir))
		},
		"last frame damaged": func(t *testing.T, dir string) error {
			path := newestSegment(t, dir)
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[len(bytes.TrimRight(b, "\x00"))-1] ^= 1
			return os.WriteFile(path, b, 0o644)
		},
		"boltdb": func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, boltLogFile)) },
	} {
		for _, snapshot := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s snapshot=%t", name, snapshot), func(t *testing.T) {
				r, cfg, _ := single(t, func(c *Config) {
					c.WAL.SegmentBytes = 8192
					if name == "boltdb" {
						c.LogStore = LogStoreBolt
					}
				})
				awaitOwner(t, r)
				fill(t, r, 1, 5)
				if _, err := r.Snapshot(t.Context()); snapshot && err != nil {
					t.Fatal(err)
				}
				fill(t, r, 2, 5)
				applied := r.fsm.live.Load().shard.HighestIndex()
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				if damage := damageOf(t, cfg.DataDir); damage != "" {
					t.Fatalf("before: %s", damage)
				}
				if err := lose(t, cfg.DataDir); err != nil {
					t.Fatal(err)
				}
				want := fmt.Sprintf("effect of entry %d", applied)
				if damage := damageOf(t, cfg.DataDir); !strings.Contains(damage, want) || !strings.Contains(damage, "replace the member") {
					t.Errorf("verify says %q", damage)
				}
				for range 2 { // also when the first start has cut off a torn write
					_, err := Open(cfg)
					if !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "replace the member") {
						t.Fatalf("open: %v", err)
					}
				}
			})
		}
	}
}

// A log that begins behind what the snapshots cover lacks entries, too: a member
// that lost its snapshots.
func TestLostSnapshotsAreRefused(t *testing.T) {
	r, cfg, _ := single(t, nil)
	awaitOwner(t, r)
	fill(t, r, 1, 5)
	if _, err := r.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), os.RemoveAll(filepath.Join(cfg.DataDir, snapshotsDir))); err != nil {
		t.Fatal(err)
	}
	if damage := damageOf(t, cfg.DataDir); !strings.Contains(damage, "newest snapshot is at 0") {
		t.Errorf("verify says %q", damage)
	}
	if _, err := Open(cfg); !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), "newest snapshot is at 0") {
		t.Errorf("open: %v", err)
	}
}

// A member that died before anything was flushed, and then lost its log, has its
// vote to tell it from a new one.
func TestAnEmptyLogWithAVoteIsRefused(t *testing.T) {
	r, cfg, _ := single(t, func(c *Config) {
		c.Peers = append(c.Peers, Peer{"m1", "127.0.0.1:1"}, Peer{"m2", "127.0.0.1:2"})
	})
	err := errors.Join(r.stable.SetUint64([]byte("CurrentTerm"), 7),
		r.stable.SetUint64([]byte("LastVoteTerm"), 7), r.stable.Set([]byte("LastVoteCand"), []byte("m1")))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(cfg.DataDir, walDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), "voted in term") {
		t.Fatalf("open: %v", err)
	}
}

// After a snapshot from a leader the log is empty and the store is at the
// snapshot: nothing is lost.
func TestAnEmptyLogBehindASnapshotIsWhole(t *testing.T) {
	for _, logStore := range []LogStore{LogStoreWAL, LogStoreBolt} {
		follower, donor, cfg, _ := followerAndDonor(t, logStore)
		if _, err := newFakeLeader(t, follower, 9).install(donor, -1, nil); err != nil {
			t.Fatal(err)
		}
		if err := follower.Close(); err != nil {
			t.Fatal(err)
		}
		if damage := damageOf(t, cfg.DataDir); damage != "" {
			t.Errorf("%s: %s", logStore, damage)
		}
		again := reopen(t, cfg)
		if last, err := again.logs.LastIndex(); err != nil || last != 0 || lastSeq(t, again) != 100 {
			t.Errorf("%s: the log ends at %d, the records at %d, %v", logStore, last, lastSeq(t, again), err)
		}
		again.Close()
	}
}

// A snapshot whose data is ahead of its index would give another member a log
// that ends before its store.
func TestNoSnapshotWhileTheLogIsReplayed(t *testing.T) {
	shard, err := store.Open(vfs.NewMem(), "store", store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer shard.Close()
	a := record.MustSymbol("A")
	if err := shard.SetOwned(7, []record.Symbol{a}); err != nil {
		t.Fatal(err)
	}
	f := &fsm{durable: syncedLog{}.awaitDurable, metrics: newMetrics(), changed: make(chan struct{})}
	f.live.Store(newLiveStore(vfs.Default, "store", shard))
	owned := ownedCommand([]record.Symbol{a})
	owned.Type = raft.LogCommand
	for _, c := range []struct {
		index uint64
		want  error
	}{{6, errReplaying}, {7, nil}} {
		entry := owned
		entry.Index = c.index
		f.ApplyBatch([]*raft.Log{&entry})
		cut, err := f.Snapshot()
		if !errors.Is(err, c.want) {
			t.Errorf("after entry %d: %v", c.index, err)
		}
		if err == nil {
			cut.Release()
		}
	}
}
