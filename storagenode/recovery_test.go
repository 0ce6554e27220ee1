package storagenode_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// loseQuorum ends all members but the survivor for good, and the survivor for now.
func (c *cluster) loseQuorum(survivor *member) {
	c.t.Helper()
	for _, m := range c.members {
		m.stop()
		if m == survivor {
			continue
		}
		if err := os.Rename(m.dir, m.dir+".away"); err != nil {
			c.t.Fatal(err)
		}
	}
}

// enlist adds a member to the shard and makes it a voter.
func (c *cluster) enlist(id string) *member {
	c.t.Helper()
	m := c.join(id)
	eventually(c.t, id+" is a voter", func() bool {
		admin := c.leader().admin()
		if _, err := admin.AddLearner(testContext(c.t), &storagepb.AddLearnerRequest{Id: id, Address: m.address}); err != nil {
			return false
		}
		_, err := admin.Promote(testContext(c.t), &storagepb.PromoteRequest{Id: id})
		return err == nil
	})
	return m
}

func TestRecoveryFromALostQuorum(t *testing.T) {
	for _, logStore := range []replica.LogStore{replica.LogStoreWAL, replica.LogStoreBolt} {
		for _, snapshot := range []bool{false, true} {
			t.Run(string(logStore)+map[bool]string{true: ", behind a snapshot", false: ""}[snapshot], func(t *testing.T) {
				c := newCluster(t, 3, func(cfg *replica.Config) { cfg.LogStore = logStore })
				last := write(t, c.leader(), "A", 1, 500, 50)
				c.same("A", last)
				survivor := c.followers()[0]
				if snapshot {
					takeSnapshot(t, survivor)
					last = write(t, c.leader(), "A", 2, 100, 10)
					c.same("A", last)
				}
				c.loseQuorum(survivor)
				survivor.config.Recover = "lost-two"
				survivor.restart()
				if got := write(t, c.leader(), "A", 3, 100, 10); got != last+100 {
					t.Fatalf("last seq %d, want %d: something is lost or twice", got, last+100)
				}
				c.enlist("m3")
				c.enlist("m4")
				last = write(t, c.leader(), "A", 4, 100, 10)
				c.same("A", last)
				st := status(t, survivor)
				if st.Generation != 1 || st.Recovery.GetToken() != "lost-two" || len(st.Recovery.GivenUp) != 2 || len(st.Members) != 3 {
					t.Errorf("%v", st)
				}
				// The same flag does nothing at the next starts.
				survivor.stop()
				survivor.restart()
				last = write(t, c.leader(), "A", 5, 100, 10)
				c.same("A", last)
				if st := status(t, c.leader()); st.Generation != 1 || len(st.Members) != 3 {
					t.Errorf("%v", st)
				}
			})
		}
	}
}

// Members that a recovery gave up come back with their data and with a quorum of
// their own. As soon as one of them reaches the survivor it ends, and the records of
// the recovered shard stay what they are. A client that has met the recovered shard
// takes none of them for its leader.
func TestGivenUpMembersComeBack(t *testing.T) {
	c := newCluster(t, 3, nil)
	last := write(t, c.leader(), "A", 1, 200, 50)
	c.same("A", last)
	survivor, old := c.members[0], c.members[1:]
	addresses := &client.Map{Cluster: clusterName, Shards: []client.Shard{{Name: shardName, Instruments: []string{"A", "B", "C"}}}}
	for _, m := range c.members {
		addresses.Shards[0].Members = append(addresses.Shards[0].Members, client.Member{ID: m.id, Address: m.address})
	}
	cl, err := client.New(addresses, client.Options{AttemptTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	c.loseQuorum(survivor)
	survivor.config.Recover = "t"
	survivor.restart()
	last = write(t, c.leader(), "A", 2, 100, 10)
	if st, err := cl.Leader(testContext(t), shardName); err != nil || st.Id != survivor.id || st.Generation != 1 {
		t.Fatalf("%v, %v", st, err)
	}

	survivor.stop() // so that the others find each other alone at first
	for _, m := range old {
		if err := os.Rename(m.dir+".away", m.dir); err != nil {
			t.Fatal(err)
		}
		m.restart()
	}
	var pretender *member
	eventually(t, "those that were given up have a leader of their own", func() bool {
		for _, m := range old {
			if m.leads() {
				pretender = m
				return true
			}
		}
		return false
	})
	ctx := testContext(t)
	_, err = pretender.ingest().OpenStream(client.WithGeneration(ctx, 1), &storagepb.OpenStreamRequest{Instrument: "A", Epoch: 9 << 32})
	wantRefusal(t, err, refusal.ErrGivenUp)
	found := make(chan string, 1)
	go func() {
		st, err := cl.OpenStream(testContext(t), record.MustSymbol("A"), 9<<32)
		if err != nil || st.LastSeq != last {
			found <- "the client opened " + errText(err)
			return
		}
		found <- ""
	}()
	survivor.restart()
	var ended sync.WaitGroup
	for _, m := range old {
		ended.Go(func() {
			select {
			case err := <-m.fatal:
				if !strings.Contains(err.Error(), "recovered from a lost quorum without member "+m.id) {
					t.Error(err)
				}
				m.stop() // as its process does
			case <-time.After(testTimeout):
				t.Errorf("%s goes on", m.id)
			}
		})
	}
	ended.Wait()
	if what := <-found; what != "" {
		t.Error(what)
	}
	// Nor does one of them get in again as a member, with what it holds.
	back := old[0]
	back.fatal = make(chan error, 1)
	back.config.OnFatal = func(err error) { back.fatal <- err }
	for len(back.fatal) > 0 {
		<-back.fatal
	}
	survivor.stop() // else it ends before it serves
	back.restart()
	survivor.restart()
	leader := c.leader()
	if _, err := leader.admin().AddLearner(testContext(t), &storagepb.AddLearnerRequest{Id: back.id, Address: back.address}); err != nil {
		t.Fatal(err)
	}
	if err := <-back.fatal; !strings.Contains(err.Error(), "join under another id") {
		t.Error(err)
	}
	if got := write(t, leader, "A", 10<<16, 10, 10); got != last+10 {
		t.Errorf("last seq %d, want %d", got, last+10)
	}
	got, err := scan(t, leader, &storagepb.ScanRequest{Instrument: "A"})
	if err != nil || !bytes.Equal(got, record.SliceBytes(records("A", 1, int(last)+10))) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func errText(err error) string {
	if err == nil {
		return "another stream"
	}
	return err.Error()
}

// While others of the shard can elect a leader, nothing is recovered.
func TestNoRecoveryWhileThereIsAQuorum(t *testing.T) {
	c := newCluster(t, 3, nil)
	last := write(t, c.leader(), "A", 1, 100, 50)
	c.same("A", last)
	m := c.followers()[0]
	m.stop()
	m.config.Recover = "mistake"
	if err := m.start(nil); !errors.Is(err, replica.ErrNoRecovery) || !strings.Contains(err.Error(), "has a quorum") {
		t.Fatalf("%v", err)
	}
	other := c.followers()[0]
	c.leader().stop() // one of three answers: with this one they are two
	if err := m.start(nil); !errors.Is(err, replica.ErrNoRecovery) || !strings.Contains(err.Error(), other.id+" answer") {
		t.Fatalf("%v", err)
	}
	m.config.Recover = ""
	m.restart()
	if got := write(t, c.leader(), "A", 2, 10, 10); got != last+10 {
		t.Errorf("last seq %d", got)
	}
}
