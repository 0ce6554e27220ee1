package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode"
	"github.com/countinghouse/countinghouse/storagenode/replica"
)

// segmentBytesMin is the smallest log segment, in whole blocks of 4096 bytes,
// that holds its own header and the largest batch with its frame.
const segmentBytesMin = (record.MaxBatchBytes + 2*4096 + 4095) / 4096 * 4096

// Config is what a node's command line says.
type Config struct {
	Cluster     string
	Shard       string
	ID          string
	Listen      string // host:port
	Advertise   string // host:port; empty: the address listened on
	DialFrom    string // IP address; empty: the system chooses
	DataDir     string
	Peers       []string // id=host:port
	Instruments []string
	Join        bool
	Recover     string // token
	LogStore    string

	HeartbeatTimeout time.Duration
	ElectionTimeout  time.Duration // 0: HeartbeatTimeout
	LeaderLease      time.Duration // 0: half of HeartbeatTimeout
	CommitTimeout    time.Duration
	HungDiskTimeout  time.Duration
	StopGrace        time.Duration // for handing leadership over

	MemtableBytes   int64
	SegmentBytes    int64
	LogCacheBytes   int64
	SnapshotEntries uint64
	SnapshotBytes   int64
	// SnapshotSendBytes is replica.TransportOptions.SnapshotBytesPerSecond.
	SnapshotSendBytes int64
	TrailingEntries   uint64
	InFlightBytes     int64
	DiskReserveBytes  int64
	BallastBytes      int64
	AppendWindow      int
	QueriesMax        int
	AppendStreamsMax  int
	ConnectionsMax    int
	ReaderTimeout     time.Duration

	TLSDir        string // empty: no TLS
	MetricsListen string // host:port; empty: no metrics
	LogLevel      string
	LogFormat     string

	ready io.Writer // one line when the node is ready
	log   io.Writer
}

// Bind adds the flags of a node to fs, with c's fields as their targets, and sets
// these to their defaults.
func (c *Config) Bind(fs *pflag.FlagSet) {
	fs.StringVar(&c.Cluster, "cluster", "", "name of the cluster (required)")
	fs.StringVar(&c.Shard, "shard", "", "name of the shard (required)")
	fs.StringVar(&c.ID, "id", "", "id of this member, never to be used again with another data directory (required)")
	fs.StringVar(&c.Listen, "listen", "127.0.0.1:0", "host:port to serve on; port 0 takes a free one")
	fs.StringVar(&c.Advertise, "advertise", "", "host:port under which other members and clients reach this node (default: the address listened on)")
	fs.StringVar(&c.DialFrom, "dial-from", "", "IP address of this machine from which to connect to other members (default: the system chooses)")
	fs.StringVar(&c.DataDir, "data-dir", "", "directory for this member's data (required)")
	fs.StringSliceVar(&c.Peers, "peers", nil, "the shard's first voters, this one among them, as id=host:port,...; used once, when the data directory is empty")
	fs.StringSliceVar(&c.Instruments, "instruments", nil, "instruments that the shard owns from the beginning; used once")
	fs.BoolVar(&c.Join, "join", false, "start empty and wait to be added to the shard as a learner")
	fs.StringVar(&c.Recover, "recover", "", "make this member its shard's only voter, with what it holds, once for each token given here: for a shard that has lost its quorum for good; what the others acknowledged without this member is lost")
	fs.StringVar(&c.LogStore, "log-store", string(replica.LogStoreWAL), "Raft log: wal or boltdb")
	c.bindTimeouts(fs)
	c.bindBounds(fs)
	fs.StringVar(&c.TLSDir, "tls-dir", "", "directory with tls.crt, tls.key and ca.crt, which may change at any time; all connections then need a certificate of the cluster (default: none, and no TLS)")
	fs.StringVar(&c.MetricsListen, "metrics-listen", "", "host:port to serve Prometheus metrics on, at /metrics, and /healthz and /readyz (default: none)")
	fs.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&c.LogFormat, "log-format", "text", "text or json")
}

func (c *Config) bindTimeouts(fs *pflag.FlagSet) {
	fs.DurationVar(&c.HeartbeatTimeout, "heartbeat-timeout", time.Second, "how long a follower waits for its leader before an election; well above the slowest fsync")
	fs.DurationVar(&c.ElectionTimeout, "election-timeout", 0, "how long a candidate waits for votes (default: heartbeat-timeout)")
	fs.DurationVar(&c.LeaderLease, "leader-lease", 0, "how long a leader goes on without a quorum (default: half of heartbeat-timeout)")
	fs.DurationVar(&c.CommitTimeout, "commit-timeout", 10*time.Millisecond, "how late a quiet follower may learn what is committed")
	fs.DurationVar(&c.HungDiskTimeout, "hung-disk-timeout", 10*time.Second, "a write that takes longer ends the node")
	fs.DurationVar(&c.StopGrace, "stop-grace", 5*time.Second, "time to hand leadership over before the node stops")
}

func (c *Config) bindBounds(fs *pflag.FlagSet) {
	fs.Int64Var(&c.MemtableBytes, "memtable-bytes", 64<<20, "size of an instrument's memtable at which it is flushed")
	fs.Int64Var(&c.SegmentBytes, "segment-bytes", 64<<20, "size of a log segment, a multiple of 4096 (log-store wal)")
	fs.Int64Var(&c.LogCacheBytes, "log-cache-bytes", 64<<20, "memory for recent log entries (log-store wal)")
	fs.Uint64Var(&c.SnapshotEntries, "snapshot-entries", 16384, "log entries after which a snapshot is taken")
	fs.Int64Var(&c.SnapshotBytes, "snapshot-bytes", 512<<20, "log bytes after which a snapshot is taken")
	fs.Int64Var(&c.SnapshotSendBytes, "snapshot-send-bytes-per-second", 100<<20,
		"bytes a second that are sent of snapshots, to all members together; negative: no bound")
	fs.Uint64Var(&c.TrailingEntries, "trailing-entries", 1024, "log entries kept behind a snapshot")
	fs.Int64Var(&c.InFlightBytes, "in-flight-bytes", 64<<20, "bytes of batches that are proposed and not yet applied")
	fs.Int64Var(&c.DiskReserveBytes, "disk-reserve-bytes", 256<<20, "free disk space below which appends are refused; negative: no check")
	fs.Int64Var(&c.BallastBytes, "ballast-bytes", 16<<20, "size of a file that is given up when the disk is full; negative: none")
	fs.IntVar(&c.AppendWindow, "append-window", 64, "unanswered batches of one append stream")
	fs.IntVar(&c.QueriesMax, "queries-max", 256, "queries at a time")
	fs.IntVar(&c.AppendStreamsMax, "append-streams-max", 256, "append streams at a time")
	fs.IntVar(&c.ConnectionsMax, "connections-max", 4096, "connections at a time, those of the shard's other members among them")
	fs.DurationVar(&c.ReaderTimeout, "reader-timeout", time.Minute, "after how long a client that takes nothing of what it is sent loses its stream")
}

// Default returns the configuration that an empty command line gives.
func Default() Config {
	var c Config
	c.Bind(pflag.NewFlagSet("", pflag.ContinueOnError))
	return c
}

// Validate names every flag that is wrong and what to do about it.
func (c *Config) Validate() error {
	var errs []error
	bad := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	for flag, value := range map[string]string{"cluster": c.Cluster, "shard": c.Shard, "id": c.ID, "data-dir": c.DataDir} {
		if value == "" {
			bad(flag, "is required")
		}
	}
	for flag, value := range map[string]string{"listen": c.Listen, "advertise": c.Advertise, "metrics-listen": c.MetricsListen} {
		if _, _, err := net.SplitHostPort(value); err != nil && (value != "" || flag == "listen") {
			bad(flag, "%q is not host:port", value)
		}
	}
	if c.DialFrom != "" && net.ParseIP(c.DialFrom) == nil {
		bad("dial-from", "%q is not an IP address", c.DialFrom)
	}
	if c.Join && len(c.Peers) > 0 {
		bad("join", "excludes --peers: a joining node learns the members from the shard")
	}
	if c.Recover != "" {
		if err := replica.CheckToken(c.Recover); err != nil {
			bad("recover", "%v", err)
		}
	}
	if c.LogStore != string(replica.LogStoreWAL) && c.LogStore != string(replica.LogStoreBolt) {
		bad("log-store", "%q is unknown: use wal or boltdb", c.LogStore)
	}
	if c.LogStore == string(replica.LogStoreWAL) && c.SegmentBytes < segmentBytesMin {
		bad("segment-bytes", "%d: the largest batch must fit: use at least %d", c.SegmentBytes, segmentBytesMin)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		bad("log-format", "%q is unknown: use text or json", c.LogFormat)
	}
	if _, err := logLevel(c.LogLevel); err != nil {
		bad("log-level", "%q is unknown: use debug, info, warn or error", c.LogLevel)
	}
	if _, err := c.peers(); err != nil {
		bad("peers", "%v", err)
	}
	if _, err := c.instruments(); err != nil {
		bad("instruments", "%v", err)
	}
	if c.StopGrace < 0 {
		bad("stop-grace", "%s is negative", c.StopGrace)
	}
	return errors.Join(errs...)
}

func (c *Config) peers() ([]replica.Peer, error) {
	var out []replica.Peer
	for _, s := range c.Peers {
		id, address, ok := strings.Cut(s, "=")
		if _, _, err := net.SplitHostPort(address); !ok || id == "" || err != nil {
			return nil, fmt.Errorf("%q is not id=host:port", s)
		}
		out = append(out, replica.Peer{ID: id, Address: address})
	}
	return out, nil
}

func (c *Config) instruments() ([]record.Symbol, error) {
	var out []record.Symbol
	for _, name := range c.Instruments {
		sym, err := record.MakeSymbol(name)
		if err != nil {
			return nil, err
		}
		out = append(out, sym)
	}
	return out, nil
}

// replicaConfig returns the part that concerns the replica; Validate has passed.
func (c *Config) replicaConfig(address string) (replica.Config, error) {
	peers, err := c.peers()
	if err != nil {
		return replica.Config{}, err
	}
	instruments, err := c.instruments()
	if err != nil {
		return replica.Config{}, err
	}
	out := replica.Config{
		Cluster: c.Cluster, Shard: c.Shard, ID: c.ID, Address: address, DataDir: c.DataDir,
		Peers: peers, Join: c.Join, Recover: c.Recover, Instruments: instruments, LogStore: replica.LogStore(c.LogStore),
		HeartbeatTimeout: c.HeartbeatTimeout, ElectionTimeout: c.ElectionTimeout,
		LeaderLease: c.LeaderLease, CommitTimeout: c.CommitTimeout, HungDiskTimeout: c.HungDiskTimeout,
		SnapshotEntries: c.SnapshotEntries, SnapshotBytes: c.SnapshotBytes, TrailingEntries: c.TrailingEntries,
		InFlightBytes: c.InFlightBytes, DiskReserveBytes: c.DiskReserveBytes, BallastBytes: c.BallastBytes,
	}
	out.WAL.SegmentBytes, out.WAL.CacheBytes = c.SegmentBytes, c.LogCacheBytes
	out.Store.MemtableBytesMax = c.MemtableBytes
	out.Transport.SnapshotBytesPerSecond = c.SnapshotSendBytes
	if c.DialFrom != "" {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(c.DialFrom)}}
		out.Transport.DialOptions = append(out.Transport.DialOptions, grpc.WithContextDialer(
			func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }))
	}
	return out, nil
}

// certificates opens the source of the node's certificates, nil where it has none.
func (c *Config) certificates(log *slog.Logger) (*identity.Source, error) {
	if c.TLSDir == "" {
		return nil, nil
	}
	s, err := identity.Open(c.TLSDir, identity.Options{Accept: identity.Expect(c.identity()), Logger: log})
	if err != nil {
		return nil, fmt.Errorf("--tls-dir: %w", err)
	}
	return s, nil
}

func (c *Config) identity() identity.Identity {
	return identity.Identity{Cluster: c.Cluster, Role: identity.Node, Shard: c.Shard}
}

func (c *Config) serverOptions() storagenode.Options {
	return storagenode.Options{
		AppendWindow: c.AppendWindow, QueriesMax: c.QueriesMax, AppendStreamsMax: c.AppendStreamsMax,
		ConnectionsMax: c.ConnectionsMax, ReaderTimeout: c.ReaderTimeout,
	}
}
