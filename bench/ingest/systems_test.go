package ingest

import (
	"testing"
	"time"
)

// TestSystemsStoreWhatTheyAcknowledge drives two shards of each system.
func TestSystemsStoreWhatTheyAcknowledge(t *testing.T) {
	const shards, window, records, batches = 2, 4, 10, 20
	for _, sys := range systems {
		t.Run(sys.name, func(t *testing.T) {
			if sys.durable == "" {
				t.Error("does not say what is on disk when a batch is acknowledged")
			}
			c, err := sys.open(t.Context(), t.TempDir(), shards)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}()
			l := bounded(shards, window, records, batches)
			l.measureTime = time.Minute
			r, err := drive(t.Context(), c, makeBatch(records), l)
			if err != nil {
				t.Fatal(err)
			}
			if r.acked != shards*batches {
				t.Errorf("%d batches acknowledged, want %d", r.acked, shards*batches)
			}
			for shard := range shards {
				if n, err := c.Stored(shard); err != nil || n != batches*records {
					t.Errorf("shard %d holds %d records, %v: want %d", shard, n, err, batches*records)
				}
			}
		})
	}
}
