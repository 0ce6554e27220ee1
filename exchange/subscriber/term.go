package subscriber

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

// openParallel is how many streams of a shard are opened at a time.
const openParallel = 16

// begin opens all streams of the shard in a term above all before, and compares
// what they end with. From then on no process that began earlier can write there.
func (l *lane) begin(ctx context.Context) error {
	l.session = max(l.session, firstSession(1))
	for {
		ends, refused, err := l.openAll(ctx)
		if err == nil {
			return l.adopt(ends)
		}
		if refused == nil {
			return err
		}
		other := IncarnationOf(refused.Epoch)
		switch {
		case other > l.incarnation:
			return fmt.Errorf("%w: shard %s: its streams were opened with incarnation %d, this process has %d", ErrFenced, l.shard, other, l.incarnation)
		case other < l.incarnation || uint32(refused.Epoch) < l.session:
			return err
		case lastSession(termOf(uint32(refused.Epoch))) == l.last:
			return fmt.Errorf("%w: restart the exchange", ErrSessions)
		}
		// Whoever used that term, this lane or an earlier process: the next is free.
		l.session = firstSession(termOf(uint32(refused.Epoch)) + 1)
	}
}

// openAll opens all streams of the shard with the session's epoch. Where a higher
// one is open it returns the refusal with the highest, too.
func (l *lane) openAll(ctx context.Context) (ends []client.OpenResult, refused *refusal.Error, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.options.OpenTimeout)
	defer cancel()
	streams := l.sorted()
	ends = make([]client.OpenResult, len(streams))
	errs := make([]error, len(streams))
	var g errgroup.Group
	g.SetLimit(openParallel)
	for i, s := range streams {
		g.Go(func() error {
			ends[i], errs[i] = l.storage.OpenStream(ctx, s.sym, Epoch(l.incarnation, l.session))
			return errs[i]
		})
	}
	err = g.Wait()
	for _, e := range errs {
		if r := refusal.FromError(e); r != nil && errors.Is(r, refusal.ErrFenced) && (refused == nil || r.Epoch > refused.Epoch) {
			refused = r
		}
	}
	return ends, refused, err
}

// adopt goes on from what the streams end with.
func (l *lane) adopt(ends []client.OpenResult) error {
	for i, s := range l.sorted() {
		if err := l.resume(s, ends[i]); err != nil {
			return err
		}
	}
	l.begun, l.last = true, lastSession(termOf(l.session))
	return nil
}

// superseded reports whether an epoch is that of a process of the same incarnation
// that began after this one.
func (l *lane) superseded(epoch uint64) bool {
	return l.begun && IncarnationOf(epoch) == l.incarnation && uint32(epoch) > l.last
}
