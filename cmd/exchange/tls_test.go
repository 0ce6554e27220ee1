package main

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/identity/identitytest"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

func connect(t *testing.T, address string, c credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// An exchange and its storage, all with certificates: orders become durable, and
// each party may do its own.
func TestTradingWithCertificates(t *testing.T) {
	ca := identitytest.Authority(t, "test")
	dirOf := func(id identity.Identity) string {
		d := identitytest.NewDir(t)
		d.Put(identitytest.Pair(t, ca, id), identitytest.Bundle(ca))
		return d.Path
	}
	role := func(r identity.Role) identity.Identity { return identity.Identity{Cluster: "test", Role: r} }
	nodeDir := dirOf(identity.Identity{Cluster: "test", Role: identity.Node, Shard: "s1"})
	c, err := localcluster.Start(t.Context(), localcluster.Options{
		Cluster: "test", Dir: filepath.Join(t.TempDir(), "nodes"), Command: []string{self(t), "storagenode"},
		Args:   []string{"--heartbeat-timeout", "500ms", "--ballast-bytes", "-1", "--disk-reserve-bytes", "-1", "--segment-bytes", "4194304", "--tls-dir", nodeDir},
		Shards: []localcluster.Shard{{Name: "s1", Instruments: []string{"IF2501", "IC2501", "IH2501", record.AccountStream}, Replicas: 3}},
		Client: client.Options{TLS: identitytest.Source(t, ca, role(identity.Reader))},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.AwaitLeaders(t.Context()); err != nil {
		t.Fatal(err)
	}
	shards, err := c.WriteMap()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	outbox := filepath.Join(t.TempDir(), "outbox")
	wrong := start(t, "--shards", shards, "--outbox", outbox, "--init", "--tls-dir", dirOf(role(identity.Reader)))
	if <-wrong.exited; wrong.cmd.ProcessState.ExitCode() != exitUsage || !strings.Contains(wrong.log.String(), "--tls-dir") {
		t.Errorf("with a reader's certificate it ended with %v: %s", wrong.cmd.ProcessState, wrong.log)
	}
	p := mustStart(t, "--shards", shards, "--outbox", outbox, "--init", "--tls-dir", dirOf(role(identity.Exchange)), "--metrics-listen", l.Addr().String())
	of := func(r identity.Role) *grpc.ClientConn {
		return connect(t, p.address, identitytest.Source(t, ca, role(r)).Client(role(identity.Exchange)))
	}
	trader, operator := of(identity.Trader), of(identity.Operator)
	if _, err := pb.NewAccountsClient(operator).OpenAccount(t.Context(), &pb.OpenAccountRequest{Account: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewAccountsClient(operator).Deposit(t.Context(), &pb.CashRequest{Account: 1, Amount: 1_000_000_000_00}); err != nil {
		t.Fatal(err)
	}
	order := &pb.SubmitRequest{
		Instrument: "IF2501", Account: 1, ClientOrderId: 1, Side: pb.Side_SIDE_BUY, Offset: pb.Offset_OFFSET_OPEN,
		Price: "3921.4", Volume: 1, Durable: true,
	}
	if r, err := pb.NewOrderEntryClient(trader).Submit(t.Context(), order); err != nil || r.State != pb.OrderState_ORDER_STATE_RESTING {
		t.Errorf("a durable order: %v, %v", r, err)
	}
	if _, err := pb.NewOrderEntryClient(operator).Submit(t.Context(), order); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an operator's order: %v", err)
	}
	if _, err := pb.NewControlClient(trader).Halt(t.Context(), &pb.HaltRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a trader halts: %v", err)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
	if code := p.terminate(t); code != exitOK {
		t.Errorf("exit code %d: %s", code, p.log)
	}

	// The same with another process that carries the records: it has the exchange's role.
	refused, _ := spawn(t, "subscriber", "--shards", shards, "--outbox", outbox, "--tls-dir", dirOf(role(identity.Reader)))
	if <-refused.exited; refused.cmd.ProcessState.ExitCode() != exitUsage || !strings.Contains(refused.log.String(), "--tls-dir") {
		t.Errorf("with a reader's certificate the subscriber ended with %v: %s", refused.cmd.ProcessState, refused.log)
	}
	spawn(t, "subscriber", "--shards", shards, "--outbox", outbox, "--tls-dir", dirOf(role(identity.Exchange)))
	p = mustStart(t, "--subscriber", "external", "--shards", shards, "--outbox", outbox, "--tls-dir", dirOf(role(identity.Exchange)))
	order.ClientOrderId = 2
	if r, err := pb.NewOrderEntryClient(of(identity.Trader)).Submit(t.Context(), order); err != nil || !r.Durable {
		t.Errorf("a durable order: %v, %v", r, err)
	}
}
