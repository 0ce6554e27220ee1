package client

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/countinghouse/countinghouse/record"
)

// linkTo returns the connection to an address, nil for none.
func (s *shard) linkTo(address string) *grpc.ClientConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.links[address]; ok {
		return l.conn
	}
	return nil
}

func awaitClosed(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	for state := conn.GetState(); state != connectivity.Shutdown; state = conn.GetState() {
		if !conn.WaitForStateChange(bounded(t), state) {
			t.Fatalf("the connection to %s is %v, not closed", addressOf(conn), state)
		}
	}
}

func setMembers(t *testing.T, c *Client, fakes ...*fake) {
	t.Helper()
	if err := c.SetMembers("s1", members(fakes...)); err != nil {
		t.Fatal(err)
	}
}

func deposit(seq uint64) record.Record {
	return record.Record{Header: record.Header{
		Version: record.Version, Type: record.TypeDeposit, Seq: seq, Global: seq, Time: int64(seq), Instrument: testSymbol,
	}}
}

// appendOne sends a batch of one record and takes its answer.
func appendOne(t *testing.T, a *Appender, seq uint64) {
	t.Helper()
	batch, err := record.AppendBatch(nil, 1, []record.Record{deposit(seq)})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Send(batch); err != nil {
		t.Fatal(err)
	}
	if ack, err := a.Recv(); err != nil || ack.Refusal != nil || ack.LastSeq != seq {
		t.Fatalf("seq %d: %+v, %v", seq, ack, err)
	}
}

// A stream outlives its member's place in the list, and its connection is closed
// when it ends; calls go to the present members at once.
func TestMembersChangeUnderAStream(t *testing.T) {
	g, fakes, c := startGroup(t, 3)
	a, err := c.Append(bounded(t), "s1")
	if err != nil {
		t.Fatal(err)
	}
	appendOne(t, a, 1)
	old := c.shards["s1"].linkTo(fakes[0].address)
	d := g.start(t, "d", "127.0.0.1:0")
	setMembers(t, c, d)
	appendOne(t, a, 2)
	if old.GetState() != connectivity.Ready {
		t.Fatalf("the stream's connection is %v", old.GetState())
	}
	asked := fakes[0].callCount()
	g.lead(d)
	if _, err := c.OpenStream(bounded(t), testSymbol, 1); err != nil {
		t.Fatal(err)
	}
	if n := fakes[0].callCount(); n != asked || d.callCount() == 0 {
		t.Errorf("%d calls to the member that is gone, %d to the present one", n-asked, d.callCount())
	}
	a.Close()
	awaitClosed(t, old)
	if got := c.Members("s1"); !slices.Equal(got, members(d)) || c.Members("s2") != nil {
		t.Errorf("members are %v", got)
	}
}

// A stream that fails lets go of its connection although nobody closes it.
func TestFailedStreamLetsGo(t *testing.T) {
	g, fakes, c := startGroup(t, 1)
	a, err := c.Append(bounded(t), "s1")
	if err != nil {
		t.Fatal(err)
	}
	old := c.shards["s1"].linkTo(fakes[0].address)
	setMembers(t, c, g.start(t, "d", "127.0.0.1:0"))
	fakes[0].server.Stop()
	if ack, err := a.Recv(); err == nil {
		t.Fatalf("got %+v of a member that has stopped", ack)
	}
	awaitClosed(t, old)
}

// A read that is under way goes on at a member that has come since.
func TestTailMovesToMembersThatCameSince(t *testing.T) {
	g, fakes, c := startGroup(t, 1)
	g.add(3)
	d := g.start(t, "d", "127.0.0.1:0")
	ctx, stop := context.WithCancel(bounded(t))
	defer stop()
	var seen []uint64
	err := c.Tail(ctx, testSymbol, 1, Replica{}, func(rs []record.Record) error {
		for i := range rs {
			seen = append(seen, rs[i].Seq)
		}
		switch len(seen) {
		case 3:
			setMembers(t, c, d)
			g.lead(d)
			fakes[0].server.Stop()
			g.add(2)
		case 5:
			stop()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || !slices.Equal(seen, []uint64{1, 2, 3, 4, 5}) {
		t.Fatalf("%v: saw %v", err, seen)
	}
}

// A leader outside the list is followed where a member names it, and let go of when
// it leads no longer.
func TestHintedLeaderIsLetGo(t *testing.T) {
	g, fakes, c := startGroup(t, 1)
	d := g.start(t, "d", "127.0.0.1:0")
	g.lead(d)
	if _, err := c.OpenStream(bounded(t), testSymbol, 1); err != nil {
		t.Fatal(err)
	}
	hinted := c.shards["s1"].linkTo(d.address)
	if hinted == nil {
		t.Fatal("no connection to the leader")
	}
	g.lead(fakes[0])
	if _, err := c.OpenStream(bounded(t), testSymbol, 2); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, hinted)
}

func TestSetMembersIsChecked(t *testing.T) {
	_, fakes, c := startGroup(t, 2)
	before := c.Members("s1")
	for want, list := range map[string][]Member{
		"members is empty": {},
		"members[1].id":    {{ID: "a", Address: "h:1"}, {ID: "a", Address: "h:2"}},
		"is used twice":    {{ID: "a", Address: "h:1"}, {ID: "b", Address: "h:1"}},
		"use host:port":    {{ID: "a", Address: "h"}},
	} {
		if err := c.SetMembers("s1", list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q", list, err, want)
		}
	}
	if err := c.SetMembers("s9", before); err == nil || !strings.Contains(err.Error(), `"s9"`) {
		t.Errorf("got %v", err)
	}
	if !slices.Equal(c.Members("s1"), before) {
		t.Errorf("members are %v", c.Members("s1"))
	}
	if _, err := c.Status(bounded(t), "s1", "c"); err == nil || !strings.Contains(err.Error(), "[a b]") {
		t.Errorf("got %v", err)
	}
	setMembers(t, c, fakes[1])
	if _, err := c.Status(bounded(t), "s1", "a"); err == nil || !strings.Contains(err.Error(), "[b]") {
		t.Errorf("got %v", err)
	}
	c.Close()
	if err := c.SetMembers("s1", before); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// Members come and go while calls run: each finds the leader, which is always one
// of the members, and in the end only connections to members are left.
func TestMembersChangeUnderLoad(t *testing.T) {
	g, fakes, c := startGroup(t, 4)
	const callers, calls, changes = 4, 100, 200
	var running sync.WaitGroup
	for range callers {
		running.Go(func() {
			for range calls {
				if _, err := c.Instruments(bounded(t), "s1", Replica{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	running.Go(func() {
		for i := range changes {
			leader := fakes[i%4]
			setMembers(t, c, leader, fakes[(i+1)%4])
			g.lead(leader)
		}
		setMembers(t, c, fakes[3], fakes[2])
	})
	running.Wait()
	g.lead(fakes[3])
	if _, err := c.Instruments(bounded(t), "s1", Replica{}); err != nil {
		t.Fatal(err)
	}
	for _, gone := range fakes[:2] {
		if conn := c.shards["s1"].linkTo(gone.address); conn != nil {
			t.Errorf("a connection to %s is left", gone.id)
		}
	}
}
