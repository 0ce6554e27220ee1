package orders

import (
	"fmt"
	"strconv"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/orderflow/player"
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
	ex := core.New(gateway.New(&blindSink{}, gateway.Options{}))
	if err := f.prepare(ex); err != nil {
		return nil, err
	}
	config := synthetic.Config{Seed: flowSeed, Events: uint64(warm + n), Rate: flowRate, Accounts: f.accounts}
	p, err := player.New(config, terms, func(int) float64 { return 1 })
	if err != nil {
		return nil, err
	}
	p.Listen(ex.Gateway().Fanout())
	all := make([]request, 0, warm+n)
	for {
		r, more, err := p.Step(at{ex, 1})
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		all = append(all, request{order: r.Order, id: r.OrderID, kind: r.Kind, taken: r.Result.Status != core.Refused})
	}
	f.warm, f.measured, f.orders = all[:warm], all[warm:], ex.LastOrderID()
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

// send makes a request.
func (s *sender) send(r *request, to player.Entry) core.Result {
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

// at gives an exchange's methods the shape of a router's.
type at struct {
	ex  *core.Exchange
	now int64
}

func (a at) Submit(n *core.NewOrder) core.Result    { return a.ex.Submit(a.now, n) }
func (a at) Cancel(c *core.CancelOrder) core.Result { return a.ex.Cancel(a.now, c) }
func (a at) Amend(m *core.AmendOrder) core.Result   { return a.ex.Amend(a.now, m) }
