package trial

import (
	"context"
	"fmt"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/audit"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

const (
	catchUpWait    = 60 * time.Second
	differencesMax = 10 // of states, in the report
)

// prove reads everything back and compares it: replicas with each other, record
// numbers with what was published, the rebuilt exchange with the one that ran.
func (t *trial) prove(ctx context.Context) error {
	live, err := t.ex.State()
	if err != nil {
		return err
	}
	if err := t.awaitReplicas(ctx); err != nil {
		return err
	}
	if err := t.audit(ctx); err != nil {
		return err
	}
	if err := t.rebuild(ctx, live); err != nil {
		return err
	}
	n := t.report.Notifications
	t.report.OK = n.Lost == 0 && n.Duplicated == 0 && n.Persisted == n.Received && t.report.Identical && t.report.Rebuilt &&
		len(t.report.Findings) == 0
	return nil
}

// awaitReplicas waits until every replica has applied what its leader has.
func (t *trial) awaitReplicas(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpWait)
	defer cancel()
	for _, s := range t.shards.Shards {
		held, err := t.client.Instruments(ctx, s.Name, client.Replica{})
		if err != nil {
			return err
		}
		for _, m := range s.Members {
			t.Progress("waiting for %s to catch up", m.ID)
			if err := t.awaitReplica(ctx, s.Name, m.ID, held.AppliedIndex); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *trial) awaitReplica(ctx context.Context, shard, member string, index uint64) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		held, err := t.client.Instruments(ctx, shard, client.Replica{Member: member})
		if err == nil && held.AppliedIndex >= index {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s did not catch up with index %d of %s: %w", member, index, shard, ctx.Err())
		}
	}
}

func (t *trial) audit(ctx context.Context) error {
	streams, err := audit.Streams(t.shards)
	if err != nil {
		return err
	}
	published := t.report.Notifications.Received
	last := time.Now()
	result, err := audit.Run(ctx, audit.Cluster{Client: t.client}, streams, published, func(records uint64) {
		if time.Since(last) < progressEvery {
			return
		}
		last = time.Now()
		t.Progress("comparing replicas: %s of %s records", output.Count(records), output.Count(published))
	})
	if err != nil {
		return err
	}
	n := &t.report.Notifications
	n.Persisted, n.Lost, n.Duplicated = result.Persisted, result.Lost, result.Duplicated
	t.report.BytesCompared, t.report.Identical = result.BytesCompared, result.Identical()
	t.report.Findings = append(t.report.Findings, result.Differences...)
	if result.Beyond > 0 {
		t.report.Findings = append(t.report.Findings, fmt.Sprintf("%d records are stored that were never published", result.Beyond))
	}
	return nil
}

// rebuild makes the exchange anew from one replica of each shard, the one that
// was killed where it can, and compares it with the one that ran.
func (t *trial) rebuild(ctx context.Context, live core.State) error {
	t.Progress("rebuilding books and accounts from the store")
	began := time.Now()
	rebuilt, err := exchange.Rebuild(ctx, t.client, exchange.RebuildOptions{From: t.rebuildFrom})
	if err != nil {
		t.report.Findings = append(t.report.Findings, fmt.Sprintf("rebuild: %v", err))
		return ctx.Err()
	}
	t.report.RebuildMS = float64(time.Since(began).Microseconds()) / 1000
	differences := live.Diff(rebuilt.State)
	t.report.Rebuilt = live.Hash() == rebuilt.State.Hash()
	for _, d := range differences[:min(len(differences), differencesMax)] {
		t.report.Findings = append(t.report.Findings, "live (-) and rebuilt (+) exchange: "+d)
	}
	return nil
}

func (t *trial) rebuildFrom(shard string) client.Replica {
	if s := t.shards.Shard(shard); s.Member(t.report.Killed) != nil {
		return client.Replica{Member: t.report.Killed}
	}
	return client.Replica{}
}
