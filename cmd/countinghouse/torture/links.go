package torture

import (
	"context"
	"time"

	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/localcluster/netfault"
)

const (
	linkFaultMin = 200 * time.Millisecond
	linkFaultMax = 5 * time.Second
	delayMax     = 250 * time.Millisecond
	slowMin      = 32 << 10 // bytes a second
	slowMax      = 1 << 20
)

// impose lays a fault on links for a while.
func (in *incident) impose(ctx context.Context, f netfault.Fault, links ...netfault.Link) bool {
	if len(links) == 0 {
		return false
	}
	d := in.between(linkFaultMin, linkFaultMax)
	in.event("%+v on %v for %s", f, links, d)
	lift := in.t.net.Impose(f, links...)
	pause(ctx, d)
	lift()
	in.event("lifted")
	return true
}

// peers returns the names of the other members of the shard.
func (in *incident) peers(m localcluster.Member) (names []string) {
	for _, other := range in.t.cluster.Of(in.s.name) {
		if other.ID != m.ID {
			names = append(names, other.ID)
		}
	}
	return names
}

// around returns the links between a host and others: to it, from it, or both.
func around(host string, others []string, to, from bool) (links []netfault.Link) {
	for _, o := range others {
		if to {
			links = append(links, netfault.Link{From: o, To: host})
		}
		if from {
			links = append(links, netfault.Link{From: host, To: o})
		}
	}
	return links
}

var blackhole = netfault.Fault{Blackhole: true}

// everyone returns the names of the other members and of all clients, or of one
// of the two groups.
func (in *incident) everyone(m localcluster.Member) []string {
	switch in.random.IntN(3) {
	case 0:
		return in.peers(m)
	case 1:
		return in.t.hosts
	}
	return append(in.peers(m), in.t.hosts...)
}

func (in *incident) delay(ctx context.Context) bool {
	m := in.anyMember()
	f := netfault.Fault{Delay: in.between(0, delayMax), Jitter: in.between(0, delayMax)}
	return in.impose(ctx, f, around(m.ID, in.everyone(m), true, in.random.IntN(2) == 0)...)
}

func (in *incident) slowLink(ctx context.Context) bool {
	m := in.anyMember()
	f := netfault.Fault{BytesPerSecond: slowMin + in.random.Int64N(slowMax-slowMin)}
	return in.impose(ctx, f, around(m.ID, in.everyone(m), true, in.random.IntN(2) == 0)...)
}

// cutConnections breaks all connections of a member a few times.
func (in *incident) cutConnections(ctx context.Context) bool {
	m := in.anyMember()
	others := in.everyone(m)
	cut := 0
	for range 1 + in.random.IntN(5) {
		for _, o := range others {
			cut += in.t.net.Cut(m.ID, o)
		}
		if !pause(ctx, in.between(0, time.Second)) {
			break
		}
	}
	in.event("%d connections of %s with %v", cut, m.ID, others)
	return cut > 0
}

// oneWay silences the link from one replica to another.
func (in *incident) oneWay(ctx context.Context) bool {
	m := in.anyMember()
	peers := in.peers(m)
	if len(peers) == 0 {
		return false
	}
	return in.impose(ctx, blackhole, netfault.Link{From: m.ID, To: peers[in.random.IntN(len(peers))]})
}

func (in *incident) isolateFollower(ctx context.Context) bool {
	m, ok := in.follower(ctx)
	return ok && in.impose(ctx, blackhole, around(m.ID, in.peers(m), true, true)...)
}

// isolateLeader parts the leader from the other replicas, and half the time from
// all clients too.
func (in *incident) isolateLeader(ctx context.Context) bool {
	m, ok := in.t.leader(ctx, in.s)
	others := in.peers(m)
	if in.random.IntN(2) == 0 {
		others = append(others, in.t.hosts...)
	}
	return ok && in.impose(ctx, blackhole, around(m.ID, others, true, true)...)
}

// deafLeader lets the leader speak to the other replicas, but not hear them.
func (in *incident) deafLeader(ctx context.Context) bool {
	m, ok := in.t.leader(ctx, in.s)
	return ok && in.impose(ctx, blackhole, around(m.ID, in.peers(m), true, false)...)
}

// muteLeader lets the leader hear the other replicas, but not speak to them.
func (in *incident) muteLeader(ctx context.Context) bool {
	m, ok := in.t.leader(ctx, in.s)
	return ok && in.impose(ctx, blackhole, around(m.ID, in.peers(m), false, true)...)
}

// clientCutOff parts one client from one member, or from all: in both directions,
// or so that only the answers are lost.
func (in *incident) clientCutOff(ctx context.Context) bool {
	host := in.t.hosts[in.random.IntN(len(in.t.hosts))]
	var links []netfault.Link
	both := in.random.IntN(2) == 0
	if m, ok := in.t.leader(ctx, in.s); ok && in.random.IntN(2) == 0 {
		links = around(m.ID, []string{host}, both, true)
	} else {
		for _, m := range in.t.cluster.Of(in.s.name) {
			links = append(links, around(m.ID, []string{host}, both, true)...)
		}
	}
	return in.impose(ctx, blackhole, links...)
}
