package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// shard holds the connections to one Raft group. What does not change is def's
// name and instruments; the members are those that SetMembers gave last.
type shard struct {
	cluster string
	def     *Shard
	options []grpc.DialOption

	generation atomic.Uint64 // the highest that a leader has named

	mu      sync.Mutex
	members []Member         // never empty
	links   map[string]*link // by address
	leader  string           // address of the last known leader, or empty
	next    int              // member that is asked next when no leader is known
	closed  bool
}

// link is a connection and how many calls use it.
type link struct {
	conn  *grpc.ClientConn
	users int
}

func newShard(cluster string, def *Shard, options []grpc.DialOption) *shard {
	return &shard{
		cluster: cluster, def: def, options: options,
		members: slices.Clone(def.Members), links: make(map[string]*link),
	}
}

func (s *shard) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for _, l := range s.links {
		errs = append(errs, l.conn.Close())
	}
	clear(s.links)
	return errors.Join(errs...)
}

func (s *shard) setMembers(members []Member) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.members = members
	if !s.has(s.leader) {
		s.leader = ""
	}
	s.sweep()
	return nil
}

// has reports whether a present member has the address. The caller holds mu.
func (s *shard) has(address string) bool {
	return slices.ContainsFunc(s.members, func(m Member) bool { return m.Address == address })
}

// sweep closes the connections that no call uses and no further one will: those
// to addresses of neither a member nor the leader. The caller holds mu.
func (s *shard) sweep() {
	for address, l := range s.links {
		if l.users == 0 && address != s.leader && !s.has(address) {
			_ = l.conn.Close() // there is nothing to flush: no call is left
			delete(s.links, address)
		}
	}
}

// outgoing adds to ctx what tells a node that the call is meant for it.
func (s *shard) outgoing(ctx context.Context) context.Context {
	ctx = metadata.AppendToOutgoingContext(ctx, ClusterKey, s.cluster, ShardKey, s.def.Name)
	if g := s.generation.Load(); g > 0 {
		ctx = WithGeneration(ctx, g)
	}
	return ctx
}

// WithGeneration returns a context whose calls name the generation of a shard that
// the caller has met.
func WithGeneration(ctx context.Context, generation uint64) context.Context {
	return metadata.AppendToOutgoingContext(ctx, GenerationKey, strconv.FormatUint(generation, 10))
}

// met notes the generation of a member that leads, and refuses one of an earlier
// generation than the client has met: members that a recovery has given up.
func (s *shard) met(st *storagepb.StatusResponse) error {
	for {
		highest := s.generation.Load()
		switch {
		case st.Generation < highest:
			return refusal.New(storagepb.Code_CODE_GIVEN_UP, "%s leads generation %d of shard %s, which was recovered without it and is in generation %d",
				st.Id, st.Generation, s.def.Name, highest)
		case st.Generation == highest || s.generation.CompareAndSwap(highest, st.Generation):
			return nil
		}
	}
}

// on runs call on the connection to an address.
func (s *shard) on(ctx context.Context, address string, call func(context.Context, *grpc.ClientConn) error) error {
	conn, err := s.acquire(address)
	if err != nil {
		return err
	}
	defer s.release(address)
	return call(s.outgoing(ctx), conn)
}

// acquire returns the connection to an address, which it makes when there is none
// and which stays until release. Addresses come from the map and from the nodes'
// own hints; a hint outside the map is used as well, since members move.
func (s *shard) acquire(address string) (*grpc.ClientConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	l, ok := s.links[address]
	if !ok {
		conn, err := grpc.NewClient(passthrough+address, s.options...)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", address, err)
		}
		l = &link{conn: conn}
		s.links[address] = l
	}
	l.users++
	return l.conn, nil
}

// hold acquires the connection to an address once more, for as long as ctx lasts.
// The caller has it already, so it is there unless the client is closed.
func (s *shard) hold(ctx context.Context, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.links[address]; ok {
		l.users++
		context.AfterFunc(ctx, func() { s.release(address) })
	}
}

func (s *shard) release(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.links[address]; ok { // else the client is closed
		l.users--
		s.sweep()
	}
}

// passthrough keeps grpc-go from resolving addresses itself. The dialler does it,
// each time it connects: behind the name of a member is another address after each
// of its restarts, and none while it starts.
const passthrough = "passthrough:///"

// addressOf returns the address that conn was made for.
func addressOf(conn *grpc.ClientConn) string { return strings.TrimPrefix(conn.Target(), passthrough) }

// candidate returns the address to ask next: the leader where one is known,
// else each member in turn.
func (s *shard) candidate() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leader != "" {
		return s.leader
	}
	address := s.members[s.next%len(s.members)].Address
	s.next++
	return address
}

// confirm notes that address has answered as the leader.
func (s *shard) confirm(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lead(address)
}

// doubt notes that address did not answer as the leader, and whom it named
// instead. A hint that names the same address is none.
func (s *shard) doubt(address string, err error) {
	hint := ""
	if r := refusal.FromError(err); r != nil && errors.Is(r, refusal.ErrNotLeader) && r.LeaderAddress != address {
		hint = r.LeaderAddress
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if hint != "" || s.leader == address {
		s.lead(hint)
	}
}

// lead makes address the leader's. The caller holds mu.
func (s *shard) lead(address string) {
	if s.leader != address {
		s.leader = address
		s.sweep()
	}
}
