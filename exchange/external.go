package exchange

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/countinghouse/countinghouse/exchange/subscriber"
)

// How long an exchange that started without the stores waits between two attempts
// to fence the others: doubling, with jitter.
const (
	fencePauseMin = 10 * time.Millisecond
	fencePauseMax = time.Second
)

// startExternal lets another process deliver, once every exchange before this one is
// fenced.
func (r *recovery) startExternal(last uint64) error {
	f, err := subscriber.NewFollower(subscriber.FollowerConfig{
		OutboxDir: r.config.OutboxDir, Opening: r.outbox.Incarnation(), Shards: r.config.Shards,
		Published: r.outbox.Published, Lost: r.lost, OnStop: r.laneStopped,
	})
	if err != nil {
		return err
	}
	r.subscriber = f
	r.background.Go(func() { f.Run(r.alive) })
	if r.incarnation == 0 {
		x := r.Exchange // which goes on; the recovery ends
		r.background.Go(func() { x.fenceLater(last) })
		return nil
	}
	r.recovery.Drained = f.Durable() >= r.outbox.Published()
	return r.grant(r.incarnation)
}

// grant lets the other process deliver.
func (x *Exchange) grant(incarnation uint64) error {
	g := subscriber.NewGrant(x.config.Shards, x.outbox.Incarnation(), incarnation)
	return g.Write(x.config.OutboxDir)
}

// fenceLater fences all exchanges before one that started without the stores, and
// lets the other process deliver. Where outbox and stores are of two histories the
// exchange stops.
func (x *Exchange) fenceLater(last uint64) {
	told := time.Time{}
	for pause := fencePauseMin; x.alive.Err() == nil; pause = min(2*pause, fencePauseMax) {
		claimed, err := x.claim(x.alive, last)
		if err == nil {
			err = x.grant(claimed.Incarnation)
		}
		switch {
		case err == nil:
			x.config.Log.Info("the stores are back, and all exchanges before this one are fenced", "incarnation", claimed.Incarnation)
			return
		case errors.Is(err, ErrDiverged):
			x.laneStopped("", err)
			return
		case x.alive.Err() == nil && time.Since(told) >= x.config.StorageWait:
			told = time.Now()
			x.config.Log.Warn("nothing is delivered before the stores are back", "error", err)
		}
		waitFor(x.alive, pause/2+rand.N(pause/2+1))
	}
}

// waitFor waits for d, or until ctx ends.
func waitFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
