package fire

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// nemesis does harm by a seeded plan: which fault, when, to whom and for how long
// is drawn from the seed; what the faults meet depends on the goroutines' timing.
type nemesis struct {
	c   *cluster
	rng *rand.Rand
}

// mischief is a kind of fault. It returns how to end it, nil if it ends itself.
type mischief struct {
	name   string
	weight int
	do     func(*nemesis) (end func())
}

var mischiefs = []mischief{
	{"crash", 12, (*nemesis).crashOne},
	{"crash armed", 12, (*nemesis).crashAtWrite},
	{"crash of the leader", 8, (*nemesis).crashLeader},
	{"power failure of all", 3, (*nemesis).crashAll},
	{"failed sync", 4, (*nemesis).failSync},
	{"stalled disk", 6, (*nemesis).stallDisk},
	{"full disk", 3, (*nemesis).fillDisk},
	{"isolated member", 8, (*nemesis).isolate},
	{"isolated leader", 10, (*nemesis).isolateLeader},
	{"one-way partition", 10, (*nemesis).oneWay},
	{"split", 6, (*nemesis).split},
	{"delay", 8, (*nemesis).delay},
	{"cut connections", 8, (*nemesis).cutSome},
	{"broken link", 6, (*nemesis).flaky},
	{"lossy messages", 10, (*nemesis).loseMessages},
	{"clock jump", 6, (*nemesis).jumpClock},
	{"transfer of leadership", 6, (*nemesis).transfer},
}

// run lets faults come and go, several at a time, in storms with a calm after
// each, so that work gets done, too.
func (n *nemesis) run() {
	for n.c.ctx.Err() == nil {
		var ends []func()
		for range 2 + n.rng.IntN(7) {
			if end := n.strike(); end != nil {
				ends = append(ends, end)
			}
			if !n.c.sleep(n.between(20, 250)) {
				break
			}
			if len(ends) > 0 && n.rng.IntN(2) == 0 {
				i := n.rng.IntN(len(ends))
				ends[i]()
				ends = append(ends[:i], ends[i+1:]...)
			}
		}
		for _, end := range ends {
			end()
		}
		n.c.sleep(n.between(200, 700))
	}
}

func (n *nemesis) between(least, most int) time.Duration {
	return time.Duration(least+n.rng.IntN(most-least)) * time.Millisecond
}

func (n *nemesis) strike() func() {
	total := 0
	for _, m := range mischiefs {
		total += m.weight
	}
	at := n.rng.IntN(total)
	for _, m := range mischiefs {
		if at -= m.weight; at < 0 {
			n.c.count(m.name)
			return m.do(n)
		}
	}
	return nil
}

func (n *nemesis) any() *member {
	present := n.c.present()
	return present[n.rng.IntN(len(present))]
}

// leader returns a member that believes that it leads, or any.
func (n *nemesis) leader() *member {
	for _, m := range n.c.present() {
		if life := m.running(); life != nil && life.replica.IsLeader() {
			return m
		}
	}
	return n.any()
}

// keep draws what a power failure leaves of what was not synced, in percent.
func (n *nemesis) keep() int { return []int{0, 0, 20, 50, 80, 100}[n.rng.IntN(6)] }

func (n *nemesis) crash(m *member) {
	if m.tryCrash(m.running(), n.keep(), n.rng.IntN(2) == 0, n.rng) {
		if n.rng.IntN(4) == 0 { // and once more while it starts
			m.mu.Lock()
			m.next = &mishap{calls: 1 + n.rng.IntN(60), keepPercent: n.keep()}
			m.mu.Unlock()
		}
		rng := n.c.random()
		n.c.background.Go(func() { n.c.restartLater(m, rng) })
	}
}

func (n *nemesis) crashOne() func() { n.crash(n.any()); return nil }

func (n *nemesis) crashLeader() func() { n.crash(n.leader()); return nil }

func (n *nemesis) crashAll() func() {
	for _, m := range n.c.present() {
		n.crash(m)
	}
	return nil
}

func (n *nemesis) crashAtWrite() func() {
	m := n.any()
	if life := m.running(); life != nil {
		m.arm(life, mishap{calls: 1 + n.rng.IntN(80), keepPercent: n.keep(), silent: n.rng.IntN(2) == 0}, n.c.random())
	}
	return nil
}

func (n *nemesis) failSync() func() { n.any().present().failSync(); return nil }

func (n *nemesis) stallDisk() func() { return n.any().present().stall() }

func (n *nemesis) fillDisk() func() {
	d := n.any().present()
	d.setFull(true)
	return func() { d.setFull(false) }
}

func isMember(host string) bool { return strings.HasPrefix(host, "m") }

// partition blocks the links that match. Its end lets through what was held up,
// or breaks the connections instead.
func (n *nemesis) partition(matches func(from, to string) bool) func() {
	end := n.c.net.inject(&fault{matches: matches, effect: effect{blocked: true}})
	reset := n.rng.IntN(2) == 0
	return func() {
		if reset {
			n.c.net.cut(matches)
		}
		end()
	}
}

// concerns draws whether clients are cut off, too. If not they still reach both
// sides of a partition, as they do a leader that is deposed and does not know.
func (n *nemesis) concerns() func(host string) bool {
	if n.rng.IntN(3) == 0 {
		return func(string) bool { return true }
	}
	return isMember
}

func (n *nemesis) isolateOne(m *member) func() {
	concerns := n.concerns()
	return n.partition(func(from, to string) bool {
		return (from == m.id || to == m.id) && concerns(from) && concerns(to)
	})
}

func (n *nemesis) isolate() func() { return n.isolateOne(n.any()) }

func (n *nemesis) isolateLeader() func() { return n.isolateOne(n.leader()) }

func (n *nemesis) oneWay() func() {
	m, hears := n.leader(), n.rng.IntN(2) == 0
	if n.rng.IntN(2) == 0 {
		m = n.any()
	}
	concerns := n.concerns()
	return n.partition(func(from, to string) bool {
		return (hears && from == m.id || !hears && to == m.id) && concerns(from) && concerns(to)
	})
}

func (n *nemesis) split() func() {
	side := map[string]bool{}
	for _, m := range n.c.present() {
		side[m.id] = n.rng.IntN(2) == 0
	}
	return n.partition(func(from, to string) bool {
		return isMember(from) && isMember(to) && side[from] != side[to]
	})
}

func (n *nemesis) delay() func() {
	m, all := n.any(), n.rng.IntN(2) == 0
	return n.c.net.inject(&fault{
		matches: func(from, to string) bool { return all || from == m.id || to == m.id },
		effect:  effect{delay: n.between(1, 30), jitter: n.between(1, 60)},
	})
}

func (n *nemesis) flaky() func() {
	m := n.any()
	return n.c.net.inject(&fault{
		matches: func(from, to string) bool { return from == m.id || to == m.id },
		effect:  effect{cutPerMille: 5 + n.rng.IntN(40)},
	})
}

func (n *nemesis) loseMessages() func() {
	m, all := n.any(), n.rng.IntN(2) == 0
	var rates messageRates
	for i := range rates {
		rates[i] = n.rng.IntN(100)
	}
	return n.c.net.inject(&fault{
		matches: func(from, to string) bool { return all || from == m.id || to == m.id },
		effect:  effect{messages: rates},
	})
}

// jumpClock sets the wall clock of a member, or of all alike, forward or back: by
// less than a second, or by years.
func (n *nemesis) jumpClock() func() {
	most := []time.Duration{time.Second, time.Hour, 40 * 365 * 24 * time.Hour}[n.rng.IntN(3)]
	wrong := n.rng.Int64N(int64(2*most)) - int64(most)
	members := n.c.present()
	if n.rng.IntN(3) > 0 {
		members = []*member{n.any()}
	}
	for _, m := range members {
		m.clock.Store(wrong)
	}
	return nil
}

func (n *nemesis) cutSome() func() {
	m := n.any()
	n.c.net.cut(func(a, b string) bool { return a == m.id })
	return nil
}

func (n *nemesis) transfer() func() {
	m, serial := n.leader(), n.c.nonce()
	n.c.clients.Go(func() {
		k := n.c.client(fmt.Sprintf("admin-%d", serial))
		defer k.close()
		k.transfer(m)
	})
	return nil
}
