package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// A node that hangs in the middle of a scan is left for another one, after what
// it has sent.
func TestScanLeavesANodeThatGoesQuiet(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	g.add(20)
	g.stall = fakes[0]
	var got []uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for g.stalled() == 0 {
			time.Sleep(time.Millisecond)
		}
		g.lead(fakes[1])
	}()
	err := c.Scan(bounded(t), testSymbol, Range{}, Replica{}, func(rs []record.Record) error {
		for i := range rs {
			got = append(got, rs[i].Seq)
		}
		return nil
	})
	<-done
	if err != nil || len(got) != 20 || got[0] != 1 || got[19] != 20 {
		t.Fatalf("%v: %v", err, got)
	}
}

// A slow caller is no quiet node.
func TestScanWaitsForASlowCaller(t *testing.T) {
	g, fakes, c := startGroup(t, 1)
	g.add(4)
	err := c.Scan(bounded(t), testSymbol, Range{}, Replica{}, func([]record.Record) error {
		time.Sleep(testAttempt * 6 / 5)
		return nil
	})
	if err != nil || fakes[0].callCount() != 1 {
		t.Fatalf("%v after %d calls", err, fakes[0].callCount())
	}
}

// TransferLeadership loses its first answer; see fake.transfers.
func (f *fake) TransferLeadership(ctx context.Context, _ *storagepb.TransferLeadershipRequest) (*storagepb.TransferLeadershipResponse, error) {
	if err := f.admit(ctx, false); err != nil {
		return nil, err
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	if f.g.transfers++; f.g.transfers == 1 {
		return nil, status.Error(codes.Unavailable, "connection lost")
	}
	return &storagepb.TransferLeadershipResponse{LeaderId: "b"}, nil
}

func TestTransferIsNotRepeatedWhenItsAnswerIsLost(t *testing.T) {
	g, _, c := startGroup(t, 3)
	var st interface{ GRPCStatus() *status.Status }
	if _, err := c.TransferLeadership(bounded(t), "s1", ""); !errors.As(err, &st) || st.GRPCStatus().Code() != codes.Unavailable || g.transfers != 1 {
		t.Fatalf("got %v after %d transfers", err, g.transfers)
	}
	if id, err := c.TransferLeadership(bounded(t), "s1", ""); err != nil || id != "b" || c.shards["s1"].leader != "" {
		t.Fatalf("got %q %v", id, err)
	}
}

// stalled returns how often the fake that is to stall has done so.
func (g *group) stalled() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stalls
}

// stallIf hangs after the first message of a scan where it is told to.
func (f *fake) stallIf(stream grpc.ServerStreamingServer[storagepb.Records], seq uint64) bool {
	f.g.mu.Lock()
	stall := f.g.stall == f && len(f.g.records) > 2
	if stall {
		f.g.stalls++
	}
	f.g.mu.Unlock()
	if stall {
		_, _ = f.send(stream, seq, 0, 2)
		<-stream.Context().Done()
	}
	return stall
}
