package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	raftwal "github.com/hashicorp/raft-wal"
)

const (
	raftNote = "raft.Apply at the leader, a log a batch, BatchApplyCh on so that waiting batches share a write, " +
		"heartbeat timeouts of 0.5 s (the member that leads) and 5 s, else defaults; TCP on loopback; " +
		"the FSM keeps the last batches in memory; a shard is a Raft group with a log of its own"

	raftPool         = 3
	raftTimeout      = 10 * time.Second
	raftApplyTimeout = 10 * time.Second

	// keepBytes bounds what the in-memory state machines of peers keep of each shard
	// and member.
	keepBytes = 64 << 20
)

var raftOnBolt = system{
	name:    "hashicorp/raft, raft-boltdb",
	durable: "the leader and a follower have it in their bbolt file, two fdatasync a write returned; applied at the leader, in memory",
	note:    raftNote,
	open: func(ctx context.Context, dir string, shards int) (cluster, error) {
		return openRafts(ctx, dir, shards, openRaftBolt)
	},
}

var raftOnWAL = system{
	name:    "hashicorp/raft, raft-wal",
	durable: "the leader and a follower have it in their log, fsync returned; applied at the leader, in memory",
	note:    raftNote,
	open: func(ctx context.Context, dir string, shards int) (cluster, error) {
		return openRafts(ctx, dir, shards, openRaftWAL)
	},
}

// raftStore is what keeps log, term and vote.
type raftStore interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

func openRaftBolt(dir string) (raftStore, error) {
	return raftboltdb.NewBoltStore(filepath.Join(dir, "raft.db"))
}

func openRaftWAL(dir string) (raftStore, error) {
	return raftwal.Open(dir, raftwal.WithLogger(hclog.NewNullLogger()))
}

// rafts are the members of all shards; of each the first leads.
type rafts struct {
	shards [][]*raftMember
}

type raftMember struct {
	raft      *raft.Raft
	store     raftStore
	transport *raft.NetworkTransport
	machine   *keeper
	leads     chan bool
}

func openRafts(ctx context.Context, dir string, shards int, open func(dir string) (raftStore, error)) (cluster, error) {
	c := &rafts{}
	for i := range shards {
		if err := c.openShard(filepath.Join(dir, fmt.Sprintf("s%d", i)), open); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	for _, members := range c.shards {
		if err := members[0].awaitLead(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// openShard starts the members of a shard, of which the first asks for votes before
// the others.
func (c *rafts) openShard(dir string, open func(dir string) (raftStore, error)) error {
	var members []*raftMember
	var configuration raft.Configuration
	c.shards = append(c.shards, nil)
	for i := range replicas {
		m, err := openRaftMember(filepath.Join(dir, fmt.Sprintf("m%d", i)), open)
		if err != nil {
			return err
		}
		members = append(members, m)
		c.shards[len(c.shards)-1] = members
		configuration.Servers = append(configuration.Servers, raft.Server{
			ID: raftID(i), Address: m.transport.LocalAddr(),
		})
	}
	for i, m := range members {
		if err := m.start(i, filepath.Join(dir, fmt.Sprintf("m%d", i)), configuration); err != nil {
			return err
		}
	}
	return nil
}

func raftID(i int) raft.ServerID { return raft.ServerID(fmt.Sprintf("m%d", i)) }

func openRaftMember(dir string, open func(dir string) (raftStore, error)) (*raftMember, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := &raftMember{machine: &keeper{}, leads: make(chan bool, 1)}
	var err error
	if m.store, err = open(dir); err != nil {
		return nil, err
	}
	m.transport, err = raft.NewTCPTransportWithLogger("127.0.0.1:0", nil, raftPool, raftTimeout, hclog.NewNullLogger())
	if err != nil {
		return nil, errors.Join(err, m.store.Close())
	}
	return m, nil
}

func (m *raftMember) start(i int, dir string, configuration raft.Configuration) error {
	config := raft.DefaultConfig()
	config.LocalID = raftID(i)
	config.HeartbeatTimeout = followerTimeout
	if i == 0 {
		config.HeartbeatTimeout = leaderTimeout
	}
	config.ElectionTimeout = config.HeartbeatTimeout
	config.BatchApplyCh = true
	config.NotifyCh = m.leads
	config.Logger = hclog.NewNullLogger()
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, 1, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	if err := raft.BootstrapCluster(config, m.store, m.store, snapshots, m.transport, configuration); err != nil {
		return err
	}
	m.raft, err = raft.NewRaft(config, m.machine, m.store, m.store, snapshots, m.transport)
	return err
}

func (m *raftMember) awaitLead(ctx context.Context) error {
	for {
		select {
		case leads := <-m.leads:
			if leads {
				return m.raft.Barrier(raftTimeout).Error()
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for a leader: %w", ctx.Err())
		}
	}
}

func (m *raftMember) close() error {
	var err error
	if m.raft != nil {
		err = m.raft.Shutdown().Error()
	}
	return errors.Join(err, m.transport.Close(), m.store.Close())
}

func (c *rafts) Submit(shard int, batch []byte, done func(error)) {
	future := c.shards[shard][0].raft.Apply(bytes.Clone(batch), raftApplyTimeout)
	go func() { done(future.Error()) }()
}

func (c *rafts) Stored(shard int) (int, error) { return c.shards[shard][0].machine.stored(), nil }

func (c *rafts) Close() error {
	var closes []func() error
	for _, members := range c.shards {
		for _, m := range members {
			closes = append(closes, m.close)
		}
	}
	return joinErrors(closes)
}

// keeper is a state machine that keeps the last keepBytes of what it is given, and
// the number of all records.
type keeper struct {
	records atomic.Int64

	mu    sync.Mutex
	kept  [][]byte
	bytes int
}

// keep takes the batch over.
func (k *keeper) keep(batch []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept = append(k.kept, batch)
	for k.bytes += len(batch); k.bytes > keepBytes; k.kept = k.kept[1:] {
		k.bytes -= len(k.kept[0])
	}
	k.records.Add(int64(len(batch) / recordBytes))
}

func (k *keeper) stored() int { return int(k.records.Load()) }

// Apply implements raft.FSM.
func (k *keeper) Apply(l *raft.Log) any {
	k.keep(l.Data)
	return nil
}

// errNoSnapshots is what the state machines answer: no run lasts until the first.
var errNoSnapshots = errors.New("no snapshots here")

// Snapshot implements raft.FSM.
func (k *keeper) Snapshot() (raft.FSMSnapshot, error) { return nil, errNoSnapshots }

// Restore implements raft.FSM.
func (k *keeper) Restore(io.ReadCloser) error { return errNoSnapshots }
