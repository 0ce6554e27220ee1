package ingest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	recordBytes = 128
	replicas    = 3

	openTimeout  = 30 * time.Second
	pollInterval = 2 * time.Millisecond

	// A follower that hears nothing for so long on a busy machine still waits; the
	// member that is to lead asks for votes long before.
	followerTimeout = 5 * time.Second
	leaderTimeout   = 500 * time.Millisecond
)

// cluster is a running system of three members that leads shards of its own.
type cluster interface {
	// Submit hands a batch of whole records over and calls done once, from any
	// goroutine, when the batch is acknowledged or refused. One goroutine a shard
	// calls it; it may block. The batch is never changed, but is the same memory at
	// each call: what keeps it takes a copy.
	Submit(shard int, batch []byte, done func(error))
	// Stored returns how many records of a shard can be read at its leader.
	Stored(shard int) (int, error)
	// Close ends all members. Nothing is on its way then.
	Close() error
}

// system is what opens clusters.
type system struct {
	name    string
	ours    bool
	durable string // what is on disk when a batch is acknowledged
	note    string
	// open starts a cluster below an empty directory and waits until each shard has
	// a leader.
	open func(ctx context.Context, dir string, shards int) (cluster, error)
}

// await polls until the condition holds: for systems that announce nothing.
func await(ctx context.Context, what string, condition func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		}
	}
	return nil
}

// freeAddresses returns n addresses of the loopback interface that nothing listens
// on, for systems that must know their members' before they listen.
func freeAddresses(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		out = append(out, l.Addr().String())
	}
	return out, nil
}

func splitPort(address string) (host string, port int, err error) {
	a, err := netip.ParseAddrPort(address)
	return a.Addr().String(), int(a.Port()), err
}

// joinErrors runs all of close and joins what they return.
func joinErrors(closes []func() error) error {
	var errs []error
	for _, c := range closes {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}
