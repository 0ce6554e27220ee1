// Package player puts a synthetic flow into an exchange and tells its generator what
// becomes of the orders, which it learns from the answers and from the drop copy.
package player

import (
	"fmt"
	"time"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/orderflow/synthetic"
	"github.com/countinghouse/countinghouse/record"
)

// Entry is where requests go: a core.Router, or what stands before one.
type Entry interface {
	Submit(*core.NewOrder) core.Result
	Cancel(*core.CancelOrder) core.Result
	Amend(*core.AmendOrder) core.Result
}

// Request is a request that was made, and its answer.
type Request struct {
	Kind orderflow.Kind
	// Order is the new order; of a cancel or an amend only the instrument, the
	// account, and the price and the volume that are asked for.
	Order core.NewOrder
	// OrderID is of the order that is cancelled or amended, or that was accepted; 0
	// if it was not.
	OrderID uint64
	Result  core.Result
}

// Player makes a generator's requests. It is for one goroutine.
type Player struct {
	start   int64 // Unix nanoseconds of the flow's beginning
	gen     *synthetic.Generator
	symbols []record.Symbol
	index   map[record.Symbol]int32
	drop    *gateway.Subscription

	next    orderflow.Event
	more    bool
	orderOf map[uint64]uint64 // the exchange's order id by the flow's, of live orders
	flowOf  map[uint64]uint64 // and back
}

// dropRing holds the events of the largest request many times over.
const dropRing = 1 << 14

// New returns a player of the flow that config describes but for its instruments,
// which are those of terms; activity returns the share of the events of each, by its
// index.
func New(config synthetic.Config, terms []order.Instrument, activity func(i int) float64) (*Player, error) {
	p := &Player{start: config.Start, index: map[record.Symbol]int32{}, orderOf: map[uint64]uint64{}, flowOf: map[uint64]uint64{}}
	config.Instruments = nil
	for i := range terms {
		t := &terms[i]
		p.index[t.Symbol] = int32(i)
		p.symbols = append(p.symbols, t.Symbol)
		config.Instruments = append(config.Instruments, synthetic.Instrument{
			Reference: (t.LowerLimit + t.UpperLimit) / 2, Lower: t.LowerLimit, Upper: t.UpperLimit,
			MaxOrderVolume: t.MaxOrderVolume, Activity: activity(i),
		})
	}
	var err error
	if p.gen, err = synthetic.New(config); err != nil {
		return nil, err
	}
	p.more, err = p.gen.Next(&p.next)
	return p, err
}

// Listen subscribes to the drop copy of the exchange that the requests go to, which
// must be done before the first.
func (p *Player) Listen(f *gateway.Fanout) {
	p.drop = f.Subscribe(gateway.Executions|gateway.MarketData, dropRing)
}

// Due returns when the next request is due, from the flow's beginning on.
func (p *Player) Due() time.Duration { return time.Duration(p.next.Time - p.start) }

// Step makes the next request, of the accounts' numbers as their ids. It returns
// false when there is none any more.
func (p *Player) Step(to Entry) (Request, bool, error) {
	if !p.more {
		return Request{}, false, nil
	}
	r, err := p.make(to)
	if err != nil {
		return Request{}, false, err
	}
	p.tell(&r)
	if p.more, err = p.gen.Next(&p.next); err != nil {
		return Request{}, false, err
	}
	return r, true, nil
}

// make makes the request that the next event asks for.
func (p *Player) make(to Entry) (Request, error) {
	ev := &p.next
	r := Request{Kind: ev.Kind, OrderID: p.orderOf[ev.Order], Order: core.NewOrder{
		Instrument: p.symbols[ev.Instrument], Account: ev.Account, ClientOrderID: ev.Order,
		Side: ev.Side, Offset: ev.Offset, Kind: ev.OrderKind, TimeInForce: ev.TimeInForce,
		Price: ev.Price, Volume: ev.Volume,
	}}
	o := &r.Order
	switch ev.Kind {
	case orderflow.Submit:
		r.Result = to.Submit(o)
		r.OrderID = r.Result.OrderID
	case orderflow.Cancel:
		r.Result = to.Cancel(&core.CancelOrder{Instrument: o.Instrument, Account: o.Account, OrderID: r.OrderID})
	case orderflow.Amend:
		r.Result = to.Amend(&core.AmendOrder{Instrument: o.Instrument, Account: o.Account, OrderID: r.OrderID, Price: o.Price, Volume: o.Volume})
	default:
		return Request{}, fmt.Errorf("the generator drew %v", ev)
	}
	return r, nil
}

// tell tells the generator what a request did to its order.
func (p *Player) tell(r *Request) {
	flowID, res := r.Order.ClientOrderID, &r.Result
	switch res.Status {
	case core.Refused:
		if r.Kind == orderflow.Submit {
			p.gen.Gone(flowID)
		}
		p.drain()
		return
	case core.Resting, core.PartlyFilled:
		p.gen.Rests(flowID, res.Remaining+res.Filled)
	case core.Filled:
		p.gen.Rests(flowID, res.Filled)
	}
	if r.Kind == orderflow.Submit {
		p.orderOf[flowID], p.flowOf[r.OrderID] = r.OrderID, flowID
	}
	p.drain()
	if res.Status == core.Canceled {
		p.gen.Gone(flowID)
		p.forget(flowID, r.OrderID)
	}
}

// drain takes what the drop copy brought: fills, and the best prices.
func (p *Player) drain() {
	var ev gateway.Event
	for p.drop.TryNext(&ev) {
		switch {
		case ev.Kind == gateway.TopEvent:
			p.gen.Top(p.index[ev.Top.Instrument], ev.Top.BidPrice, ev.Top.AskPrice)
		case ev.Kind == gateway.RecordEvent && ev.Record.Type == record.TypeTradeExecuted:
			t := ev.Record.TradeExecuted()
			p.filled(t.MakerOrderID, t.Volume)
			p.filled(t.TakerOrderID, t.Volume)
		}
	}
}

func (p *Player) filled(orderID uint64, lots int64) {
	flowID := p.flowOf[orderID]
	p.gen.Filled(flowID, lots)
	if !p.gen.Knows(flowID) {
		p.forget(flowID, orderID)
	}
}

func (p *Player) forget(flowID, orderID uint64) {
	delete(p.orderOf, flowID)
	delete(p.flowOf, orderID)
}
