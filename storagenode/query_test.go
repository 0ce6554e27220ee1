package storagenode_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func TestScanAndGet(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	write(t, m, "A", 1, 20000, 500) // more than one message, and more than one memtable
	write(t, m, "B", 1, 10, 10)
	all := record.SliceBytes(records("A", 1, 20000))
	at := func(from, to uint64) []byte { return all[(from-1)*record.Size : to*record.Size] }
	for name, q := range map[string]struct {
		req  *storagepb.ScanRequest
		want []byte
	}{
		"all":      {&storagepb.ScanRequest{Instrument: "A"}, all},
		"range":    {&storagepb.ScanRequest{Instrument: "A", FromSeq: 7777, ToSeq: 9999}, at(7777, 9999)},
		"limit":    {&storagepb.ScanRequest{Instrument: "A", FromSeq: 5, Limit: 3}, at(5, 7)},
		"time":     {&storagepb.ScanRequest{Instrument: "A", FromTime: 100_000, ToTime: 200_000}, at(100, 200)},
		"past end": {&storagepb.ScanRequest{Instrument: "A", FromSeq: 20001}, nil},
		"empty":    {&storagepb.ScanRequest{Instrument: "C"}, nil},
		"stale":    {&storagepb.ScanRequest{Instrument: "A", FromSeq: 1, ToSeq: 1, Stale: true}, at(1, 1)},
	} {
		got, err := scan(t, m, q.req)
		if err != nil || !bytes.Equal(got, q.want) {
			t.Errorf("%s: %d bytes, %v; want %d bytes", name, len(got), err, len(q.want))
		}
	}
	get := func(req *storagepb.GetRequest) []byte {
		t.Helper()
		stream, err := m.query().Get(testContext(t), req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := collect(stream)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := get(&storagepb.GetRequest{Instrument: "A", OrderId: 12345}); !bytes.Equal(got, at(12345, 12345)) {
		t.Errorf("order 12345: %d bytes", len(got))
	}
	if got := get(&storagepb.GetRequest{OrderId: 5}); len(got) != 2*record.Size {
		t.Errorf("order 5 of A and B: %d bytes", len(got))
	}
	if got := get(&storagepb.GetRequest{Account: 3, Limit: 10}); len(got) != 10*record.Size {
		t.Errorf("account 3: %d bytes", len(got))
	}
	if got := get(&storagepb.GetRequest{TradeId: 1}); got != nil {
		t.Errorf("a trade that is not there: %d bytes", len(got))
	}
	st, err := m.query().Instruments(testContext(t), &storagepb.InstrumentsRequest{})
	if err != nil || len(st.Instruments) != 3 || st.Instruments[0].LastSeq != 20000 || st.AppliedIndex == 0 {
		t.Errorf("instruments %v, %v", st, err)
	}
	if a := st.Instruments[0]; a.MemtableRecords+a.TableRecords != a.LastSeq {
		t.Errorf("%d records in the memtable and %d in tables, last seq %d", a.MemtableRecords, a.TableRecords, a.LastSeq)
	}
	verify, err := m.admin().Verify(testContext(t), &storagepb.VerifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		v, err := verify.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if v.Done {
			if !v.Ok || v.Records < 20010 {
				t.Errorf("verdict %+v", v)
			}
			break
		}
	}
}

// follow reads a tail into a channel of records.
func follow(t *testing.T, m *member, req *storagepb.TailRequest) (<-chan record.Record, <-chan error, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	stream, err := m.query().Tail(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || len(first.Data) != 0 {
		t.Fatalf("a tail begins with %v, %v; want an empty message", first, err)
	}
	out, result := make(chan record.Record), make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				result <- err
				return
			}
			rs, err := record.View(r.Data)
			if err != nil {
				result <- err
				return
			}
			for _, rec := range rs {
				select {
				case out <- rec:
				case <-ctx.Done():
				}
			}
		}
	}()
	return out, result, cancel
}

// TestTailMissesAndDoublesNothing follows on every member, from different places,
// while records are written and flushed.
func TestTailMissesAndDoublesNothing(t *testing.T) {
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Store.MemtableBytesMax = 16 << 10 })
	leader := c.leader()
	first := write(t, leader, "A", 1, 1000, 100)
	c.same("A", first)
	type tail struct {
		records <-chan record.Record
		errors  <-chan error
		next    uint64
	}
	var tails []tail
	for _, m := range c.members {
		for _, from := range []uint64{0, 1, 500, first + 1, first + 700} {
			rs, errs, cancel := follow(t, m, &storagepb.TailRequest{Instrument: "A", FromSeq: from, Stale: true})
			defer cancel()
			if from == 0 {
				from = first + 1
			}
			tails = append(tails, tail{rs, errs, from})
		}
	}
	done := make(chan uint64, 1)
	go func() { done <- write(t, leader, "A", 2, 3000, 7) }()
	for i, f := range tails {
		for next := f.next; next <= first+3000; next++ {
			select {
			case r := <-f.records:
				if r.Seq != next {
					t.Fatalf("tail %d: seq %d, want %d", i, r.Seq, next)
				}
			case err := <-f.errors:
				t.Fatalf("tail %d at seq %d: %v", i, next, err)
			case <-time.After(testTimeout):
				t.Fatalf("tail %d: seq %d does not come", i, next)
			}
		}
	}
	<-done
}

func TestTailOfALeaderEndsWithItsLeadership(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	last := write(t, leader, "A", 1, 10, 10)
	leader = c.leader()
	_, errs, cancel := follow(t, leader, &storagepb.TailRequest{Instrument: "A", FromSeq: last + 1})
	defer cancel()
	if _, err := leader.admin().TransferLeadership(testContext(t), &storagepb.TransferLeadershipRequest{}); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, <-errs, refusal.ErrNotLeader)
}

func TestQueriesAreLimited(t *testing.T) {
	m := newClusterOf(t, 1, storagenode.Options{QueriesMax: 2}, nil).leader()
	var cancels []context.CancelFunc
	for range 2 {
		_, _, cancel := follow(t, m, &storagepb.TailRequest{Instrument: "A"})
		cancels = append(cancels, cancel)
	}
	_, err := scan(t, m, &storagepb.ScanRequest{Instrument: "A"})
	wantRefusal(t, err, refusal.ErrOverloaded)
	cancels[0]()
	eventually(t, "a place is free again", func() bool {
		_, err := scan(t, m, &storagepb.ScanRequest{Instrument: "A"})
		return err == nil
	})
	cancels[1]()
}

// A read may be refused when the leadership changes on a busy machine; then the
// new leader is asked, which must show every acknowledgement as well.
func TestLinearizableReadsSeeEveryAcknowledgement(t *testing.T) {
	c := newCluster(t, 3, nil)
	m := c.leader()
	epoch := open(t, m, "A", 1).Epoch
	reads := 0
	for acked := uint64(0); acked < 50; {
		if a := send(t, m, batch(t, "A", epoch, acked+1, 1))[0]; a.Refusal == nil {
			acked++
		} else {
			m = c.leader()
			opened := open(t, m, "A", epoch+1)
			epoch, acked = opened.Epoch, opened.LastSeq
		}
		st, err := m.query().Instruments(testContext(t), &storagepb.InstrumentsRequest{})
		if r := refusal.FromError(err); r != nil && refusal.Retryable(r.Code) {
			m = c.leader()
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		reads++
		if got := st.Instruments[0].LastSeq; got < acked {
			t.Fatalf("seq %d was acknowledged, a read after it shows %d", acked, got)
		}
	}
	if reads == 0 {
		t.Error("every read was refused: nothing was shown")
	}
}

func TestHealthTellsReadinessApart(t *testing.T) {
	c := newCluster(t, 3, nil)
	m := c.leader()
	check := func(m *member, service string) grpc_health_v1.HealthCheckResponse_ServingStatus {
		r, err := grpc_health_v1.NewHealthClient(m.conn()).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	eventually(t, "ready", func() bool {
		return check(m, storagenode.ReadyService) == grpc_health_v1.HealthCheckResponse_SERVING
	})
	followers := c.followers()
	followers[0].stop()
	m.stop()
	eventually(t, "not ready without a leader", func() bool {
		return check(followers[1], storagenode.ReadyService) == grpc_health_v1.HealthCheckResponse_NOT_SERVING
	})
	if got := check(followers[1], ""); got != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("the process is %s", got)
	}
}

func TestStopEndsStreamsAtOnce(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	open(t, m, "A", 1)
	_, errs, cancel := follow(t, m, &storagepb.TailRequest{Instrument: "B"})
	defer cancel()
	appends, err := m.ingest().Append(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := appends.Send(&storagepb.AppendRequest{Batch: batch(t, "A", 1, 1, 1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := appends.Recv(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	m.stop()
	if d := time.Since(start); d > 1500*time.Millisecond {
		t.Errorf("stop took %s", d)
	}
	wantRefusal(t, <-errs, refusal.ErrUnavailable)
	if _, err := appends.Recv(); errors.Is(err, io.EOF) || refusal.FromError(err) == nil {
		t.Errorf("the append stream ended with %v", err)
	}
}
