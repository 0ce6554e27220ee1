package exchange

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/exchange/rebuild"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/record"
)

// Recovery says how an exchange got its state.
type Recovery struct {
	Outbox       outbox.RecoveryReport
	FromOutbox   bool   // the stores were not read
	Drained      bool   // nothing waited for delivery when the replay began
	Records      uint64 // replayed
	Global       uint64 // of the last record, after new terms were recorded
	Delivered    uint64 // records delivered before the replay
	Fenced       bool   // no exchange before this one can write any more
	StateChecked bool   // the replay passed the state file's state
	Cut          *Cut   // records that were given up, nil for none
	Listed       int    // instruments listed, or listed with changed terms
	// Postponed holds, for each instrument that could not take its changed terms
	// in the state it is in, the reason. The terms it has apply until a later
	// start finds it otherwise, such as without live orders.
	Postponed  []error
	DrainTook  time.Duration
	ReplayTook time.Duration
}

// recovery carries an Exchange from its configuration to its first order; the
// package's documentation says how.
type recovery struct {
	*Exchange
	history     *history
	stored      ends   // nil when the stores are not read
	incarnation uint64 // 0 until the stores are fenced
	latest      int64
}

func (r *recovery) run(ctx context.Context) (err error) {
	if err := r.openOutbox(0); err != nil {
		return err
	}
	defer func() {
		if r.history != nil {
			err = errors.Join(err, r.history.close())
		}
	}()
	if err := r.askStores(ctx); err != nil {
		return err
	}
	if r.stored != nil {
		if err := r.takeOver(ctx); err != nil {
			return err
		}
	}
	if err := r.startDelivery(ctx); err != nil {
		return err
	}
	b, err := r.replay(ctx)
	if err != nil {
		return err
	}
	return r.enter(b)
}

// openOutbox opens the outbox as its only writer, and its records.
func (r *recovery) openOutbox(startGlobal uint64) error {
	c := &r.config
	w, err := outbox.Open(c.OutboxDir, outbox.Options{
		Cluster: c.Shards.Cluster, SegmentRecords: c.SegmentRecords, QuotaBytes: c.QuotaBytes,
		HeadroomRecords: -1, // the gateway keeps one
		StartGlobal:     startGlobal, Cursors: subscriber.CursorNames(c.Shards), BootChanged: r.noteBoot,
	})
	if err != nil {
		return err
	}
	r.outbox = w
	if err := r.holdDelivery(); err != nil {
		return err
	}
	if startGlobal == 0 {
		r.recovery.Outbox = w.Recovery()
	}
	if err := dropCursor(c.OutboxDir, claimCursor); err != nil {
		return err
	}
	r.history, err = openHistory(c.OutboxDir, recoveryCursor, c.Shards)
	return err
}

// holdDelivery keeps other processes from carrying the outbox's records, unless one
// is meant to.
func (r *recovery) holdDelivery() (err error) {
	if r.config.ExternalSubscriber || r.hold != nil {
		return nil
	}
	r.hold, err = outbox.HoldSubscriber(r.config.OutboxDir)
	if errors.Is(err, outbox.ErrSubscribed) {
		return fmt.Errorf("%w: end it, or leave the delivery to it with ExternalSubscriber (--subscriber=external)", err)
	}
	return err
}

// noteBoot notes that the machine went down before the outbox forgets it: a
// process that ends in between must not leave a start that does not ask.
func (r *recovery) noteBoot() error {
	r.known.NeedsStores = true
	return r.known.store()
}

// empty reports whether the outbox never held a record.
func (r *recovery) empty() bool { return r.outbox.Published() == 0 }

// storesNeeded returns why the start is not possible without the stores, "" if
// it is.
func (r *recovery) storesNeeded() string {
	switch {
	case r.known.NeedsStores:
		return "the machine went down since the outbox was last in order, and only the stores know what it lost"
	case r.empty() && !r.config.Init:
		return "the outbox is empty; if this is the cluster's first start and nothing is stored, declare it with Init (--init)"
	case !r.history.complete():
		return fmt.Sprintf("the outbox holds no records before %d any more", r.history.reader.Cursor()+1)
	}
	return ""
}

// askStores learns what the streams end with.
func (r *recovery) askStores(ctx context.Context) error {
	needed := r.storesNeeded()
	wait := r.config.StorageWait
	if needed == "" {
		wait = r.config.DrainWait
	}
	asking, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	stop := r.report(asking, func() Progress { return Progress{Phase: PhaseStores} })
	stored, err := readEnds(asking, r.client, nil)
	stop()
	switch {
	case err == nil:
		r.stored = stored
	case ctx.Err() != nil:
		return err
	case asking.Err() == nil && !errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrStores, err)
	case needed != "":
		return fmt.Errorf("%w, and this start needs them: %s; waited %v: %w", ErrStores, needed, wait, err)
	default:
		r.config.Log.Warn("starting without the stores", "waited", wait, "error", err)
	}
	return nil
}

// takeOver makes this exchange the only one that writes, once nothing speaks
// against it, and lets the outbox go on after what is stored.
func (r *recovery) takeOver(ctx context.Context) error {
	if err := r.agree(ctx); err != nil {
		return err
	}
	needed := r.storesNeeded()
	wait := r.config.StorageWait
	if needed == "" {
		wait = r.config.DrainWait
	}
	err := r.fence(ctx, wait)
	if errors.Is(err, ErrStores) && !errors.Is(err, ErrDiverged) && needed == "" && ctx.Err() == nil {
		r.config.Log.Warn("starting without the stores, which take nothing", "waited", wait, "error", err)
		r.stored = nil
		return nil
	}
	if err != nil {
		return err
	}
	return r.align(ctx)
}

// agree checks that outbox and stores tell one history.
func (r *recovery) agree(ctx context.Context) error {
	if err := r.checkAhead(); err != nil {
		return err
	}
	return r.compare(ctx)
}

// checkAhead reports why the stores must not hold more than the outbox.
func (r *recovery) checkAhead() error {
	own, stored := r.outbox.Published(), r.stored.global()
	switch {
	case stored <= own:
		return nil
	case r.empty() && r.config.Init:
		return fmt.Errorf("%w: Init declares a first start, but the stores hold records up to global %d: start without Init (--init) to go on from there",
			ErrDiverged, stored)
	case !r.empty() && !r.known.NeedsStores:
		return r.behind(stored, own, " although the machine did not go down")
	}
	return nil
}

// align lets the outbox go on after what is stored, if that is more.
func (r *recovery) align(ctx context.Context) error {
	own, stored := r.outbox.Published(), r.stored.global()
	if stored <= own {
		return nil
	}
	if err := r.deliverRest(ctx, stored); err != nil {
		return err
	}
	r.config.Log.Warn("the outbox goes on after what is stored", "outbox", own, "stored", stored)
	if err := errors.Join(r.history.close(), r.outbox.Close()); err != nil {
		return err
	}
	r.history, r.outbox = nil, nil
	return r.openOutbox(stored)
}

func (r *recovery) compare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.config.StorageWait)
	defer cancel()
	stop := r.report(ctx, func() Progress { return Progress{Phase: PhaseCompare} })
	defer stop()
	err := r.history.compare(ctx, r.client, r.stored)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrStores, err)
	}
	return err
}

// deliver returns the configuration of a subscriber.
func (r *recovery) deliver() subscriber.Config {
	d := r.config.Delivery
	return subscriber.Config{
		OutboxDir: r.config.OutboxDir, Incarnation: r.incarnation, Shards: r.config.Shards,
		Storage: subscriber.FromClient(r.client), Lost: r.lost,
		Options: subscriber.Options{BatchRecords: d.BatchRecords, Linger: d.Linger, Window: d.WindowBatches},
	}
}

// startDelivery starts to deliver, or lets another process do so, with an
// incarnation above all before it.
func (r *recovery) startDelivery(ctx context.Context) error {
	last := r.lastIncarnation()
	r.known.Incarnation = max(last, r.incarnation)
	if err := r.known.store(); err != nil {
		return err
	}
	if r.config.ExternalSubscriber {
		return r.startExternal(last)
	}
	if err := r.startSubscriber(last); err != nil {
		return err
	}
	return r.drain(ctx)
}

func (r *recovery) startSubscriber(last uint64) error {
	config := r.deliver()
	if r.incarnation == 0 {
		x := r.Exchange // which goes on; the recovery ends
		config.Claim = func(ctx context.Context) (subscriber.Claimed, error) { return x.claim(ctx, last) }
	}
	config.OnStop = r.laneStopped
	s, err := subscriber.New(config)
	if err != nil {
		return err
	}
	r.subscriber = s
	r.background.Go(func() { _ = s.Run(r.alive) }) // OnStop has told its errors
	return nil
}

// drain lets the subscriber deliver what the outbox holds.
func (r *recovery) drain(ctx context.Context) error {
	began, from := time.Now(), r.subscriber.Stats().Persisted
	defer func() {
		r.recovery.DrainTook = time.Since(began)
		r.recovery.Delivered = r.subscriber.Stats().Persisted - from
	}()
	if r.stored == nil {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, r.config.DrainWait)
	defer cancel()
	stop := r.report(waiting, func() Progress {
		s := r.subscriber.Stats()
		return Progress{Phase: PhaseDrain, Done: s.Cursor, Total: r.outbox.Published()}
	})
	err := r.subscriber.WaitDrained(waiting)
	stop()
	switch {
	case err == nil:
		r.recovery.Drained = true
	case r.Err() != nil:
		return r.Err()
	case ctx.Err() != nil:
		return ctx.Err()
	case waiting.Err() != nil:
		r.config.Log.Warn("not everything is delivered yet", "waited", r.config.DrainWait, "lag", r.subscriber.Stats().LagRecords)
	default:
		return err
	}
	return nil
}

// replay rebuilds the exchange up to where the outbox ends.
func (r *recovery) replay(ctx context.Context) (*rebuild.Rebuilder, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Reading is repeated while a shard elects a leader, but not for ever.
	watchdog := time.AfterFunc(r.config.StorageWait, func() {
		cancel(fmt.Errorf("%w: no record came for %v", ErrStores, r.config.StorageWait))
	})
	defer watchdog.Stop()
	began := time.Now()
	told := began
	known := r.known
	if r.config.AcceptLoss {
		known = nil // it may be what is lost
	}
	run := replay{ctx: ctx, total: r.outbox.Published(), known: known, progress: func(done, total uint64) {
		watchdog.Reset(r.config.StorageWait)
		if time.Since(told) >= progressEvery {
			told = time.Now()
			r.config.Progress(Progress{Phase: PhaseReplay, Done: done, Total: total})
		}
	}}
	src, err := r.sources(ctx)
	if err != nil {
		return nil, err
	}
	defer src.close()
	b, err := run.run(src)
	if err != nil && context.Cause(ctx) != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	if err != nil && b != nil {
		err = r.cut(b, err)
	}
	if err != nil {
		return nil, diverged(err)
	}
	r.latest = run.latest
	r.recovery.Records, r.recovery.ReplayTook = b.Records(), time.Since(began)
	return b, r.checkEnd(b.Global())
}

// sources returns the stored streams with what is not delivered yet, or the
// outbox alone.
func (r *recovery) sources(ctx context.Context) (*streams, error) {
	if r.stored == nil {
		r.recovery.FromOutbox = true
		own, err := r.history.records(0, nil)
		return openStreams(ctx, r.client, nil, own), err
	}
	cursors, err := r.history.delivered(r.config.Shards)
	if err != nil {
		return nil, err
	}
	own, err := r.history.undelivered(cursors)
	if err != nil {
		return nil, err
	}
	// Asked after the cursors were read: what they have passed is among it.
	r.stored, err = readEnds(ctx, r.client, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStores, err)
	}
	return openStreams(ctx, r.client, r.stored.all(), own), nil
}

// diverged marks the errors of a replay that say that the records are not one
// whole history.
func diverged(err error) error {
	for _, target := range []error{rebuild.ErrGap, rebuild.ErrDoubled, rebuild.ErrTorn, core.ErrReplay, record.ErrCorrupt} {
		if errors.Is(err, target) && !errors.Is(err, ErrDiverged) {
			return fmt.Errorf("%w: %w", ErrDiverged, err)
		}
	}
	return err
}

// checkEnd reports a replay that ended elsewhere than the outbox or before the
// last known state.
func (r *recovery) checkEnd(global uint64) error {
	if !r.config.AcceptLoss {
		if err := r.known.reached(global); err != nil {
			return err
		}
		r.recovery.StateChecked = r.known.checked
	}
	if published := r.outbox.Published(); global != published {
		return fmt.Errorf("%w: the records end with global %d, the outbox with %d", ErrDiverged, global, published)
	}
	return nil
}

// enter starts the exchange that was rebuilt.
func (r *recovery) enter(b *rebuild.Rebuilder) error {
	gw := gateway.New(r.outbox, gateway.Options{Policy: r.config.Policy, HeadroomRecords: r.config.HeadroomRecords})
	r.gateway.Store(gw)
	ex, err := b.Exchange(gw)
	if err != nil {
		return err
	}
	ex.SetLiveOrdersMax(r.config.LiveOrdersMax)
	clock := r.clock(r.latest)
	if err := r.list(ex, clock); err != nil {
		return err
	}
	r.recovery.Global = r.outbox.Published()
	if r.stored != nil && r.known.NeedsStores {
		r.known.NeedsStores = false
		if err := r.known.store(); err != nil {
			return err
		}
	}
	return r.open(ex, core.NewRouter(clock))
}

// clock returns the exchange's clock; it does not go back behind what is recorded.
func (r *recovery) clock(latest int64) func() int64 {
	now := r.config.Clock
	return func() int64 { return max(now(), latest) }
}

// list lists what is not listed, and records changed terms. Nothing is recorded
// when one instrument's tick changed.
func (r *recovery) list(ex *core.Exchange, clock func() int64) error {
	var changed []order.Instrument
	for _, want := range r.config.Instruments.Instruments {
		have, listed := ex.Instrument(want.Symbol)
		if listed {
			var err error
			if want, err = reconcile(&have, want); err != nil {
				return err
			}
		}
		if !listed || want != have.Terms {
			changed = append(changed, want)
		}
	}
	for _, terms := range changed {
		if err := r.listOne(ex, clock(), terms); err != nil {
			return err
		}
	}
	return nil
}

func (r *recovery) listOne(ex *core.Exchange, now int64, terms order.Instrument) error {
	_, err := ex.ListInstrument(now, terms)
	var refused *risk.Error
	_, listed := ex.Instrument(terms.Symbol)
	switch {
	case err == nil:
		r.recovery.Listed++
	case listed && errors.As(err, &refused) && refused.Reason == risk.BadTerms:
		r.recovery.Postponed = append(r.recovery.Postponed, err)
		r.config.Log.Warn("changed terms do not apply yet", "instrument", terms.Symbol.String(), "reason", err)
	default:
		return fmt.Errorf("list instrument %s: %w", terms.Symbol, err)
	}
	return nil
}

// reconcile returns the terms that a listed instrument shall have. Its tick is
// for ever; its limits follow from the last settlement once there was one.
func reconcile(have *core.InstrumentView, want order.Instrument) (order.Instrument, error) {
	t := &have.Terms
	if t.TickSize != want.TickSize || t.Decimals != want.Decimals || t.TickValue != want.TickValue {
		return want, fmt.Errorf("instrument %s: %w: tick %s worth %d minor units, not %s worth %d; list the changed contract under another name",
			want.Symbol, ErrTerms, t.FormatPrice(1), t.TickValue, want.FormatPrice(1), want.TickValue)
	}
	if have.Settlement != 0 {
		want.LowerLimit, want.UpperLimit = t.LowerLimit, t.UpperLimit
	}
	return want, nil
}
