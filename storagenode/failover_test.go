package storagenode_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// writer appends to one instrument without an end, as a real one does: after any
// error it opens its stream again with a higher epoch and goes on from what the
// stream says.
type writer struct {
	c    *cluster
	name string

	mu    sync.Mutex
	acked uint64
	err   error
}

// run writes until stop is closed.
func (w *writer) run(stop <-chan struct{}, done *sync.WaitGroup) {
	defer done.Done()
	for epoch := uint64(1); ; epoch++ {
		select {
		case <-stop:
			return
		default:
		}
		if err := w.session(stop, epoch); err != nil {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func (w *writer) session(stop <-chan struct{}, epoch uint64) error {
	var leader *member
	for _, m := range w.c.members {
		if m.leads() {
			leader = m
		}
	}
	if leader == nil {
		return refusal.ErrNotLeader
	}
	ctx, cancel := context.WithTimeout(replica.WithIdentity(context.Background(), clusterName, shardName), testTimeout)
	defer cancel()
	opened, err := leader.ingest().OpenStream(ctx, &storagepb.OpenStreamRequest{Instrument: w.name, Epoch: epoch})
	if err != nil {
		return err
	}
	if err := w.resume(opened.LastSeq); err != nil {
		return err
	}
	stream, err := leader.ingest().Append(ctx)
	if err != nil {
		return err
	}
	go func() {
		for next := opened.LastSeq + 1; ; next += 10 {
			b, err := record.AppendBatch(nil, epoch, records(w.name, next, 10))
			if err != nil || stream.Send(&storagepb.AppendRequest{Batch: b}) != nil {
				return
			}
			select {
			case <-stop:
				stream.CloseSend()
				return
			default:
			}
		}
	}()
	for {
		a, err := stream.Recv()
		if err != nil {
			return err
		}
		if a.Refusal != nil {
			return refusal.FromProto(a.Refusal)
		}
		w.mu.Lock()
		w.acked = a.LastSeq
		w.mu.Unlock()
	}
}

// resume checks that nothing acknowledged is missing.
func (w *writer) resume(last uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last < w.acked {
		w.err = fmt.Errorf("%d records were acknowledged, the stream ends at %d", w.acked, last)
		return w.err
	}
	w.acked = last
	return nil
}

func (w *writer) state() (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked, w.err
}

func (w *writer) await(t *testing.T, more uint64) {
	t.Helper()
	start, _ := w.state()
	eventually(t, "the writer goes on", func() bool { now, _ := w.state(); return now >= start+more })
}

// finish stops the writer and returns the last seq of the stream.
func (w *writer) finish(t *testing.T, stop chan struct{}, done *sync.WaitGroup) uint64 {
	t.Helper()
	close(stop)
	done.Wait()
	acked, err := w.state()
	if err != nil {
		t.Fatal(err)
	}
	last := open(t, w.c.leader(), w.name, 1<<40).LastSeq
	if last < acked {
		t.Fatalf("acknowledged %d, stored %d", acked, last)
	}
	return last
}

func startWriter(c *cluster, name string) (*writer, chan struct{}, *sync.WaitGroup) {
	w := &writer{c: c, name: name}
	stop, done := make(chan struct{}), new(sync.WaitGroup)
	done.Add(1)
	go w.run(stop, done)
	return w, stop, done
}

func TestLeaderIsLostWithBatchesInFlight(t *testing.T) {
	for _, logStore := range []replica.LogStore{replica.LogStoreWAL, replica.LogStoreBolt} {
		t.Run(string(logStore), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			c := newCluster(t, 3, func(cfg *replica.Config) { cfg.LogStore = logStore })
			c.leader()
			w, stop, done := startWriter(c, "A")
			for range 3 {
				w.await(t, uint64(200+random.IntN(400)))
				lost := c.leader()
				lost.stop()
				w.await(t, 200)
				lost.restart()
			}
			c.same("A", w.finish(t, stop, done))
		})
	}
}

func TestLeadershipIsHandedOverUnderLoad(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.leader()
	w, stop, done := startWriter(c, "A")
	for range 4 {
		w.await(t, 300)
		if from, to := handOver(t, c, ""); to == from || to == "" {
			t.Fatalf("%s handed over to %q", from, to)
		}
	}
	target := c.followers()[0]
	if _, to := handOver(t, c, target.id); to != target.id {
		t.Fatalf("handed over to %s, want %s", to, target.id)
	}
	c.same("A", w.finish(t, stop, done))
}

// handOver transfers leadership, again if a busy machine makes it change by itself.
func handOver(t *testing.T, c *cluster, id string) (from, to string) {
	t.Helper()
	for {
		leader := c.leader()
		if leader.id == id {
			return "", id
		}
		r, err := leader.admin().TransferLeadership(testContext(t), &storagepb.TransferLeadershipRequest{Id: id})
		if err == nil {
			return leader.id, r.LeaderId
		}
		if e := refusal.FromError(err); e == nil || !refusal.Retryable(e.Code) {
			t.Fatal(err)
		}
	}
}

func TestAllMembersRestart(t *testing.T) {
	for _, logStore := range []replica.LogStore{replica.LogStoreWAL, replica.LogStoreBolt} {
		t.Run(string(logStore), func(t *testing.T) {
			c := newCluster(t, 3, func(cfg *replica.Config) { cfg.LogStore = logStore })
			write(t, c.leader(), "A", 1, 5000, 100)
			write(t, c.leader(), "B", 1, 50, 10)
			for _, m := range c.members {
				m.stop()
			}
			for _, m := range c.members {
				m.restart()
			}
			c.same("A", 5000)
			c.same("B", 50)
			if last := write(t, c.leader(), "A", 2, 100, 10); last != 5100 {
				t.Fatalf("last seq %d, want 5100", last)
			}
			c.same("A", 5100)
		})
	}
}
