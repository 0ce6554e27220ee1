package exchange

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countinghouse/countinghouse/exchange/rebuild"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

const (
	// fenceTriesMax bounds how often a start goes above another one's incarnation.
	fenceTriesMax = 8
	// fenceParallel is how many streams are opened at a time.
	fenceParallel = 64
	// claimTimeout bounds one try, after which its error is noted.
	claimTimeout = 5 * time.Second
)

// lastIncarnation returns the highest one that is known of.
func (r *recovery) lastIncarnation() uint64 {
	return max(r.outbox.Incarnation(), r.known.Incarnation, r.stored.incarnation())
}

// fenced returns the incarnation of an exchange that fences all others: it has
// opened every stream with its first session, which succeeds once only, so no two
// have the same.
func fenced(last uint64) uint64 { return last + 1 }

// claim opens every stream for an exchange that started without the stores, once
// they can be reached. Until then it delivers nothing.
func (x *Exchange) claim(ctx context.Context, last uint64) (subscriber.Claimed, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	stored, err := readEnds(ctx, x.client, func(string) client.Replica { return client.Replica{} })
	if err != nil {
		return subscriber.Claimed{}, err
	}
	// Looked at before the streams are opened, which would stop that exchange.
	if own := x.outbox.Published(); stored.global() > own {
		return subscriber.Claimed{}, fmt.Errorf("%w: the shards hold records up to global %d, the outbox %s ends with %d: "+
			"another exchange has written since; move it away to go on from the stores", subscriber.ErrDiverged, stored.global(), x.config.OutboxDir, own)
	}
	incarnation := fenced(max(last, stored.incarnation()))
	opened, _, err := openAll(ctx, x.client, incarnation)
	return subscriber.Claimed{Incarnation: incarnation, Ends: opened}, err
}

// fence opens every stream of every shard, so that no exchange before this one
// can write any more, and reads again what the streams end with.
func (r *recovery) fence(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	incarnation := fenced(r.lastIncarnation())
	for try := 1; ; try++ {
		_, other, err := openAll(ctx, r.client, incarnation)
		if err == nil {
			break
		}
		if other == 0 || try == fenceTriesMax {
			return fmt.Errorf("%w: fence earlier exchanges: %w", ErrStores, err)
		}
		incarnation = fenced(other)
	}
	r.incarnation, r.recovery.Fenced = incarnation, true
	var err error
	if r.stored, err = readEnds(ctx, r.client, func(string) client.Replica { return client.Replica{} }); err != nil {
		return fmt.Errorf("%w: %w", ErrStores, err)
	}
	return nil
}

// openAll opens all streams with the first session of an incarnation. Where one
// is open with that or a later one, it returns the latest of them and an error.
func openAll(ctx context.Context, c *client.Client, incarnation uint64) (
	opened map[record.Symbol]client.OpenResult, other uint64, err error,
) {
	var mu sync.Mutex
	opened = make(map[record.Symbol]client.OpenResult)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fenceParallel)
	for _, shard := range c.Map().Shards {
		for _, name := range shard.Instruments {
			g.Go(func() error {
				sym := record.MustSymbol(name)
				res, err := c.OpenStream(ctx, sym, subscriber.Epoch(incarnation, 0))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					opened[sym] = res
					return nil
				}
				if refused := refusal.FromError(err); refused != nil && errors.Is(refused, refusal.ErrFenced) {
					other = max(other, subscriber.IncarnationOf(refused.Epoch))
				}
				return err
			})
		}
	}
	err = g.Wait()
	return opened, other, err
}

// deliverRest delivers what an outbox holds that is behind the stores, which hold
// records up to stored that it lost.
func (r *recovery) deliverRest(ctx context.Context, stored uint64) error {
	if r.empty() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.config.StorageWait)
	defer cancel()
	config := r.deliver()
	config.Ahead = stored
	s, err := subscriber.New(config)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var run sync.WaitGroup
	run.Go(func() { _ = s.Run(running) }) // WaitDrained returns its errors
	err = s.WaitDrained(ctx)
	stop()
	run.Wait()
	switch {
	case errors.Is(err, subscriber.ErrDiverged) || errors.Is(err, subscriber.ErrMissing):
		return fmt.Errorf("%w: %w", ErrDiverged, err)
	case err != nil:
		return fmt.Errorf("%w: the outbox goes on after what is stored, and must be delivered before: %w", ErrStores, err)
	}
	if r.stored, err = readEnds(ctx, r.client, func(string) client.Replica { return client.Replica{} }); err != nil {
		return fmt.Errorf("%w: %w", ErrStores, err)
	}
	return nil
}

// Cut tells which records do not count any more.
type Cut struct {
	From    uint64 // global of the last record that counts
	To      uint64 // global of the last one that does not
	Records map[record.Symbol]uint64
	Cause   error // what was missing
}

// cut gives up, if the configuration accepts that, what the streams hold after
// the first record that is missing. It is recorded in those streams.
func (r *recovery) cut(b *rebuild.Rebuilder, cause error) error {
	if b.Taken() != r.outbox.Published() {
		return cause // the outbox itself has records that do not fit
	}
	records := b.Cut(r.config.Clock())
	out := &Cut{From: b.Global(), To: b.Taken(), Records: make(map[record.Symbol]uint64), Cause: cause}
	for i := range records {
		out.Records[records[i].Instrument] = records[i].HistoryCut().Records
	}
	if !r.config.AcceptLoss {
		return fmt.Errorf("%w; other records before were lost with an outbox, so %s cannot be rebuilt from: "+
			"bring that outbox back, or give them up with AcceptLoss (--accept-loss)", cause, out)
	}
	if !r.outbox.Reserve(len(records)) {
		return fmt.Errorf("%w; the outbox has no room for the %d records of the cut", cause, len(records))
	}
	for i := range records {
		slot := r.outbox.Next()
		if slot.Global != records[i].Global {
			return fmt.Errorf("%w; the outbox goes on with record %d, not %d", cause, slot.Global, records[i].Global)
		}
		*slot = records[i]
	}
	r.outbox.Commit()
	for i := range records {
		if err := b.Add(&records[i]); err != nil {
			return err
		}
	}
	r.recovery.Cut = out
	r.config.Log.Warn("records are given up", "cut", out.String(), "cause", cause)
	return nil
}

// String says how many records of which streams do not count.
func (c *Cut) String() string {
	n := uint64(0)
	for _, k := range c.Records {
		n += k
	}
	return fmt.Sprintf("%d stored records of %d streams, between %d and %d,", n, len(c.Records), c.From, c.To+1)
}
