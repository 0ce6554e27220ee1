package fire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

var (
	instruments = []string{"IF2501", "IC2501", "IH2501"}
	symbols     = makeSymbols(instruments)
)

func makeSymbols(names []string) (out []record.Symbol) {
	for _, name := range names {
		out = append(out, record.MustSymbol(name))
	}
	return out
}

// cluster is a shard under fire.
type cluster struct {
	seed    uint64
	net     *network
	post    *post
	history *history
	log     *logBuffer
	stop    context.CancelFunc // ends writers, readers and faults
	ctx     context.Context

	background sync.WaitGroup // servers and the rests of lives that are over
	clients    sync.WaitGroup

	mu       sync.Mutex
	members  []*member
	rngs     uint64 // drawn so far
	findings []error
	notes    []string // of the progress of the run
	counts   map[string]int
	nonces   uint64
	serial   int // of members
}

// logBuffer keeps the newest part of what all members logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const logBytesMax = 8 << 20

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > logBytesMax {
		l.b.Next(logBytesMax / 2)
	}
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newCluster(seed uint64, replicas int) (*cluster, error) {
	c := &cluster{
		seed: seed, net: newNetwork(seed), history: newHistory(), log: new(logBuffer), counts: map[string]int{},
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.post = newPost(c)
	c.net.inject(&fault{
		matches: func(from, to string) bool { return isMember(from) && isMember(to) },
		effect:  effect{messages: everyday},
	})
	var peers []replica.Peer
	for i := range replicas {
		peers = append(peers, replica.Peer{ID: memberID(i), Address: memberAddress(memberID(i))})
	}
	for range replicas {
		c.addMember(peers)
	}
	for _, m := range c.all() {
		if err := m.start(); err != nil {
			return c, err
		}
	}
	return c, nil
}

func memberID(i int) string { return fmt.Sprintf("m%d", i) }

func memberAddress(id string) string { return id + ":1" }

// addMember makes a member with an empty disk. Its id is never used again.
func (c *cluster) addMember(peers []replica.Peer) *member {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := memberID(c.serial)
	c.serial++
	m := &member{c: c, id: id, address: memberAddress(id), peers: peers, disk: newDisk(vfs.NewCrashableMem()), drift: 1}
	c.members = append(c.members, m)
	return m
}

func (c *cluster) all() []*member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*member(nil), c.members...)
}

// present returns the members that were not removed.
func (c *cluster) present() (out []*member) {
	for _, m := range c.all() {
		m.mu.Lock()
		if !m.removed {
			out = append(out, m)
		}
		m.mu.Unlock()
	}
	return out
}

func (c *cluster) member(id string) *member {
	for _, m := range c.all() {
		if m.id == id {
			return m
		}
	}
	return nil
}

// random returns a generator of its own, so that what one goroutine draws does
// not depend on how fast another is.
func (c *cluster) random() *rand.Rand {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rngs++
	return rand.New(rand.NewPCG(c.seed, c.rngs))
}

func (c *cluster) nonce() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nonces++
	return c.nonces
}

func (c *cluster) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

func (c *cluster) occurred(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[what]
}

func (c *cluster) counted() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var parts []string
	for what, n := range c.counts {
		parts = append(parts, fmt.Sprintf("%s %d", what, n))
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}

// find notes a violation and ends the run.
func (c *cluster) find(err error) {
	c.mu.Lock()
	c.findings = append(c.findings, fmt.Errorf("at %s: %w", c.history.now().Round(time.Millisecond), err))
	c.mu.Unlock()
	c.stop()
}

func (c *cluster) found() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.findings...)
}

// sleep reports false if the run is over.
func (c *cluster) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// client is a host that calls members.
type client struct {
	c     *cluster
	host  *host
	name  string
	conns map[string]*grpc.ClientConn // by address; for the one goroutine that uses the client
	hint  string                      // id of the member that was said to lead
	rng   *rand.Rand
}

func (c *cluster) client(name string) *client {
	return &client{c: c, host: c.net.host(name), name: name, conns: map[string]*grpc.ClientConn{}, rng: c.random()}
}

func (k *client) close() {
	for _, conn := range k.conns {
		conn.Close()
	}
	k.host.crash(false)
}

func (k *client) conn(m *member) *grpc.ClientConn {
	if conn, ok := k.conns[m.address]; ok {
		return conn
	}
	options := append(dialOptions(k.host), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond},
			MinConnectTimeout: 200 * time.Millisecond,
		}))
	conn, err := grpc.NewClient("passthrough:///"+m.address, options...)
	if err != nil {
		k.c.find(err)
	}
	k.conns[m.address] = conn
	return conn
}

// drop closes the connection to a member, so that the next call dials anew.
func (k *client) drop(m *member) {
	if conn, ok := k.conns[m.address]; ok {
		conn.Close()
		delete(k.conns, m.address)
	}
}

func (k *client) ingest(m *member) storagepb.IngestClient {
	return storagepb.NewIngestClient(k.conn(m))
}

func (k *client) query(m *member) storagepb.QueryClient { return storagepb.NewQueryClient(k.conn(m)) }

func (k *client) admin(m *member) storagepb.AdminClient { return storagepb.NewAdminClient(k.conn(m)) }

// pick returns the member that was said to lead, most of the time, or any.
func (k *client) pick() *member {
	if m := k.c.member(k.hint); m != nil && k.rng.IntN(8) > 0 {
		return m
	}
	present := k.c.present()
	return present[k.rng.IntN(len(present))]
}

// pause waits a little and reports false if the run is over.
func (k *client) pause(max time.Duration) bool {
	return k.c.sleep(time.Duration(k.rng.Int64N(int64(max))))
}

const callTimeout = 700 * time.Millisecond

// call returns the context of one call.
func call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(withIdentity(ctx), callTimeout)
}
