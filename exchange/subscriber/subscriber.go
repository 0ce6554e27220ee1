package subscriber

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
)

// Subscriber holds a lane for each shard. Its methods may be called from
// anywhere, but Run once only.
type Subscriber struct {
	config  Config
	lanes   []*lane
	streams map[record.Symbol]*stream
	whole   watermark // up to here all records of all lanes are durable
}

// New opens the lanes' cursors, which keeps the outbox's records from then on.
// It does not connect to a shard.
func New(c Config) (*Subscriber, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	s := &Subscriber{config: c, streams: map[record.Symbol]*stream{}}
	for i := range c.Shards.Shards {
		if err := s.addLane(i); err != nil {
			return nil, errors.Join(err, s.closeReaders())
		}
	}
	s.moved()
	s.lanes[0].others = map[record.Symbol]bool{}
	for sym := range s.streams {
		s.lanes[0].others[sym] = true
	}
	return s, nil
}

func (s *Subscriber) addLane(i int) error {
	shard := &s.config.Shards.Shards[i]
	reader, err := outbox.OpenReader(s.config.OutboxDir, CursorName(shard.Name))
	if err != nil {
		return fmt.Errorf("subscriber: shard %s: %w", shard.Name, err)
	}
	o := s.config.Options
	l := &lane{
		shard: shard.Name, incarnation: s.config.Incarnation, options: o, storage: s.config.Storage,
		ahead: s.config.Ahead, moved: s.moved, hold: s.hold, reader: reader, streams: map[record.Symbol]*stream{},
		batcher: batcher{size: o.BatchRecords, linger: o.Linger},
		terms:   s.config.Terms, last: math.MaxUint32,
	}
	for _, name := range shard.Instruments {
		sym := record.MustSymbol(name)
		l.streams[sym] = &stream{sym: sym}
		s.streams[sym] = l.streams[sym]
	}
	l.cursor.raise(reader.Cursor())
	s.lanes = append(s.lanes, l)
	return nil
}

// Run carries records until ctx ends. A lane that stops for good does not stop
// the others; Run returns their errors, joined, when all have ended. What was
// not acknowledged by then stays in the outbox for the next Subscriber.
func (s *Subscriber) Run(ctx context.Context) error {
	errs := make([]error, len(s.lanes))
	if s.config.Claim != nil {
		if err := s.claim(ctx); err != nil {
			return errors.Join(s.stopAll(err), s.closeReaders())
		}
	}
	var wg sync.WaitGroup
	for i, l := range s.lanes {
		wg.Go(func() {
			errs[i] = l.run(ctx)
			if errs[i] != nil && s.config.OnStop != nil {
				s.config.OnStop(l.shard, errs[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, s.closeReaders())...)
}

// closeReaders releases the cursors; they stay where they are.
func (s *Subscriber) closeReaders() error {
	var errs []error
	for _, l := range s.lanes {
		errs = append(errs, l.reader.Close())
	}
	return errors.Join(errs...)
}

// moved raises whole to the lowest cursor, after one has moved or failed.
func (s *Subscriber) moved() {
	lowest := s.lanes[0].cursor.load()
	for _, l := range s.lanes {
		lowest = min(lowest, l.cursor.load())
		if err := l.cursor.failure(); err != nil {
			s.whole.fail(err)
		}
	}
	s.whole.raise(lowest)
}

// hold ends the waits for what stands behind a record that no shard takes.
func (s *Subscriber) hold(global uint64) { s.whole.failAbove(global-1, ErrUnowned) }

// Durable returns the global up to which every record is known to be durable on
// a quorum of its shard.
func (s *Subscriber) Durable() uint64 { return s.whole.load() }

// OnDurable calls done once, with nil when every record up to global is durable
// on a quorum of its shard, or with an error when a lane has stopped. Those before
// it, of other instruments, count: without them nobody can rebuild an exchange
// that has the record. The call comes from a lane's goroutine, or before OnDurable
// returns; it must not block. Memory is held until then, one entry per call.
func (s *Subscriber) OnDurable(global uint64, done func(error)) { s.whole.notify(global, done) }

// WaitDurable returns when OnDurable would call, or with an error when ctx ends.
func (s *Subscriber) WaitDurable(ctx context.Context, global uint64) error {
	if err := s.whole.wait(ctx, global); err != nil {
		return fmt.Errorf("subscriber: record %d: %w", global, err)
	}
	return nil
}

// WaitDrained returns when everything that was published before the call is
// durable on a quorum of its shard. It fails when ctx ends, a lane stops, or
// records wait that no shard owns.
func (s *Subscriber) WaitDrained(ctx context.Context) error {
	target := s.lanes[0].reader.Published()
	for _, l := range s.lanes {
		if err := l.drained(ctx, target); err != nil {
			return fmt.Errorf("subscriber: shard %s: %w", l.shard, err)
		}
	}
	return nil
}

func (l *lane) drained(ctx context.Context, target uint64) error {
	done := make(chan error, 2)
	cursor := l.cursor.notify(target, func(err error) { done <- err })
	defer l.cursor.cancel(cursor)
	holding := l.holding.notify(1, func(error) {
		if l.held.Load() <= target {
			done <- ErrUnowned
		}
	})
	defer l.holding.cancel(holding)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
