package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

// survivor leaves on the machine one of three voters: a snapshot with 100 records,
// and entries behind it of which it does not know whether they are committed.
func survivor(t *testing.T, m *machine, donor *Replica) Config {
	t.Helper()
	follower, cfg, _ := single(t, func(c *Config) {
		m.configure(c, m)
		c.Peers = []Peer{{"m0", c.Address}, {"m1", "127.0.0.1:1"}, {"m2", "127.0.0.1:2"}}
		c.HeartbeatTimeout, c.LeaderLease = time.Minute, time.Minute // it stays a follower
		c.TrailingEntries = 1000
	})
	leader := newFakeLeader(t, follower, 9)
	meta, err := leader.install(donor, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	k := meta.Raft.Index
	if resp := leader.appendNoops(k, meta.Raft.Term, k+1, k+5, leader.term, k); !resp.Success {
		t.Fatalf("entries after the snapshot: %+v", resp)
	}
	if err := follower.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// recovering returns the settings of a start of the survivor on the machine.
func recovering(cfg Config, m *machine, fs vfs.FS, token string) Config {
	m.configure(&cfg, fs)
	cfg.Recover = token
	return cfg
}

func donorOf100(t *testing.T) *Replica {
	t.Helper()
	donor, _, _ := single(t, nil)
	awaitOwner(t, donor)
	fill(t, donor, 1, 10)
	if _, err := donor.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	return donor
}

// One of three voters is made the only one. Whatever instant the power fails at, a
// start that is told the same leads alone afterwards; one that is told nothing does
// so exactly if the decision was written down.
func TestPowerFailureWhileRecovering(t *testing.T) {
	p := newPowerFailures(3)
	cfg := survivor(t, p.m, donorOf100(t))
	r, err := Open(recovering(cfg, p.m, errorfs.Wrap(p.m, p), "t1"))
	if err != nil {
		t.Fatal(err)
	}
	awaitOwner(t, r)
	p.ack(lastSeq(t, r))
	for epoch := range uint64(3) {
		p.ack(fill(t, r, 2+epoch, 4))
		if _, err := r.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	states := counts{}
	p.check(t, func(t *testing.T, f powerFailure) {
		token, state := "t1", "not decided"
		if all, err := ReadRecoveries(f.m, "data"); err != nil {
			t.Fatal(err)
		} else if len(all) > 0 {
			token, state = "", fmt.Sprintf("decided, done=%t", all[0].Done)
		}
		states.add(state)
		again, err := Open(recovering(cfg, f.m, f.m, token))
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		awaitOwner(t, again)
		if got := lastSeq(t, again); got < max(f.acked, 100) {
			t.Fatalf("last seq %d, %d was acknowledged", got, f.acked)
		}
		before := lastSeq(t, again)
		if got := fill(t, again, 1<<20, 1); got != before+10 {
			t.Fatalf("after seq %d comes %d", before, got)
		}
		if all, err := ReadRecoveries(f.m, "data"); err != nil || len(all) != 1 || !all[0].Done || all[0].Generation != 1 || again.Generation() != 1 {
			t.Fatalf("generation %d, recoveries %+v, %v", again.Generation(), all, err)
		}
		f.verify(t, again)
	})
	t.Logf("power failed when it was: %v", states.of)
	if len(states.of) != 3 {
		t.Errorf("not every step was met: %v", states.of)
	}
}

// The same token is carried out once, also when the member was given others since;
// another one counts on.
func TestARecoveryIsCarriedOutOnce(t *testing.T) {
	m := newMachine()
	cfg := survivor(t, m, donorOf100(t))
	var first Recovery
	for i, token := range []string{"t1", "t1", "", "t1"} {
		r, err := Open(recovering(cfg, m, m, token))
		if err != nil {
			t.Fatal(err)
		}
		awaitOwner(t, r)
		st := r.Status()
		if i == 0 {
			first = *r.recovered()
		}
		if got := *r.recovered(); st.Generation != 1 || st.Recovery.Token != "t1" || got.Index != first.Index || len(got.GivenUp) != 2 || len(st.Members) != 1 {
			t.Fatalf("start %d: %+v, status %v", i, got, st)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// It is the only voter: there is nothing to do, and a further decision is noted.
	r, err := Open(recovering(cfg, m, m, "t2"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	awaitOwner(t, r)
	if got := r.recovered(); got.Token != "t2" || got.Index != 0 || r.Generation() != 1 {
		t.Errorf("%+v, generation %d", got, r.Generation())
	}
}

func TestWhoIsNotRecovered(t *testing.T) {
	m := newMachine()
	cfg := survivor(t, m, donorOf100(t))
	open := func(change func(*Config)) error {
		t.Helper()
		c := recovering(cfg, m.crash(0, nil), nil, "t1")
		m := m.crash(0, nil)
		m.configure(&c, m)
		change(&c)
		r, err := Open(c)
		if err == nil {
			r.Close()
		}
		return err
	}
	if err := open(func(c *Config) { c.Recover = "no such token!" }); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("a bad token: %v", err)
	}
	if err := open(func(c *Config) { c.DataDir = "empty" }); !errors.Is(err, ErrNoRecovery) || !strings.Contains(err.Error(), "nothing to go on from") {
		t.Errorf("an empty member: %v", err)
	}
	if err := open(func(c *Config) { c.ID = "m1" }); !errors.Is(err, ErrIdentity) {
		t.Errorf("another one's directory: %v", err)
	}
}

// A damaged note of recoveries is found by the start and by verify.
func TestDamagedRecoveriesAreRefused(t *testing.T) {
	m := newMachine()
	cfg := survivor(t, m, donorOf100(t))
	if err := writeRecoveries(m, "data", []Recovery{{Token: "t1", Generation: 1, Index: 2}}); err != nil {
		t.Fatal(err)
	}
	b, err := readFile(m, "data/"+recoveryFile)
	if err != nil {
		t.Fatal(err)
	}
	b[20] ^= 1
	if err := writeFileSync(m, "data/"+recoveryFile, b); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(recovering(cfg, m, m, "")); !errors.Is(err, record.ErrCorrupt) {
		t.Errorf("%v", err)
	}
	var found []Finding
	if _, err := VerifyDataDir(m, "data", func(f Finding) { found = append(found, f) }); err != nil || len(found) == 0 || !strings.HasSuffix(found[0].File, recoveryFile) {
		t.Errorf("%v, %v", found, err)
	}
}

// A plan whose place in the log is taken is not carried out.
func TestARecoveryFitsTheLog(t *testing.T) {
	m := newMachine()
	cfg := survivor(t, m, donorOf100(t))
	if err := writeRecoveries(m, "data", []Recovery{{Token: "t1", Generation: 1, Index: 2, Address: cfg.Address}}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(recovering(cfg, m, m, "")); !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), "was to follow") {
		t.Errorf("%v", err)
	}
}

// Members of two generations do not speak with each other: the earlier one ends,
// whichever side begins, and an empty one may come into a later generation.
func TestGenerationsAreKeptApart(t *testing.T) {
	old := firstTerm(1) + 3
	follower := func(t *testing.T) (*Replica, chan error) {
		r, _, fatal := single(t, func(c *Config) {
			c.Peers = append(c.Peers, Peer{"m1", "127.0.0.1:1"}, Peer{"m2", "127.0.0.1:2"})
			c.HeartbeatTimeout, c.LeaderLease = time.Minute, time.Minute
		})
		return r, fatal
	}
	messages := map[string]func(f *fakeLeader, target *Replica, term uint64) error{
		"entries": func(f *fakeLeader, target *Replica, term uint64) error {
			args := &raft.AppendEntriesRequest{RPCHeader: f.header(), Term: term, PrevLogEntry: 1, PrevLogTerm: 1}
			return f.tr.AppendEntries("m0", raft.ServerAddress(target.cfg.Address), args, new(raft.AppendEntriesResponse))
		},
		"vote": func(f *fakeLeader, target *Replica, term uint64) error {
			args := &raft.RequestVoteRequest{RPCHeader: f.header(), Term: term, LastLogIndex: 9, LastLogTerm: term}
			return f.tr.RequestVote("m0", raft.ServerAddress(target.cfg.Address), args, new(raft.RequestVoteResponse))
		},
		"pre-vote": func(f *fakeLeader, target *Replica, term uint64) error {
			args := &raft.RequestPreVoteRequest{RPCHeader: f.header(), Term: term, LastLogIndex: 9, LastLogTerm: term}
			return f.tr.RequestPreVote("m0", raft.ServerAddress(target.cfg.Address), args, new(raft.RequestPreVoteResponse))
		},
	}
	for name, send := range messages {
		t.Run(name, func(t *testing.T) {
			target, fatal := follower(t)
			term := target.raft().CurrentTerm()
			err := send(newFakeLeader(t, target, old), target, old)
			if e := refusal.FromError(err); e == nil || !errors.Is(e, refusal.ErrGivenUp) || Generation(e.Term) != 0 {
				t.Errorf("of a later generation: %v", err)
			}
			select {
			case err := <-fatal:
				if !strings.Contains(err.Error(), "recovered from a lost quorum without member m0") {
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				t.Error("it goes on")
			}
			if got := target.raft().CurrentTerm(); got != term {
				t.Errorf("it went from term %d to %d", term, got)
			}
			// The other way round, the one that sends learns it.
			sender, fatal := follower(t)
			sender.refused(fmt.Errorf("to m1: %w", err)) // an earlier one than its own, or the same
			select {
			case err := <-fatal:
				t.Errorf("a member ends for one of its own generation: %v", err)
			default:
			}
			later := refusal.ErrGivenUp
			sender.refused(fmt.Errorf("to m1: %w", &refusal.Error{Code: later.Code, Term: old}))
			if err := <-fatal; !strings.Contains(err.Error(), "generation 1") {
				t.Error(err)
			}
		})
	}
	t.Run("empty", func(t *testing.T) {
		target, _, _ := single(t, func(c *Config) { c.Peers, c.Join = nil, true })
		leader := newFakeLeader(t, target, old)
		if resp := leader.appendNoops(0, 0, 1, 3, old, 0); !resp.Success || target.Generation() != 1 {
			t.Errorf("%+v, generation %d", resp, target.Generation())
		}
		err := messages["vote"](leader, target, 8)
		if e := refusal.FromError(err); e == nil || !errors.Is(e, refusal.ErrGivenUp) || Generation(e.Term) != 1 {
			t.Errorf("of an earlier generation: %v", err)
		}
	})
}

// Without a node: the directory of a stopped member is recovered, and a start goes
// on from there.
func TestRecoverOffline(t *testing.T) {
	m := newMachine()
	cfg := survivor(t, m, donorOf100(t))
	before, err := SurveyDataDir(Config{DataDir: "data", FS: m, OpenStable: m.openStable})
	if err != nil || len(before.Members) != 3 || before.LastIndex == 0 || before.Identity.ID != "m0" {
		t.Fatalf("%+v, %v", before, err)
	}
	for range 2 {
		done, err := RecoverOffline(Config{DataDir: "data", FS: m, OpenStable: m.openStable, Recover: "by-hand"})
		if err != nil || done.Index != before.LastIndex+1 || len(done.GivenUp) != 2 || !done.Done {
			t.Fatalf("%+v, %v", done, err)
		}
	}
	r, err := Open(recovering(cfg, m, m, ""))
	if err != nil {
		t.Fatal(err)
	}
	awaitOwner(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := r.Snapshot(ctx); err != nil {
		t.Error(err)
	}
	if _, err := RecoverOffline(Config{DataDir: "data", FS: m, OpenStable: m.openStable, Recover: "by-hand"}); err == nil {
		t.Error("recovered under a node that runs")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := SurveyDataDir(Config{DataDir: "data", FS: m, OpenStable: m.openStable})
	if err != nil || len(after.Members) != 1 || len(after.Recoveries) != 1 || !slices.Equal(after.Members, []Peer{{"m0", cfg.Address}}) {
		t.Errorf("%+v, %v", after, err)
	}
}
