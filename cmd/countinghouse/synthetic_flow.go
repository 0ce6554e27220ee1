package main

import (
	"fmt"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/trial"
	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/orderflow/synthetic"
	"github.com/countinghouse/countinghouse/record"
)

// syntheticFlow puts a generator's orders into an exchange, and tells the
// generator what becomes of them, which it learns from the drop copy.
type syntheticFlow struct {
	config  synthetic.Config
	gen     *synthetic.Generator
	symbols []record.Symbol
	index   map[record.Symbol]int32
	drop    *gateway.Subscription

	next    orderflow.Event
	more    bool
	orderOf map[uint64]uint64 // the exchange's order id by the flow's, of live orders
	flowOf  map[uint64]uint64 // and back
	deposit int64             // minor units each account starts with
}

// dropRing holds the events of the largest request many times over.
const dropRing = 1 << 14

// accountDeposit is what a demo's account starts with: 500 million.
const accountDeposit = 500_000_000

func newSyntheticFlow(set order.Set, seed, events uint64, rate float64, accounts int) (*syntheticFlow, error) {
	f := &syntheticFlow{
		config:  synthetic.Config{Seed: seed, Events: events, Rate: rate, Accounts: accounts},
		index:   map[record.Symbol]int32{},
		orderOf: map[uint64]uint64{}, flowOf: map[uint64]uint64{},
		deposit: accountDeposit,
	}
	for range set.Decimals {
		f.deposit *= 10
	}
	for i := range set.Instruments {
		t := &set.Instruments[i]
		f.index[t.Symbol] = int32(i)
		f.symbols = append(f.symbols, t.Symbol)
		f.config.Instruments = append(f.config.Instruments, synthetic.Instrument{
			Reference: (t.LowerLimit + t.UpperLimit) / 2, Lower: t.LowerLimit, Upper: t.UpperLimit,
			MaxOrderVolume: t.MaxOrderVolume, Activity: 1 / float64(i+1),
		})
	}
	var err error
	if f.gen, err = synthetic.New(f.config); err != nil {
		return nil, err
	}
	f.more, err = f.gen.Next(&f.next)
	return f, err
}

// Prepare opens the accounts.
func (f *syntheticFlow) Prepare(e *trial.Entry) error {
	for id := uint64(1); id <= uint64(f.config.Accounts); id++ {
		if r := e.OpenAccount(id); r.Reason != risk.OK {
			return fmt.Errorf("open account %d: %s", id, r.Reason)
		}
		if r := e.Deposit(id, f.deposit, id); r.Reason != risk.OK {
			return fmt.Errorf("deposit to account %d: %s", id, r.Reason)
		}
	}
	f.drop = e.Fanout().Subscribe(gateway.Executions|gateway.MarketData, dropRing)
	return nil
}

// Steps returns the number of events.
func (f *syntheticFlow) Steps() uint64 { return f.config.Events }

// Due returns the next event's time.
func (f *syntheticFlow) Due() time.Duration { return time.Duration(f.next.Time - f.config.Start) }

// Step makes the request that the next event asks for.
func (f *syntheticFlow) Step(e *trial.Entry) (bool, error) {
	if !f.more {
		return false, nil
	}
	switch ev := &f.next; ev.Kind {
	case orderflow.Submit:
		f.submit(e, ev)
	case orderflow.Cancel:
		res := e.Cancel(&core.CancelOrder{Instrument: f.symbols[ev.Instrument], Account: ev.Account, OrderID: f.orderOf[ev.Order]})
		f.after(ev.Order, res)
	case orderflow.Amend:
		res := e.Amend(&core.AmendOrder{
			Instrument: f.symbols[ev.Instrument], Account: ev.Account, OrderID: f.orderOf[ev.Order],
			Price: ev.Price, Volume: ev.Volume,
		})
		f.after(ev.Order, res)
	default:
		return false, fmt.Errorf("the generator drew %v", ev)
	}
	var err error
	if f.more, err = f.gen.Next(&f.next); err != nil {
		return false, err
	}
	return true, nil
}

func (f *syntheticFlow) submit(e *trial.Entry, ev *orderflow.Event) {
	res := e.Submit(&core.NewOrder{
		Instrument: f.symbols[ev.Instrument], Account: ev.Account, ClientOrderID: ev.Order,
		Side: ev.Side, Offset: ev.Offset, Kind: ev.OrderKind, TimeInForce: ev.TimeInForce,
		Price: ev.Price, Volume: ev.Volume,
	})
	if res.Status == core.Refused {
		f.gen.Gone(ev.Order)
		f.drain()
		return
	}
	f.orderOf[ev.Order], f.flowOf[res.OrderID] = res.OrderID, ev.Order
	f.after(ev.Order, res)
}

// after tells the generator what a request did to its order.
func (f *syntheticFlow) after(flowID uint64, res core.Result) {
	switch res.Status {
	case core.Resting, core.PartlyFilled:
		f.gen.Rests(flowID, res.Remaining+res.Filled)
	case core.Filled:
		f.gen.Rests(flowID, res.Filled)
	}
	f.drain()
	if res.Status == core.Canceled {
		f.gen.Gone(flowID)
		f.forget(flowID, res.OrderID)
	}
}

// drain takes what the drop copy brought: fills, and the best prices.
func (f *syntheticFlow) drain() {
	var ev gateway.Event
	for f.drop.TryNext(&ev) {
		switch {
		case ev.Kind == gateway.TopEvent:
			f.gen.Top(f.index[ev.Top.Instrument], ev.Top.BidPrice, ev.Top.AskPrice)
		case ev.Kind == gateway.RecordEvent && ev.Record.Type == record.TypeTradeExecuted:
			t := ev.Record.TradeExecuted()
			f.filled(t.MakerOrderID, t.Volume)
			f.filled(t.TakerOrderID, t.Volume)
		}
	}
}

func (f *syntheticFlow) filled(orderID uint64, lots int64) {
	flowID := f.flowOf[orderID]
	f.gen.Filled(flowID, lots)
	if !f.gen.Knows(flowID) {
		f.forget(flowID, orderID)
	}
}

func (f *syntheticFlow) forget(flowID, orderID uint64) {
	delete(f.orderOf, flowID)
	delete(f.flowOf, orderID)
}
