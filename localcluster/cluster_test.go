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
	"slices"
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
	for _, name := range []string{"cluster", "shard", "id", "peers", "instruments", "advertise", "mark"} {
		fs.String(name, "", "")
	}
	fail, stubborn := fs.Bool("fail", false, ""), fs.Bool("stubborn", false, "")
	fs.Bool("join", false, "")
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
	if *stubborn {
		return 3
	}
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
	t.Cleanup(c.Close)
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
	first.Close()
	o.Shards = append(o.Shards, Shard{Name: "s3", Replicas: 1})
	second, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
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

// What another cluster in the directory printed before says nothing about this start.
func TestOnlyThisStartIsQuoted(t *testing.T) {
	o := options(t, "--fail")
	log := strings.Repeat("an old line\n", 100) + strings.Repeat("x", 5000) + "\n"
	for _, s := range o.Shards {
		for i := range s.Replicas {
			if err := os.WriteFile(logName(o.Dir, memberID(s, i)), []byte(log), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := Start(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "no such disk") || strings.Contains(err.Error(), "old line") || strings.Contains(err.Error(), "xx") {
		t.Errorf("got %v", err)
	}
	p := &process{logFile: filepath.Join(t.TempDir(), "log")}
	if err := os.WriteFile(p.logFile, []byte(log), 0o644); err != nil {
		t.Fatal(err)
	}
	tail := strings.Split(p.logTail(), "\n")
	if last := []rune(tail[len(tail)-1]); len(tail) > logTailLines || len(last) != logLineRunes+1 {
		t.Errorf("%d lines, the last of %d runes", len(tail), len(last))
	}
}

// A second start in the directory of a running cluster must not take the nodes of
// the first one for its own.
func TestOneClusterInADirectory(t *testing.T) {
	o := options(t)
	first, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(first.Close)
	_, err = Start(t.Context(), o)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("got %v", err)
	}
	first.Close()
	second, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

// A port on which somebody else listens is not the node's.
func TestAForeignListenerIsNotTheNode(t *testing.T) {
	o := options(t)
	c, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	m := c.Of("s1")[0]
	c.Close()
	l, err := net.Listen("tcp", m.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), m.ID) || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
	if own, err := listens(os.Getpid(), m.Listen); err != nil || !own {
		t.Errorf("this process listens: %t, %v", own, err)
	}
	if own, err := listens(os.Getppid(), m.Listen); err != nil || own {
		t.Errorf("its parent listens: %t, %v", own, err)
	}
}

func TestAnotherLayoutIsRefused(t *testing.T) {
	o := options(t)
	c, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	path, err := c.WriteMap()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Options){
		`"test", not "other"`:  func(o *Options) { o.Cluster = "other" },
		"2 shards, not 1":      func(o *Options) { o.Shards = o.Shards[:1] },
		"no shard s3":          func(o *Options) { o.Shards[1].Name = "s3" },
		"3 replicas, not 5":    func(o *Options) { o.Shards[0].Replicas = 5 },
		"instruments A, not C": func(o *Options) { o.Shards[0].Instruments = []string{"C"} },
	} {
		changed := o
		changed.Shards = slices.Clone(o.Shards)
		change(&changed)
		if _, err := Start(t.Context(), changed); !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the shard map was changed: %v", err)
	}
	again, err := plan(o)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestEndsAreNotified(t *testing.T) {
	c, err := Start(t.Context(), options(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ends, done := make(chan string, 4), make(chan struct{})
	go func() {
		defer close(done)
		c.NotifyEnds(ctx, func(m Member, err error) { ends <- fmt.Sprint(m.ID, " ", err) })
	}()
	if err := c.KillNode("s1-1"); err != nil {
		t.Fatal(err)
	}
	if got := <-ends; got != "s1-1 signal: killed" {
		t.Errorf("got %q", got)
	}
	cancel()
	<-done
	if len(ends) > 0 {
		t.Errorf("%s was said to have ended", <-ends)
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
	t.Cleanup(c.Close)
	if err := c.StartNode(t.Context(), "nobody"); err == nil || c.Running("nobody") {
		t.Error("an unknown node must be an error")
	}
}

func TestFrontJoinForget(t *testing.T) {
	o := options(t)
	fronted := map[string]string{}
	o.Front = func(id, listen string) (string, []string, error) {
		fronted[id] = listen
		return "127.0.0.1:" + fmt.Sprint(len(fronted)), []string{"--mark", id}, nil
	}
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	joined, err := c.JoinNode(t.Context(), "s1", "s1-3")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Of("s1"); len(got) != 4 || got[3] != joined || !c.Running("s1-3") {
		t.Errorf("members after the join: %+v", got)
	}
	for _, m := range c.Members() {
		if m.Listen != fronted[m.ID] || m.Address == m.Listen {
			t.Errorf("%s listens on %s behind %s; its front was told %s", m.ID, m.Listen, m.Address, fronted[m.ID])
		}
		_, p, err := c.find(m.ID)
		if err != nil {
			t.Fatal(err)
		}
		argv := strings.Join(p.argv, " ")
		if !strings.Contains(argv, "--advertise "+m.Address) || !strings.Contains(argv, "--mark "+m.ID) ||
			strings.Contains(argv, "--join") != (m.ID == "s1-3") {
			t.Errorf("%s is started with %s", m.ID, argv)
		}
	}
	if got := c.Map().Shard("s1").Member("s1-1").Address; got != c.Of("s1")[1].Address {
		t.Errorf("the shard map names %s", got)
	}
	if _, err := c.JoinNode(t.Context(), "s1", "s1-0"); err == nil {
		t.Error("an id was given twice")
	}
	if err := c.ForgetNode("s1-0"); err != nil || len(c.Of("s1")) != 3 || c.Running("s1-0") {
		t.Errorf("forget: %v; %+v", err, c.Of("s1"))
	}
}

func TestPauseAndStopOneNode(t *testing.T) {
	c, err := Start(t.Context(), options(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	m := c.Of("s1")[0]
	if !c.PauseNode(m.ID) || !c.ResumeNode(m.ID) || c.PauseNode("nobody") {
		t.Error("pause or resume found no process, or one that is not there")
	}
	if err := c.StopNode(m.ID); err != nil || c.Running(m.ID) {
		t.Errorf("stop: %v", err)
	}
	if err := c.StopNode(m.ID); err != nil {
		t.Errorf("a node that is down was asked to stop: %v", err)
	}
	failing, err := Start(t.Context(), options(t, "--stubborn"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(failing.Kill)
	if err := failing.StopNode("s1-0"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a bad end gives %v", err)
	}
}
