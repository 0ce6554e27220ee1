package synthetic

import (
	"math"
	"math/rand/v2"
)

// arrivals draws the times of a Hawkes process whose intensity jumps at each
// event and decays exponentially, by thinning (Ogata, IEEE Transactions on
// Information Theory 27, 1981).
type arrivals struct {
	base   float64 // events a second that nothing brought about
	jump   float64 // what an event adds to the intensity
	decay  float64 // per second
	excite float64 // intensity above base, at now
	now    float64 // seconds
}

func newArrivals(rate float64) *arrivals {
	decay := 1 / kernelSeconds
	return &arrivals{base: rate * (1 - branching), jump: branching * decay, decay: decay}
}

// next returns the time of the next event, in seconds from the beginning.
func (a *arrivals) next(rng *rand.Rand) float64 {
	for {
		bound := a.base + a.excite
		wait := rng.ExpFloat64() / bound
		a.now += wait
		a.excite *= math.Exp(-a.decay * wait)
		if rng.Float64()*bound <= a.base+a.excite {
			a.excite += a.jump
			return a.now
		}
	}
}
