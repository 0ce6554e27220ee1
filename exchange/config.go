package exchange

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// ErrConfig means that a Config cannot be used; the error names the field.
var ErrConfig = errors.New("exchange configuration")

// Config says what an exchange is made of. The zero value of a field that has a
// default means that.
type Config struct {
	// Shards is the cluster's shard map. It names the cluster, and an owner for
	// every instrument and for record.AccountStream. Required.
	Shards *client.Map
	// Instruments are the terms of what is traded. Required. An instrument that
	// was listed before keeps its tick and what a tick is worth; other terms
	// that differ are recorded and apply from the start on, unless live orders
	// forbid it, see Recovery.Postponed. Daily limits follow from the last
	// settlement once there was one.
	Instruments order.Set
	// OutboxDir is the outbox's directory; its parent must exist. Required.
	OutboxDir string

	// QuotaBytes bounds the outbox's files. Default 1 GiB, about 7.6 million
	// records. A quarter of it, but at most 64 files, lies ready in memory: that
	// much is taken while the outbox's file system is late with the next files.
	QuotaBytes int64
	// SegmentRecords is the capacity of one of the outbox's files, a multiple
	// of 32, fixed when the outbox is created. Default 65536.
	SegmentRecords int
	// Policy says what happens when the quota is used up. Default: Reject. Drop
	// gives up rebuild and restart; it is for simulators. Once a record was
	// dropped, what outbox and stores hold is a part of the history, which is
	// noted in the state file, and the next start is refused with ErrDropped.
	Policy gateway.Policy
	// HeadroomRecords is the part of the quota that orders leave to cancels,
	// money and control. Default 4096, or half of SegmentRecords if that is
	// less; negative for none.
	HeadroomRecords int

	// ExternalSubscriber leaves the delivery of the outbox's records to another
	// process, see subscriber.Process. This one then writes to the shards at its
	// start only: it opens their streams and gives the other one its grant.
	ExternalSubscriber bool
	// Delivery tunes the subscriber.
	Delivery Delivery
	// Client tunes the connections to the storage nodes.
	Client client.Options
	// Follow, if set, is called in a goroutine of its own as soon as there is a
	// client, and may change its members until ctx ends, when the exchange does; it
	// must return then.
	Follow func(ctx context.Context, c *client.Client)

	// Init declares the first start of a cluster, which nothing is stored of:
	// it may then start without its storage. It has no effect on an outbox that
	// holds records, and is refused when the stores do.
	Init bool
	// AcceptLoss lets a start give up records that cannot be rebuilt from, because
	// others before them were lost with an outbox. They stay in the stores, and a
	// HistoryCut says that they do not count. It has no effect on a whole history,
	// but that the state file is not looked at.
	AcceptLoss bool
	// LiveOrdersMax is how many orders may rest in one book; default
	// core.DefaultLiveOrdersMax. Above it orders that would rest are refused.
	LiveOrdersMax int
	// StorageWait is how long Open waits for shards without which it cannot
	// start. Default 30 s.
	StorageWait time.Duration
	// DrainWait is how long Open waits for the delivery of what the outbox
	// holds before it goes on without, and for shards that it can start
	// without. Default 5 s.
	DrainWait time.Duration
	// CloseWait is how long Close waits for the delivery of what the outbox
	// holds; what is left is delivered after the next start. Default 5 s.
	CloseWait time.Duration
	// StateEvery is how often the state file is replaced. It takes a state of
	// all accounts and orders, and no order is taken while these are copied; the
	// pause is stretched so that all of it is at most a thousandth of the time.
	// Default 1 minute; negative for never.
	StateEvery time.Duration

	// Progress, if set, is told how far Open and Close are, about ten times a
	// second. It must return quickly.
	Progress func(Progress)
	// Clock returns Unix nanoseconds. It is called by one goroutine at a time.
	// Default: core.SystemClock.
	Clock func() int64
	// Log takes what an operator should know. Default: nothing is logged.
	Log *slog.Logger
}

// Delivery tunes the way from the outbox to the shards. The zero value of a
// field means its default.
type Delivery struct {
	BatchRecords  int           // records per batch; default 100
	Linger        time.Duration // how long a batch waits to be filled; default 10 ms
	WindowBatches int           // batches in flight per shard; default 8
}

// DeliveryPreset returns the settings of that name: "default" (100 records,
// 10 ms) or "production" (1000 records, 5 ms).
func DeliveryPreset(name string) (Delivery, error) {
	switch name {
	case "default":
		return Delivery{BatchRecords: 100, Linger: 10 * time.Millisecond, WindowBatches: 8}, nil
	case "production":
		return Delivery{BatchRecords: 1000, Linger: 5 * time.Millisecond, WindowBatches: 8}, nil
	}
	return Delivery{}, fmt.Errorf("preset %q: use \"default\" or \"production\"", name)
}

// Limits of Delivery.
const (
	lingerMax        = 10 * time.Second
	windowBatchesMax = 1024
)

// Phase names what Open or Close is doing.
type Phase string

// The phases.
const (
	PhaseStores  Phase = "asking the shards"
	PhaseCompare Phase = "comparing outbox and stores"
	PhaseDrain   Phase = "delivering what the outbox holds"
	PhaseReplay  Phase = "replaying"
)

// Progress tells how far a phase is.
type Progress struct {
	Phase Phase
	Done  uint64 // records
	Total uint64 // records, 0 when not known
	Note  string // such as the shard that is waited for
}

func (c *Config) complete() error {
	if err := c.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	c.OutboxDir = filepath.Clean(c.OutboxDir)
	setDefault(&c.LiveOrdersMax, core.DefaultLiveOrdersMax)
	setDefault(&c.HeadroomRecords, min(gateway.DefaultHeadroomRecords, c.segmentRecords()/2))
	setDefault(&c.Delivery.BatchRecords, 100)
	setDefault(&c.Delivery.Linger, 10*time.Millisecond)
	setDefault(&c.Delivery.WindowBatches, 8)
	setDefault(&c.StorageWait, 30*time.Second)
	setDefault(&c.DrainWait, 5*time.Second)
	setDefault(&c.CloseWait, 5*time.Second)
	setDefault(&c.StateEvery, time.Minute)
	if c.Progress == nil {
		c.Progress = func(Progress) {}
	}
	if c.Clock == nil {
		c.Clock = core.SystemClock()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// readyRecords is how many records fit at once, at the least: those of the outbox's
// files that lie ready behind the one that is being written. A transaction and the
// headroom must fit in them.
func (c *Config) readyRecords() int { return outbox.AheadMin * c.segmentRecords() }

// segmentRecords returns the size of the outbox's files; the real one, if the
// outbox was created with another, is not known before it is opened.
func (c *Config) segmentRecords() int {
	if c.SegmentRecords > 0 {
		return c.SegmentRecords
	}
	return 1 << 16
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c *Config) check() error {
	switch {
	case c.Shards == nil:
		return errors.New("Shards: missing: give a shard map")
	case c.OutboxDir == "":
		return errors.New("OutboxDir: missing: name a directory for the outbox")
	case len(c.Instruments.Instruments) == 0:
		return errors.New("Instruments: none: list at least one")
	case c.QuotaBytes < 0:
		return fmt.Errorf("QuotaBytes: %d is negative", c.QuotaBytes)
	case c.SegmentRecords < 0:
		return fmt.Errorf("SegmentRecords: %d is negative", c.SegmentRecords)
	case len(c.Instruments.Instruments) > c.readyRecords():
		return fmt.Errorf("SegmentRecords: %d: a settlement writes a record for each of %d instruments at once, which must fit into %d files: use at least %d",
			c.segmentRecords(), len(c.Instruments.Instruments), outbox.AheadMin, (len(c.Instruments.Instruments)+outbox.AheadMin-1)/outbox.AheadMin)
	case c.LiveOrdersMax < 0:
		return fmt.Errorf("LiveOrdersMax: %d; use 1 or more", c.LiveOrdersMax)
	case c.HeadroomRecords > c.segmentRecords():
		return fmt.Errorf("HeadroomRecords: %d is more than the %d records of one of the outbox's files", c.HeadroomRecords, c.segmentRecords())
	case c.Policy != gateway.Reject && c.Policy != gateway.Drop:
		return fmt.Errorf("Policy: %d: use gateway.Reject or gateway.Drop", c.Policy)
	}
	if err := c.Shards.Check(); err != nil {
		return fmt.Errorf("Shards: %w", err)
	}
	if err := c.Delivery.check(); err != nil {
		return fmt.Errorf("Delivery.%w", err)
	}
	if err := c.checkWaits(); err != nil {
		return err
	}
	return c.checkInstruments()
}

func (c *Config) checkWaits() error {
	for _, w := range []struct {
		name string
		wait time.Duration
	}{{"StorageWait", c.StorageWait}, {"DrainWait", c.DrainWait}, {"CloseWait", c.CloseWait}} {
		if w.wait < 0 {
			return fmt.Errorf("%s: %v is negative; use 1ns for no wait", w.name, w.wait)
		}
	}
	return nil
}

// check reports the first field out of range, as "Field: …".
func (d *Delivery) check() error {
	switch {
	case d.BatchRecords < 0 || d.BatchRecords > record.MaxBatchRecords:
		return fmt.Errorf("BatchRecords: %d: use 1 to %d", d.BatchRecords, record.MaxBatchRecords)
	case d.Linger < 0 || d.Linger > lingerMax:
		return fmt.Errorf("Linger: %v: use up to %v", d.Linger, lingerMax)
	case d.WindowBatches < 0 || d.WindowBatches > windowBatchesMax:
		return fmt.Errorf("WindowBatches: %d: use 1 to %d", d.WindowBatches, windowBatchesMax)
	}
	return nil
}

// checkInstruments reports terms that cannot be traded on, and streams that no
// shard owns.
func (c *Config) checkInstruments() error {
	streams := []string{record.AccountStream}
	seen := make(map[record.Symbol]bool)
	for i := range c.Instruments.Instruments {
		t := &c.Instruments.Instruments[i]
		name := t.Symbol.String()
		switch err := t.Check(); {
		case err != nil:
			return fmt.Errorf("Instruments[%d]: %w", i, err)
		case name == record.AccountStream:
			return fmt.Errorf("Instruments[%d]: the name %s is reserved for the accounts' stream", i, name)
		case seen[t.Symbol]:
			return fmt.Errorf("Instruments[%d]: %s is listed twice", i, name)
		}
		seen[t.Symbol] = true
		streams = append(streams, name)
	}
	for _, name := range streams {
		if c.Shards.ShardOf(name) == nil {
			return fmt.Errorf("Shards: no shard owns %s: add it to one shard's instruments", name)
		}
	}
	return nil
}
