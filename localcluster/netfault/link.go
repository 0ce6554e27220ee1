package netfault

import (
	"sync"
	"time"
)

// Fault is what is wrong with a link. The zero value is nothing.
type Fault struct {
	// Delay holds every byte back for this long, plus a random share of Jitter.
	Delay, Jitter time.Duration
	// BytesPerSecond bounds what all connections of the link carry together;
	// 0 is no bound.
	BytesPerSecond int64
	// Blackhole lets nothing through. The bytes arrive when it is lifted, as
	// with TCP, unless the connection has been given up by then.
	Blackhole bool
}

// and returns the effect of two faults on one link.
func (f Fault) and(g Fault) Fault {
	out := Fault{Delay: f.Delay + g.Delay, Jitter: f.Jitter + g.Jitter, Blackhole: f.Blackhole || g.Blackhole}
	out.BytesPerSecond = max(f.BytesPerSecond, g.BytesPerSecond)
	if f.BytesPerSecond > 0 && g.BytesPerSecond > 0 {
		out.BytesPerSecond = min(f.BytesPerSecond, g.BytesPerSecond)
	}
	return out
}

// link is the state of one Link.
type link struct {
	mu          sync.Mutex
	faults      map[*Fault]struct{}
	effect      Fault         // of all faults together
	changed     chan struct{} // closed when effect changes
	free        time.Time     // when the bandwidth that was reserved is used up
	connections uint64        // so far, those of this direction's dialler
}

func newLink() *link {
	return &link{faults: map[*Fault]struct{}{}, changed: make(chan struct{})}
}

func (l *link) change(do func(map[*Fault]struct{})) {
	l.mu.Lock()
	defer l.mu.Unlock()
	do(l.faults)
	var sum Fault
	for f := range l.faults {
		sum = sum.and(*f)
	}
	if sum == l.effect {
		return
	}
	l.effect = sum
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) state() (Fault, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.effect, l.changed
}

// reserve takes bandwidth for n bytes and returns when they have been carried.
func (l *link) reserve(n int, now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.effect.BytesPerSecond <= 0 {
		return now
	}
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.effect.BytesPerSecond) * float64(time.Second)))
	return l.free
}

// number returns the number of a further connection, from 1.
func (l *link) number() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connections++
	return l.connections
}

// passage is one piece of data on its way over a link.
type passage struct {
	bytes   int
	arrived time.Time
	jitter  float64 // share of the link's jitter, [0, 1)

	reserved bool
	carried  time.Time // when the bandwidth lets it go; valid if reserved
}

// wait returns how long the piece has still to wait under a link's present
// effect. A negative answer means until the effect changes.
func (l *link) wait(p *passage, effect Fault, now time.Time) time.Duration {
	if effect.Blackhole {
		return -1
	}
	due := p.arrived.Add(effect.Delay + time.Duration(p.jitter*float64(effect.Jitter)))
	if now.Before(due) {
		return due.Sub(now)
	}
	if effect.BytesPerSecond <= 0 {
		return 0
	}
	if !p.reserved {
		p.carried, p.reserved = l.reserve(p.bytes, now), true
	}
	return max(p.carried.Sub(now), 0)
}

// pass returns when the piece may go on, or false when done is closed first.
func (l *link) pass(p *passage, done <-chan struct{}) bool {
	for {
		effect, changed := l.state()
		wait := l.wait(p, effect, time.Now())
		if wait == 0 {
			return true
		}
		if !await(wait, changed, done) {
			return false
		}
	}
}

// await waits for d, forever if it is negative, or until the link has changed.
// It returns false when done is closed first.
func await(d time.Duration, changed, done <-chan struct{}) bool {
	var due <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-due:
	case <-changed:
	case <-done:
		return false
	}
	return true
}
