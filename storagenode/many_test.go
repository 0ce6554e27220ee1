//go:build !race

package storagenode_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/stablestore"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Ten thousand instruments in one shard: each is written to, the snapshot lists
// them all, and a learner gets them. Without the race detector, which makes it
// five times slower.
func TestTenThousandInstrumentsReachALearner(t *testing.T) {
	const n = 10_000
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("I%05d", i)
	}
	c := newCluster(t, 1, func(cfg *replica.Config) {
		patient(cfg)
		cfg.Instruments = symbols(names...)
		cfg.InFlightBytes = 256 << 20
		// A snapshot syncs a table and a manifest of each instrument.
		cfg.FS = vfs.NewMem()
		dir := t.TempDir()
		cfg.OpenStable = func(vfs.FS, string) (replica.StableStore, error) {
			return stablestore.Open(filepath.Join(dir, "stable"))
		}
	})
	leader := c.leader()
	opened := make(chan error)
	for part := range 32 {
		go func() {
			for i := part; i < n; i += 32 {
				_, err := leader.ingest().OpenStream(testContext(t), &storagepb.OpenStreamRequest{Instrument: names[i], Epoch: 1})
				if err != nil {
					opened <- err
					return
				}
			}
			opened <- nil
		}()
	}
	for range 32 {
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
	}
	batches := make([][]byte, n)
	for i, name := range names {
		batches[i] = batch(t, name, 1, 1, 1)
	}
	for i, a := range send(t, leader, batches...) {
		if a.Refusal != nil || a.LastSeq != 1 {
			t.Fatalf("%s: %v", names[i], a)
		}
	}
	takeSnapshot(t, leader)
	write(t, leader, names[0], 2, 100, 1) // so that the log begins behind it
	takeSnapshot(t, leader)
	learner := c.join("m1")
	if _, err := leader.admin().AddLearner(testContext(t), &storagepb.AddLearnerRequest{Id: "m1", Address: learner.address}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the learner holds all instruments", func() bool {
		held, err := learner.query().Instruments(testContext(t), &storagepb.InstrumentsRequest{Stale: true})
		if err != nil || len(held.Instruments) != n {
			return false
		}
		for _, st := range held.Instruments {
			if st.LastSeq == 0 {
				return false
			}
		}
		return true
	})
	if status(t, learner).SnapshotIndex == 0 {
		t.Error("the learner got no snapshot")
	}
	c.same(names[n-1], 1)
	c.same(names[0], 101)
}
