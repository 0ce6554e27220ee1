// Package trial runs a whole Countinghouse on one machine, storage nodes as
// processes and the exchange in this one, puts order flow through it while a
// storage leader is killed, and then proves from what the replicas hold whether
// anything was lost, doubled or changed.
package trial

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// Flow drives an exchange.
type Flow interface {
	// Prepare opens accounts and moves money before trading begins.
	Prepare(e *Entry) error
	// Step makes the next request, and reports false instead when there is none.
	Step(e *Entry) (bool, error)
	// Due returns when, after the beginning of trading, the next step is to be
	// made; a time that has passed means at once.
	Due() time.Duration
	// Steps returns how many requests the flow will make, for progress and for
	// the instant of the kill.
	Steps() uint64
}

// Config says what a trial consists of.
type Config struct {
	Seed        uint64
	Dir         string // data of nodes and outbox; it must exist
	Cluster     string
	Shards      []localcluster.Shard
	NodeCommand []string // program and first arguments of a storage node
	NodeArgs    []string
	Instruments order.Set
	Flow        Flow
	KillLeader  bool // kill the first shard's leader half-way, restart it at three quarters
	Delivery    exchange.Delivery
	QuotaBytes  int64        // of the outbox; 0 for the default
	Clock       func() int64 // Unix nanoseconds; nil for the system's clock
	// Inspect, if set, is called at the end, while the nodes still run.
	Inspect func(context.Context, *client.Client) error

	// Progress takes a line on how far the trial is, Note one that stays.
	Progress, Note func(format string, args ...any)
}

// Report is the trial's result. Its JSON form is what machines read.
type Report struct {
	OK            bool          `json:"ok"`
	Seed          uint64        `json:"seed"`
	Shards        int           `json:"shards"`
	Replicas      int           `json:"replicas"`
	Seconds       float64       `json:"seconds"`
	Orders        uint64        `json:"orders"`
	Accepted      uint64        `json:"accepted"`
	Changes       uint64        `json:"cancels_and_amends"`
	Trades        uint64        `json:"trades"`
	Notifications Notifications `json:"notifications"`
	Batches       uint64        `json:"batches"`
	Latency       Latency       `json:"order_latency_ns"`
	LatencyCalm   Latency       `json:"order_latency_before_and_after_ns"`
	LatencyFailed Latency       `json:"order_latency_during_failover_ns"`
	FailoverMS    float64       `json:"failover_ms"`
	Killed        string        `json:"killed,omitempty"`
	LagMax        uint64        `json:"lag_records_max"`
	BytesCompared uint64        `json:"bytes_compared"`
	Identical     bool          `json:"replicas_identical"`
	Rebuilt       bool          `json:"rebuild_identical"`
	RebuildMS     float64       `json:"rebuild_ms"`
	Findings      []string      `json:"findings"`
}

// Notifications counts records.
type Notifications struct {
	Received   uint64 `json:"received"`
	Persisted  uint64 `json:"persisted"`
	Lost       uint64 `json:"lost"`
	Duplicated uint64 `json:"duplicated"`
}

const (
	drainWait = 60 * time.Second
	// outboxName is the outbox's directory in Config.Dir.
	outboxName = "outbox"
)

// trial is a run in progress.
type trial struct {
	Config
	cluster *localcluster.Cluster
	shards  *client.Map
	client  *client.Client
	ex      *exchange.Exchange
	entry   *Entry
	report  Report

	stallMax time.Duration
}

// Run runs a trial. The report is valid when the error is nil; whether the trial
// found something wrong is Report.OK.
func Run(ctx context.Context, c Config) (Report, error) {
	t := &trial{Config: c, stallMax: stallMax, report: Report{Seed: c.Seed, Shards: len(c.Shards), Findings: []string{}}}
	return t.run(ctx)
}

func (t *trial) run(ctx context.Context) (Report, error) {
	began := time.Now()
	defer t.stop(ctx)
	if err := t.start(ctx); err != nil {
		return t.report, err
	}
	if err := t.unlessStalled(ctx, t.trade); err != nil {
		return t.report, err
	}
	if err := t.unlessStalled(ctx, t.settle); err != nil {
		return t.report, err
	}
	if err := t.prove(ctx); err != nil {
		return t.report, err
	}
	if t.Inspect != nil {
		if err := t.Inspect(ctx, t.client); err != nil {
			return t.report, err
		}
	}
	t.report.Seconds = time.Since(began).Seconds()
	return t.report, nil
}

func (t *trial) start(ctx context.Context) error {
	t.Progress("starting %d shards of storage nodes", len(t.Shards))
	var err error
	t.cluster, err = localcluster.Start(ctx, localcluster.Options{
		Cluster: t.Cluster, Dir: t.Dir, Command: t.NodeCommand, Args: t.NodeArgs, Shards: t.Shards,
	})
	if err != nil {
		return err
	}
	t.report.Replicas = len(t.cluster.Members())
	t.shards = t.cluster.Map()
	if t.client, err = client.New(t.shards, client.Options{}); err != nil {
		return err
	}
	if _, err := t.cluster.WriteMap(); err != nil {
		return err
	}
	if err := t.cluster.AwaitLeaders(ctx); err != nil {
		return err
	}
	t.ex, err = exchange.Open(ctx, exchange.Config{
		Shards: t.shards, Instruments: t.Instruments, OutboxDir: filepath.Join(t.Dir, outboxName),
		Delivery: t.Delivery, QuotaBytes: t.QuotaBytes, Clock: t.Clock, CloseWait: stopWait, StateEvery: -1, Init: true,
	})
	if err != nil {
		return fmt.Errorf("start the exchange: %w", err)
	}
	t.entry = newEntry(t.ex.Router())
	return t.Flow.Prepare(t.entry)
}

// stop ends what still runs. When the trial was interrupted, nodes are killed: what
// they acknowledged is on disk.
func (t *trial) stop(ctx context.Context) {
	if t.cluster != nil && ctx.Err() != nil {
		t.cluster.Kill()
	}
	if t.ex != nil {
		_, err := t.ex.Close()
		if err != nil && !errors.Is(err, exchange.ErrClosed) {
			t.Note("stop the exchange: %v", err)
		}
	}
	if t.client != nil {
		_ = t.client.Close() // nothing is written through it
	}
	if t.cluster != nil {
		t.cluster.Stop()
	}
}

// trade runs the flow, with the faults and the monitor beside it.
func (t *trial) trade(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	progress := newMeter()
	watched := make(chan struct{})
	g.Go(func() error {
		defer close(watched)
		return t.watch(ctx, progress)
	})
	g.Go(func() error {
		if t.KillLeader {
			return t.killAndRestart(ctx, progress)
		}
		return nil
	})
	g.Go(func() error { return t.drive(ctx, progress) })
	err := g.Wait()
	<-watched
	if cause := t.ex.Err(); cause != nil {
		return fmt.Errorf("the exchange stopped: %w", cause)
	}
	return err
}

// drive makes the flow's requests when they are due. Requests that are due
// together are made together: the pace is kept by sleeping, not by spinning.
func (t *trial) drive(ctx context.Context, m *meter) error {
	defer m.finish()
	began := time.Now()
	for n := uint64(0); ; n++ {
		if n%64 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if wait := t.Flow.Due() - time.Since(began); wait > 0 {
			pause(ctx, max(wait, time.Millisecond))
		}
		more, err := t.Flow.Step(t.entry)
		if err != nil {
			return fmt.Errorf("order flow, request %d: %w", n+1, err)
		}
		if !more {
			return nil
		}
		m.advance(n + 1)
	}
}

// pause sleeps, and ends early with ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// settle waits until everything is durable and the killed node runs again.
func (t *trial) settle(ctx context.Context) error {
	t.Progress("draining the outbox")
	ctx, cancel := context.WithTimeout(ctx, drainWait)
	defer cancel()
	if err := t.ex.WaitDrained(ctx); err != nil {
		return fmt.Errorf("drain the outbox: %w", err)
	}
	stats := t.ex.Stats()
	t.report.Notifications.Received = stats.Outbox.Published
	t.report.Batches = stats.Subscriber.Batches
	t.report.Orders, t.report.Accepted, t.report.Changes = t.entry.submitted, t.entry.accepted, t.entry.changes
	t.report.Trades = stats.Core.Trades
	t.report.Latency, t.report.LatencyCalm, t.report.LatencyFailed = t.entry.all(), latencyOf(t.entry.calm), latencyOf(t.entry.failed)
	return nil
}
