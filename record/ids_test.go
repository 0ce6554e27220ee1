package record

import (
	"slices"
	"testing"
)

func TestIDs(t *testing.T) {
	want := map[Type][]ID{
		TypeOrderInsert:   {{OrderID, 1}, {AccountID, 3}},
		TypeOrderCancel:   {{OrderID, 1}, {AccountID, 3}},
		TypeOrderAmend:    {{OrderID, 1}, {AccountID, 3}},
		TypeTradeExecuted: {{OrderID, 2}, {OrderID, 3}, {TradeID, 1}, {AccountID, 4}, {AccountID, 5}},
		TypeAccountUpdate: {{AccountID, 1}},
		TypeAccountOpened: {{AccountID, 1}},
		TypeDeposit:       {{AccountID, 1}},
		TypeWithdraw:      {{AccountID, 1}},
	}
	for _, typ := range allTypes() {
		r := sample(typ)
		var ids [MaxIDs]ID
		n := r.IDs(&ids)
		if !slices.Equal(ids[:n], want[typ]) {
			t.Errorf("%s: ids %v, want %v", typ, ids[:n], want[typ])
		}
		for kind := OrderID; kind <= AccountID; kind++ {
			for v := uint64(0); v < 12; v++ {
				id := ID{kind, v}
				if got := r.HasID(id); got != slices.Contains(want[typ], id) {
					t.Errorf("%s: HasID(%s %d) = %t", typ, kind, v, got)
				}
			}
		}
	}
	var zero Record
	zero.Type = TypeTradeExecuted
	var ids [MaxIDs]ID
	if n := zero.IDs(&ids); n != 0 {
		t.Errorf("ids of value 0 are not ids, got %d", n)
	}
}
