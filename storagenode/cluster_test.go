package storagenode_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

const (
	clusterName = "test"
	shardName   = "s1"
	testTimeout = 30 * time.Second
)

// member is one node of a test cluster, in this process.
type member struct {
	t       testing.TB
	cluster *cluster
	id      string
	address string
	dir     string
	config  replica.Config
	fatal   chan error

	running atomic.Pointer[node] // nil while the member is stopped
}

// node is a member that runs.
type node struct {
	replica *replica.Replica
	server  *storagenode.Server
	conn    *grpc.ClientConn
}

type cluster struct {
	t       testing.TB
	dir     string
	members []*member
	logs    *syncBuffer
	change  func(*replica.Config)
	options storagenode.Options
	dial    credentials.TransportCredentials // of the tests' own connections
}

// syncBuffer keeps the log of all members, shown when the test fails.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newCluster starts n voters that own the instruments A, B and C.
func newCluster(t testing.TB, n int, change func(*replica.Config)) *cluster {
	t.Helper()
	return newClusterOf(t, n, storagenode.Options{}, change)
}

// newClusterOf starts voters whose servers have the options.
func newClusterOf(t testing.TB, n int, o storagenode.Options, change func(*replica.Config)) *cluster {
	t.Helper()
	return newClusterWith(t, n, o, insecure.NewCredentials(), change)
}

func newClusterWith(t testing.TB, n int, o storagenode.Options, dial credentials.TransportCredentials, change func(*replica.Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), logs: new(syncBuffer), options: o, dial: dial, change: change}
	t.Cleanup(func() {
		for _, m := range c.members {
			m.stop()
		}
		if t.Failed() && os.Getenv("SHOWLOG") != "" {
			t.Log(c.logs.String())
		}
	})
	var peers []replica.Peer
	listeners := make([]net.Listener, n)
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[i] = l
		peers = append(peers, replica.Peer{ID: fmt.Sprintf("m%d", i), Address: l.Addr().String()})
	}
	for i, p := range peers {
		c.add(p, listeners[i], func(cfg *replica.Config) { cfg.Peers = peers })
	}
	return c
}

// add starts a member on the listener.
func (c *cluster) add(p replica.Peer, l net.Listener, change func(*replica.Config)) *member {
	c.t.Helper()
	m := &member{t: c.t, cluster: c, id: p.ID, address: p.Address, dir: filepath.Join(c.dir, p.ID), fatal: make(chan error, 1)}
	m.config = replica.Config{
		Cluster: clusterName, Shard: shardName, ID: p.ID, Address: p.Address, DataDir: m.dir,
		Instruments:      symbols("A", "B", "C"),
		HeartbeatTimeout: 300 * time.Millisecond, LeaderLease: 300 * time.Millisecond,
		SnapshotInterval: time.Hour, TrailingEntries: 8,
		DiskReserveBytes: -1, BallastBytes: -1,
		OnFatal: func(err error) {
			select {
			case m.fatal <- err:
			default:
			}
		},
		Logger: slog.New(slog.NewTextHandler(c.logs, &slog.HandlerOptions{Level: slog.LevelDebug})).With("member", p.ID),
	}
	m.config.WAL.SegmentBytes = 1 << 20
	m.config.Store.MemtableBytesMax = 256 << 10
	change(&m.config)
	if c.change != nil {
		c.change(&m.config)
	}
	if err := m.start(l); err != nil {
		c.t.Fatal(err)
	}
	c.members = append(c.members, m)
	return m
}

// join starts an empty member that is not part of the shard yet.
func (c *cluster) join(id string) *member {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	return c.add(replica.Peer{ID: id, Address: l.Addr().String()}, l, func(cfg *replica.Config) { cfg.Join = true })
}

func (m *member) start(l net.Listener) error {
	var err error
	if l == nil {
		if l, err = net.Listen("tcp", m.address); err != nil {
			return err
		}
	}
	n := new(node)
	if n.replica, err = replica.Open(m.config); err != nil {
		l.Close()
		return err
	}
	options := m.cluster.options
	options.Version = "test"
	n.server = storagenode.New(n.replica, options)
	go n.server.Serve(l)
	n.conn, err = grpc.NewClient("passthrough:///"+m.address,
		grpc.WithTransportCredentials(m.cluster.dial), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	m.running.Store(n)
	return err
}

func (m *member) restart() {
	m.t.Helper()
	if err := m.start(nil); err != nil {
		m.t.Fatal(err)
	}
}

// isRunning reports whether the member has been started and not stopped.
func (m *member) isRunning() bool { return m.running.Load() != nil }

// leads reports whether the member runs and believes that it leads.
func (m *member) leads() bool {
	n := m.running.Load()
	return n != nil && n.replica.IsLeader()
}

// stop ends the member without handing leadership over.
func (m *member) stop() {
	n := m.running.Swap(nil)
	if n == nil {
		return
	}
	n.server.Stop()
	if err := n.replica.Close(); err != nil {
		m.t.Errorf("close %s: %v", m.id, err)
	}
	n.conn.Close()
}

// conn returns the client's connection; calls on a stopped member fail.
func (m *member) conn() grpc.ClientConnInterface {
	if n := m.running.Load(); n != nil {
		return n.conn
	}
	return stopped{}
}

// stopped is the connection to a member that does not run.
type stopped struct{}

func (stopped) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return refusal.ErrUnavailable
}

func (stopped) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, refusal.ErrUnavailable
}

func (m *member) ingest() storagepb.IngestClient { return storagepb.NewIngestClient(m.conn()) }
func (m *member) query() storagepb.QueryClient   { return storagepb.NewQueryClient(m.conn()) }
func (m *member) admin() storagepb.AdminClient   { return storagepb.NewAdminClient(m.conn()) }

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return replica.WithIdentity(ctx, clusterName, shardName)
}

// eventually waits until the condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testTimeout); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", testTimeout, what)
		}
	}
}

// leader waits for a leader that owns the instruments, and returns it.
func (c *cluster) leader() *member {
	c.t.Helper()
	var found *member
	ctx := testContext(c.t)
	eventually(c.t, "a leader", func() bool {
		for _, m := range c.members {
			if !m.leads() {
				continue
			}
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			got, err := m.query().Instruments(ctx, &storagepb.InstrumentsRequest{})
			cancel()
			if err == nil && len(got.Instruments) > 0 {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func (c *cluster) followers() []*member {
	leader := c.leader()
	var out []*member
	for _, m := range c.members {
		if m != leader && m.isRunning() {
			out = append(out, m)
		}
	}
	return out
}

func symbols(names ...string) []record.Symbol {
	out := make([]record.Symbol, len(names))
	for i, n := range names {
		out[i] = record.MustSymbol(n)
	}
	return out
}

// records returns n records of an instrument from seq first.
func records(name string, first uint64, n int) []record.Record {
	rs := make([]record.Record, n)
	for i := range rs {
		seq := first + uint64(i)
		r := &rs[i]
		r.Version, r.Type, r.Seq, r.Global, r.Time = record.Version, record.TypeOrderInsert, seq, seq, int64(seq)*1000
		r.Instrument = record.MustSymbol(name)
		o := r.OrderInsert()
		o.OrderID, o.Account, o.Price, o.Volume = seq, seq%7+1, int64(seq%100), 1
	}
	return rs
}

func batch(t testing.TB, name string, epoch, first uint64, n int) []byte {
	t.Helper()
	b, err := record.AppendBatch(nil, epoch, records(name, first, n))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open opens a stream, at m or whoever leads when m does no longer.
func open(t testing.TB, m *member, name string, epoch uint64) *storagepb.OpenStreamResponse {
	t.Helper()
	for deadline := time.Now().Add(testTimeout); ; epoch++ {
		r, err := m.ingest().OpenStream(testContext(t), &storagepb.OpenStreamRequest{Instrument: name, Epoch: epoch})
		if err == nil {
			return r
		}
		if e := refusal.FromError(err); e == nil || !refusal.Retryable(e.Code) || time.Now().After(deadline) {
			t.Fatalf("open %s at epoch %d: %v", name, epoch, err)
		}
		m = m.cluster.leader()
	}
}

// send appends batches on a stream of their own and returns the answers.
func send(t testing.TB, m *member, batches ...[]byte) []*storagepb.AppendResponse {
	t.Helper()
	stream, err := m.ingest().Append(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for _, b := range batches {
			if stream.Send(&storagepb.AppendRequest{Batch: b}) != nil {
				return
			}
		}
		stream.CloseSend()
	}()
	var out []*storagepb.AppendResponse
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("append to %s: %v", m.id, err)
		}
		out = append(out, r)
	}
}

// stored fails the test unless all answers are acknowledgements.
func stored(t testing.TB, answers []*storagepb.AppendResponse) {
	t.Helper()
	for i, a := range answers {
		if a.Refusal != nil {
			t.Fatalf("batch %d from seq %d: %s %s", i, a.FirstSeq, a.Refusal.Code, a.Refusal.Message)
		}
	}
}

// write appends n records in batches of size and returns the last seq. It begins
// with the member m; when leadership changes on a busy machine it opens the stream
// again at the leader and goes on from where the stream ends.
func write(t testing.TB, m *member, name string, epoch uint64, n, size int) (last uint64) {
	t.Helper()
	opened := open(t, m, name, epoch<<16)
	first := opened.LastSeq + 1
	end := first + uint64(n) - 1
	for next := first; ; {
		var batches [][]byte
		for from := next; from <= end; from += uint64(size) {
			batches = append(batches, batch(t, name, opened.Epoch, from, int(min(end-from+1, uint64(size)))))
		}
		refused := firstRefusal(send(t, m, batches...))
		if refused == nil {
			return end
		}
		if !refusal.Retryable(refused.Code) {
			t.Fatalf("write %s: %v", name, refused)
		}
		m = m.cluster.leader()
		opened = open(t, m, name, opened.Epoch+1)
		if next = opened.LastSeq + 1; next > end {
			return end
		}
	}
}

func firstRefusal(answers []*storagepb.AppendResponse) *refusal.Error {
	for _, a := range answers {
		if a.Refusal != nil {
			return refusal.FromProto(a.Refusal)
		}
	}
	return nil
}

// scan reads a range and returns the record bytes.
func scan(t testing.TB, m *member, req *storagepb.ScanRequest) ([]byte, error) {
	t.Helper()
	stream, err := m.query().Scan(testContext(t), req)
	if err != nil {
		return nil, err
	}
	return collect(stream)
}

func collect(stream grpc.ServerStreamingClient[storagepb.Records]) ([]byte, error) {
	var out []byte
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, r.Data...)
	}
}

// same waits until every running member holds exactly the records 1 to last of the
// instrument, byte for byte.
func (c *cluster) same(name string, last uint64) {
	c.t.Helper()
	want := record.SliceBytes(records(name, 1, int(last)))
	for _, m := range c.members {
		if !m.isRunning() {
			continue
		}
		eventually(c.t, fmt.Sprintf("%s holds %d records of %s", m.id, last, name), func() bool {
			got, err := m.query().Instruments(testContext(c.t), &storagepb.InstrumentsRequest{Stale: true})
			if err != nil {
				return false
			}
			for _, st := range got.Instruments {
				if st.Instrument == name {
					return st.LastSeq >= last
				}
			}
			return false
		})
		got, err := scan(c.t, m, &storagepb.ScanRequest{Instrument: name, Stale: true})
		if err != nil {
			c.t.Fatalf("scan %s: %v", m.id, err)
		}
		if !bytes.Equal(got, want) {
			c.t.Fatalf("%s: %s has %d records, or others than the %d written", m.id, name, len(got)/record.Size, last)
		}
	}
}

func wantRefusal(t testing.TB, err error, want *refusal.Error) *refusal.Error {
	t.Helper()
	got := refusal.FromError(err)
	if got == nil || !errors.Is(got, want) {
		t.Fatalf("got %v, want a refusal %s", err, want.Code)
	}
	return got
}
