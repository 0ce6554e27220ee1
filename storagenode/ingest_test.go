package storagenode_test

import (
	"context"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func TestAppendIsExactlyOnce(t *testing.T) {
	for _, logStore := range []replica.LogStore{replica.LogStoreWAL, replica.LogStoreBolt} {
		t.Run(string(logStore), func(t *testing.T) {
			c := newCluster(t, 3, func(cfg *replica.Config) { cfg.LogStore = logStore })
			leader := c.leader()
			if r := open(t, leader, "A", 1); r.LastSeq != 0 || r.Epoch != 1 || len(r.LastRecord) != 0 {
				t.Fatalf("an empty stream opened as %+v", r)
			}
			stored(t, send(t, leader, batch(t, "A", 1, 1, 10), batch(t, "A", 1, 11, 5)))
			for _, a := range []struct {
				name       string
				batch      []byte
				code       storagepb.Code
				want, last uint64
			}{
				{"duplicate", batch(t, "A", 1, 11, 5), storagepb.Code_CODE_DUPLICATE, 0, 15},
				{"old duplicate", batch(t, "A", 1, 1, 10), storagepb.Code_CODE_DUPLICATE, 0, 15},
				{"gap", batch(t, "A", 1, 17, 5), storagepb.Code_CODE_GAP, 16, 0},
				{"straddle", batch(t, "A", 1, 14, 5), storagepb.Code_CODE_GAP, 16, 0},
				{"not owner", batch(t, "Z", 1, 1, 1), storagepb.Code_CODE_NOT_OWNER, 0, 0},
				{"not opened", batch(t, "B", 1, 1, 1), storagepb.Code_CODE_FENCED, 0, 0},
			} {
				got := send(t, leader, a.batch)[0].Refusal
				if got == nil || got.Code != a.code || a.want != 0 && got.ExpectedSeq != a.want || a.last != 0 && got.LastSeq != a.last {
					t.Errorf("%s: got %v, want %s", a.name, got, a.code)
				}
			}
			r := open(t, leader, "A", 3)
			if r.LastSeq != 15 || string(r.LastRecord) != string(records("A", 15, 1)[0].Bytes()) {
				t.Fatalf("opened again: %+v", r)
			}
			if got := send(t, leader, batch(t, "A", 1, 16, 1))[0].Refusal; got.GetCode() != storagepb.Code_CODE_FENCED || got.Epoch != 3 {
				t.Errorf("an older epoch: got %v, want FENCED by 3", got)
			}
			_, err := leader.ingest().OpenStream(testContext(t), &storagepb.OpenStreamRequest{Instrument: "A", Epoch: 2})
			wantRefusal(t, err, refusal.ErrFenced)
			stored(t, send(t, leader, batch(t, "A", 3, 16, 4)))
			c.same("A", 19)
		})
	}
}

func TestABadBatchLeavesTheStreamOpen(t *testing.T) {
	c := newCluster(t, 1, nil)
	leader := c.leader()
	open(t, leader, "A", 1)
	open(t, leader, "B", 1)
	corrupt := batch(t, "A", 1, 1, 2)
	corrupt[100] ^= 1
	version := batch(t, "A", 1, 1, 2)
	version[4] = 9
	got := send(t, leader, corrupt, batch(t, "B", 1, 1, 3), version, nil, batch(t, "A", 1, 1, 2))
	want := []storagepb.Code{
		storagepb.Code_CODE_CORRUPT, 0, storagepb.Code_CODE_UNKNOWN_VERSION, storagepb.Code_CODE_CORRUPT, 0,
	}
	if len(got) != len(want) {
		t.Fatalf("%d answers, want %d", len(got), len(want))
	}
	for i, code := range want {
		if got[i].Refusal.GetCode() != code {
			t.Errorf("batch %d: got %v, want %s", i, got[i].Refusal, code)
		}
	}
	c.same("A", 2)
	c.same("B", 3)
}

func TestManyBatchesInFlight(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	if last := write(t, leader, "A", 1, 20000, 100); last != 20000 {
		t.Fatalf("last seq %d", last)
	}
	c.same("A", 20000)
}

func TestFollowerNamesTheLeader(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	follower := c.followers()[0]
	eventually(t, "the follower knows the leader", func() bool { return status(t, follower).LeaderId == leader.id })
	got := refusal.FromProto(send(t, follower, batch(t, "A", 1, 1, 1))[0].Refusal)
	if got == nil || got.Code != storagepb.Code_CODE_NOT_LEADER || got.LeaderID != leader.id || got.LeaderAddress != leader.address || got.Term == 0 {
		t.Fatalf("got %+v, want NOT_LEADER that names %s", got, leader.id)
	}
	_, err := scan(t, follower, &storagepb.ScanRequest{Instrument: "A"})
	wantRefusal(t, err, refusal.ErrNotLeader)
	eventually(t, "a stale read of a follower", func() bool {
		_, err := scan(t, follower, &storagepb.ScanRequest{Instrument: "A", Stale: true})
		return err == nil
	})
}

func TestOtherClustersAreRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	leader := c.leader()
	for name, ctx := range map[string]context.Context{
		"no identity":   t.Context(),
		"other cluster": replica.WithIdentity(t.Context(), "other", shardName),
		"other shard":   replica.WithIdentity(t.Context(), clusterName, "s2"),
	} {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := leader.admin().Status(ctx, &storagepb.StatusRequest{})
		if got := refusal.FromError(err); got == nil || got.Code != storagepb.Code_CODE_WRONG_CLUSTER {
			t.Errorf("%s: got %v", name, err)
		}
		stream, err := leader.query().Scan(ctx, &storagepb.ScanRequest{Instrument: "A"})
		if err == nil {
			_, err = stream.Recv()
		}
		if got := refusal.FromError(err); got == nil || got.Code != storagepb.Code_CODE_WRONG_CLUSTER {
			t.Errorf("%s: scan got %v", name, err)
		}
		cancel()
	}
}

func TestBadRequestsNameTheField(t *testing.T) {
	c := newCluster(t, 1, nil)
	leader := c.leader()
	ctx := testContext(t)
	_, err := leader.ingest().OpenStream(ctx, &storagepb.OpenStreamRequest{Instrument: "", Epoch: 1})
	wantRefusal(t, err, refusal.ErrInvalid)
	_, err = leader.ingest().OpenStream(ctx, &storagepb.OpenStreamRequest{Instrument: "A"})
	wantRefusal(t, err, refusal.ErrInvalid)
	_, err = leader.ingest().OpenStream(ctx, &storagepb.OpenStreamRequest{Instrument: "Z", Epoch: 1})
	wantRefusal(t, err, refusal.ErrNotOwner)
	get, err := leader.query().Get(ctx, &storagepb.GetRequest{OrderId: 1, TradeId: 1})
	if err == nil {
		_, err = collect(get)
	}
	wantRefusal(t, err, refusal.ErrInvalid)
	_, err = scan(t, leader, &storagepb.ScanRequest{Instrument: "Z"})
	wantRefusal(t, err, refusal.ErrNotOwner)
	_, err = leader.admin().AssignInstruments(ctx, &storagepb.AssignInstrumentsRequest{Instruments: []string{"sp ace"}})
	wantRefusal(t, err, refusal.ErrInvalid)
	write(t, leader, "A", 1, 5, 5)
	_, err = leader.admin().AssignInstruments(ctx, &storagepb.AssignInstrumentsRequest{Instruments: []string{"B"}})
	wantRefusal(t, err, refusal.ErrInvalid)
	if _, err := leader.admin().AssignInstruments(ctx, &storagepb.AssignInstrumentsRequest{Instruments: []string{"A", "B", "D", record.AccountStream}}); err != nil {
		t.Fatal(err)
	}
	write(t, leader, "D", 1, 5, 5)
}
