package replica

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

// damageOf returns what VerifyDataDir says of damage.
func damageOf(t *testing.T, dir string) string {
	t.Helper()
	var damage []string
	sum, err := VerifyDataDir(vfs.Default, dir, func(f Finding) {
		if !f.Harmless {
			damage = append(damage, f.File+": "+f.What)
		}
	})
	if err != nil || sum.Damaged != len(damage) {
		t.Fatalf("verify: %d damaged of %v, %v", sum.Damaged, damage, err)
	}
	return strings.Join(damage, "\n")
}

// boltMember returns the closed member of a shard that keeps its log in bbolt.
func boltMember(t *testing.T) (cfg Config, log []byte) {
	t.Helper()
	r, cfg, _ := single(t, func(c *Config) { c.LogStore = LogStoreBolt })
	awaitOwner(t, r)
	fill(t, r, 1, 30)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(cfg.DataDir, boltLogFile))
	if err != nil {
		t.Fatal(err)
	}
	return cfg, log
}

func TestVerifyCountsTheEntriesOfABoltLog(t *testing.T) {
	cfg, _ := boltMember(t)
	sum, err := VerifyDataDir(vfs.Default, cfg.DataDir, func(f Finding) { t.Errorf("%+v", f) })
	if err != nil || sum.LogEntries < 32 || sum.LogEntries != sum.LogLast-sum.LogFirst+1 {
		t.Errorf("%+v, %v", sum, err)
	}
}

// refused checks that a damaged log is found by verify and by a start, and that
// the process survives both.
func refused(t *testing.T, cfg Config, what string) {
	t.Helper()
	if damage := damageOf(t, cfg.DataDir); !strings.Contains(damage, boltLogFile) || !strings.Contains(damage, "replace the member") {
		t.Errorf("%s: verify says %q", what, damage)
	}
	r, err := Open(cfg)
	if err == nil {
		r.Close()
	}
	if !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), boltLogFile) {
		t.Errorf("%s: open: %v", what, err)
	}
}

func TestATruncatedBoltLogIsRefused(t *testing.T) {
	cfg, log := boltMember(t)
	path := filepath.Join(cfg.DataDir, boltLogFile)
	page := os.Getpagesize()
	used := len(bytes.TrimRight(log, "\x00"))
	for _, n := range []int{1, page, 2*page + 100, 3 * page, used / 2} {
		if err := os.WriteFile(path, log[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, cfg, "truncated")
	}
}

// bbolt has no checksums, but a batch has its own.
func TestADamagedBatchInABoltLogIsRefused(t *testing.T) {
	cfg, log := boltMember(t)
	path := filepath.Join(cfg.DataDir, boltLogFile)
	page := os.Getpagesize()
	batch := testBatch(t, 1, 201, 10) // of one of the entries that are in the log
	at := bytes.Index(log, batch)
	for at >= 0 { // every copy: pages that are free have some
		log[at+len(batch)/2] ^= 4
		at = bytes.Index(log, batch)
	}
	if err := os.WriteFile(path, log, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, cfg, "damaged batch")
	for i := range page { // nor may nonsense in its pages end the process
		log[3*page+i] ^= byte(i)
	}
	if err := os.WriteFile(path, log, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, cfg, "damaged page")
}

// A hole in the log is right only where a snapshot covers it.
func TestMissingEntriesOfABoltLog(t *testing.T) {
	cfg, _ := boltMember(t)
	path := filepath.Join(cfg.DataDir, boltLogFile)
	b, _, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.DeleteRange(5, 7), b.Close()); err != nil {
		t.Fatal(err)
	}
	if damage := damageOf(t, cfg.DataDir); !strings.Contains(damage, "entry 7 is missing") {
		t.Errorf("verify says %q", damage)
	}
	if _, err := Open(cfg); !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), "entry 7 is missing") {
		t.Errorf("open: %v", err)
	}
	l, err := readBoltLog(path)
	if err := errors.Join(err, l.checkMissing(7)); err != nil {
		t.Errorf("covered by a snapshot: %v", err)
	}
}

// A start that was interrupted leaves an empty file, or one without a bucket.
func TestABoltLogThatWasOnlyBegunIsEmpty(t *testing.T) {
	path := filepath.Join(t.TempDir(), boltLogFile)
	for _, make := range []func() error{
		func() error { return nil },
		func() error { return os.WriteFile(path, nil, 0o600) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if l, err := readBoltLog(path); err != nil || l.last != 0 {
			t.Errorf("%+v, %v", l, err)
		}
	}
	b, _, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	if l, err := readBoltLog(path); err != nil || l.last != 0 {
		t.Errorf("%+v, %v", l, err)
	}
}
