package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
)

func config(t *testing.T) Config {
	t.Helper()
	c := Default()
	c.Cluster, c.Shard, c.ID = "test", "s1", "s1-0"
	c.DataDir = filepath.Join(t.TempDir(), "data")
	c.Listen = "127.0.0.1:0"
	c.Join = true
	c.DiskReserveBytes, c.BallastBytes = -1, -1
	c.log = io.Discard
	return c
}

func TestFlagsAreChecked(t *testing.T) {
	for want, args := range map[string][]string{
		"--cluster: is required":            {"--shard", "s", "--id", "i", "--data-dir", "d"},
		"--data-dir: is required":           {"--cluster", "c", "--shard", "s", "--id", "i"},
		"--log-store: \"etcd\" is unknown":  {"--log-store", "etcd"},
		"--log-level: \"loud\" is unknown":  {"--log-level", "loud"},
		"--log-format: \"xml\" is unknown":  {"--log-format", "xml"},
		"--peers: \"a:1\" is not id=":       {"--peers", "a:1"},
		"--instruments: instrument \"a b\"": {"--instruments", "a b"},
		"--listen: \"here\" is not":         {"--listen", "here"},
		"--dial-from: \"here\" is not":      {"--dial-from", "here"},
		"--join: excludes --peers":          {"--join", "--peers", "i=h:1"},
		"unknown flag: --clutser":           {"--clutser", "c"},
		"invalid argument \"soon\"":         {"--heartbeat-timeout", "soon"},
	} {
		cmd := Command()
		cmd.SetArgs(args)
		cmd.SetOut(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %s", args, err, want)
		}
	}
	c := config(t)
	c.HeartbeatTimeout = time.Millisecond
	if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "HeartbeatTimeout") {
		t.Errorf("got %v, want an error that names HeartbeatTimeout", err)
	}
}

// start runs a node until the test ends, and returns what it printed first.
func start(t *testing.T, c Config) (line string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	lines := make(chan string, 1)
	c.ready = writerFunc(func(p []byte) (int, error) { lines <- string(p); return len(p), nil })
	result := make(chan error, 1)
	go func() { result <- Run(ctx, c) }()
	stop = sync.OnceValue(func() error { cancel(); return <-result })
	t.Cleanup(func() { _ = stop() })
	select {
	case line = <-lines:
	case err := <-result:
		t.Fatal(err)
	}
	return line, stop
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestForeignDataAndPortsAreRefused(t *testing.T) {
	c := config(t)
	line, stop := start(t, c)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	if address == "" {
		t.Fatalf("the ready line names no address: %q", line)
	}
	other := config(t)
	other.Listen = address
	if err := Run(t.Context(), other); err == nil || !strings.Contains(err.Error(), "port is in use") {
		t.Errorf("the same port: %v", err)
	}
	if _, err := os.Stat(other.DataDir); err == nil {
		t.Error("a node that can not listen must not touch its data directory")
	}
	other = c
	if err := Run(t.Context(), other); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("the same data directory: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"--cluster":   func(c *Config) { c.Cluster = "other" },
		"--shard":     func(c *Config) { c.Shard = "s2" },
		"--id":        func(c *Config) { c.ID = "s1-1" },
		"--log-store": func(c *Config) { c.LogStore = "boltdb" },
	} {
		other := c
		change(&other)
		if err := Run(t.Context(), other); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "another member") {
			t.Errorf("data of another %s: %v", want, err)
		}
	}
	foreign := config(t)
	if err := os.MkdirAll(foreign.DataDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(foreign.DataDir, "thesis.doc"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), foreign); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a directory with other files: %v", err)
	}
	newer := filepath.Join(c.DataDir, "IDENTITY")
	b, err := os.ReadFile(newer)
	if err != nil {
		t.Fatal(err)
	}
	body, _, sealed := bytes.Cut(bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 2`), 1), []byte("\ncrc32c "))
	if !sealed {
		t.Fatalf("IDENTITY is not sealed:\n%s", b)
	}
	later := fmt.Appendf(body, "\ncrc32c %08x\n", crc32.Checksum(body, record.Castagnoli))
	if err := os.WriteFile(newer, later, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a newer format: %v", err)
	}
	none := config(t)
	none.Join = false
	if err := Run(t.Context(), none); err == nil || !strings.Contains(err.Error(), "--peers") {
		t.Errorf("neither --peers nor --join: %v", err)
	}
}

func TestMetricsAreServed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := config(t)
	c.MetricsListen = l.Addr().String()
	l.Close()
	start(t, c)
	resp, err := http.Get("http://" + c.MetricsListen + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"storagenode_raft_leader 0", "storagenode_server_append_seconds", "storagenode_replica_disk_write_seconds", "go_goroutines"} {
		if !bytes.Contains(body, []byte(want)) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	other := config(t)
	other.MetricsListen = c.MetricsListen
	if err := Run(t.Context(), other); err == nil || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "--metrics-listen") {
		t.Errorf("the same metrics port: %v", err)
	}
}

// A disk that hangs while the node starts or stops does not keep the process.
func TestAHangAtStartOrStopEndsTheProcess(t *testing.T) {
	n := &node{cfg: Config{ID: "m0"}, fatal: make(chan error, 1)}
	hangs := make(chan struct{})
	defer close(hangs)
	err := n.unlessFatal(func() error {
		n.onFatal(errors.New("the disk hangs"))
		<-hangs
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "member m0 can not go on: the disk hangs") {
		t.Errorf("got %v", err)
	}
	if err := n.unlessFatal(func() error { return nil }); err != nil {
		t.Errorf("got %v", err)
	}
}
