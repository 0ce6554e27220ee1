package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

const (
	kills       = 5
	killTimeout = 60 * time.Second
	instrument  = "IF2501"
)

// process is one node as a process of its own.
type process struct {
	id, address string
	argv        []string
	log         string
	cmd         *exec.Cmd
	conn        *grpc.ClientConn
}

func (p *process) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.argv[0], p.argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func startProcesses(t *testing.T) []*process {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "storagenode")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../cmd/storagenode")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var nodes []*process
	var peers []string
	for i := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		p := &process{id: fmt.Sprintf("s1-%d", i), address: l.Addr().String()}
		p.log = filepath.Join(dir, p.id+".log")
		nodes, peers = append(nodes, p), append(peers, p.id+"="+p.address)
		p.conn, err = grpc.NewClient("passthrough:///"+p.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 50 * time.Millisecond}}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.conn.Close() })
		l.Close()
	}
	for _, p := range nodes {
		p.argv = []string{
			program, "--cluster", "test", "--shard", "s1", "--id", p.id, "--listen", p.address, "--data-dir", filepath.Join(dir, p.id),
			"--peers", strings.Join(peers, ","), "--instruments", instrument, "--heartbeat-timeout", "300ms",
			"--snapshot-entries", "200", "--trailing-entries", "16", "--segment-bytes", "2097152", "--memtable-bytes", "65536",
			"--disk-reserve-bytes", "-1", "--ballast-bytes", "-1", "--log-level", "debug",
		}
		p.start(t)
		t.Cleanup(p.kill)
	}
	return nodes
}

func orders(first uint64, n int) []record.Record {
	rs := make([]record.Record, n)
	for i := range rs {
		r := &rs[i]
		r.Version, r.Type, r.Seq, r.Global = record.Version, record.TypeOrderInsert, first+uint64(i), first+uint64(i)
		r.Time, r.Instrument = int64(r.Seq), record.MustSymbol(instrument)
		r.OrderInsert().OrderID = r.Seq
	}
	return rs
}

// appender writes until its context ends, through kills and elections.
type appender struct {
	nodes []*process
	acked atomic.Uint64
}

func (a *appender) run(ctx context.Context) error {
	for epoch := uint64(1); ctx.Err() == nil; epoch++ {
		n := a.nodes[epoch%uint64(len(a.nodes))]
		err := a.session(ctx, n, epoch)
		if errors.Is(err, errLost) {
			return err
		}
		if err != nil {
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

var errLost = errors.New("an acknowledged record is lost")

func (a *appender) session(ctx context.Context, n *process, epoch uint64) error {
	client := storagepb.NewIngestClient(n.conn)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opened, err := client.OpenStream(ctx, &storagepb.OpenStreamRequest{Instrument: instrument, Epoch: epoch})
	if err != nil {
		return err
	}
	if opened.LastSeq < a.acked.Load() {
		return fmt.Errorf("%w: %d were acknowledged, the stream ends at %d", errLost, a.acked.Load(), opened.LastSeq)
	}
	stream, err := client.Append(ctx)
	if err != nil {
		return err
	}
	go func() {
		for next := opened.LastSeq + 1; ; next += 20 {
			b, err := record.AppendBatch(nil, epoch, orders(next, 20))
			if err != nil || stream.Send(&storagepb.AppendRequest{Batch: b}) != nil {
				return
			}
		}
	}()
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if r.Refusal != nil {
			return refusal.FromProto(r.Refusal)
		}
		a.acked.Store(r.LastSeq)
	}
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(killTimeout); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", killTimeout, what)
		}
	}
}

func leaderOf(ctx context.Context, nodes []*process) *process {
	for _, n := range nodes {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		st, err := storagepb.NewAdminClient(n.conn).Status(ctx, &storagepb.StatusRequest{})
		cancel()
		if err == nil && st.State == "leader" {
			return n
		}
	}
	return nil
}

// TestKillTheLeader kills the leader's process at random instants while a writer
// appends, and then compares all replicas with what was written, byte for byte.
func TestKillTheLeader(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	nodes := startProcesses(t)
	ctx := replica.WithIdentity(t.Context(), "test", "s1")
	writing, stop := context.WithCancel(ctx)
	defer stop()
	a := &appender{nodes: nodes}
	result := make(chan error, 1)
	go func() { result <- a.run(writing) }()
	for range kills {
		from := a.acked.Load()
		more := uint64(200 + random.IntN(4000))
		await(t, "the writer goes on", func() bool { return a.acked.Load() >= from+more })
		var victim *process
		await(t, "a leader", func() bool { victim = leaderOf(ctx, nodes); return victim != nil })
		victim.kill()
		from = a.acked.Load()
		await(t, "the writer goes on without the leader", func() bool { return a.acked.Load() >= from+100 })
		victim.start(t)
	}
	stop()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	compare(ctx, t, nodes, a.acked.Load())
}

// compare opens the stream once more, which fences the writer, and reads every
// replica.
func compare(ctx context.Context, t *testing.T, nodes []*process, acked uint64) {
	t.Helper()
	var last uint64
	await(t, "the stream is opened", func() bool {
		n := leaderOf(ctx, nodes)
		if n == nil {
			return false
		}
		r, err := storagepb.NewIngestClient(n.conn).OpenStream(ctx, &storagepb.OpenStreamRequest{Instrument: instrument, Epoch: 1 << 40})
		if err == nil {
			last = r.LastSeq
		}
		return err == nil
	})
	if last < acked {
		t.Fatalf("%d records were acknowledged, %d are there", acked, last)
	}
	want := record.SliceBytes(orders(1, int(last)))
	for _, n := range nodes {
		await(t, n.id+" has all records", func() bool { return bytes.Equal(readAll(ctx, n), want) })
	}
	t.Logf("%d records on each of %d replicas", last, len(nodes))
}

func readAll(ctx context.Context, n *process) []byte {
	stream, err := storagepb.NewQueryClient(n.conn).Scan(ctx, &storagepb.ScanRequest{Instrument: instrument, Stale: true})
	if err != nil {
		return nil
	}
	var out []byte
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			return nil
		}
		out = append(out, r.Data...)
	}
}

// TestTermHandsLeadershipOver ends the leader's process in good order.
func TestTermHandsLeadershipOver(t *testing.T) {
	nodes := startProcesses(t)
	ctx := replica.WithIdentity(t.Context(), "test", "s1")
	var leader *process
	await(t, "a leader", func() bool { leader = leaderOf(ctx, nodes); return leader != nil })
	await(t, "the followers have caught up", func() bool {
		r, err := storagepb.NewAdminClient(leader.conn).SafeToRestart(ctx, &storagepb.SafeToRestartRequest{})
		return err == nil && r.Safe
	})
	if err := leader.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := leader.cmd.Wait(); err != nil {
		log, _ := os.ReadFile(leader.log)
		t.Fatalf("SIGTERM: %v\n%s", err, log)
	}
	log, err := os.ReadFile(leader.log)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(log, []byte("leadership handed over")) || !bytes.Contains(log, []byte("listens on "+leader.address)) {
		t.Fatalf("the log tells of no handover:\n%s", log)
	}
}
