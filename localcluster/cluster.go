package localcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/countinghouse/countinghouse/storagenode/client"
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
	// Client says how AwaitLeaders reaches the nodes.
	Client client.Options
	// Shards are started in this order.
	Shards []Shard
	// Front, if set, is asked for every member, which listens on the given
	// host:port: it returns the address under which the others and clients are
	// to reach it, such as a proxy's, and further flags for this node.
	Front func(id, listen string) (address string, args []string, err error)
}

// Member is one storage node of a running cluster.
type Member struct {
	Shard   string
	ID      string
	Address string // host:port under which others reach it
	Listen  string // host:port on which the process listens
	DataDir string
	LogFile string
}

// Cluster is a set of storage node processes. It is safe for concurrent use.
type Cluster struct {
	options Options
	ports   ports
	lock    *os.File // of the directory; closed by Close

	mu        sync.Mutex
	members   []Member
	processes map[string]*process // by member id
}

const (
	startTimeout = 30 * time.Second
	stopGrace    = 10 * time.Second
	dialPause    = 20 * time.Millisecond
)

// Start starts all nodes and waits until each one accepts connections. On error
// the nodes that did start are killed. It matches ErrInUse if another process runs
// the cluster of the directory, and ErrLayout if that cluster has another layout.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c, err := plan(o)
	if err != nil {
		return nil, err
	}
	for _, m := range c.members {
		if err := c.processes[m.ID].start(); err != nil {
			c.Close()
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, m := range c.members {
		if err := c.awaitListening(ctx, m); err != nil {
			c.Close()
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
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Shards = slices.Clone(o.Shards)
	c := &Cluster{options: o, lock: lock, processes: map[string]*process{}}
	if err := c.layOut(); err != nil {
		c.release()
		return nil, err
	}
	return c, nil
}

// layOut gives every member its address and its command line.
func (c *Cluster) layOut() error {
	if err := c.options.checkLayout(); err != nil {
		return err
	}
	addresses, err := c.ports.assign(c.options)
	if err != nil {
		return err
	}
	for _, s := range c.options.Shards {
		if err := c.addShard(s, addresses); err != nil {
			return err
		}
	}
	return nil
}

// release gives the ports and the directory back.
func (c *Cluster) release() {
	c.ports.release()
	_ = c.lock.Close() // which ends the lock
}

// addShard lays out the first voters of a shard.
func (c *Cluster) addShard(s Shard, addresses map[string]string) error {
	members, args := make([]Member, s.Replicas), make([][]string, s.Replicas)
	peers := make([]string, s.Replicas)
	for i := range members {
		id := memberID(s, i)
		var err error
		if members[i], args[i], err = c.newMember(s.Name, id, addresses[id]); err != nil {
			return err
		}
		peers[i] = id + "=" + members[i].Address
	}
	for i, m := range members {
		c.add(m, append(args[i], "--peers", strings.Join(peers, ","), "--instruments", strings.Join(s.Instruments, ",")))
	}
	return nil
}

// newMember lays out a member, and returns the flags of its own that it needs.
func (c *Cluster) newMember(shard, id, listen string) (Member, []string, error) {
	m := Member{
		Shard: shard, ID: id, Address: listen, Listen: listen,
		DataDir: filepath.Join(c.options.Dir, id), LogFile: logName(c.options.Dir, id),
	}
	if c.options.Front == nil {
		return m, nil, nil
	}
	address, args, err := c.options.Front(id, listen)
	if err != nil {
		return m, nil, fmt.Errorf("local cluster: node %s: %w", id, err)
	}
	m.Address = address
	return m, append(slices.Clone(args), "--advertise", address), nil
}

// add notes a member and the process that it will be.
func (c *Cluster) add(m Member, args []string) {
	argv := append(slices.Clone(c.options.Command),
		"--cluster", c.options.Cluster, "--shard", m.Shard, "--id", m.ID, "--listen", m.Listen, "--data-dir", m.DataDir)
	argv = append(append(argv, args...), c.options.Args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = append(c.members, m)
	c.processes[m.ID] = &process{id: m.ID, address: m.Listen, argv: argv, logFile: m.LogFile}
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

// awaitListening returns when the member's process listens on its port, or with
// what the process printed when it ended before that.
func (c *Cluster) awaitListening(ctx context.Context, m Member) error {
	_, p, err := c.find(m.ID)
	if err != nil {
		return err
	}
	exited := p.running()
	if exited == nil {
		return p.endedAtStart()
	}
	ticker := time.NewTicker(dialPause)
	defer ticker.Stop()
	for {
		if own, err := p.listens(); own || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-exited:
			return p.endedAtStart()
		case <-ctx.Done():
			return fmt.Errorf("node %s does not listen on %s: %w%s", m.ID, m.Listen, ctx.Err(), p.printed())
		}
	}
}

// Members returns all members, in the order of the shards; those that were added
// later come last.
func (c *Cluster) Members() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.members)
}

// Of returns the members of one shard.
func (c *Cluster) Of(shard string) []Member {
	return slices.DeleteFunc(c.Members(), func(m Member) bool { return m.Shard != shard })
}

// find returns a member and its process.
func (c *Cluster) find(id string) (Member, *process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.members, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return Member{}, nil, fmt.Errorf("no node %s in cluster %s", id, c.options.Cluster)
	}
	return c.members[i], c.processes[id], nil
}

// KillNode ends a node with SIGKILL and waits until it is gone.
func (c *Cluster) KillNode(id string) error {
	_, p, err := c.find(id)
	if err != nil {
		return err
	}
	p.kill()
	return nil
}

// StopNode asks a node to end and waits until it has. A node that takes too long
// is killed, which is an error, as is an end with an exit code other than 0.
func (c *Cluster) StopNode(id string) error {
	_, p, err := c.find(id)
	if err != nil {
		return err
	}
	return p.stop(stopGrace)
}

// PauseNode halts a node's process with SIGSTOP, and ResumeNode lets it go on.
// They report whether there was a process.
func (c *Cluster) PauseNode(id string) bool { return c.signal(id, syscall.SIGSTOP) }

// ResumeNode lets a halted node go on.
func (c *Cluster) ResumeNode(id string) bool { return c.signal(id, syscall.SIGCONT) }

func (c *Cluster) signal(id string, sig syscall.Signal) bool {
	_, p, err := c.find(id)
	return err == nil && p.signal(sig)
}

// StartNode starts a node that was killed or stopped, on its address and its
// data, and waits until it accepts connections.
func (c *Cluster) StartNode(ctx context.Context, id string) error {
	m, p, err := c.find(id)
	if err != nil {
		return err
	}
	if err := p.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return c.awaitListening(ctx, m)
}

// JoinNode starts a node with an empty directory that waits to be added to the
// shard, and waits until it accepts connections. The id must never have been
// used. The caller makes it a member, through the shard's leader. A cluster that is
// started again in the same directory does not have it.
func (c *Cluster) JoinNode(ctx context.Context, shard, id string) (Member, error) {
	if _, _, err := c.find(id); err == nil {
		return Member{}, fmt.Errorf("node %s is in cluster %s already", id, c.options.Cluster)
	}
	listen, err := c.ports.free(1)
	if err != nil {
		return Member{}, err
	}
	m, args, err := c.newMember(shard, id, listen[0])
	if err != nil {
		return m, err
	}
	c.add(m, append(args, "--join"))
	return m, c.StartNode(ctx, id)
}

// ForgetNode kills a node that is no longer a member and drops it from the
// cluster. Its directory stays.
func (c *Cluster) ForgetNode(id string) error {
	if err := c.KillNode(id); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = slices.DeleteFunc(c.members, func(m Member) bool { return m.ID == id })
	delete(c.processes, id)
	return nil
}

// Running reports whether the node's process runs.
func (c *Cluster) Running(id string) bool {
	_, p, err := c.find(id)
	return err == nil && p.running() != nil
}

// LogTail returns the last lines that the node has printed since it was started.
func (c *Cluster) LogTail(id string) string {
	_, p, err := c.find(id)
	if err != nil {
		return ""
	}
	return p.logTail()
}

// NotifyEnds calls ended for each node whose present process ends before ctx does,
// and returns when ctx has ended or no node runs. How the process ended, nil for
// exit code 0, is passed on.
func (c *Cluster) NotifyEnds(ctx context.Context, ended func(Member, error)) {
	var wg sync.WaitGroup
	var mu sync.Mutex // ended is called by one at a time
	for _, m := range c.Members() {
		_, p, err := c.find(m.ID)
		if err != nil {
			continue
		}
		wg.Go(func() {
			if exited := p.running(); exited != nil {
				select {
				case <-exited:
				case <-ctx.Done():
					return
				}
			}
			mu.Lock()
			defer mu.Unlock()
			ended(m, p.end())
		})
	}
	wg.Wait()
}

// Stop asks all nodes to end, at once, kills those that take too long, and closes
// the cluster.
func (c *Cluster) Stop() {
	c.each(func(p *process) { _ = p.stop(stopGrace) })
	c.Close()
}

// Close kills all nodes that run and gives their ports and the directory back. No node of c may be
// started after it.
func (c *Cluster) Close() {
	c.Kill()
	c.release()
}

// Kill ends all nodes with SIGKILL. They can be started again.
func (c *Cluster) Kill() {
	c.each((*process).kill)
}

func (c *Cluster) each(do func(*process)) {
	var wg sync.WaitGroup
	for _, m := range c.Members() {
		if _, p, err := c.find(m.ID); err == nil {
			wg.Go(func() { do(p) })
		}
	}
	wg.Wait()
}
