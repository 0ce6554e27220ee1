package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/localcluster"
)

const (
	faultsAtOnceMax = 3
	faultPauseMin   = 100 * time.Millisecond
	faultPauseMax   = 2 * time.Second
	watchInterval   = 100 * time.Millisecond
)

// fault is a kind of fault.
type fault struct {
	kind   string
	weight int // how often it is drawn, relative to the others
	// inflict does it, waits, and heals it. It returns early when ctx ends, but
	// never without having healed. It reports false if it could not be done.
	inflict func(*incident, context.Context) bool
}

// kindsOfFaults is in the order in which they are drawn: a seed's plan depends on
// it.
var kindsOfFaults = []fault{
	{"kill_one", 8, (*incident).killOne},
	{"kill_leader", 8, (*incident).killLeader},
	{"kill_several", 3, (*incident).killSeveral},
	{"kill_all", 2, (*incident).killAll},
	{"kill_twice", 3, (*incident).killTwice},
	{"restart", 3, (*incident).restart},
	{"pause_one", 5, (*incident).pauseOne},
	{"pause_leader", 6, (*incident).pauseLeader},
	{"delay", 6, (*incident).delay},
	{"slow_link", 4, (*incident).slowLink},
	{"cut_connections", 6, (*incident).cutConnections},
	{"one_way", 6, (*incident).oneWay},
	{"isolate_follower", 4, (*incident).isolateFollower},
	{"isolate_leader", 6, (*incident).isolateLeader},
	{"deaf_leader", 4, (*incident).deafLeader},
	{"mute_leader", 4, (*incident).muteLeader},
	{"client_cut_off", 5, (*incident).clientCutOff},
	{"transfer", 5, (*incident).transfer},
	{"snapshot", 3, (*incident).snapshot},
	{"learner", 2, (*incident).learner},
	{"replace", 4, (*incident).replace},
	{"replace_lost_disk", 3, (*incident).replaceLostDisk},
}

// incident is one fault that happens.
type incident struct {
	t      *torture
	s      *shard
	number uint64
	kind   string
	random *rand.Rand
}

func (in *incident) event(format string, args ...any) {
	in.t.event("#%d %s %s: %s", in.number, in.s.name, in.kind, fmt.Sprintf(format, args...))
}

// between draws a time.
func (in *incident) between(least, most time.Duration) time.Duration {
	return least + time.Duration(in.random.Int64N(int64(most-least)+1))
}

// plan draws the n-th fault of a run.
func (t *torture) plan(n uint64) (in *incident, f *fault, after time.Duration) {
	in = &incident{t: t, number: n, random: t.random(streamFault + n)}
	after = in.between(faultPauseMin, faultPauseMax)
	in.s = t.shards[in.random.IntN(len(t.shards))]
	sum := 0
	for i := range kindsOfFaults {
		sum += kindsOfFaults[i].weight
	}
	k := in.random.IntN(sum)
	for i := range kindsOfFaults {
		if f = &kindsOfFaults[i]; k < f.weight {
			break
		}
		k -= f.weight
	}
	in.kind = f.kind
	return in, f, after
}

// injectFaults inflicts faults until ctx ends and returns when all are healed,
// all nodes run, and no change of members is under way.
func (t *torture) injectFaults(ctx context.Context) {
	var under sync.WaitGroup
	room := make(chan struct{}, faultsAtOnceMax)
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() { t.watchNodes(watching) })
	for n := uint64(1); ; n++ {
		in, f, after := t.plan(n)
		if !pause(ctx, after) {
			break
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		under.Go(func() {
			defer func() { <-room }()
			t.faults.begin(f.kind)
			t.faults.end(f.kind, f.inflict(in, ctx))
		})
	}
	under.Wait()
	stop()
	watch.Wait()
}

// watchNodes reports nodes that have ended though nobody ended them, and starts
// them again.
func (t *torture) watchNodes(ctx context.Context) {
	for pause(ctx, watchInterval) {
		for _, m := range t.cluster.Members() {
			release, ok := t.nodes.claim(m.ID)
			if !ok {
				continue
			}
			if !t.cluster.Running(m.ID) && t.isMember(m.ID) {
				t.found.add(broken, 1, "%s has ended by itself: %s", m.ID, t.cluster.LogTail(m.ID))
				t.startNode(ctx, m.ID)
			}
			release()
		}
	}
}

func (t *torture) isMember(id string) bool {
	return slices.ContainsFunc(t.cluster.Members(), func(m localcluster.Member) bool { return m.ID == id })
}

// startNode starts a node, and reports it if it does not start. It does not end
// with ctx: a node that was taken down has to run again.
func (t *torture) startNode(ctx context.Context, id string) {
	if err := t.cluster.StartNode(context.WithoutCancel(ctx), id); err != nil {
		t.found.add(broken, 1, "%s does not start again: %v", id, err)
	}
}

// nodeClaims says which nodes' processes are somebody's to end and to start.
type nodeClaims struct {
	mu    sync.Mutex
	taken map[string]bool
}

// claim takes a node unless somebody else has it.
func (c *nodeClaims) claim(id string) (release func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken[id] {
		return nil, false
	}
	if c.taken == nil {
		c.taken = map[string]bool{}
	}
	c.taken[id] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.taken, id)
	}, true
}

// faultCounts counts faults by kind.
type faultCounts struct {
	mu     sync.Mutex
	done   map[string]uint64
	active []string
}

func (f *faultCounts) begin(kind string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = append(f.active, kind)
}

func (f *faultCounts) end(kind string, happened bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.active, kind)
	f.active = slices.Delete(f.active, i, i+1)
	if !happened {
		return
	}
	if f.done == nil {
		f.done = map[string]uint64{}
	}
	f.done[kind]++
}

func (f *faultCounts) now() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.active) == 0 {
		return "none"
	}
	return strings.Join(f.active, ", ")
}

func (f *faultCounts) total() (n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.done {
		n += k
	}
	return n
}

// all returns the counts of all kinds.
func (f *faultCounts) all() map[string]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[string]uint64, len(kindsOfFaults))
	for i := range kindsOfFaults {
		out[kindsOfFaults[i].kind] = f.done[kindsOfFaults[i].kind]
	}
	return out
}
