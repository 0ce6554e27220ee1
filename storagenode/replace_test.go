package storagenode_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// publisher fills an outbox with records of the instrument A until it is stopped.
type publisher struct {
	writer  *outbox.Writer
	end     chan struct{}
	running sync.WaitGroup
	mu      sync.Mutex
	all     []record.Record // that were published
}

func publish(t *testing.T, w *outbox.Writer) *publisher {
	t.Helper()
	p := &publisher{writer: w, end: make(chan struct{})}
	p.running.Go(func() {
		for seq := uint64(1); ; {
			select {
			case <-p.end:
				return
			case <-time.After(time.Millisecond): // so that the shard is written to all along
			}
			if !w.Reserve(10) {
				continue
			}
			slots := make([]*record.Record, 10)
			for i := range slots {
				slots[i] = w.Next()
				*slots[i] = records("A", seq, 1)[0]
				seq++
			}
			w.Commit()
			p.mu.Lock()
			for _, slot := range slots {
				p.all = append(p.all, *slot)
			}
			p.mu.Unlock()
		}
	})
	t.Cleanup(p.stop)
	return p
}

func (p *publisher) published() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint64(len(p.all))
}

func (p *publisher) stop() {
	p.mu.Lock()
	select {
	case <-p.end:
	default:
		close(p.end)
	}
	p.mu.Unlock()
	p.running.Wait()
}

// writtenTo is a shard that a subscriber delivers to, through a client whose
// members change.
type writtenTo struct {
	*cluster
	t       *testing.T
	client  *client.Client
	members []client.Member
	source  *publisher
	sub     *subscriber.Subscriber
}

func newWrittenTo(t *testing.T, n int) *writtenTo {
	t.Helper()
	w := &writtenTo{t: t, cluster: newCluster(t, n, patient)}
	for _, m := range w.cluster.members {
		w.members = append(w.members, client.Member{ID: m.id, Address: m.address})
	}
	w.leader()
	shards := &client.Map{Cluster: clusterName, Shards: []client.Shard{{Name: shardName, Instruments: []string{"A"}, Members: slices.Clone(w.members)}}}
	var err error
	if w.client, err = client.New(shards, client.Options{AttemptTimeout: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.Close() })
	dir := filepath.Join(t.TempDir(), "outbox")
	box, err := outbox.Open(dir, outbox.Options{Cluster: clusterName, SegmentRecords: 4096, QuotaBytes: 64 << 20, Cursors: subscriber.CursorNames(shards)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Close() })
	if w.sub, err = subscriber.New(subscriber.Config{
		OutboxDir: dir, Incarnation: 1, Shards: shards, Storage: subscriber.FromClient(w.client),
		OnStop: func(_ string, err error) {
			if err != nil {
				t.Errorf("the subscriber stopped: %v", err)
			}
		},
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.sub.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	w.source = publish(t, box)
	return w
}

// delivered waits until what is published by now is delivered, and some of it has
// been published since the call.
func (w *writtenTo) delivered() {
	w.t.Helper()
	from := w.source.published()
	eventually(w.t, "more is published", func() bool { return w.source.published() > from })
	if err := w.sub.WaitDrained(testContext(w.t)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *writtenTo) tell() {
	w.t.Helper()
	if err := w.client.SetMembers(shardName, w.members); err != nil {
		w.t.Fatal(err)
	}
}

// replace puts a further member in the place of an old one, as the operator does.
func (w *writtenTo) replace(old *member, id string) {
	w.t.Helper()
	ctx := testContext(w.t)
	fresh := w.join(id)
	w.members = append(w.members, client.Member{ID: id, Address: fresh.address})
	w.tell()
	eventually(w.t, id+" is a learner", func() bool {
		_, err := w.client.AddLearner(ctx, shardName, id, fresh.address, 0)
		return err == nil
	})
	eventually(w.t, id+" votes", func() bool {
		_, err := w.client.Promote(ctx, shardName, id, 0)
		return err == nil
	})
	if old.leads() {
		eventually(w.t, old.id+" hands the leadership over", func() bool {
			_, err := w.client.TransferLeadership(ctx, shardName, id)
			return err == nil || !old.leads()
		})
	}
	eventually(w.t, old.id+" leaves", func() bool {
		_, err := w.client.Remove(ctx, shardName, old.id, 0)
		return err == nil
	})
	old.stop()
	w.members = slices.DeleteFunc(w.members, func(m client.Member) bool { return m.ID == old.id })
	w.tell()
	w.delivered()
}

// All members of a shard are replaced while it is written to, and then the leader is
// lost: the client has none of the members it began with, and finds its way.
func TestAllMembersAreReplacedUnderASubscriber(t *testing.T) {
	w := newWrittenTo(t, 3)
	w.delivered()
	for i, old := range slices.Clone(w.cluster.members) {
		w.replace(old, fmt.Sprintf("m%d", 3+i))
	}
	w.leader().stop()
	w.delivered()
	w.source.stop()
	last := w.source.published()
	if err := w.sub.WaitDrained(testContext(t)); err != nil {
		t.Fatal(err)
	}
	w.sameAsPublished()
	var got []record.Record
	err := w.client.Scan(testContext(t), record.MustSymbol("A"), client.Range{}, client.Replica{}, func(rs []record.Record) error {
		got = append(got, rs...)
		return nil
	})
	if err != nil || !slices.Equal(got, w.source.all) || last < 100 {
		t.Errorf("%v: the client reads %d records of %d, or others", err, len(got), last)
	}
	t.Logf("%d records through six members and a lost leader", last)
}

// sameAsPublished waits until every running member holds what was published, byte
// for byte.
func (w *writtenTo) sameAsPublished() {
	w.t.Helper()
	want := record.SliceBytes(w.source.all)
	for _, m := range w.cluster.members {
		if !m.isRunning() {
			continue
		}
		var got []byte
		eventually(w.t, m.id+" holds what was published", func() (has bool) {
			var err error
			got, err = scan(w.t, m, &storagepb.ScanRequest{Instrument: "A", Stale: true})
			return err == nil && len(got) >= len(want)
		})
		if !bytes.Equal(got, want) {
			w.t.Fatalf("%s has %d records, or others than the %d published", m.id, len(got)/record.Size, len(w.source.all))
		}
	}
}
