package main

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/carrier"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/node"
)

// The test binary stands in for the exchange's and a storage node's program.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "storagenode":
			os.Exit(node.Execute(context.Background(), os.Args[2:]))
		case "subscriber":
			os.Exit(carry(os.Args[2:]))
		case "exchange":
			os.Exit(execute(context.Background(), os.Args[2:], os.Stdout, os.Stderr))
		}
	}
	os.Exit(m.Run())
}

// carry runs the command by which another process carries the records.
func carry(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cmd := carrier.Command()
	cmd.SetArgs(args)
	cmd.SilenceUsage = true
	return output.ExitCode(cmd.ExecuteContext(ctx))
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// storage starts two shards, and returns them with the shard map's file.
func storage(t *testing.T) (*localcluster.Cluster, string) {
	t.Helper()
	c, err := localcluster.Start(t.Context(), localcluster.Options{
		Cluster: "test", Dir: filepath.Join(t.TempDir(), "nodes"), Command: []string{self(t), "storagenode"},
		Args: []string{"--heartbeat-timeout", "500ms", "--ballast-bytes", "-1", "--disk-reserve-bytes", "-1", "--segment-bytes", "4194304"},
		Shards: []localcluster.Shard{
			{Name: "s1", Instruments: []string{"IF2501", record.AccountStream}, Replicas: 1},
			{Name: "s2", Instruments: []string{"IC2501", "IH2501"}, Replicas: 1},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.AwaitLeaders(t.Context()); err != nil {
		t.Fatal(err)
	}
	path, err := c.WriteMap()
	if err != nil {
		t.Fatal(err)
	}
	return c, path
}

// noStorage writes a shard map whose nodes nobody runs.
func noStorage(t *testing.T, cluster string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shards.yaml")
	text := "cluster: " + cluster + "\nshards:\n- name: s1\n  instruments: [IF2501, IC2501, IH2501, __ACCOUNT__]\n  members:\n  - {id: a, address: \"127.0.0.1:1\"}\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// program is an exchange in a process of its own.
type program struct {
	cmd     *exec.Cmd
	address string // empty when it ended before it took orders
	ready   string // what it printed then
	log     *lockedBuffer
	exited  chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs the program until it takes orders or has ended.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	p, line := begin(t, args...)
	select {
	case p.ready = <-line:
	case <-time.After(30 * time.Second):
		t.Fatalf("neither ready nor ended: %s", p.log)
	}
	if _, rest, ok := strings.Cut(p.ready, "takes orders on "); ok {
		p.address, _, _ = strings.Cut(rest, ";")
	}
	return p
}

// begin starts the program; line receives what it prints first.
func begin(t *testing.T, args ...string) (p *program, line <-chan string) {
	t.Helper()
	return spawn(t, "exchange", args...)
}

// spawn starts one of the test binary's programs; line receives what it prints first.
func spawn(t *testing.T, name string, args ...string) (p *program, line <-chan string) {
	t.Helper()
	p = &program{cmd: exec.Command(self(t), append([]string{name}, args...)...), log: &lockedBuffer{}, exited: make(chan struct{})}
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(out).ReadString('\n')
		first <- text
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(p.kill)
	return p, first
}

// mustStart is start that insists on a program that takes orders.
func mustStart(t *testing.T, args ...string) *program {
	t.Helper()
	p := start(t, args...)
	if p.address == "" {
		<-p.exited
		t.Fatalf("the exchange ended: %s", p.log)
	}
	return p
}

// kill ends the program with SIGKILL and waits until it is gone.
func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// terminate asks the program to end and returns its exit code.
func (p *program) terminate(t *testing.T) int {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		t.Fatalf("does not end: %s", p.log)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *program) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(p.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
