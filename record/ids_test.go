package record

import (
	"math/rand/v2"
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

// IndexID finds what HasID says, for records of any type with the same few numbers in
// all their words.
func TestIndexID(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 2))
	found := map[IDKind]int{}
	for round := range 20_000 {
		rs := make([]Record, rng.IntN(6))
		for i := range rs {
			rs[i].Type = Type(rng.IntN(int(TypeHistoryCut) + 2))
			for w := 0; w < BodySize; w += 8 {
				rs[i].Body[w] = byte(rng.IntN(8))
			}
		}
		for kind := range AccountID + 2 {
			id := ID{kind, rng.Uint64N(8)}
			want := slices.IndexFunc(rs, func(r Record) bool { return r.HasID(id) })
			if got := IndexID(rs, id); got != want {
				t.Fatalf("seed %d, round %d: %s %d in %v: got %d, expected %d", seed, round, kind, id.Value, rs, got, want)
			}
			if want >= 0 {
				found[kind]++
			}
		}
	}
	if found[OrderID] == 0 || found[TradeID] == 0 || found[AccountID] == 0 || len(found) != 3 {
		t.Errorf("found by kind: %v", found)
	}
}
