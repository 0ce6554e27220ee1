package synthetic

import (
	"errors"
	"fmt"
)

// Instrument is what the generator has to know of an instrument.
type Instrument struct {
	Reference      int64   // ticks, where the price starts
	Lower, Upper   int64   // ticks, the daily limits; no order is outside
	MaxOrderVolume int64   // lots
	Activity       float64 // share of the events, relative to the others; > 0
}

// Config says what is drawn. Rates are per second of the flow's own time.
type Config struct {
	Seed        uint64
	Events      uint64 // how many events are drawn
	Start       int64  // Unix nanoseconds of the flow's beginning
	Rate        float64
	Instruments []Instrument
	Accounts    int // accounts 1 … Accounts take part
}

const (
	accountsMax    = 1 << 20
	instrumentsMax = 1 << 12
)

func (c *Config) check() error {
	switch {
	case len(c.Instruments) == 0 || len(c.Instruments) > instrumentsMax:
		return fmt.Errorf("synthetic flow: %d instruments: use 1 to %d", len(c.Instruments), instrumentsMax)
	case c.Accounts < 2 || c.Accounts > accountsMax:
		return fmt.Errorf("synthetic flow: %d accounts: use 2 to %d", c.Accounts, accountsMax)
	case !(c.Rate > 0) || c.Rate > 1e9:
		return fmt.Errorf("synthetic flow: rate %g: use more than 0 and at most 1e9 events a second", c.Rate)
	case c.Start < 0:
		return errors.New("synthetic flow: the start lies before 1970")
	}
	for i, in := range c.Instruments {
		if in.Lower < 1 || in.Lower >= in.Reference || in.Reference >= in.Upper || in.MaxOrderVolume < 1 || !(in.Activity > 0) {
			return fmt.Errorf("synthetic flow: instrument %d: need 1 ≤ lower < reference < upper, a volume of at least 1 and an activity above 0: %+v", i, in)
		}
	}
	return nil
}

// The shares of what an event is, in percent. What is left over is a limit
// order that rests.
const (
	percentCancel     = 36
	percentAmend      = 7
	percentMarketable = 11 // takes the best price: market, IOC or a crossing limit order
	percentFOK        = 1
	percentSweep      = 1 // a large order that takes several levels
)

const (
	// liveOrdersMax bounds the resting orders of an instrument: above it the
	// generator cancels only.
	liveOrdersMax = 5000
	// liveOrdersLow is where an instrument's book is thin: below it the
	// generator mostly submits.
	liveOrdersLow = 60

	branching      = 0.6  // events that an event brings about, on average
	kernelSeconds  = 0.05 // how long it goes on doing so
	distanceAlpha  = 1.3  // exponent of the distances' tail
	distanceMax    = 400  // ticks
	volumeTail     = 1.6  // exponent of the sizes' tail
	accountTail    = 1.15 // exponent of the accounts' activity
	sweepVolumes   = 12   // a sweep is this many usual orders in one
	closeShare     = 0.5  // of orders that could close
	meanReversion  = 0.02 // of the reference per event of the instrument
	calmStep       = 0.15 // ticks the reference moves per event when calm
	restlessStep   = 0.9  // ticks, when restless
	regimeEvents   = 3000 // mean length of a regime, in events of the instrument
	pullPerTick    = 0.08 // how much a tick between price and reference tilts the sides
	improveShare   = 0.2  // of resting orders that go inside the spread
	priceBandShare = 0.85 // of the room up to the limits that the reference uses
)
