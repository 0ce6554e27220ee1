package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/plugin/tan"
	"github.com/lni/dragonboat/v4/statemachine"
)

const (
	boatRTT = 50 * time.Millisecond // the unit of Dragonboat's timeouts

	boatTimeout = 10 * time.Second
)

// boatOnTan uses Dragonboat's faster log: its default, pebble, acknowledged fewer
// records in both of the quick cases.
var boatOnTan = system{
	name:    "dragonboat, tan",
	durable: "two of three members have it in their log, fsync returned; applied at the leader, in memory",
	note: "NodeHost.Propose at the leader, a proposal a batch; tan as log, which is faster here than the default, pebble; " +
		"election timeouts of 0.5 s (the member that leads) and 5 s; no snapshots; TCP on loopback; " +
		"the state machine keeps the last batches in memory; shards share the hosts",
	open: openBoats,
}

// boats are the hosts, which all shards share.
type boats struct {
	hosts    []*dragonboat.NodeHost
	leaders  []*dragonboat.NodeHost // by shard
	sessions []*client.Session
}

// silenceBoats must run before the first host: the loggers are the process's.
var silenceBoats = sync.OnceFunc(func() {
	for _, name := range []string{
		"config", "dragonboat", "logdb", "pebblekv", "raft", "raftpb", "registry", "rsm", "server", "settings", "tan", "transport",
	} {
		logger.GetLogger(name).SetLevel(logger.CRITICAL)
	}
})

func openBoats(ctx context.Context, dir string, shards int) (cluster, error) {
	silenceBoats()
	c := &boats{}
	if err := c.open(ctx, dir, shards); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *boats) open(ctx context.Context, dir string, shards int) error {
	addresses, err := freeAddresses(replicas)
	if err != nil {
		return err
	}
	members := make(map[uint64]string)
	for i, address := range addresses {
		members[uint64(i+1)] = address
		host, err := dragonboat.NewNodeHost(config.NodeHostConfig{
			NodeHostDir: filepath.Join(dir, fmt.Sprintf("m%d", i)), RaftAddress: address,
			RTTMillisecond: uint64(boatRTT / time.Millisecond),
			Expert:         config.ExpertConfig{LogDBFactory: tan.Factory},
		})
		if err != nil {
			return err
		}
		c.hosts = append(c.hosts, host)
	}
	for shard := range shards {
		if err := c.openShard(ctx, uint64(shard+1), members); err != nil {
			return err
		}
	}
	return nil
}

// openShard starts a shard's members, of which the first asks for votes before the
// others.
func (c *boats) openShard(ctx context.Context, shard uint64, members map[uint64]string) error {
	for i, host := range c.hosts {
		timeout := followerTimeout
		if i == 0 {
			timeout = leaderTimeout
		}
		err := host.StartReplica(members, false, newBoatMachine, config.Config{
			ShardID: shard, ReplicaID: uint64(i + 1), HeartbeatRTT: 1, ElectionRTT: uint64(timeout / boatRTT),
		})
		if err != nil {
			return err
		}
	}
	leader := uint64(0)
	err := await(ctx, fmt.Sprintf("a leader of shard %d", shard), func() bool {
		id, _, known, err := c.hosts[0].GetLeaderID(shard)
		leader = id
		return err == nil && known
	})
	if err != nil {
		return err
	}
	host := c.hosts[leader-1]
	c.leaders = append(c.leaders, host)
	c.sessions = append(c.sessions, host.GetNoOPSession(shard))
	return nil
}

// Submit does not copy the batch: Propose does.
func (c *boats) Submit(shard int, batch []byte, done func(error)) {
	state, err := c.leaders[shard].Propose(c.sessions[shard], batch, boatTimeout)
	if err != nil {
		done(err)
		return
	}
	go func() {
		defer state.Release()
		r := <-state.ResultC()
		if !r.Completed() {
			done(fmt.Errorf("proposal: timeout %v, dropped %v, rejected %v, terminated %v", r.Timeout(), r.Dropped(), r.Rejected(), r.Terminated()))
			return
		}
		done(nil)
	}()
}

func (c *boats) Stored(shard int) (int, error) {
	n, err := c.leaders[shard].StaleRead(uint64(shard+1), nil)
	if err != nil {
		return 0, err
	}
	return n.(int), nil
}

func (c *boats) Close() error {
	for _, host := range c.hosts {
		host.Close()
	}
	return nil
}

// boatMachine is a keeper as Dragonboat wants it.
type boatMachine struct{ keeper keeper }

func newBoatMachine(uint64, uint64) statemachine.IStateMachine { return &boatMachine{} }

// Update implements statemachine.IStateMachine: the command may not be kept.
func (m *boatMachine) Update(e statemachine.Entry) (statemachine.Result, error) {
	m.keeper.keep(append([]byte(nil), e.Cmd...))
	return statemachine.Result{}, nil
}

// Lookup implements statemachine.IStateMachine.
func (m *boatMachine) Lookup(any) (any, error) { return m.keeper.stored(), nil }

// SaveSnapshot implements statemachine.IStateMachine.
func (m *boatMachine) SaveSnapshot(io.Writer, statemachine.ISnapshotFileCollection, <-chan struct{}) error {
	return errNoSnapshots
}

// RecoverFromSnapshot implements statemachine.IStateMachine.
func (m *boatMachine) RecoverFromSnapshot(io.Reader, []statemachine.SnapshotFile, <-chan struct{}) error {
	return errNoSnapshots
}

// Close implements statemachine.IStateMachine.
func (m *boatMachine) Close() error { return nil }
