// Package child runs storage nodes as processes of their own, which are this
// program again, and writes to them.
package child

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/node"
)

// role is the first argument of a process that is to be a storage node.
const role = "storage-node"

// Main returns at once unless the process was started by Start: then the process is
// a storage node, and ends as one.
func Main() {
	if len(os.Args) > 1 && os.Args[1] == role {
		os.Exit(node.Execute(context.Background(), os.Args[2:]))
	}
}

const (
	shard     = "s"
	pollTime  = time.Millisecond
	ownedTime = 30 * time.Second
)

// Node is a shard of one replica in a process of its own. Its methods are for one
// goroutine, but those of Client.
type Node struct {
	Client  *client.Client
	Streams []history.Stream

	cluster *localcluster.Cluster
}

// Start starts a node in dir with further flags and waits until it leads
// and takes records.
func Start(ctx context.Context, dir string, streams []history.Stream, args ...string) (*Node, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	names := make([]string, len(streams))
	for i := range streams {
		names[i] = streams[i].Symbol.String()
	}
	c, err := localcluster.Start(ctx, localcluster.Options{
		Cluster: "bench", Dir: dir, Command: []string{self, role},
		Args:   append([]string{"--log-level", "warn"}, args...),
		Shards: []localcluster.Shard{{Name: shard, Instruments: names, Replicas: 1}},
	})
	if err != nil {
		return nil, err
	}
	n := &Node{Streams: streams, cluster: c}
	if n.Client, err = client.New(c.Map(), client.Options{RetryPauseMin: pollTime, RetryPauseMax: 5 * pollTime}); err != nil {
		c.Close()
		return nil, err
	}
	if err := errors.Join(c.AwaitLeaders(ctx), n.awaitInstruments(ctx)); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// awaitInstruments waits until the shard owns its instruments, which its first leader
// sees to once it leads.
func (n *Node) awaitInstruments(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ownedTime)
	defer cancel()
	for {
		answer, err := n.Client.Instruments(ctx, shard, client.Replica{})
		if err == nil && len(answer.Instruments) == len(n.Streams) {
			return nil
		}
		select {
		case <-time.After(pollTime):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// Close kills the node and the learner.
func (n *Node) Close() {
	_ = n.Client.Close() // nothing is lost with a connection
	n.cluster.Close()
}

// Kill ends the node with SIGKILL.
func (n *Node) Kill() error { return n.cluster.KillNode(n.id()) }

// Restart starts the node after Kill and returns when its port is open.
func (n *Node) Restart(ctx context.Context) error { return n.cluster.StartNode(ctx, n.id()) }

// Snapshot makes the node take one.
func (n *Node) Snapshot(ctx context.Context) error {
	_, err := n.Client.Snapshot(ctx, shard, n.id())
	return err
}

// Join starts a second node with an empty directory, and returns what adds it to the
// shard as a learner.
func (n *Node) Join(ctx context.Context, id string) (add func(context.Context) error, err error) {
	m, err := n.cluster.JoinNode(ctx, shard, id)
	if err != nil {
		return nil, err
	}
	if err := n.Client.SetMembers(shard, append(n.Client.Members(shard), client.Member{ID: id, Address: m.Address})); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		_, err := n.Client.AddLearner(ctx, shard, id, m.Address, 0)
		return err
	}, nil
}

// LastSeqs returns the last seq of each stream as a member sees it, the leader for "".
func (n *Node) LastSeqs(ctx context.Context, member string) ([]uint64, error) {
	answer, err := n.Client.Instruments(ctx, shard, client.Replica{Member: member})
	if err != nil {
		return nil, err
	}
	out := make([]uint64, len(n.Streams))
	for _, st := range answer.Instruments {
		for i := range n.Streams {
			if n.Streams[i].Symbol.String() == st.Instrument {
				out[i] = st.LastSeq
			}
		}
	}
	return out, nil
}

// TableRecords returns how many of the shard's records are in tables.
func (n *Node) TableRecords(ctx context.Context) (records uint64, err error) {
	answer, err := n.Client.Instruments(ctx, shard, client.Replica{})
	if err != nil {
		return 0, err
	}
	for _, st := range answer.Instruments {
		records += st.TableRecords
	}
	return records, nil
}

// id of the shard's first member.
func (n *Node) id() string { return n.cluster.Members()[0].ID }
