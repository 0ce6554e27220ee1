package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	reignMin = 3 * time.Second // how long a writer is left alone
	reignMax = 12 * time.Second
	// fenceWait bounds the time until writers that were succeeded know it, when
	// nothing is wrong any more.
	fenceWait = 30 * time.Second
	// resumeWait bounds the time until every writer is acknowledged something
	// when nothing is wrong any more.
	resumeWait = 30 * time.Second
)

// slot is a succession of writers of the same instruments, each with a higher
// incarnation than the one before. Half of them meet their end unexpectedly; the
// others go on until they are fenced.
type slot struct {
	t       *torture
	shard   *shard
	ledgers []*ledger
	number  int
	random  *rand.Rand
	hosts   [2]string // of a writer and of its successor, in turn

	incarnation uint64
	reigns      []*reign      // those that have not ended
	settled     chan struct{} // closed when there will be no more
}

// reign is one writer at work.
type reign struct {
	w    *writer
	end  context.CancelFunc
	done chan struct{}
}

func (t *torture) newSlot(s *shard, number int, ledgers []*ledger) *slot {
	out := &slot{t: t, shard: s, ledgers: ledgers, number: number, random: t.random(streamSlot + uint64(number)), settled: make(chan struct{})}
	for i := range out.hosts {
		out.hosts[i] = fmt.Sprintf("writer-%d%c", number, 'a'+i)
		t.hosts = append(t.hosts, out.hosts[i])
	}
	return out
}

// run has writers work until ctx ends; none succeeds another after calm is closed.
func (s *slot) run(ctx context.Context, calm <-chan struct{}) {
	s.crown(ctx)
	for s.wait(ctx, calm) {
		if s.random.IntN(2) == 0 {
			s.reigns[len(s.reigns)-1].end()
		}
		s.crown(ctx)
		s.t.counts.takeovers.Add(1)
		s.bury()
	}
	close(s.settled)
	for _, r := range s.reigns {
		<-r.done
	}
}

func (s *slot) wait(ctx context.Context, calm <-chan struct{}) bool {
	timer := time.NewTimer(reignMin + time.Duration(s.random.Int64N(int64(reignMax-reignMin))))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-calm:
	case <-ctx.Done():
	}
	return false
}

// crown starts the next writer.
func (s *slot) crown(ctx context.Context) {
	s.incarnation++
	number := s.t.writers.Add(1)
	w := &writer{
		t: s.t, shard: s.shard, ledgers: s.ledgers, number: writerBase + number, incarnation: s.incarnation,
		conn:   connection{t: s.t, host: s.hosts[s.incarnation%2]},
		random: s.t.random(streamWriter + uint64(s.number)<<16 + s.incarnation),
		wants:  wants{outages: s.shard.outages},
	}
	s.t.event("%s begins with %s", w.name(), s.ledgers[0].sym)
	ctx, end := context.WithCancel(ctx)
	r := &reign{w: w, end: end, done: make(chan struct{})}
	s.reigns = append(s.reigns, r)
	go func() {
		defer close(r.done)
		defer end()
		w.run(ctx)
	}()
}

// bury forgets the writers that have ended.
func (s *slot) bury() {
	kept := s.reigns[:0]
	for _, r := range s.reigns {
		select {
		case <-r.done:
		default:
			kept = append(kept, r)
		}
	}
	s.reigns = kept
}

// awaitResumption checks, after all faults were healed, that every writer makes
// progress, and that all those that were succeeded learn of it.
func (t *torture) awaitResumption(ctx context.Context, slots []*slot) {
	began := time.Now()
	for _, s := range t.shards {
		for _, l := range s.ledgers {
			before := l.acknowledgedRecords()
			for l.acknowledgedRecords() == before {
				if time.Since(began) > resumeWait {
					t.found.add(broken, 1, "%s: nothing was acknowledged within %s after all faults were healed", l.sym, resumeWait)
					break
				}
				if !pause(ctx, 10*time.Millisecond) {
					return
				}
			}
		}
	}
	for _, s := range slots {
		s.awaitFenced(ctx, began.Add(resumeWait+fenceWait))
	}
	t.event("all writers go on %s after the last fault", time.Since(began).Round(time.Millisecond))
}

// awaitFenced waits for the end of all writers of the slot but the last.
func (s *slot) awaitFenced(ctx context.Context, deadline time.Time) {
	<-s.settled
	for _, r := range s.reigns[:len(s.reigns)-1] {
		timer := time.NewTimer(time.Until(deadline))
		select {
		case <-r.done:
		case <-timer.C:
			s.t.found.add(broken, 1, "%s was not fenced within %s, although %s has taken over", r.w.name(), fenceWait, s.reigns[len(s.reigns)-1].w.name())
		case <-ctx.Done():
		}
		timer.Stop()
	}
}
