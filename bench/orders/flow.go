package orders

import (
	"fmt"
	"strconv"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/orderflow/synthetic"
	"github.com/countinghouse/countinghouse/record"
)

// request is one request of a flow, and what became of it.
type request struct {
	order core.NewOrder // of a cancel or an amend: instrument, account, price and volume
	id    uint64        // of the order that is cancelled or amended, or that was accepted
	kind  orderflow.Kind
	taken bool // not refused
}

// flow is a sequence of requests, and the exchange that they are for.
type flow struct {
	terms    []order.Instrument
	accounts int
	warm     []request // brings books and pools to their steady state
	measured []request
	orders   uint64 // accepted in all, which is also the highest order id
}

const (
	flowSeed = 1
	// flowAccounts take part in every flow.
	flowAccounts = 300
	// flowRate is in events per second of the flow's own time, which only decides
	// how they cluster.
	flowRate = 10_000
	// deposit is what each account starts with, in minor units: nobody runs out
	// of money.
	deposit = 1_000_000_000_000_000
)

// drawFlow draws a flow of warm + n requests.
func drawFlow(instruments, warm, n int) (*flow, error) {
	terms, err := listed(instruments)
	if err != nil {
		return nil, err
	}
	f := &flow{terms: terms, accounts: flowAccounts}
	d, err := newDrawing(f, uint64(warm+n))
	if err != nil {
		return nil, err
	}
	all := make([]request, 0, warm+n)
	for range warm + n {
		r, err := d.step()
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	f.warm, f.measured, f.orders = all[:warm], all[warm:], d.ex.LastOrderID()
	return f, nil
}

// listed returns the terms of n instruments: those of the default set, again and
// again under other names.
func listed(n int) ([]order.Instrument, error) {
	set, err := order.DefaultSet()
	if err != nil {
		return nil, err
	}
	var out []order.Instrument
	for i := range n {
		t := set.Instruments[i%len(set.Instruments)]
		t.PositionLimit = 0
		if i >= len(set.Instruments) {
			if t.Symbol, err = record.MakeSymbol("X" + strconv.Itoa(i)); err != nil {
				return nil, err
			}
		}
		out = append(out, t)
	}
	return out, nil
}

// prepare lists the instruments and opens the accounts.
func (f *flow) prepare(ex *core.Exchange) error {
	for _, t := range f.terms {
		if _, err := ex.ListInstrument(1, t); err != nil {
			return err
		}
	}
	for id := uint64(1); id <= uint64(f.accounts); id++ {
		if r := ex.OpenAccount(1, id); r.Reason != risk.OK {
			return fmt.Errorf("account %d: %s", id, r.Reason)
		}
		if r := ex.Deposit(1, id, deposit, 0); r.Reason != risk.OK {
			return fmt.Errorf("deposit to account %d: %s", id, r.Reason)
		}
	}
	return nil
}

// sender makes requests of an entry. It keeps what it hands over, so that sending
// allocates nothing.
type sender struct {
	cancel core.CancelOrder
	amend  core.AmendOrder
}

// entry is where requests go.
type entry interface {
	Submit(*core.NewOrder) core.Result
	Cancel(*core.CancelOrder) core.Result
	Amend(*core.AmendOrder) core.Result
}

// send makes a request.
func (s *sender) send(r *request, to entry) core.Result {
	switch r.kind {
	case orderflow.Submit:
		return to.Submit(&r.order)
	case orderflow.Cancel:
		s.cancel = core.CancelOrder{Instrument: r.order.Instrument, Account: r.order.Account, OrderID: r.id}
		return to.Cancel(&s.cancel)
	}
	s.amend = core.AmendOrder{
		Instrument: r.order.Instrument, Account: r.order.Account, OrderID: r.id, Price: r.order.Price, Volume: r.order.Volume,
	}
	return to.Amend(&s.amend)
}

// drawing puts a generator's orders into an exchange, tells the generator what
// becomes of them, and notes the requests.
type drawing struct {
	f       *flow
	gen     *synthetic.Generator
	ex      *core.Exchange
	drop    *gateway.Subscription
	sender  sender
	index   map[record.Symbol]int32
	orderOf map[uint64]uint64 // the exchange's order id by the flow's
	flowOf  []uint64          // the flow's order id by the exchange's
}

// dropRing holds the events of the largest request many times over.
const dropRing = 1 << 14

func newDrawing(f *flow, events uint64) (*drawing, error) {
	d := &drawing{
		f: f, ex: core.New(gateway.New(&blindSink{}, gateway.Options{})),
		index: map[record.Symbol]int32{}, orderOf: map[uint64]uint64{}, flowOf: []uint64{0},
	}
	config := synthetic.Config{Seed: flowSeed, Events: events, Rate: flowRate, Accounts: f.accounts}
	for i, t := range f.terms {
		d.index[t.Symbol] = int32(i)
		config.Instruments = append(config.Instruments, synthetic.Instrument{
			Reference: (t.LowerLimit + t.UpperLimit) / 2, Lower: t.LowerLimit, Upper: t.UpperLimit,
			MaxOrderVolume: t.MaxOrderVolume, Activity: 1,
		})
	}
	var err error
	if d.gen, err = synthetic.New(config); err != nil {
		return nil, err
	}
	if err := f.prepare(d.ex); err != nil {
		return nil, err
	}
	d.drop = d.ex.Gateway().Fanout().Subscribe(gateway.Executions|gateway.MarketData, dropRing)
	return d, nil
}

// at gives an exchange's methods the shape of a router's.
type at struct {
	ex  *core.Exchange
	now int64
}

func (a at) Submit(n *core.NewOrder) core.Result    { return a.ex.Submit(a.now, n) }
func (a at) Cancel(c *core.CancelOrder) core.Result { return a.ex.Cancel(a.now, c) }
func (a at) Amend(m *core.AmendOrder) core.Result   { return a.ex.Amend(a.now, m) }

func (d *drawing) step() (request, error) {
	var ev orderflow.Event
	if _, err := d.gen.Next(&ev); err != nil {
		return request{}, err
	}
	r := request{kind: ev.Kind, id: d.orderOf[ev.Order], order: core.NewOrder{
		Instrument: d.f.terms[ev.Instrument].Symbol, Account: ev.Account, ClientOrderID: ev.Order,
		Side: ev.Side, Offset: ev.Offset, Kind: ev.OrderKind, TimeInForce: ev.TimeInForce,
		Price: ev.Price, Volume: ev.Volume,
	}}
	res := d.sender.send(&r, at{d.ex, 1})
	r.taken = res.Status != core.Refused
	if ev.Kind == orderflow.Submit && r.taken {
		r.id = res.OrderID
		d.orderOf[ev.Order] = res.OrderID
		d.flowOf = append(d.flowOf, ev.Order)
	}
	d.tell(ev.Kind, ev.Order, res)
	return r, nil
}

// tell tells the generator what a request did to its order.
func (d *drawing) tell(kind orderflow.Kind, flowID uint64, res core.Result) {
	switch res.Status {
	case core.Refused:
		if kind == orderflow.Submit {
			d.gen.Gone(flowID)
		}
	case core.Resting, core.PartlyFilled:
		d.gen.Rests(flowID, res.Remaining+res.Filled)
	case core.Filled:
		d.gen.Rests(flowID, res.Filled)
	}
	d.drain()
	if res.Status == core.Canceled {
		d.gen.Gone(flowID)
	}
}

// drain takes what the drop copy brought: fills, and the best prices.
func (d *drawing) drain() {
	var ev gateway.Event
	for d.drop.TryNext(&ev) {
		switch {
		case ev.Kind == gateway.TopEvent:
			d.gen.Top(d.index[ev.Top.Instrument], ev.Top.BidPrice, ev.Top.AskPrice)
		case ev.Kind == gateway.RecordEvent && ev.Record.Type == record.TypeTradeExecuted:
			t := ev.Record.TradeExecuted()
			d.gen.Filled(d.flowOf[t.MakerOrderID], t.Volume)
			d.gen.Filled(d.flowOf[t.TakerOrderID], t.Volume)
		}
	}
}
