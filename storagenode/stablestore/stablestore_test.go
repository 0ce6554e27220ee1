package stablestore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

var errCrashed = errors.New("the process is dead")

// crashing loses every write after the first few, as a crash does.
type crashing struct {
	raft.StableStore
	writesLeft atomic.Int64
}

func newCrashing(s raft.StableStore, writes int) *crashing {
	c := &crashing{StableStore: s}
	c.writesLeft.Store(int64(writes))
	return c
}

func (c *crashing) write(do func() error) error {
	if c.writesLeft.Add(-1) < 0 {
		return errCrashed
	}
	return do()
}

func (c *crashing) Set(k, v []byte) error {
	return c.write(func() error { return c.StableStore.Set(k, v) })
}

func (c *crashing) SetUint64(k []byte, v uint64) error {
	return c.write(func() error { return c.StableStore.SetUint64(k, v) })
}

// layers are the two ways of keeping a vote: through a Store, and as
// hashicorp/raft does by itself.
var layers = map[string]func(raft.StableStore) raft.StableStore{
	"store": func(s raft.StableStore) raft.StableStore { return New(s) },
	"plain": func(s raft.StableStore) raft.StableStore { return s },
}

func bolt(t *testing.T, path string) *raftboltdb.BoltStore {
	t.Helper()
	b, err := openBolt(path, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// persistVote does what raft.(*Raft).persistVote does.
func persistVote(s raft.StableStore, term uint64, candidate string) error {
	if err := s.SetUint64([]byte(keyVoteTerm), term); err != nil {
		return err
	}
	return s.Set([]byte(keyVoteCandidate), []byte(candidate))
}

func readVote(t *testing.T, s raft.StableStore) string {
	t.Helper()
	term, err := s.GetUint64([]byte(keyVoteTerm))
	if err != nil {
		t.Fatal(err)
	}
	candidate, err := s.Get([]byte(keyVoteCandidate))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", term, candidate)
}

func TestCrashBetweenTermAndCandidate(t *testing.T) {
	for writes := range 3 {
		path := filepath.Join(t.TempDir(), "stable.db")
		inner := bolt(t, path)
		if err := persistVote(New(inner), 4, "a"); err != nil {
			t.Fatal(err)
		}
		err := persistVote(New(newCrashing(inner, writes)), 5, "b")
		inner.Close()
		want := "4 a"
		if err == nil {
			want = "5 b"
		}
		if got := readVote(t, New(bolt(t, path))); got != want {
			t.Errorf("after %d writes the vote is %q, want %q", writes, got, want)
		}
	}
}

// The same crash leaves a vote that was never cast in the plain store. Once
// this fails, hashicorp/raft or raft-boltdb has closed the gap by itself.
func TestPlainStoreTearsAVote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stable.db")
	inner := bolt(t, path)
	if err := persistVote(inner, 4, "a"); err != nil {
		t.Fatal(err)
	}
	if err := persistVote(newCrashing(inner, 1), 5, "b"); !errors.Is(err, errCrashed) {
		t.Fatal(err)
	}
	if got := readVote(t, inner); got != "5 a" {
		t.Fatalf("the vote is %q", got)
	}
}

// A server crashes while it votes for b in term 3, having voted for a in term
// 2. After the restart a, which lacks entries, asks for a vote in term 3.
func TestNoVoteForStaleLogAfterCrash(t *testing.T) {
	for name, layer := range layers {
		for writes := 1; writes <= 3; writes++ {
			granted := voteAfterCrash(t, layer, writes)
			// The term, the vote's term, and crash.
			torn := name == "plain" && writes == 2
			if granted != torn {
				t.Errorf("%s, crash after %d writes: vote for a candidate with a stale log granted: %v, want %v", name, writes, granted, torn)
			}
		}
	}
}

func voteAfterCrash(t *testing.T, layer func(raft.StableStore) raft.StableStore, writes int) bool {
	t.Helper()
	inner := bolt(t, filepath.Join(t.TempDir(), "stable.db"))
	logs := raft.NewInmemStore()
	n := startServer(t, logs, layer(inner))
	if n.ask(t, "a", 2, 1, 1) != true {
		t.Fatal("no vote for a in term 2")
	}
	n.stop(t)
	dying := newCrashing(inner, 100)
	n = startServer(t, logs, layer(dying))
	dying.writesLeft.Store(int64(writes))
	n.ask(t, "b", 3, 1, 1)
	n.stop(t)
	n = startServer(t, logs, layer(inner))
	defer n.stop(t)
	return n.ask(t, "a", 3, 0, 0)
}

// server is a raft server that never campaigns by itself within a test.
type server struct {
	raft  *raft.Raft
	peers map[string]*raft.InmemTransport
}

func startServer(t *testing.T, logs raft.LogStore, stable raft.StableStore) *server {
	t.Helper()
	n := &server{peers: map[string]*raft.InmemTransport{}}
	_, trans := raft.NewInmemTransport("self")
	conf := raft.DefaultConfig()
	conf.LocalID = "self"
	conf.LogOutput = io.Discard
	conf.HeartbeatTimeout, conf.ElectionTimeout = time.Hour, time.Hour
	members := raft.Configuration{Servers: []raft.Server{{ID: "self", Address: "self"}}}
	for _, id := range []string{"a", "b"} {
		_, n.peers[id] = raft.NewInmemTransport(raft.ServerAddress(id))
		n.peers[id].Connect("self", trans)
		members.Servers = append(members.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	snaps := raft.NewInmemSnapshotStore()
	if last, _ := logs.LastIndex(); last == 0 {
		if err := raft.BootstrapCluster(conf, logs, stable, snaps, trans, members); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if n.raft, err = raft.NewRaft(conf, &raft.MockFSM{}, logs, stable, snaps, trans); err != nil {
		t.Fatal(err)
	}
	return n
}

// ask asks for a vote as id, and reports whether it was granted.
func (n *server) ask(t *testing.T, id string, term, lastIndex, lastTerm uint64) bool {
	t.Helper()
	req := &raft.RequestVoteRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(id)},
		Term:      term, LastLogIndex: lastIndex, LastLogTerm: lastTerm,
	}
	var resp raft.RequestVoteResponse
	if err := n.peers[id].RequestVote("self", "self", req, &resp); err != nil {
		t.Fatal(err)
	}
	return resp.Granted
}

func (n *server) stop(t *testing.T) {
	t.Helper()
	if err := n.raft.Shutdown().Error(); err != nil {
		t.Fatal(err)
	}
}

func TestTakesOverThePlainStore(t *testing.T) {
	s := New(bolt(t, filepath.Join(t.TempDir(), "stable.db")))
	for _, key := range []string{keyTerm, keyVoteTerm} {
		if _, err := s.GetUint64([]byte(key)); err == nil || err.Error() != "not found" {
			t.Fatalf("no %s yet: %v", key, err)
		}
	}
	if _, err := s.Get([]byte(keyVoteCandidate)); err == nil || err.Error() != "not found" {
		t.Fatalf("no candidate yet: %v", err)
	}
	if err := errors.Join(s.inner.SetUint64([]byte(keyTerm), 9), persistVote(s.inner, 7, "a")); err != nil {
		t.Fatal(err)
	}
	for _, term := range []uint64{9, 10} {
		if got, err := s.GetUint64([]byte(keyTerm)); got != term || err != nil {
			t.Fatalf("term %d, %v; want %d", got, err, term)
		}
		if got := readVote(t, s); got != "7 a" {
			t.Fatalf("the vote is %q", got)
		}
		if err := s.SetUint64([]byte(keyTerm), 10); err != nil {
			t.Fatal(err)
		}
	}
	if err := persistVote(s, 10, "b"); err != nil {
		t.Fatal(err)
	}
	if got := readVote(t, s); got != "10 b" {
		t.Fatalf("the vote is %q", got)
	}
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stable.db")
	if err := os.WriteFile(path+".tmp", []byte("begun"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SetUint64([]byte(keyTerm), 9), persistVote(s, 8, "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || errors.Is(err, ErrCorrupt) {
		t.Fatalf("the file was opened twice: %v", err)
	}
	for _, err := range []error{s.Set([]byte("k"), nil), s.SetUint64([]byte("k"), 1)} {
		if err == nil {
			t.Error("a key that Check does not know was stored")
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	term, err := s.GetUint64([]byte(keyTerm))
	if got := readVote(t, s); term != 9 || err != nil || got != "8 a" {
		t.Fatalf("term %d, %v, vote %q", term, err, got)
	}
}

func TestDamagedStateIsRefused(t *testing.T) {
	inner := raft.NewInmemStore()
	good := state{serial: 1, term: 4, voteTerm: 3, candidate: []byte("a")}.encode()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if err := inner.Set([]byte(keyState), bad); err != nil {
			t.Fatal(err)
		}
		s := New(inner)
		for _, key := range []string{keyTerm, keyVoteTerm} {
			if _, err := s.GetUint64([]byte(key)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("byte %d: %s read: %v", i, key, err)
			}
		}
		if _, err := s.Get([]byte(keyVoteCandidate)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d: candidate read: %v", i, err)
		}
		if err := persistVote(s, 4, "b"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d: written over: %v", i, err)
		}
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add(state{serial: 1, term: 4, voteTerm: 3, candidate: []byte("a")}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		st, rest, err := decodeState(b)
		if err == nil && !bytes.Equal(append(st.encode(), rest...), b) {
			t.Fatalf("%x decodes to %+v, which encodes to %x", b, st, st.encode())
		}
	})
}
