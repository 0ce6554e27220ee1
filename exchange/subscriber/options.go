package subscriber

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// Options tune the lanes. The zero value of a field means its default.
type Options struct {
	// BatchRecords is the size at which a batch is sent, 1 to
	// record.MaxBatchRecords. Default 100.
	BatchRecords int
	// Linger is how long a batch's first record waits for company while other
	// batches are on their way. Default 10 ms.
	Linger time.Duration
	// Window is how many batches of a shard may be on their way. Default 8.
	Window int
	// OpenTimeout bounds one search for the leader, after which the error is
	// noted and the search begins anew. Default 5 s.
	OpenTimeout time.Duration
	// AckTimeout is how long a lane waits for the next answer before it takes
	// the leader for hung and begins a new session. Default 5 s.
	AckTimeout time.Duration
	// RetryMin and RetryMax bound the pause after an error; it doubles, with
	// jitter. Default 10 ms and 1 s.
	RetryMin, RetryMax time.Duration
}

// Default returns the defaults: batches of 100, 10 ms linger, window 8.
func Default() Options {
	return Options{
		BatchRecords: 100, Linger: 10 * time.Millisecond, Window: 8,
		OpenTimeout: 5 * time.Second, AckTimeout: 5 * time.Second,
		RetryMin: 10 * time.Millisecond, RetryMax: time.Second,
	}
}

// Production returns the preset for high rates: batches of 1000, 5 ms linger.
func Production() Options {
	o := Default()
	o.BatchRecords, o.Linger = 1000, 5*time.Millisecond
	return o
}

const windowMax = 1024

func (o *Options) complete() error {
	d := Default()
	for _, f := range []struct{ v, def *int }{{&o.BatchRecords, &d.BatchRecords}, {&o.Window, &d.Window}} {
		if *f.v == 0 {
			*f.v = *f.def
		}
	}
	for _, f := range []struct{ v, def *time.Duration }{
		{&o.Linger, &d.Linger}, {&o.OpenTimeout, &d.OpenTimeout}, {&o.AckTimeout, &d.AckTimeout},
		{&o.RetryMin, &d.RetryMin}, {&o.RetryMax, &d.RetryMax},
	} {
		if *f.v == 0 {
			*f.v = *f.def
		}
		if *f.v < 0 {
			return fmt.Errorf("subscriber: options: a duration of %v is negative", *f.v)
		}
	}
	o.RetryMax = max(o.RetryMax, o.RetryMin)
	switch {
	case o.BatchRecords < 1 || o.BatchRecords > record.MaxBatchRecords:
		return fmt.Errorf("subscriber: BatchRecords: %d; use 1 to %d", o.BatchRecords, record.MaxBatchRecords)
	case o.Window < 1 || o.Window > windowMax:
		return fmt.Errorf("subscriber: Window: %d; use 1 to %d", o.Window, windowMax)
	}
	return nil
}

// Config says what a Subscriber connects.
type Config struct {
	// OutboxDir is the directory of the outbox.
	OutboxDir string
	// Incarnation goes into the upper half of every epoch: 1 to 2³²−1, higher
	// than any the shards have seen from this exchange. 0 if Claim is set.
	Incarnation uint64
	// Claim, if set, is called before anything is delivered, and again until it
	// succeeds: it opens every stream of every shard. A lane could otherwise write
	// to one shard what another exchange's records in the next shard contradict.
	Claim func(ctx context.Context) (Claimed, error)
	// Terms says that several processes may carry the records of one incarnation,
	// one after another. Each lane then takes a term of its own: it opens all
	// streams of its shard before it delivers anything, above all that processes
	// before it used, which fences them there.
	Terms bool
	// Shards says which shard owns which instrument.
	Shards *client.Map
	// Storage reaches the shards; see FromClient.
	Storage Storage
	Options Options
	// Ahead is the global up to which the shards may hold records that the outbox
	// lost when the machine went down; 0 for none, which makes such a record
	// ErrDiverged.
	Ahead uint64
	// Lost, if set, tells how many records the exchange dropped because the
	// outbox was full; it only goes into the statistics.
	Lost func() uint64
	// OnStop, if set, is called once for each lane that stops for good, from
	// the lane's goroutine.
	OnStop func(shard string, err error)
}

// Claimed is what Claim returns once every stream is open.
type Claimed struct {
	Incarnation uint64
	Ends        map[record.Symbol]client.OpenResult
}

func (c *Config) complete() error {
	switch {
	case c.Terms && c.Claim != nil:
		return fmt.Errorf("subscriber: Terms goes without Claim")
	case c.Shards == nil || c.Storage == nil:
		return fmt.Errorf("subscriber: Shards and Storage must be set")
	case c.Claim == nil && c.Incarnation == 0 || c.Incarnation > math.MaxUint32:
		return fmt.Errorf("subscriber: Incarnation: %d; use 1 to %d", c.Incarnation, uint32(math.MaxUint32))
	}
	if err := c.Shards.Check(); err != nil {
		return err
	}
	return c.Options.complete()
}

// CursorName returns the name of the outbox cursor of a shard's lane.
func CursorName(shard string) string { return "storage-" + shard }

// CursorNames returns the cursors of all lanes, for outbox.Options.Cursors.
func CursorNames(m *client.Map) []string {
	names := make([]string, len(m.Shards))
	for i := range m.Shards {
		names[i] = CursorName(m.Shards[i].Name)
	}
	return names
}

// Epoch returns the epoch of a session of an incarnation.
func Epoch(incarnation uint64, session uint32) uint64 { return incarnation<<32 | uint64(session) }

// termBits is how many bits of a session's number count within a term.
const termBits = 16

// firstSession and lastSession bound the sessions of a term.
func firstSession(term uint32) uint32 { return term << termBits }
func lastSession(term uint32) uint32  { return term<<termBits | (1<<termBits - 1) }
func termOf(session uint32) uint32    { return session >> termBits }

// IncarnationOf returns the incarnation that an epoch belongs to.
func IncarnationOf(epoch uint64) uint64 { return epoch >> 32 }
