package history

import (
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

// Every order and trade is where Order and Trade say, and what refers to an order
// comes after it.
func TestIDs(t *testing.T) {
	const groups = 5000
	streams := Streams(3)
	inserted := map[uint64]bool{}
	for _, s := range streams {
		rs := make([]record.Record, groups*Group)
		s.Fill(rs, 1)
		trades := 0
		for i := range rs {
			r, group := &rs[i], uint64(i/Group)
			if err := r.Check(); err != nil || r.Seq != uint64(i+1) || r.Instrument != s.Symbol {
				t.Fatalf("record %d: %v, %s", i, err, r)
			}
			switch r.Type {
			case record.TypeOrderInsert:
				id := r.OrderInsert().OrderID
				if inserted[id] {
					t.Fatalf("order %d is inserted twice", id)
				}
				inserted[id] = true
			case record.TypeTradeExecuted:
				trades++
				x := r.TradeExecuted()
				if x.TradeID != s.Trade(group) || x.TakerOrderID != s.Order(group, 2) || !inserted[x.MakerOrderID] || !inserted[x.TakerOrderID] {
					t.Fatalf("group %d: %s", group, r)
				}
			case record.TypeOrderCancel:
				if !inserted[r.OrderCancel().OrderID] {
					t.Fatalf("group %d: %s", group, r)
				}
			}
		}
		if trades != groups {
			t.Errorf("%d trades in %d groups", trades, groups)
		}
	}
	if want := len(streams) * groups * ordersOfGroup; len(inserted) != want {
		t.Errorf("%d orders, expected %d", len(inserted), want)
	}
}

func TestABatchIsAPartOfTheStream(t *testing.T) {
	s := Streams(2)[1]
	all := make([]record.Record, 100)
	s.Fill(all, 1)
	b, err := s.Batch(7, 41, 20)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := record.ParseBatch(b)
	if err != nil || parsed.Epoch != 7 || parsed.FirstSeq != 41 || len(parsed.Records) != 20 {
		t.Fatalf("%+v, %v", parsed, err)
	}
	for i, r := range parsed.Records {
		if r != all[40+i] {
			t.Errorf("record %d is %s", i, r.String())
		}
	}
}
