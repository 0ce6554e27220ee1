package main

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/trial"
	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/record"
)

// accountsPerSide is how many accounts a replay spreads recorded orders over,
// for each side: recorded flow does not say whose an order is. Buyers and
// sellers are different accounts, so that none meets itself.
const accountsPerSide = 64

// backlogPause is how long a replay waits when the outbox is full: recorded
// orders must all go in.
const backlogPause = time.Millisecond

// replayFlow puts recorded order flow into an exchange.
type replayFlow struct {
	sources []*recording
	steps   uint64
	follow  bool
	speed   float64 // 0: as fast as it goes
	first   int64
	clock   atomic.Int64 // time of the event that is being replayed

	gone    uint64 // events about orders that the exchange does not have any more
	refused map[risk.Reason]uint64
}

// recording is the flow of one instrument.
type recording struct {
	symbol record.Symbol
	source orderflow.Source
	next   orderflow.Event
	more   bool
	live   map[uint64]core.CancelOrder // by the recording's order id
}

func (r *recording) advance() (err error) {
	r.more, err = r.source.Next(&r.next)
	return err
}

// begin reads the first event of every recording.
func (f *replayFlow) begin() error {
	f.refused = map[risk.Reason]uint64{}
	for _, r := range f.sources {
		r.live = map[uint64]core.CancelOrder{}
		if err := r.advance(); err != nil {
			return err
		}
		if r.more && (f.first == 0 || r.next.Time < f.first) {
			f.first = r.next.Time
		}
	}
	f.clock.Store(f.first)
	return nil
}

// Prepare opens the accounts and gives each half of what an account may hold.
func (f *replayFlow) Prepare(e *trial.Entry) error {
	for id := uint64(1); id <= 2*accountsPerSide; id++ {
		if r := e.OpenAccount(id); r.Reason != risk.OK {
			return fmt.Errorf("open account %d: %s", id, r.Reason)
		}
		if r := e.Deposit(id, order.MaxAmount/2, id); r.Reason != risk.OK {
			return fmt.Errorf("deposit to account %d: %s", id, r.Reason)
		}
	}
	return nil
}

// Steps returns the number of events.
func (f *replayFlow) Steps() uint64 { return f.steps }

// Due returns when the next event happened, counted from the first one and
// divided by the speed.
func (f *replayFlow) Due() time.Duration {
	r := f.earliest()
	if r == nil || f.speed == 0 {
		return 0
	}
	return time.Duration(float64(r.next.Time-f.first) / f.speed)
}

// earliest returns the recording whose next event comes first, nil at the end.
func (f *replayFlow) earliest() *recording {
	var first *recording
	for _, r := range f.sources {
		if r.more && (first == nil || r.next.Time < first.next.Time) {
			first = r
		}
	}
	return first
}

// Step replays the next event.
func (f *replayFlow) Step(e *trial.Entry) (bool, error) {
	r := f.earliest()
	if r == nil {
		return false, nil
	}
	f.clock.Store(r.next.Time)
	if r.next.Kind == orderflow.Submit {
		f.submit(e, r)
	} else {
		f.change(e, r)
	}
	return true, r.advance()
}

func (f *replayFlow) submit(e *trial.Entry, r *recording) {
	ev := &r.next
	account := 1 + ev.Order%accountsPerSide
	if ev.Side == record.Sell {
		account += accountsPerSide
	}
	n := core.NewOrder{
		Instrument: r.symbol, Account: account, ClientOrderID: ev.Order, Side: ev.Side, Offset: record.Open,
		Kind: ev.OrderKind, TimeInForce: ev.TimeInForce, Price: ev.Price, Volume: ev.Volume,
	}
	res := f.insist(func() core.Result { return e.Submit(&n) })
	if res.Status == core.Resting || res.Status == core.PartlyFilled {
		r.live[ev.Order] = core.CancelOrder{Instrument: r.symbol, Account: account, OrderID: res.OrderID}
	}
}

// insist makes a request again while the outbox is full.
func (f *replayFlow) insist(request func() core.Result) core.Result {
	res := request()
	for res.Reason == risk.BacklogFull {
		time.Sleep(backlogPause)
		res = request()
	}
	if res.Reason != risk.OK {
		f.refused[res.Reason]++
	}
	return res
}

// change replays an event about an order that was submitted before.
func (f *replayFlow) change(e *trial.Entry, r *recording) {
	ev := &r.next
	if ev.Kind == orderflow.Observe && !f.follow {
		return
	}
	ref, ok := r.live[ev.Order]
	open, rests := e.Order(r.symbol, ref.OrderID)
	if !ok || !rests {
		if ev.Kind != orderflow.Observe {
			f.gone++
		}
		delete(r.live, ev.Order)
		return
	}
	amend := core.AmendOrder{Instrument: r.symbol, Account: ref.Account, OrderID: ref.OrderID}
	switch ev.Kind {
	case orderflow.Cancel:
		amend.Volume = 0
	case orderflow.Reduce:
		amend.Volume = max(open.Remaining-ev.Volume, 0)
	case orderflow.Observe:
		if amend.Volume = ev.Volume; amend.Volume >= open.Remaining {
			return
		}
	case orderflow.Amend:
		amend.Price, amend.Volume = ev.Price, ev.Volume
		f.keep(r, ev.Order, f.insist(func() core.Result { return e.Amend(&amend) }))
		return
	}
	if amend.Volume == 0 {
		f.insist(func() core.Result { return e.Cancel(&ref) })
		delete(r.live, ev.Order)
		return
	}
	f.insist(func() core.Result { return e.Amend(&amend) })
}

// keep forgets an order that an amend used up.
func (f *replayFlow) keep(r *recording, id uint64, res core.Result) {
	if res.Status == core.Filled || res.Status == core.Canceled {
		delete(r.live, id)
	}
}
