package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

const (
	sealIncarnation = 1 << 24 // above every writer's
	sealWait        = 30 * time.Second
	catchUpWait     = 60 * time.Second
	readBackWait    = 10 * time.Minute // for one stream of one replica
	pollInterval    = 20 * time.Millisecond
	messageBytesMax = 16 << 20
)

// prove ends all streams, kills all nodes, starts them, reads every record back
// from every replica, stops the nodes and verifies their directories.
func (t *torture) prove(ctx context.Context) error {
	t.progress("sealing the streams")
	ends, err := t.seal(ctx)
	if err != nil {
		return err
	}
	checking, cancel := context.WithTimeout(ctx, sealWait)
	t.checkMembers(checking)
	cancel()
	t.progress("killing all nodes once more")
	t.cluster.Kill()
	if err := t.startAll(ctx); err != nil {
		return err
	}
	t.result.ReplicasIdentical = true
	for _, s := range t.shards {
		if err := t.readBack(ctx, s, ends); err != nil {
			return err
		}
	}
	t.progress("stopping all nodes")
	t.stopAll()
	t.verify()
	t.result.Complete = ctx.Err() == nil
	return ctx.Err()
}

// seal opens every stream once more, so that its end is final, and returns the
// ends.
func (t *torture) seal(parent context.Context) (map[*ledger]uint64, error) {
	ctx, cancel := context.WithTimeout(parent, sealWait)
	defer cancel()
	c, err := client.New(t.cluster.Map(), client.Options{AttemptTimeout: attemptTimeout})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ends := map[*ledger]uint64{}
	for _, s := range t.shards {
		for _, l := range s.ledgers {
			opened, err := l.seal(ctx, c)
			if parent.Err() != nil {
				return nil, parent.Err()
			}
			if err != nil {
				t.found.add(broken, 1, "%s can not be opened although nothing is wrong any more: %v", l.sym, err)
				return nil, err
			}
			ends[l] = opened
			t.result.Stored += opened
		}
	}
	return ends, nil
}

func (l *ledger) seal(ctx context.Context, c *client.Client) (uint64, error) {
	for epoch := uint64(sealIncarnation)<<32 | 1; ; epoch++ {
		l.attempt(epoch)
		opened, err := c.OpenStream(ctx, l.sym, epoch)
		if r := refusal.FromError(err); r != nil && r.Epoch == epoch {
			continue // carried out, but the answer was lost
		}
		if err != nil {
			return 0, err
		}
		l.opened(epoch, 0, opened.LastSeq, opened.LastRecord)
		return opened.LastSeq, nil
	}
}

// checkMembers compares the shards' own view of their members with the nodes that
// are meant to be.
func (t *torture) checkMembers(ctx context.Context) {
	c, err := client.New(t.cluster.Map(), client.Options{AttemptTimeout: attemptTimeout})
	if err != nil {
		t.found.add(broken, 1, "shard map: %v", err)
		return
	}
	defer c.Close()
	for _, s := range t.shards {
		st, err := c.Leader(ctx, s.name)
		if errors.Is(ctx.Err(), context.Canceled) {
			return
		}
		if err != nil {
			t.found.add(broken, 1, "shard %s has no leader: %v", s.name, err)
			continue
		}
		var got, want []string
		for _, m := range st.Members {
			got = append(got, fmt.Sprintf("%s at %s, voter %t", m.Id, m.Address, m.Voter))
		}
		for _, m := range t.cluster.Of(s.name) {
			want = append(want, fmt.Sprintf("%s at %s, voter %t", m.ID, m.Address, true))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.found.add(broken, 1, "shard %s has the members %q, not %q", s.name, got, want)
		}
	}
}

func (t *torture) startAll(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, m := range t.cluster.Members() {
		wg.Go(func() { t.startNode(ctx, m.ID) })
	}
	wg.Wait()
	if err := t.cluster.AwaitLeaders(ctx); err != nil {
		if ctx.Err() == nil {
			t.found.add(broken, 1, "after all nodes were killed and started: %v", err)
		}
		return err
	}
	return nil
}

// readBack checks all replicas of a shard.
func (t *torture) readBack(ctx context.Context, s *shard, ends map[*ledger]uint64) error {
	chains := map[*ledger]uint32{}
	for i, m := range t.cluster.Of(s.name) {
		conn, err := grpc.NewClient("passthrough:///"+m.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax)))
		if err != nil {
			return err
		}
		defer conn.Close()
		b := &reading{t: t, shard: s, member: m, query: storagepb.NewQueryClient(conn)}
		held, err := b.awaitCaughtUp(ctx, ends)
		if err != nil {
			return err
		}
		if held == nil { // it is a finding; what it holds is not known to be lost
			t.result.ReplicasIdentical = false
			continue
		}
		for _, l := range s.ledgers {
			if err := b.replay(ctx, l, ends[l], held[l.sym.String()]); err != nil {
				return err
			}
			chain := held[l.sym.String()].GetChain()
			if i == 0 {
				chains[l] = chain
			} else if chains[l] != chain {
				t.result.ReplicasIdentical = false
				l.report(broken, 1, "%s states the chain %08x, another replica %08x", m.ID, chain, chains[l])
			}
		}
		t.result.ReplicasChecked++
	}
	return nil
}

// reading reads one replica, past the client, which passes over records that come
// twice.
type reading struct {
	t      *torture
	shard  *shard
	member localcluster.Member
	query  storagepb.QueryClient
}

func (b *reading) context(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, client.ClusterKey, clusterName, client.ShardKey, b.shard.name)
}

type heldStreams map[string]*storagepb.InstrumentStats

// awaitCaughtUp waits until the replica has applied all streams up to their ends.
// It returns nil for one that does not answer.
func (b *reading) awaitCaughtUp(ctx context.Context, ends map[*ledger]uint64) (heldStreams, error) {
	b.t.progress("waiting for %s to catch up", b.member.ID)
	var held heldStreams
	for began := time.Now(); ; {
		answer, err := b.query.Instruments(b.context(ctx), &storagepb.InstrumentsRequest{Stale: true})
		held = heldStreams{}
		for _, st := range answer.GetInstruments() {
			held[st.Instrument] = st
		}
		missing := b.missing(held, ends)
		if err == nil && missing == "" {
			return held, nil
		}
		if time.Since(began) > catchUpWait {
			if err != nil {
				b.t.found.add(broken, 1, "%s does not answer within %s: %v", b.member.ID, catchUpWait, err)
				return nil, nil
			}
			b.t.found.add(broken, 1, "%s does not catch up within %s: %s", b.member.ID, catchUpWait, missing)
			return held, nil // what it holds is checked all the same
		}
		if !pause(ctx, pollInterval) {
			return nil, ctx.Err()
		}
	}
}

func (b *reading) missing(held heldStreams, ends map[*ledger]uint64) string {
	for _, l := range b.shard.ledgers {
		if st := held[l.sym.String()]; st.GetLastSeq() < ends[l] {
			return fmt.Sprintf("its stream of %s ends at seq %d, not %d;", l.sym, st.GetLastSeq(), ends[l])
		}
	}
	return ""
}

// replay reads one stream from its beginning to its end.
func (b *reading) replay(ctx context.Context, l *ledger, end uint64, held *storagepb.InstrumentStats) error {
	b.t.progress("reading %s from %s", l.sym, b.member.ID)
	ctx, cancel := context.WithTimeout(b.context(ctx), readBackWait)
	defer cancel()
	p := l.replay(b.member.ID, end)
	stream, err := b.query.Scan(ctx, &storagepb.ScanRequest{Instrument: l.sym.String(), Stale: true})
	for err == nil {
		var m *storagepb.Records
		var rs []record.Record
		if m, err = stream.Recv(); err == nil {
			if rs, err = record.View(m.Data); err == nil {
				p.take(rs)
				b.t.result.RecordsCompared += uint64(len(rs))
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !errors.Is(err, io.EOF) { // what did not come is not known to be lost
		b.t.found.add(broken, 1, "%s can not be read from %s: %v", l.sym, b.member.ID, err)
		return nil
	}
	p.finish(held.GetChain())
	return nil
}

// stopAll ends all nodes in good order.
func (t *torture) stopAll() {
	var wg sync.WaitGroup
	for _, m := range t.cluster.Members() {
		wg.Go(func() {
			if err := t.cluster.StopNode(m.ID); err != nil {
				t.found.add(broken, 1, "%v", err)
			}
		})
	}
	wg.Wait()
}

// verify checks the directories of the nodes, which are stopped.
func (t *torture) verify() {
	for _, m := range t.cluster.Members() {
		t.progress("verifying the directory of %s", m.ID)
		_, err := replica.VerifyDataDir(vfs.Default, m.DataDir, func(f replica.Finding) {
			if !f.Harmless {
				t.found.add(broken, 1, "%s offset %d: %s", f.File, f.Offset, f.What)
			}
		})
		if err != nil {
			t.found.add(broken, 1, "directory of %s: %v", m.ID, err)
			continue
		}
		t.result.Verified++
	}
}
