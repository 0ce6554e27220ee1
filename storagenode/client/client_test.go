package client

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

const testAttempt = 500 * time.Millisecond

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestOpenStreamFollowsTheLeader(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	g.add(3)
	for epoch, leader := range []int{0: 2, 1: 1, 2: 0} {
		g.lead(fakes[leader])
		got, err := c.OpenStream(bounded(t), testSymbol, uint64(epoch+1))
		if err != nil {
			t.Fatal(err)
		}
		if got.Epoch != uint64(epoch+1) || got.LastSeq != 3 || got.LastRecord == nil || got.LastRecord.Seq != 3 {
			t.Errorf("epoch %d: %+v", epoch+1, got)
		}
	}
	if f := fakes[0]; len(f.cluster) != 1 || f.cluster[0] != "test" || len(f.shard) != 1 || f.shard[0] != "s1" {
		t.Errorf("metadata: cluster %v, shard %v", f.cluster, f.shard)
	}
}

// A leader that is known costs one call.
func TestLeaderIsRemembered(t *testing.T) {
	_, fakes, c := startGroup(t, 3)
	for epoch := range uint64(5) {
		if _, err := c.OpenStream(bounded(t), testSymbol, epoch+1); err != nil {
			t.Fatal(err)
		}
	}
	if n := fakes[0].callCount(); n != 5 {
		t.Errorf("%d calls to the leader for 5 requests", n)
	}
}

func TestHintToNowhere(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	fakes[0].hint = "127.0.0.1:1"
	g.lead(fakes[2])
	if _, err := c.OpenStream(bounded(t), testSymbol, 1); err != nil {
		t.Fatal(err)
	}
}

func TestHangingMemberIsPassedOver(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	hang := make(chan struct{})
	defer close(hang)
	g.mu.Lock()
	fakes[0].hang = hang
	g.leader = fakes[1]
	g.mu.Unlock()
	if _, err := c.OpenStream(bounded(t), testSymbol, 1); err != nil {
		t.Fatal(err)
	}
	if fakes[0].callCount() == 0 {
		t.Error("the hanging member was not asked, so nothing was shown")
	}
}

func TestNoLeaderEndsWithTheContext(t *testing.T) {
	g, _, c := startGroup(t, 3)
	g.lead(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := c.OpenStream(ctx, testSymbol, 1)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func TestRefusalsThatCanNotPassAreReturned(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	g.epoch = 9
	_, err := c.OpenStream(bounded(t), testSymbol, 9)
	var r *refusal.Error
	if !errors.As(err, &r) || !errors.Is(err, refusal.ErrFenced) || r.Epoch != 9 {
		t.Errorf("got %v", err)
	}
	if n := fakes[0].callCount(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if _, err := c.Promote(bounded(t), "s1", "late", 4); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if index, err := c.Promote(bounded(t), "s1", "b", 4); err != nil || index != 5 {
		t.Errorf("got %d, %v", index, err)
	}
}

// An answer that is lost after the call was carried out shows as a fence with
// the writer's own epoch.
func TestLostOpenShowsOwnEpoch(t *testing.T) {
	g, _, c := startGroup(t, 1)
	g.lost = 1
	_, err := c.OpenStream(bounded(t), testSymbol, 7)
	var r *refusal.Error
	if !errors.As(err, &r) || r.Code != storagepb.Code_CODE_FENCED || r.Epoch != 7 {
		t.Errorf("got %v", err)
	}
}

func seqs(got *[]uint64) Yield {
	return func(rs []record.Record) error {
		for i := range rs {
			*got = append(*got, rs[i].Seq)
		}
		return nil
	}
}

func checkRunOf(t *testing.T, got []uint64, from, to uint64) {
	t.Helper()
	for i, seq := range got {
		if seq != from+uint64(i) {
			t.Fatalf("record %d has seq %d, want %d", i, seq, from+uint64(i))
		}
	}
	if uint64(len(got)) != to-from+1 {
		t.Fatalf("got %d records, want %d to %d", len(got), from, to)
	}
}

func TestScanAndGet(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	g.add(9)
	var got []uint64
	if err := c.Scan(bounded(t), testSymbol, Range{FromSeq: 3, ToSeq: 8}, Replica{}, seqs(&got)); err != nil {
		t.Fatal(err)
	}
	checkRunOf(t, got, 3, 8)
	got = nil
	if err := c.Scan(bounded(t), testSymbol, Range{Limit: 4}, Replica{Member: "c"}, seqs(&got)); err != nil {
		t.Fatal(err)
	}
	checkRunOf(t, got, 1, 4)
	if fakes[2].callCount() == 0 {
		t.Error("the stale read did not go to the member it names")
	}
	got = nil
	if err := c.Get(bounded(t), testSymbol, ByID{Order: 4}, Replica{}, seqs(&got)); err != nil || len(got) != 2 || got[1] != 8 {
		t.Errorf("get: %v, %v", got, err)
	}
	stop := errors.New("enough")
	if err := c.Scan(bounded(t), testSymbol, Range{}, Replica{}, func([]record.Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the reader's own error must end the scan: %v", err)
	}
	if err := c.Scan(bounded(t), record.MustSymbol("NONE"), Range{}, Replica{}, seqs(&got)); err == nil || !strings.Contains(err.Error(), "NONE") {
		t.Errorf("got %v", err)
	}
	if err := c.Scan(bounded(t), testSymbol, Range{}, Replica{Member: "z"}, seqs(&got)); err == nil || !strings.Contains(err.Error(), "[a b c]") {
		t.Errorf("an unknown member must be answered with the known ones: %v", err)
	}
}

// A replica that leaves a record out is caught by the client as well.
func TestScanNoticesAMissingRecord(t *testing.T) {
	g, _, c := startGroup(t, 1)
	g.add(6)
	g.records = append(g.records[:3], g.records[4:]...)
	var got []uint64
	if err := c.Scan(bounded(t), testSymbol, Range{}, Replica{}, seqs(&got)); !errors.Is(err, record.ErrCorrupt) {
		t.Errorf("got %v after %v", err, got)
	}
}

func TestTailSurvivesLeaderChanges(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	g.add(5)
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	reached := make(chan uint64)
	done := make(chan error, 1)
	var got []uint64
	go func() {
		done <- c.Tail(ctx, testSymbol, 2, Replica{}, func(rs []record.Record) error {
			for i := range rs {
				got = append(got, rs[i].Seq)
			}
			reached <- rs[len(rs)-1].Seq
			return nil
		})
	}()
	want := uint64(5)
	for round := range 6 {
		for seq := range reached {
			if seq == want {
				break
			}
		}
		g.lead(fakes[(round+1)%3])
		g.add(3)
		want += 3
	}
	for seq := range reached {
		if seq == want {
			break
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("tail ended with %v", err)
	}
	checkRunOf(t, got, 2, want)
}

func TestTailFromNow(t *testing.T) {
	g, _, c := startGroup(t, 1)
	g.add(5)
	if last, err := c.lastSeq(bounded(t), testSymbol, Replica{}); err != nil || last != 5 {
		t.Fatalf("last seq %d, %v", last, err)
	}
	stop := errors.New("enough")
	done := make(chan error, 1)
	var got []uint64
	go func() {
		done <- c.Tail(bounded(t), testSymbol, 0, Replica{}, func(rs []record.Record) error {
			got = append(got, rs[0].Seq)
			return stop
		})
	}()
	// The tail asks for the last seq and then for what follows; records that
	// come at any time after the first question are all of its range.
	for err := error(nil); err == nil; {
		select {
		case err = <-done:
			if !errors.Is(err, stop) {
				t.Fatal(err)
			}
		default:
			g.add(1)
		}
	}
	if len(got) != 1 || got[0] <= 5 {
		t.Errorf("a tail from now saw seq %v", got)
	}
}

func TestAppender(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	g.add(4)
	g.lead(fakes[1])
	a, err := c.Append(bounded(t), "s1")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if a.Leader() != fakes[1].address {
		t.Errorf("the stream goes to %s, not to the leader", a.Leader())
	}
	batch, err := record.AppendBatch(nil, 6, g.records[:3])
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{batch, batch[:70]} {
		if err := a.Send(b); err != nil {
			t.Fatal(err)
		}
	}
	ack, err := a.Recv()
	if err != nil || ack.Refusal != nil || ack.FirstSeq != 1 || ack.LastSeq != 3 || ack.Epoch != 6 || ack.Instrument != testSymbol {
		t.Errorf("first answer %+v, %v", ack, err)
	}
	if ack, err = a.Recv(); err != nil || !errors.Is(ack.Refusal, refusal.ErrCorrupt) {
		t.Errorf("second answer %+v, %v", ack, err)
	}
	g.lead(fakes[2])
	if err := a.Send(batch); err != nil {
		t.Fatal(err)
	}
	if ack, err = a.Recv(); err != nil || !errors.Is(ack.Refusal, refusal.ErrNotLeader) {
		t.Errorf("after the change %+v, %v", ack, err)
	}
	b, err := c.Append(bounded(t), "s1")
	if err != nil || b.Leader() != fakes[2].address {
		t.Fatalf("the next stream: %v", err)
	}
	fakes[2].server.Stop()
	if _, err := b.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a broken stream gives %v", err)
	}
	b.Close()
}

func TestLeaderAndStatus(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	g.lead(fakes[2])
	st, err := c.Leader(bounded(t), "s1")
	if err != nil || st.Id != "c" {
		t.Fatalf("%+v, %v", st, err)
	}
	if st, err = c.Status(bounded(t), "s1", "a"); err != nil || st.Id != "a" || st.LeaderId != "c" {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := c.Leader(bounded(t), "s9"); err == nil || !strings.Contains(err.Error(), "s9") {
		t.Errorf("got %v", err)
	}
}

func TestVerifyNeedsAVerdict(t *testing.T) {
	_, fakes, c := startGroup(t, 1)
	messages := 0
	last, err := c.Verify(bounded(t), "s1", "a", func(*storagepb.VerifyResponse) { messages++ })
	if err != nil || !last.Ok || last.Records != 9 || messages != 2 {
		t.Errorf("%+v, %v, %d messages", last, err, messages)
	}
	fakes[0].hint = "silent"
	if _, err := c.Verify(bounded(t), "s1", "a", func(*storagepb.VerifyResponse) {}); err == nil {
		t.Error("a verify without a verdict must be an error")
	}
}

func TestClosedClient(t *testing.T) {
	_, _, c := startGroup(t, 1)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.OpenStream(bounded(t), testSymbol, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// What is wrong must not be lost behind "not the leader" of the member that was
// asked last, nor behind the end of the time.
func TestTheEndOfTheTimeKeepsTheCause(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	g.lead(nil)
	dead := fakes[1]
	dead.server.Stop()
	for name, call := range map[string]func(context.Context) error{
		"unary": func(ctx context.Context) error {
			_, err := c.Instruments(ctx, "s1", Replica{})
			return err
		},
		"scan": func(ctx context.Context) error {
			return c.Scan(ctx, testSymbol, Range{}, Replica{}, func([]record.Record) error { return nil })
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*testAttempt)
		err := call(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "shard s1") ||
			!strings.Contains(err.Error(), dead.address) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
