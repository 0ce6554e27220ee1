package player

import (
	"testing"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/orderflow/synthetic"
)

// The flow knows at its end which orders rest in the exchange: it was told of every
// fill, cancel and refusal.
func TestTheGeneratorIsToldWhatBecomesOfItsOrders(t *testing.T) {
	const events, accounts = 20_000, 20
	set, err := order.DefaultSet()
	if err != nil {
		t.Fatal(err)
	}
	ex := core.New(gateway.New(gateway.NewMemory(1<<18, 0), gateway.Options{HeadroomRecords: -1}))
	for _, terms := range set.Instruments {
		if _, err := ex.ListInstrument(1, terms); err != nil {
			t.Fatal(err)
		}
	}
	to := core.NewRouter(nil)
	to.Start(ex)
	for id := uint64(1); id <= accounts; id++ {
		to.OpenAccount(id)
		if r := to.Deposit(id, 1e14, id); r.Reason != risk.OK {
			t.Fatal(r.Reason)
		}
	}
	p, err := New(synthetic.Config{Seed: 1, Events: events, Rate: 1000, Accounts: accounts}, set.Instruments, func(int) float64 { return 1 })
	if err != nil {
		t.Fatal(err)
	}
	p.Listen(to.Fanout())
	kinds, statuses, n := map[orderflow.Kind]int{}, map[core.Status]int{}, 0
	for due := p.Due(); ; due = p.Due() {
		r, more, err := p.Step(to)
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		if p.Due() < due {
			t.Fatalf("request %d is due before the one that precedes it", n+1)
		}
		n++
		kinds[r.Kind]++
		statuses[r.Result.Status]++
	}
	for _, kind := range []orderflow.Kind{orderflow.Submit, orderflow.Cancel, orderflow.Amend} {
		if kinds[kind] < events/100 {
			t.Errorf("%d requests, by kind: %v", n, kinds)
		}
	}
	for _, status := range []core.Status{core.Resting, core.PartlyFilled, core.Filled, core.Canceled} {
		if statuses[status] == 0 {
			t.Errorf("%d requests, by what came of them: %v", n, statuses)
		}
	}
	live := 0
	for i := range set.Instruments {
		view, _ := ex.Instrument(set.Instruments[i].Symbol)
		if p.gen.Live(int32(i)) != view.Orders || view.Orders == 0 {
			t.Errorf("%s: %d orders rest, the flow knows of %d", set.Instruments[i].Symbol, view.Orders, p.gen.Live(int32(i)))
		}
		live += view.Orders
	}
	if n != events || len(p.orderOf) != live || len(p.flowOf) != live {
		t.Errorf("%d requests of %d, %d and %d ids for %d live orders", n, events, len(p.orderOf), len(p.flowOf), live)
	}
}
