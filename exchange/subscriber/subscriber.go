package subscriber

import (
	"context"
	"errors"
	"fmt"
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
		reader: reader, streams: map[record.Symbol]*stream{},
		batcher: batcher{size: o.BatchRecords, linger: o.Linger},
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

// Durable returns the last seq of an instrument that is known to be durable on
// a quorum, 0 for none.
func (s *Subscriber) Durable(sym record.Symbol) uint64 {
	if st := s.streams[sym]; st != nil {
		return st.durable.load()
	}
	return 0
}

// OnDurable calls done once, with nil when the instrument's records up to seq
// are durable on a quorum, or with an error when its lane has stopped. The call
// comes from the lane's goroutine, or before OnDurable returns; it must not
// block. Memory is held until then, one entry per call.
func (s *Subscriber) OnDurable(sym record.Symbol, seq uint64, done func(error)) {
	st := s.streams[sym]
	if st == nil {
		done(fmt.Errorf("subscriber: %s: %w", sym, ErrUnowned))
		return
	}
	st.durable.notify(seq, done)
}

// WaitDurable returns when the instrument's records up to seq are durable on a
// quorum, with an error when ctx ends or the lane stops before.
func (s *Subscriber) WaitDurable(ctx context.Context, sym record.Symbol, seq uint64) error {
	st := s.streams[sym]
	if st == nil {
		return fmt.Errorf("subscriber: %s: %w", sym, ErrUnowned)
	}
	if err := st.durable.wait(ctx, seq); err != nil {
		return fmt.Errorf("subscriber: %s seq %d: %w", sym, seq, err)
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
