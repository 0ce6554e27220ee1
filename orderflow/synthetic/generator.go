package synthetic

import (
	"math"
	"math/rand/v2"

	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/record"
)

// Generator draws an order flow. It is an orderflow.Source for one goroutine,
// which tells it what becomes of each event before it asks for the next one.
type Generator struct {
	config   Config
	rng      *rand.Rand
	zipf     *rand.Zipf
	arrivals *arrivals
	markets  []market
	total    float64 // sum of activities
	shadow   *shadow
	drawn    uint64
	lastID   uint64
}

// market is an instrument's price process, and the best prices last told.
type market struct {
	Instrument
	value    float64 // ticks, the reference that pulls the flow
	restless bool
	bid, ask int64 // ticks, 0 where nothing rests
}

// New returns a generator, or an error that names what is wrong in c.
func New(c Config) (*Generator, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(c.Seed, 0x5eed))
	g := &Generator{
		config: c, rng: rng, zipf: rand.NewZipf(rng, accountTail, 4, uint64(c.Accounts-1)),
		arrivals: newArrivals(c.Rate), shadow: newShadow(len(c.Instruments)),
	}
	for _, in := range c.Instruments {
		g.markets = append(g.markets, market{Instrument: in, value: float64(in.Reference)})
		g.total += in.Activity
	}
	return g, nil
}

// Next draws the next event.
func (g *Generator) Next(e *orderflow.Event) (bool, error) {
	if g.drawn == g.config.Events {
		return false, nil
	}
	g.drawn++
	*e = orderflow.Event{
		Time:       g.config.Start + int64(g.arrivals.next(g.rng)*1e9),
		Instrument: g.pickMarket(),
	}
	m := &g.markets[e.Instrument]
	m.wander(g.rng)
	g.draw(e, m)
	return true, nil
}

// Top tells the best prices of an instrument after an event; 0 where nothing rests.
func (g *Generator) Top(instrument int32, bid, ask int64) {
	g.markets[instrument].bid, g.markets[instrument].ask = bid, ask
}

// Rests tells that the order is in the book, with that many lots open.
func (g *Generator) Rests(order uint64, remaining int64) {
	if r := g.shadow.orders[order]; r != nil {
		g.resize(r, remaining)
		g.shadow.enter(r)
	}
}

// Filled tells that lots of the order have traded, as taker or as maker.
func (g *Generator) Filled(order uint64, lots int64) {
	if r := g.shadow.orders[order]; r != nil {
		g.shadow.fill(r, lots)
	}
}

// Gone tells that the order was refused, or that what was left of it is cancelled.
func (g *Generator) Gone(order uint64) {
	if r := g.shadow.orders[order]; r != nil {
		g.shadow.drop(r)
	}
}

// Live returns how many orders of an instrument rest, as far as was told.
func (g *Generator) Live(instrument int32) int { return len(g.shadow.live[instrument]) }

func (g *Generator) resize(r *resting, remaining int64) {
	if r.offset != record.Open {
		g.shadow.holding(r.account, r.market).reserve(r.side, remaining-r.remaining)
	}
	r.remaining = remaining
}

func (g *Generator) pickMarket() int32 {
	u := g.rng.Float64() * g.total
	for i := range g.markets {
		if u -= g.markets[i].Activity; u < 0 {
			return int32(i)
		}
	}
	return int32(len(g.markets) - 1)
}

// wander moves the reference: a random walk whose step depends on the regime,
// pulled back to where it began and kept off the daily limits.
func (m *market) wander(rng *rand.Rand) {
	if rng.Float64() < 1.0/regimeEvents {
		m.restless = !m.restless
	}
	step := calmStep
	if m.restless {
		step = restlessStep
	}
	home := float64(m.Reference)
	m.value += step*rng.NormFloat64() - meanReversion*step*step*(m.value-home)/10
	low := home - priceBandShare*(home-float64(m.Lower))
	high := home + priceBandShare*(float64(m.Upper)-home)
	m.value = min(max(m.value, low), high)
}

// draw decides what the event is.
func (g *Generator) draw(e *orderflow.Event, m *market) {
	live := len(g.shadow.live[e.Instrument])
	u := g.rng.IntN(100)
	switch {
	case live > liveOrdersMax:
		g.cancel(e, m)
	case live < liveOrdersLow:
		g.place(e, m)
	case u < percentCancel:
		g.cancel(e, m)
	case u < percentCancel+percentAmend:
		g.amend(e, m)
	case u < percentCancel+percentAmend+percentMarketable:
		g.take(e, m)
	case u < percentCancel+percentAmend+percentMarketable+percentFOK:
		g.order(e, m)
		e.TimeInForce, e.Price = record.FOK, m.touch(e.Side.Opposite())
		g.note(e)
	case u < percentCancel+percentAmend+percentMarketable+percentFOK+percentSweep:
		g.sweep(e, m)
	default:
		g.place(e, m)
	}
}

// order fills in what all orders have: id, account, side, offset and size.
func (g *Generator) order(e *orderflow.Event, m *market) {
	g.lastID++
	e.Kind, e.Order, e.OrderKind, e.TimeInForce = orderflow.Submit, g.lastID, record.Limit, record.GFD
	e.Account = 1 + g.zipf.Uint64()
	e.Side = record.Sell
	tilt := 0.5 + pullPerTick*(m.value-m.middle())
	if g.rng.Float64() < min(max(tilt, 0.1), 0.9) {
		e.Side = record.Buy
	}
	e.Volume = min(g.size(), m.MaxOrderVolume)
	e.Offset = record.Open
	closable := g.shadow.holding(e.Account, e.Instrument).closable(e.Side)
	if closable > 0 && g.rng.Float64() < closeShare {
		e.Offset, e.Volume = record.CloseToday, min(e.Volume, closable)
	}
}

// size draws a heavy-tailed number of lots.
func (g *Generator) size() int64 {
	return int64(min(math.Pow(1-g.rng.Float64(), -1/volumeTail), 1e6))
}

// place draws a limit order that is meant to rest.
func (g *Generator) place(e *orderflow.Event, m *market) {
	g.order(e, m)
	away := int64(min(math.Pow(1-g.rng.Float64(), -1/distanceAlpha)-1, distanceMax))
	toward := int64(1)
	if e.Side == record.Sell {
		toward = -1
	}
	best, other := m.touch(e.Side), m.touch(e.Side.Opposite())
	e.Price = best - toward*away
	if inside := (other-best)*toward - 1; inside > 0 && g.rng.Float64() < improveShare {
		e.Price = best + toward*(1+g.rng.Int64N(inside))
	}
	e.Price = m.within(e.Price)
	g.note(e)
}

// take draws an order that trades at the best price.
func (g *Generator) take(e *orderflow.Event, m *market) {
	g.order(e, m)
	e.Price = m.touch(e.Side.Opposite())
	switch u := g.rng.IntN(10); {
	case u < 3:
		e.OrderKind, e.TimeInForce = record.Market, record.IOC
		e.Price = m.Upper
		if e.Side == record.Sell {
			e.Price = m.Lower
		}
	case u < 7:
		e.TimeInForce = record.IOC
	}
	g.note(e)
}

// sweep draws a large order that takes several levels.
func (g *Generator) sweep(e *orderflow.Event, m *market) {
	g.order(e, m)
	e.Offset, e.TimeInForce = record.Open, record.IOC
	e.Volume = min(e.Volume*sweepVolumes, m.MaxOrderVolume)
	depth := 3 + g.rng.Int64N(10)
	if e.Side == record.Buy {
		e.Price = m.within(m.touch(record.Sell) + depth)
	} else {
		e.Price = m.within(m.touch(record.Buy) - depth)
	}
	g.note(e)
}

func (g *Generator) note(e *orderflow.Event) {
	g.shadow.submit(resting{
		id: e.Order, account: e.Account, price: e.Price, remaining: e.Volume,
		side: e.Side, offset: e.Offset, market: e.Instrument,
	})
}

// pick chooses a live order: of a few young ones the one nearest to the touch.
func (g *Generator) pick(market int32) *resting {
	list := g.shadow.live[market]
	var best *resting
	for range 3 {
		age := int(g.rng.ExpFloat64() * float64(len(list)) / 4)
		r := list[len(list)-1-min(age, len(list)-1)]
		if best == nil || g.distance(r) < g.distance(best) {
			best = r
		}
	}
	return best
}

// distance returns how many ticks an order is behind its side's best price.
func (g *Generator) distance(r *resting) int64 {
	d := g.markets[r.market].touch(r.side) - r.price
	if r.side == record.Sell {
		d = -d
	}
	return d
}

func (g *Generator) cancel(e *orderflow.Event, m *market) {
	if len(g.shadow.live[e.Instrument]) == 0 {
		g.place(e, m)
		return
	}
	r := g.pick(e.Instrument)
	e.Kind, e.Order, e.Account = orderflow.Cancel, r.id, r.account
}

// amend lowers an order's size, or moves its price by some ticks.
func (g *Generator) amend(e *orderflow.Event, m *market) {
	if len(g.shadow.live[e.Instrument]) == 0 {
		g.place(e, m)
		return
	}
	r := g.pick(e.Instrument)
	e.Kind, e.Order, e.Account = orderflow.Amend, r.id, r.account
	e.Price = r.price
	if r.remaining > 1 && g.rng.IntN(2) == 0 {
		e.Volume = 1 + g.rng.Int64N(r.remaining-1)
		return
	}
	e.Price = m.within(r.price + g.rng.Int64N(7) - 3)
	r.price = e.Price
}

// touch returns a side's best price; where nothing rests, a price near the
// reference.
func (m *market) touch(side record.Side) int64 {
	switch {
	case side == record.Buy && m.bid != 0:
		return m.bid
	case side == record.Sell && m.ask != 0:
		return m.ask
	case side == record.Buy:
		return m.within(int64(m.value) - 1)
	}
	return m.within(int64(m.value) + 1)
}

// middle returns the price between the best ones.
func (m *market) middle() float64 {
	return float64(m.touch(record.Buy)+m.touch(record.Sell)) / 2
}

func (m *market) within(price int64) int64 { return min(max(price, m.Lower), m.Upper) }

// Knows reports whether the order is live, as far as was told.
func (g *Generator) Knows(order uint64) bool { return g.shadow.orders[order] != nil }
