package fire

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/storagenode"
	"github.com/countinghouse/countinghouse/storagenode/replica"
)

const (
	clusterName = "fire"
	shardName   = "s1"

	heartbeatTimeout = 150 * time.Millisecond
	dataDir          = "disk/data"
)

// member is a replica of the shard, through all its lives.
type member struct {
	c           *cluster
	id, address string
	peers       []replica.Peer // empty: it joins

	// life is held while the member starts, crashes or stops, which takes as long
	// as its disk stalls: whoever may have to end that does not wait for it.
	life sync.Mutex

	clock atomic.Int64 // what its wall clock is wrong by, in nanoseconds

	mu      sync.Mutex
	disk    *disk   // of the present life, or what the last one left
	node    *node   // nil while it is down
	removed bool    // no longer of the shard, and never started again
	drift   float64 // of its clock: factor on its timeouts
	next    *mishap // of the next life, from its first write on
}

// mishap is a power failure before the n-th writing call.
type mishap struct {
	calls, keepPercent int
	silent             bool
}

// node is one life of a member.
type node struct {
	host    *host
	disk    *disk
	replica *replica.Replica
	server  *storagenode.Server
	ended   atomic.Bool // crashed or stopped: what it reports is of no interest
}

func (m *member) config(n *node, d *disk) replica.Config {
	m.mu.Lock()
	timeout := time.Duration(float64(heartbeatTimeout) * m.drift)
	m.mu.Unlock()
	cfg := replica.Config{
		Cluster: clusterName, Shard: shardName, ID: m.id, Address: m.address, DataDir: dataDir, FS: d,
		OpenStable: openStable, WallClock: m.wallClock, Peers: m.peers, Join: len(m.peers) == 0, Instruments: symbols,
		HeartbeatTimeout: timeout, LeaderLease: timeout,
		SnapshotEntries: 96, SnapshotInterval: 30 * time.Millisecond, TrailingEntries: 24,
		CaughtUpEntries: 64, ApplyTimeout: time.Second,
		DiskReserveBytes: diskReserveBytes, BallastBytes: -1, DiskCheckInterval: 20 * time.Millisecond,
		HungDiskTimeout: 10 * time.Second,
		OnFatal:         func(err error) { m.c.fatal(m, n, err) },
		Logger:          slog.New(slog.NewTextHandler(m.c.log, &slog.HandlerOptions{Level: slog.LevelInfo})).With("member", m.id),
	}
	cfg.WAL.SegmentBytes, cfg.WAL.CacheBytes = 32<<10, 64<<10
	cfg.Store.MemtableBytesMax, cfg.Store.MemtableTotalBytesMax = 24<<10, 64<<10
	cfg.Transport.AppendTimeout, cfg.Transport.SnapshotIdleTimeout = time.Second, time.Second
	cfg.Transport.DialOptions = append(dialOptions(n.host), m.c.post.dialOptions(m.id)...)
	return cfg
}

func dialOptions(h *host) []grpc.DialOption {
	return []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return h.dial(ctx, address)
	})}
}

// wallClock is the member's: a reading without the monotonic part, so that
// whoever reckons with it meets the jumps.
func (m *member) wallClock() time.Time {
	return time.Now().Round(0).Add(time.Duration(m.clock.Load()))
}

// start begins a life on the member's disk.
func (m *member) start() error {
	m.life.Lock()
	defer m.life.Unlock()
	n := m.conceive()
	if n == nil {
		return nil
	}
	r, err := replica.Open(m.config(n, n.disk))
	if err != nil {
		return fmt.Errorf("start of %s: %w", m.id, err)
	}
	n.replica = r
	n.server = storagenode.New(r, storagenode.Options{Version: "fire"})
	l := n.host.listen(m.address)
	m.c.background.Go(func() { _ = n.server.Serve(l) })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node = n
	return nil
}

// conceive prepares a life, nil if there is to be none.
func (m *member) conceive() *node {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.node != nil || m.removed {
		return nil
	}
	n := &node{host: m.c.net.host(m.id), disk: m.disk}
	if m.next != nil {
		m.arm(n, *m.next, m.c.random())
		m.next = nil
	}
	return n
}

// spare takes back the faults that are planned for the member.
func (m *member) spare() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next = nil
	m.disk.repair()
}

// arm prepares a power failure in the middle of what the node will be doing then.
func (m *member) arm(n *node, f mishap, rng *rand.Rand) {
	n.disk.crashAfter(f.calls, func() {
		n.ended.Store(true)
		n.host.crash(f.silent)
		n.disk.crash(f.keepPercent, rng)
		m.c.count("crash at a write")
		m.c.background.Go(func() {
			m.crash(n, f.keepPercent, f.silent, rng)
			m.c.restartLater(m, rng)
		})
	})
}

// crash ends a life, if it is the present one: at one instant the machine falls
// silent and its disk is what a power failure leaves of it. What the old instance
// still does reaches nobody.
func (m *member) crash(n *node, keepPercent int, silent bool, rng *rand.Rand) bool {
	m.life.Lock()
	defer m.life.Unlock()
	return m.die(n, keepPercent, silent, rng)
}

// tryCrash does the same unless the member is just starting or stopping.
func (m *member) tryCrash(n *node, keepPercent int, silent bool, rng *rand.Rand) bool {
	if !m.life.TryLock() {
		return false
	}
	defer m.life.Unlock()
	return m.die(n, keepPercent, silent, rng)
}

// REQUIRES: life held.
func (m *member) die(n *node, keepPercent int, silent bool, rng *rand.Rand) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n == nil || n != m.node {
		return false
	}
	n.ended.Store(true)
	n.host.crash(silent)
	m.disk = n.disk.crash(keepPercent, rng)
	m.node = nil
	m.c.background.Go(func() { _ = n.stop() })
	return true
}

// stop ends the present life in order.
func (m *member) stop() error {
	m.life.Lock()
	defer m.life.Unlock()
	m.mu.Lock()
	n := m.node
	m.node = nil
	m.mu.Unlock()
	if n == nil {
		return nil
	}
	n.ended.Store(true)
	err := n.stop()
	n.host.crash(false)
	return err
}

func (n *node) stop() error {
	n.server.Stop()
	return n.replica.Close()
}

// leave takes a member that was removed from the shard off the network for good.
func (m *member) leave() error {
	err := m.stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.removed = true
	return err
}

func (m *member) running() *node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}

func (m *member) present() *disk {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disk
}

// fatal is a life's OnFatal: the process is to end. It is expected after a sync
// that failed, and of a life that is over.
func (c *cluster) fatal(m *member, n *node, err error) {
	if n.ended.Load() {
		return
	}
	c.background.Go(func() { c.endProcess(m, n, err) })
}

func (c *cluster) endProcess(m *member, n *node, err error) {
	rng := c.random()
	failed := len(n.disk.syncFailures()) > 0 || n.disk.wreck() != nil
	if !m.crash(n, []int{0, 50, 100}[rng.IntN(3)], false, rng) {
		return
	}
	if !failed {
		c.find(fmt.Errorf("member %s ended itself though nothing was wrong with its disk: %w", m.id, err))
		return
	}
	c.count("ended by a failed sync")
	c.restartLater(m, rng)
}

// restartLater starts a member that is down after a pause.
func (c *cluster) restartLater(m *member, rng *rand.Rand) {
	if c.sleep(time.Duration(rng.IntN(400)) * time.Millisecond) {
		c.restart(m, rng)
	} // else the end of the run starts whoever is down
}

// restart starts a member that is down, with a clock of another pace.
func (c *cluster) restart(m *member, rng *rand.Rand) {
	m.mu.Lock()
	m.drift = 0.7 + rng.Float64()
	m.mu.Unlock()
	if err := c.begin(m, rng); err != nil {
		c.find(err)
	}
}

// begin starts a member. If its disk fails meanwhile, it is started once more on
// what that leaves.
func (c *cluster) begin(m *member, rng *rand.Rand) error {
	d := m.present()
	err := m.start()
	if err == nil || len(d.syncFailures()) == 0 && d.wreck() == nil {
		return err
	}
	m.mu.Lock()
	if m.node == nil && m.disk == d {
		m.disk = d.crash(50, rng)
	}
	m.mu.Unlock()
	return m.start()
}
