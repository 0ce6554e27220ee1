package localcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Shard says what one shard of a cluster looks like.
type Shard struct {
	Name        string
	Instruments []string
	Replicas    int // 1, 3, 5 or 7
}

// Options configure a cluster.
type Options struct {
	// Cluster is the name that nodes and clients present to each other.
	Cluster string
	// Dir holds a directory and a log file for each node, and the nodes'
	// addresses: a cluster that is started there again keeps them.
	Dir string
	// Command is the program, with its first arguments, that takes a storage
	// node's flags.
	Command []string
	// Args are further flags for every node.
	Args []string
	// Shards are started in this order.
	Shards []Shard
}

// Member is one storage node of a running cluster.
type Member struct {
	Shard   string
	ID      string
	Address string // host:port
	DataDir string
	LogFile string
}

// Cluster is a set of storage node processes. It is safe for concurrent use.
type Cluster struct {
	name, dir string
	shards    []Shard
	members   []Member
	processes map[string]*process // by member id
}

const (
	startTimeout = 30 * time.Second
	stopGrace    = 10 * time.Second
	dialPause    = 20 * time.Millisecond
	logTailBytes = 2 << 10
)

// Start starts all nodes and waits until each one accepts connections. On error
// the nodes that did start are killed.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c, err := plan(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, m := range c.members {
		if err := c.processes[m.ID].start(); err != nil {
			c.Kill()
			return nil, err
		}
	}
	for _, m := range c.members {
		if err := c.awaitListening(ctx, m); err != nil {
			c.Kill()
			return nil, err
		}
	}
	return c, nil
}

// plan checks the options and lays out directories, addresses and command lines.
func plan(o Options) (*Cluster, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("local cluster: %w", err)
	}
	addresses, err := assignAddresses(o)
	if err != nil {
		return nil, err
	}
	c := &Cluster{name: o.Cluster, dir: o.Dir, shards: slices.Clone(o.Shards), processes: make(map[string]*process, len(addresses))}
	for _, s := range o.Shards {
		members := make([]Member, s.Replicas)
		for i := range members {
			id := memberID(s, i)
			members[i] = Member{
				Shard: s.Name, ID: id, Address: addresses[id],
				DataDir: filepath.Join(o.Dir, id), LogFile: logName(o.Dir, id),
			}
		}
		c.add(o, s, members)
	}
	return c, nil
}

func memberID(s Shard, i int) string { return fmt.Sprintf("%s-%d", s.Name, i) }

func (o Options) check() error {
	switch {
	case o.Cluster == "":
		return errors.New("local cluster: Cluster is empty: give the cluster a name")
	case o.Dir == "":
		return errors.New("local cluster: Dir is empty: name a directory for the nodes' data")
	case len(o.Command) == 0:
		return errors.New("local cluster: Command is empty: name the storage node program")
	case len(o.Shards) == 0:
		return errors.New("local cluster: Shards is empty: define at least one")
	}
	for _, s := range o.Shards {
		if s.Replicas < 1 || s.Replicas > 7 || s.Replicas%2 == 0 {
			return fmt.Errorf("local cluster: shard %s: %d replicas: use 1, 3, 5 or 7", s.Name, s.Replicas)
		}
	}
	return nil
}

func (c *Cluster) add(o Options, s Shard, members []Member) {
	peers := make([]string, len(members))
	for i, m := range members {
		peers[i] = m.ID + "=" + m.Address
	}
	for _, m := range members {
		argv := append(slices.Clone(o.Command),
			"--cluster", o.Cluster, "--shard", s.Name, "--id", m.ID,
			"--listen", m.Address, "--data-dir", m.DataDir,
			"--peers", strings.Join(peers, ","), "--instruments", strings.Join(s.Instruments, ","))
		c.members = append(c.members, m)
		c.processes[m.ID] = &process{id: m.ID, address: m.Address, argv: append(argv, o.Args...), logFile: m.LogFile}
	}
}

// awaitListening returns when the member's port accepts a connection, or with
// what the process printed when it ended before that.
func (c *Cluster) awaitListening(ctx context.Context, m Member) error {
	p := c.processes[m.ID]
	exited := p.running()
	if exited == nil {
		return p.endedAtStart()
	}
	dialer := net.Dialer{Timeout: time.Second}
	for {
		conn, err := dialer.DialContext(ctx, "tcp", m.Address)
		if err == nil {
			return conn.Close()
		}
		timer := time.NewTimer(dialPause)
		select {
		case <-timer.C:
		case <-exited:
			timer.Stop()
			return p.endedAtStart()
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("node %s does not listen on %s: %w: %s", m.ID, m.Address, ctx.Err(), strings.TrimSpace(p.logTail(logTailBytes)))
		}
	}
}

// Members returns all members, in the order of the shards.
func (c *Cluster) Members() []Member { return slices.Clone(c.members) }

// Of returns the members of one shard.
func (c *Cluster) Of(shard string) []Member {
	return slices.DeleteFunc(c.Members(), func(m Member) bool { return m.Shard != shard })
}

// KillNode ends a node with SIGKILL and waits until it is gone.
func (c *Cluster) KillNode(id string) error {
	p, ok := c.processes[id]
	if !ok {
		return fmt.Errorf("no node %s in cluster %s", id, c.name)
	}
	p.kill()
	return nil
}

// StartNode starts a node that was killed or stopped, on its address and its
// data, and waits until it accepts connections.
func (c *Cluster) StartNode(ctx context.Context, id string) error {
	p, ok := c.processes[id]
	if !ok {
		return fmt.Errorf("no node %s in cluster %s", id, c.name)
	}
	if err := p.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	i := slices.IndexFunc(c.members, func(m Member) bool { return m.ID == id })
	return c.awaitListening(ctx, c.members[i])
}

// Running reports whether the node's process runs.
func (c *Cluster) Running(id string) bool {
	p, ok := c.processes[id]
	return ok && p.running() != nil
}

// Stop asks all nodes to end, at once, and kills those that take too long.
func (c *Cluster) Stop() {
	c.each(func(p *process) { p.stop(stopGrace) })
}

// Kill ends all nodes with SIGKILL.
func (c *Cluster) Kill() {
	c.each((*process).kill)
}

func (c *Cluster) each(do func(*process)) {
	var wg sync.WaitGroup
	for _, p := range c.processes {
		wg.Go(func() { do(p) })
	}
	wg.Wait()
}
