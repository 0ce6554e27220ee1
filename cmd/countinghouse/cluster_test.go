package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/localcluster"
)

// upCluster runs "cluster up" with one node until the context ends, and returns a
// channel with what it printed and its error.
func upCluster(ctx context.Context, t *testing.T, dir string) <-chan [2]any {
	t.Helper()
	result := make(chan [2]any, 1)
	go func() {
		_, progress, err := executeIn(ctx, "cluster", "up", "--data-dir", dir, "--replicas", "1")
		result <- [2]any{progress, err}
	}()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, localcluster.MapFile)); err == nil {
			return result
		}
		select {
		case r := <-result:
			t.Fatalf("cluster up ended: %v", r)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("cluster up wrote no shard map")
		}
	}
}

// nodeProcess returns the process of the node with the data directory.
func nodeProcess(t *testing.T, dataDir string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(b), "\x00"+dataDir+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatalf("no process of the node in %s", dataDir)
	return 0
}

func TestClusterUp(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := upCluster(ctx, t, dir)
	_, _, err := execute(t, "cluster", "up", "--data-dir", dir, "--replicas", "1")
	if output.ExitCode(err) != output.ExitFailed || !strings.Contains(err.Error(), "in use by process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("a second start in the directory: %v", err)
	}
	cancel()
	if r := <-first; r[1] != nil {
		t.Errorf("after the end: %v", r)
	}
	_, _, err = execute(t, "cluster", "up", "--data-dir", dir, "--replicas", "3")
	if output.ExitCode(err) != output.ExitUsage || !strings.Contains(err.Error(), "1 replicas, not 3") {
		t.Errorf("another layout: %v", err)
	}
}

func TestClusterUpNoticesADeadNode(t *testing.T) {
	dir := t.TempDir()
	up := upCluster(t.Context(), t, dir)
	if err := syscall.Kill(nodeProcess(t, filepath.Join(dir, "s1-0")), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r := <-up
	err, _ := r[1].(error)
	if output.ExitCode(err) != output.ExitFailed || !strings.Contains(err.Error(), "s1-0") {
		t.Errorf("got %v", err)
	}
	if progress := r[0].(string); !strings.Contains(progress, "s1-0 has ended (signal: killed)") || !strings.Contains(progress, "s1-0.log") {
		t.Errorf("it printed %s", progress)
	}
}
