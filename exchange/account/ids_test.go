package account

import (
	"math/rand/v2"
	"testing"
)

func TestIDIndexIsAMap(t *testing.T) {
	const seed = 7
	r := rand.New(rand.NewPCG(seed, seed))
	x, want := newIDIndex(), map[uint64]uint32{}
	check := func(id uint64) {
		index, ok := x.get(id)
		if w, has := want[id]; ok != has || index != w {
			t.Fatalf("seed %d: id %d is at %d, %v; want %d, %v", seed, id, index, ok, w, has)
		}
	}
	for n := range uint32(20_000) {
		id := r.Uint64() >> r.IntN(64)
		check(id)
		if _, has := want[id]; has || id == 0 {
			continue
		}
		x.put(id, n)
		want[id] = n
		check(id)
	}
	for id := range want {
		check(id)
	}
	check(0)
}
