package replica

import (
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// wallClock is a clock that the test sets.
type wallClock struct{ at atomic.Int64 }

func (c *wallClock) now() time.Time { return time.UnixMilli(c.at.Load()) }

// Of the snapshots up to one entry the newest is the one that was made last, and
// no two have the same name, whatever the wall clock does between them. If the
// older one counted as the newest, damage in it would never be got rid of.
func TestTheNewestSnapshotIsTheOneMadeLast(t *testing.T) {
	clock := new(wallClock)
	r, cfg, fatal := single(t, func(c *Config) { c.WallClock = clock.now })
	awaitOwner(t, r)
	fill(t, r, 1, 3)
	jumps := map[string]int64{
		"forward": 1 << 41, "stands still": 1 << 41, "back by a second": 1<<41 - 1000, "back to 1970": 0, "before 1970": -5000,
		"fewer digits": 999, "far ahead": 1 << 50, "back from there": 1 << 41,
	}
	last := ""
	for _, jump := range []string{"forward", "stands still", "back by a second", "back to 1970", "before 1970", "fewer digits", "far ahead", "back from there"} {
		clock.at.Store(jumps[jump])
		if _, err := r.Snapshot(t.Context()); err != nil {
			t.Fatalf("%s: %v", jump, err)
		}
		newest, err := r.snapshots.newest()
		if err != nil {
			t.Fatal(err)
		}
		if newest.Raft.ID == last {
			t.Errorf("%s: the snapshot before, %s, counts as the newest", jump, last)
		}
		last = newest.Raft.ID
	}
	// The same after a restart, which knows of the names on the disk only.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	clock.at.Store(1)
	again := reopen(t, cfg)
	awaitOwner(t, again)
	if got := again.snapshots.id(1, 1); stampOf(got) <= stampOf(last) {
		t.Errorf("after a restart: id %s follows %s", got, last)
	}
	if names, err := vfs.Default.List(filepath.Join(cfg.DataDir, snapshotsDir)); err != nil || len(names) != 1 {
		t.Errorf("the directory holds %v, %v; want one snapshot", names, err)
	}
	select {
	case err := <-fatal:
		t.Errorf("fatal: %v", err)
	default:
	}
}

// A new snapshot takes the place of a damaged one though the clock fell back.
func TestADamagedSnapshotIsReplacedWhenTheClockFellBack(t *testing.T) {
	clock := new(wallClock)
	clock.at.Store(1 << 41)
	r, _, _ := single(t, func(c *Config) { c.WallClock = clock.now })
	awaitOwner(t, r)
	fill(t, r, 1, 3)
	if _, err := r.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	damaged, err := r.snapshots.newest()
	if err != nil {
		t.Fatal(err)
	}
	r.snapshots.noteDamage(damaged.Raft.ID, errors.New("a flipped bit"))
	clock.at.Add(-1000)
	if _, err := r.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.snapshots.damage(); err != nil {
		t.Errorf("still there: %v", err)
	}
}
