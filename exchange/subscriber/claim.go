package subscriber

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
)

// claim calls Config.Claim until it succeeds, and compares what every stream ends
// with before any lane writes. It returns an error when ctx ends, or for good.
func (s *Subscriber) claim(ctx context.Context) error {
	o := s.config.Options
	for pause := o.RetryMin; ; pause = min(2*pause, o.RetryMax) {
		claimed, err := s.config.Claim(ctx)
		if err == nil {
			return s.take(claimed)
		}
		for _, l := range s.lanes {
			l.stats.note(err)
			l.state.Store(int32(StateRetrying))
			l.noteOldest()
		}
		if fatal(err) {
			return err
		}
		if !sleep(ctx, pause/2+rand.N(pause/2+1)) {
			return ErrStopped
		}
	}
}

func (s *Subscriber) take(c Claimed) error {
	for _, l := range s.lanes {
		l.incarnation = c.Incarnation
		for sym, stream := range l.streams {
			end, ok := c.Ends[sym]
			if !ok {
				return fmt.Errorf("%w: stream %s was not claimed", ErrDiverged, sym)
			}
			if err := l.compare(stream, end); err != nil {
				return err
			}
		}
	}
	return nil
}

// stopAll ends all lanes before they ran.
func (s *Subscriber) stopAll(err error) error {
	if errors.Is(err, ErrStopped) {
		for _, l := range s.lanes {
			_ = l.stop(StateStopped, ErrStopped)
		}
		return nil
	}
	for _, l := range s.lanes {
		l.stats.note(err)
		_ = l.stop(stateOf(err), err)
	}
	if s.config.OnStop != nil {
		s.config.OnStop(s.lanes[0].shard, err)
	}
	return err
}
