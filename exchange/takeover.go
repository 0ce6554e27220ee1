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
	// claimTimeout is how long a claim waits for an answer before its error is
	// noted, and it tries again.
	claimTimeout = 5 * time.Second
	// notOwnedPause is how long a start waits before it asks a shard again that does
	// not know one of its instruments yet.
	notOwnedPause = 50 * time.Millisecond
)

// lastIncarnation returns the highest one that is known of.
func (r *recovery) lastIncarnation() uint64 {
	return max(r.outbox.Incarnation(), r.known.Incarnation, r.stored.incarnation())
}

// fence opens every stream of every shard, so that no exchange before this one
// can write any more. agree is asked before each try, with what the streams end
// with: to open them stops whoever writes, also one that is in the right.
// It waits for each answer of the shards as long as wait.
func (x *Exchange) fence(
	ctx context.Context, wait time.Duration, last uint64, agree func(context.Context, ends) error,
) (subscriber.Claimed, error) {
	for try := 1; ; try++ {
		stored, err := within(ctx, wait, func(ctx context.Context) (ends, error) { return readEnds(ctx, x.client, nil) })
		if err != nil {
			return subscriber.Claimed{}, fmt.Errorf("%w: %w", ErrStores, err)
		}
		if err := agree(ctx, stored); err != nil {
			return subscriber.Claimed{}, err
		}
		// With the first session of an incarnation a stream can be opened once
		// only, so no two exchanges fence all others with the same.
		incarnation := max(last, stored.incarnation()) + 1
		var other uint64
		opened, err := within(ctx, wait, func(ctx context.Context) (opened map[record.Symbol]client.OpenResult, err error) {
			opened, other, err = openAll(ctx, x.client, incarnation)
			return opened, err
		})
		switch {
		case err == nil:
			return subscriber.Claimed{Incarnation: incarnation, Ends: opened}, nil
		case other == 0 || try == fenceTriesMax:
			return subscriber.Claimed{}, fmt.Errorf("%w: fence earlier exchanges: %w", ErrStores, err)
		}
		last = max(last, other)
	}
}

// within calls do with a context that ends after wait.
func within[T any](ctx context.Context, wait time.Duration, do func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return do(ctx)
}

// fence fences all exchanges before this one, and reads again what the streams
// end with.
func (r *recovery) fence(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	agreed := r.stored
	claimed, err := r.Exchange.fence(ctx, wait, r.lastIncarnation(), func(ctx context.Context, stored ends) error {
		if stored.same(agreed) {
			return nil
		}
		r.stored = stored
		err := r.agree(ctx)
		agreed = stored
		return err
	})
	if err != nil {
		return err
	}
	if r.stored, err = readEnds(ctx, r.client, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrStores, err)
	}
	if !r.stored.same(agreed) { // another exchange wrote until it was fenced
		if err := r.agree(ctx); err != nil {
			return err
		}
	}
	r.incarnation, r.recovery.Fenced = claimed.Incarnation, true
	return nil
}

// claim fences all exchanges before one that started without the stores, once
// they can be reached. Until then it delivers nothing.
func (x *Exchange) claim(ctx context.Context, last uint64) (claimed subscriber.Claimed, err error) {
	ctx, cancel := context.WithTimeout(ctx, x.config.StorageWait) // a comparison may read much
	defer cancel()
	h, err := openHistory(x.config.OutboxDir, claimCursor, x.config.Shards)
	if err != nil {
		return subscriber.Claimed{}, err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	return x.fence(ctx, claimTimeout, last, func(ctx context.Context, stored ends) error {
		if own := x.outbox.Published(); stored.global() > own {
			return x.behind(stored.global(), own, "")
		}
		return h.compare(ctx, x.client, stored)
	})
}

// behind is the error of an outbox behind which another exchange has written.
func (x *Exchange) behind(stored, own uint64, although string) error {
	return fmt.Errorf("%w: the stores hold records up to global %d, the outbox %s ends with %d%s: "+
		"another exchange has written since; move the outbox away to go on from the stores", ErrDiverged, stored, x.config.OutboxDir, own, although)
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
				res, err := openOwned(ctx, c, sym, subscriber.Epoch(incarnation, 0))
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

// openOwned opens a stream. A shard that does not own it is being formed and will
// be told its instruments, or the shard map is wrong: it is asked until ctx ends.
func openOwned(ctx context.Context, c *client.Client, sym record.Symbol, epoch uint64) (client.OpenResult, error) {
	var refused error
	for {
		res, err := c.OpenStream(ctx, sym, epoch)
		switch {
		case errors.Is(err, refusal.ErrNotOwner):
			refused = err
		case ctx.Err() != nil && refused != nil:
			return res, refused
		default:
			return res, err
		}
		select {
		case <-ctx.Done():
			return res, refused
		case <-time.After(notOwnedPause):
		}
	}
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
	case errors.Is(err, subscriber.ErrMissing):
		return fmt.Errorf("%w: %w", ErrDiverged, err)
	case errors.Is(err, ErrDiverged):
		return err
	case err != nil:
		return fmt.Errorf("%w: the outbox goes on after what is stored, and must be delivered before: %w", ErrStores, err)
	}
	if r.stored, err = readEnds(ctx, r.client, nil); err != nil {
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
