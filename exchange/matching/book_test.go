package matching

import (
	"testing"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// Calls that break a rule of the contract change nothing.
func TestMisuseChangesNothing(t *testing.T) {
	book := New()
	first, second := rest(book, 10), rest(book, 10)
	book.Rest(first)
	book.Release(second)
	loose := book.Acquire()
	loose.Side = record.Buy
	book.Remove(loose)
	if book.Amend(loose, 10, 1) {
		t.Error("Amend of an order that does not rest kept its priority")
	}
	book.Release(loose)
	book.Release(loose)
	book.Remove(loose)
	book.Rest(loose)
	if a, b := book.Acquire(), book.Acquire(); a == b || a == second || b == second {
		t.Error("an order was given out twice")
	}
	if err := book.check(); err != nil {
		t.Error(err)
	}
	var ids []*order.Order
	book.Each(record.Buy, func(o *order.Order) bool { ids = append(ids, o); return len(ids) < 2 })
	if len(ids) != 2 || ids[0] != first || ids[1] != second || book.Orders(record.Buy) != 2 {
		t.Errorf("the queue is %v", ids)
	}
}

func TestDepthStopsAtN(t *testing.T) {
	book := New()
	for p := range int64(5) {
		rest(book, p)
	}
	if got := book.Depth(record.Buy, 2, nil); len(got) != 2 || got[0].Price != 4 || got[1].Price != 3 {
		t.Errorf("depth 2 is %v", got)
	}
	if got := book.Depth(record.Buy, 0, nil); got != nil {
		t.Errorf("depth 0 is %v", got)
	}
}
