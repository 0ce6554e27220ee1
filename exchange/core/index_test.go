package core

import (
	"math/rand/v2"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/order"
)

// The index against a map, with ids that come and go as orders do.
func TestIndexModel(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 0))
		x, model := newOrderIndex(), make(map[uint64]*order.Order)
		var ids []uint64
		next := uint64(0)
		for range 60_000 {
			grow := 40 + 20*int(next/10_000%2) // 40 or 60 percent come
			switch k := rng.IntN(100); {
			case k < grow:
				next += 1 + rng.Uint64N(3)
				o := &order.Order{ID: next}
				x.put(o)
				model[next] = o
				ids = append(ids, next)
			case len(ids) > 0:
				i := rng.IntN(len(ids))
				x.remove(ids[i])
				x.remove(ids[i]) // a second time does nothing
				delete(model, ids[i])
				ids[i] = ids[len(ids)-1]
				ids = ids[:len(ids)-1]
			}
			probe := rng.Uint64N(next + 2)
			if x.get(probe) != model[probe] {
				t.Fatalf("seed %d: id %d: %v, want %v", seed, probe, x.get(probe), model[probe])
			}
		}
		if x.count != len(model) {
			t.Fatalf("seed %d: count %d, want %d", seed, x.count, len(model))
		}
		for id, o := range model {
			if x.get(id) != o {
				t.Fatalf("seed %d: id %d is lost", seed, id)
			}
		}
	}
}
