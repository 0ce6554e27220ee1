package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/bench/child"
	"github.com/countinghouse/countinghouse/bench/measure"
)

// snapshots measures how fast a replica without data gets the shard.
func snapshots(ctx context.Context, b *measure.Bench, z size) error {
	dir, remove, err := b.Dir()
	if err != nil {
		return err
	}
	defer remove()
	c := measure.Case{Name: "snapshot of " + megabytes(z.snapshot) + " to an empty replica", Unit: "MB/s"}
	return b.Compare(ctx, c, measure.Contestant{
		System: "countinghouse", Ours: true, Durable: "the replica has it on disk, each file checked",
		Note: "both on this machine and its one disk, over gRPC on loopback; --snapshot-send-bytes-per-second lifted (default 100 MiB/s); " +
			"from the change of the membership until the learner shows all records",
		Run: func(ctx context.Context) (measure.Sample, error) {
			return snapshotSample(ctx, filepath.Join(dir, "node"), z.snapshot)
		},
	})
}

func snapshotSample(ctx context.Context, dir string, bytes int64) (measure.Sample, error) {
	defer func() { _ = os.RemoveAll(dir) }()
	m, err := start(ctx, dir, "--snapshot-send-bytes-per-second", "-1", "--trailing-entries", "1")
	if err != nil {
		return measure.Sample{}, err
	}
	defer m.Close()
	if err := m.fill(ctx, bytes); err != nil {
		return measure.Sample{}, err
	}
	if err := m.Snapshot(ctx); err != nil {
		return measure.Sample{}, err
	}
	const learner = "learner"
	add, err := m.Join(ctx, learner)
	if err != nil {
		return measure.Sample{}, err
	}
	begin := time.Now()
	if err := add(ctx); err != nil {
		return measure.Sample{}, err
	}
	if err := m.awaitAll(ctx, learner); err != nil {
		return measure.Sample{}, err
	}
	took := time.Since(begin).Seconds()
	return measure.Sample{Value: float64(m.records()) * 128 / 1e6 / took, More: map[string]float64{"s": took}}, nil
}

const (
	paceBatch    = 100 // records
	paceInterval = time.Millisecond

	snapshotPause = 200 * time.Millisecond
)

// writers measures how long writers wait for their acknowledgement while the node does
// other things.
func writers(ctx context.Context, b *measure.Bench, z size) error {
	dir, remove, err := b.Dir()
	if err != nil {
		return err
	}
	defer remove()
	c := measure.Case{Name: fmt.Sprintf("ingest of 100k records/s in batches of %d: due to acknowledged", paceBatch), Unit: "µs p99", LowerIsBetter: true}
	const durable = "on the one replica's disk"
	var who []measure.Contestant
	for _, w := range []struct {
		system, note, memtable string
		snapshots              bool
	}{
		{"countinghouse, undisturbed", "no flush happens: memtables of 1 GB", "1000000000", false},
		{"countinghouse, flushes and merges", "memtables of 1 MB: 13 flushes a second, and the merges of what they write", "1000000", false},
		{"countinghouse, snapshots", "a snapshot is asked for 0.2 s after the one before, which flushes everything and shortens the log", "1000000000", true},
	} {
		who = append(who, measure.Contestant{
			System: w.system, Ours: true, Note: w.note, Durable: durable,
			Run: func(ctx context.Context) (measure.Sample, error) {
				return writersSample(ctx, filepath.Join(dir, "node"), z.window, w.memtable, w.snapshots)
			},
		})
	}
	return b.Compare(ctx, c, who...)
}

func writersSample(ctx context.Context, dir string, window time.Duration, memtable string, snapshots bool) (measure.Sample, error) {
	defer func() { _ = os.RemoveAll(dir) }()
	m, err := start(ctx, dir, "--memtable-bytes", memtable)
	if err != nil {
		return measure.Sample{}, err
	}
	defer m.Close()
	if err := m.fill(ctx, 8e6); err != nil { // warms up
		return measure.Sample{}, err
	}
	besideCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	taken, snapshotErr := 0, error(nil)
	if snapshots {
		wg.Go(func() { taken, snapshotErr = m.keepTaking(besideCtx) })
	}
	h := measure.NewHistogram()
	err = m.write(ctx, child.Load{
		Batch: paceBatch, Batches: int(window / paceInterval), Interval: paceInterval,
		Acked: func(_ int, _ uint64, took time.Duration) { h.Record(took) },
	})
	cancel()
	wg.Wait()
	if err := errors.Join(err, snapshotErr); err != nil {
		return measure.Sample{}, err
	}
	s := measure.Sample{Value: float64(h.Latency().P99) / 1e3, Latency: h}
	if snapshots {
		s.More = map[string]float64{"snapshots": float64(taken)}
	}
	return s, nil
}

// keepTaking takes snapshots until ctx ends.
func (m *member) keepTaking(ctx context.Context) (taken int, err error) {
	for {
		select {
		case <-time.After(snapshotPause):
		case <-ctx.Done():
			return taken, nil
		}
		if err := m.Snapshot(ctx); err != nil {
			if ctx.Err() != nil {
				return taken, nil
			}
			return taken, err
		}
		taken++
	}
}
