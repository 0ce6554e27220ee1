package replica

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/stablestore"
	"github.com/countinghouse/countinghouse/storagenode/store"
	"github.com/countinghouse/countinghouse/storagenode/wal"
)

// LogStore names an implementation of the Raft log.
type LogStore string

// The log stores.
const (
	// LogStoreWAL is the log of package wal.
	LogStoreWAL LogStore = "wal"
	// LogStoreBolt is raft-boltdb.
	LogStoreBolt LogStore = "boltdb"
)

// Peer is a member of the shard and where it is reached.
type Peer struct {
	ID      string `json:"id"`
	Address string `json:"address"` // host:port
}

// StableStore keeps a Raft server's term and vote. Each write is atomic and on
// disk when it returns.
type StableStore interface {
	raft.StableStore
	io.Closer
}

func openBoltStable(_ vfs.FS, path string) (StableStore, error) { return stablestore.Open(path) }

// Config configures a replica. Zero fields take their defaults where one is
// named; the other fields must be set.
type Config struct {
	Cluster string
	Shard   string
	ID      string
	// Address is the host:port under which the other members reach this node.
	Address string
	DataDir string
	// FS is the file system; default vfs.Default. The boltdb log store always
	// uses the operating system's.
	FS vfs.FS
	// OpenStable opens the stable store at the path; default stablestore.Open,
	// which uses the operating system's file system.
	OpenStable func(fs vfs.FS, path string) (StableStore, error)
	// WallClock tells the time that snapshots are named after; default time.Now.
	// It may jump: nothing is decided by it.
	WallClock func() time.Time

	// Peers are the shard's first voters, this node among them. They are used
	// once, when the data directory is empty; every one of them must be given
	// the same list.
	Peers []Peer
	// Join starts an empty node that waits until the shard adds it as a learner.
	Join bool
	// Recover, if not empty, makes the member its shard's only voter, with what it
	// holds, once for each token: for a shard that has lost its quorum for good. It
	// gives the other members up, and what they acknowledged without this one.
	Recover string
	// Instruments are owned from the beginning: the shard's first leader
	// proposes them while the shard owns none.
	Instruments []record.Symbol

	LogStore LogStore // default LogStoreWAL
	WAL      wal.Options
	Store    store.Options

	// HeartbeatTimeout is how long a follower waits for its leader before it
	// starts an election; default 1 s. It must be well above the slowest fsync:
	// heartbeats wait for the write before them.
	HeartbeatTimeout time.Duration
	// ElectionTimeout is how long a candidate waits for votes; default
	// HeartbeatTimeout.
	ElectionTimeout time.Duration
	// LeaderLease is how long a leader goes on without contact to a quorum;
	// default half of HeartbeatTimeout, and never above it.
	LeaderLease time.Duration
	// CommitTimeout bounds how late a quiet follower learns that entries are
	// committed (twice this); default 10 ms.
	CommitTimeout time.Duration
	// MaxAppendEntries bounds the entries of one AppendEntries request and of
	// one group commit, 1 to 1024; default 256.
	MaxAppendEntries int
	// SnapshotEntries is the number of log entries after which a snapshot is
	// taken and the log shortened; default 16384.
	SnapshotEntries uint64
	// SnapshotBytes is the number of log bytes after which it is; default 512 MiB.
	SnapshotBytes int64
	// SnapshotInterval is how often the entries are counted; default 30 s.
	SnapshotInterval time.Duration
	// TrailingEntries are kept in the log behind a snapshot, for followers that
	// lag a little; default 1024.
	TrailingEntries uint64

	// InFlightBytes bounds the batches that are proposed and not yet applied;
	// default 64 MiB.
	InFlightBytes int64
	// CaughtUpEntries is how many log entries a learner may lack to be promoted,
	// or a voter for a restart of another to be safe; default 256.
	CaughtUpEntries uint64
	// ApplyTimeout bounds how long a proposal waits to be taken up; default 5 s.
	ApplyTimeout time.Duration

	// DiskReserveBytes is the free space below which appends are refused;
	// default 256 MiB. 0 takes the default, negative switches the check off.
	DiskReserveBytes int64
	// BallastBytes is the size of a file that is given up when the disk is full,
	// to have room for the way out; default 16 MiB, negative for none.
	BallastBytes int64
	// DiskCheckInterval is how often the free space is read; default 1 s.
	DiskCheckInterval time.Duration
	// HungDiskTimeout is how long one write or sync of any file may take before the
	// disk counts as hung and the node ends; default 10 s.
	HungDiskTimeout time.Duration

	// Transport's Cluster, Shard and Address are filled in.
	Transport TransportOptions

	// OnFatal is called once, from any goroutine, with an error after which the
	// node must not go on: the process should end. It must return.
	OnFatal func(error)
	Logger  *slog.Logger
}

const (
	defaultHeartbeatTimeout = time.Second
	maxIDBytes              = 128
)

func (c Config) withDefaults() Config {
	if c.FS == nil {
		c.FS = vfs.Default
	}
	if c.OpenStable == nil {
		c.OpenStable = openBoltStable
	}
	if c.WallClock == nil {
		c.WallClock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnFatal == nil {
		c.OnFatal = func(error) {}
	}
	setDefault(&c.LogStore, LogStoreWAL)
	setDefault(&c.HeartbeatTimeout, defaultHeartbeatTimeout)
	setDefault(&c.ElectionTimeout, c.HeartbeatTimeout)
	setDefault(&c.LeaderLease, c.HeartbeatTimeout/2)
	setDefault(&c.CommitTimeout, 10*time.Millisecond)
	setDefault(&c.MaxAppendEntries, 256)
	setDefault(&c.SnapshotEntries, 16384)
	setDefault(&c.SnapshotBytes, 512<<20)
	setDefault(&c.SnapshotInterval, 30*time.Second)
	setDefault(&c.TrailingEntries, 1024)
	setDefault(&c.InFlightBytes, 64<<20)
	setDefault(&c.CaughtUpEntries, 256)
	setDefault(&c.ApplyTimeout, 5*time.Second)
	setDefault(&c.DiskReserveBytes, 256<<20)
	setDefault(&c.BallastBytes, 16<<20)
	setDefault(&c.DiskCheckInterval, time.Second)
	setDefault(&c.HungDiskTimeout, 10*time.Second)
	c.Transport.Cluster, c.Transport.Shard, c.Transport.Address = c.Cluster, c.Shard, c.Address
	setDefault(&c.Transport.HeartbeatTimeout, 2*c.HeartbeatTimeout)
	setDefault(&c.Transport.VoteTimeout, c.ElectionTimeout)
	if c.Transport.Logger == nil {
		c.Transport.Logger = c.Logger
	}
	return c
}

// Validate says which field is wrong and what to do about it.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, f := range []struct{ field, value string }{{"Cluster", c.Cluster}, {"Shard", c.Shard}, {"ID", c.ID}} {
		if f.value == "" || len(f.value) > maxIDBytes {
			bad("%s %q: give a name of 1 to %d bytes", f.field, f.value, maxIDBytes)
		}
	}
	if c.Address == "" {
		bad("Address: empty: give the host:port under which the other members reach this node")
	}
	if c.DataDir == "" {
		bad("DataDir: empty: name the directory for this member's data")
	}
	if c.Recover != "" {
		if err := CheckToken(c.Recover); err != nil {
			bad("Recover: %v", err)
		}
	}
	if c.Join && len(c.Peers) > 0 {
		bad("Join and Peers exclude each other: a joining node learns the members from the shard")
	}
	if c.LogStore != "" && c.LogStore != LogStoreWAL && c.LogStore != LogStoreBolt {
		bad("LogStore %q: use %q or %q", c.LogStore, LogStoreWAL, LogStoreBolt)
	}
	errs = append(errs, c.checkPeers(), c.checkTimeouts())
	return errors.Join(errs...)
}

func (c *Config) checkPeers() error {
	ids, addresses := map[string]bool{}, map[string]bool{}
	for _, p := range c.Peers {
		if p.ID == "" || p.Address == "" {
			return fmt.Errorf("Peers: %q=%q: give each peer an id and an address", p.ID, p.Address)
		}
		if ids[p.ID] || addresses[p.Address] {
			return fmt.Errorf("Peers: %s=%s: id or address is there twice", p.ID, p.Address)
		}
		ids[p.ID], addresses[p.Address] = true, true
	}
	if len(c.Peers) > 0 && !ids[c.ID] {
		return fmt.Errorf("Peers: do not name this node, %s: add it, or use Join to be added later", c.ID)
	}
	return nil
}

func (c *Config) checkTimeouts() error {
	d := c.withDefaults()
	switch {
	case d.HeartbeatTimeout < 20*time.Millisecond:
		return fmt.Errorf("HeartbeatTimeout %s: use 20 ms or more", d.HeartbeatTimeout)
	case d.ElectionTimeout < d.HeartbeatTimeout:
		return fmt.Errorf("ElectionTimeout %s: must not be below HeartbeatTimeout, %s", d.ElectionTimeout, d.HeartbeatTimeout)
	case d.LeaderLease > d.HeartbeatTimeout || d.LeaderLease < 5*time.Millisecond:
		return fmt.Errorf("LeaderLease %s: use 5 ms to HeartbeatTimeout, %s", d.LeaderLease, d.HeartbeatTimeout)
	case d.CommitTimeout < time.Millisecond:
		return fmt.Errorf("CommitTimeout %s: use 1 ms or more", d.CommitTimeout)
	case d.MaxAppendEntries < 1 || d.MaxAppendEntries > 1024:
		return fmt.Errorf("MaxAppendEntries %d: use 1 to 1024", d.MaxAppendEntries)
	case d.Transport.SnapshotBytesPerSecond > 0 && d.Transport.SnapshotBytesPerSecond < snapshotChunkBytes:
		return fmt.Errorf("Transport.SnapshotBytesPerSecond %d: use %d or more, or a negative number for no bound",
			d.Transport.SnapshotBytesPerSecond, snapshotChunkBytes)
	case d.SnapshotInterval < 5*time.Millisecond:
		return fmt.Errorf("SnapshotInterval %s: use 5 ms or more", d.SnapshotInterval)
	}
	return nil
}

// raftConfig returns the settings of the Raft library.
func (c *Config) raftConfig(notify chan<- bool) *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = raft.ServerID(c.ID)
	r.HeartbeatTimeout, r.ElectionTimeout = c.HeartbeatTimeout, c.ElectionTimeout
	r.LeaderLeaseTimeout, r.CommitTimeout = c.LeaderLease, c.CommitTimeout
	r.MaxAppendEntries = c.MaxAppendEntries
	// Proposals queue up while the leader writes, and are then written together.
	r.BatchApplyCh = true
	r.SnapshotThreshold, r.SnapshotInterval, r.TrailingLogs = c.SnapshotEntries, c.SnapshotInterval, c.TrailingEntries
	// A removed member stays up, so that its data can still be read.
	r.ShutdownOnRemove = false
	// The store is at or beyond the newest snapshot already: see recoverStore.
	r.NoSnapshotRestoreOnStart = true
	r.NoLegacyTelemetry = true
	r.NotifyCh = notify
	r.Logger = newRaftLogger(c.Logger)
	return r
}
