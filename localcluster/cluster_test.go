package localcluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The test binary stands in for a storage node: it listens, and ends on SIGTERM.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "node" {
		os.Exit(node(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func node(args []string) int {
	fs := flag.NewFlagSet("node", flag.ContinueOnError)
	listen, dir := fs.String("listen", "", ""), fs.String("data-dir", "", "")
	for _, name := range []string{"cluster", "shard", "id", "peers", "instruments"} {
		fs.String(name, "", "")
	}
	fail := fs.Bool("fail", false, "")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if *fail {
		fmt.Fprintln(os.Stderr, "no such disk")
		return 1
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	<-stop
	if err := os.WriteFile(*dir+".stopped", nil, 0o644); err != nil {
		return 1
	}
	return 0
}

func options(t *testing.T, args ...string) Options {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Cluster: "test", Dir: t.TempDir(), Command: []string{self, "node"}, Args: args,
		Shards: []Shard{{Name: "s1", Instruments: []string{"A"}, Replicas: 3}, {Name: "s2", Instruments: []string{"B"}, Replicas: 1}},
	}
}

func TestKillAndRestart(t *testing.T) {
	o := options(t)
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	if len(c.Members()) != 4 || len(c.Of("s1")) != 3 || c.Of("s1")[2].ID != "s1-2" {
		t.Fatalf("members %+v", c.Members())
	}
	victim := c.Of("s1")[1]
	if err := c.KillNode(victim.ID); err != nil || c.Running(victim.ID) {
		t.Fatalf("after the kill: %v, running %t", err, c.Running(victim.ID))
	}
	if _, err := os.Stat(victim.DataDir + ".stopped"); err == nil {
		t.Error("a killed node must not stop in good order")
	}
	if err := c.StartNode(t.Context(), victim.ID); err != nil || !c.Running(victim.ID) {
		t.Fatalf("restart: %v", err)
	}
	if err := c.StartNode(t.Context(), victim.ID); err == nil {
		t.Error("a node that runs must not be started twice")
	}
	c.Stop()
	for _, m := range c.Members() {
		if c.Running(m.ID) {
			t.Errorf("%s runs after Stop", m.ID)
		}
		if _, err := os.Stat(filepath.Join(o.Dir, m.ID+".stopped")); err != nil {
			t.Errorf("%s was not asked to stop: %v", m.ID, err)
		}
	}
}

// The addresses are part of the group's own state, so they must stay.
func TestAddressesAreKept(t *testing.T) {
	o := options(t)
	first, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	o.Shards = append(o.Shards, Shard{Name: "s3", Replicas: 1})
	second, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range first.Members() {
		if second.Members()[i] != m {
			t.Errorf("%s moved from %s to %s", m.ID, m.Address, second.Members()[i].Address)
		}
	}
	if err := os.WriteFile(filepath.Join(o.Dir, addressFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := plan(o); err == nil || !strings.Contains(err.Error(), addressFile) {
		t.Errorf("a broken file must be named: %v", err)
	}
}

func TestStartSaysWhyANodeEnded(t *testing.T) {
	_, err := Start(t.Context(), options(t, "--fail"))
	if errors.Is(err, context.DeadlineExceeded) {
		t.Error("the end of the node went unnoticed until the timeout")
	}
	if err == nil || !strings.Contains(err.Error(), "no such disk") {
		t.Fatalf("got %v, want what the node printed", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"Cluster":    func(o *Options) { o.Cluster = "" },
		"Dir":        func(o *Options) { o.Dir = "" },
		"Command":    func(o *Options) { o.Command = nil },
		"Shards":     func(o *Options) { o.Shards = nil },
		"2 replicas": func(o *Options) { o.Shards[0].Replicas = 2 },
	} {
		o := options(t)
		change(&o)
		if _, err := Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error that names %s", err, want)
		}
	}
	c, err := plan(options(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.KillNode("nobody"); err == nil {
		t.Error("an unknown node must be an error")
	}
	if err := c.StartNode(t.Context(), "nobody"); err == nil || c.Running("nobody") {
		t.Error("an unknown node must be an error")
	}
}
