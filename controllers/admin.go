package controllers

import (
	"context"
	"time"

	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Admin is what the operator asks of a shard's members. Each call ends with its
// context.
type Admin interface {
	// Leader returns the status of the member that leads.
	Leader(ctx context.Context) (*storagepb.StatusResponse, error)
	// Status returns what a member says of itself.
	Status(ctx context.Context, id string) (*storagepb.StatusResponse, error)
	// AddLearner adds a member without a vote, if the membership still is that of
	// index.
	AddLearner(ctx context.Context, id, address string, index uint64) error
	// Promote makes a learner that has caught up a voter; it is refused before.
	Promote(ctx context.Context, id string, index uint64) error
	// Remove takes a member out of the shard.
	Remove(ctx context.Context, id string, index uint64) error
	// TransferLeadership moves the leadership to a member, or to the best when id is
	// empty.
	TransferLeadership(ctx context.Context, id string) error
	// SafeToRestart says whether a member can be away, and if not, why.
	SafeToRestart(ctx context.Context, id string) (safe bool, why string, err error)
	// AssignInstruments replaces the list of instruments that the shard owns.
	AssignInstruments(ctx context.Context, instruments []string) error
	// Close lets go of the connections.
	Close() error
}

// Dial returns an Admin that reaches the shard's members, with the operator's
// certificate where there is one.
type Dial func(m *client.Map, tls *identity.Source) (Admin, error)

// attemptTimeout is how long one member may take to answer: short enough that the
// others are still asked within askTimeout when its node does not.
const attemptTimeout = 2 * time.Second

// DialMembers is Dial over gRPC.
func DialMembers(m *client.Map, tls *identity.Source) (Admin, error) {
	c, err := client.New(m, client.Options{AttemptTimeout: attemptTimeout, TLS: tls})
	if err != nil {
		return nil, err
	}
	return &members{c: c, shard: m.Shards[0].Name}, nil
}

type members struct {
	c     *client.Client
	shard string
}

func (a *members) Leader(ctx context.Context) (*storagepb.StatusResponse, error) {
	return a.c.Leader(ctx, a.shard)
}

func (a *members) Status(ctx context.Context, id string) (*storagepb.StatusResponse, error) {
	return a.c.Status(ctx, a.shard, id)
}

func (a *members) AddLearner(ctx context.Context, id, address string, index uint64) error {
	_, err := a.c.AddLearner(ctx, a.shard, id, address, index)
	return err
}

func (a *members) Promote(ctx context.Context, id string, index uint64) error {
	_, err := a.c.Promote(ctx, a.shard, id, index)
	return err
}

func (a *members) Remove(ctx context.Context, id string, index uint64) error {
	_, err := a.c.Remove(ctx, a.shard, id, index)
	return err
}

func (a *members) TransferLeadership(ctx context.Context, id string) error {
	_, err := a.c.TransferLeadership(ctx, a.shard, id)
	return err
}

func (a *members) SafeToRestart(ctx context.Context, id string) (bool, string, error) {
	r, err := a.c.SafeToRestart(ctx, a.shard, id)
	return r.GetSafe(), r.GetReason(), err
}

func (a *members) AssignInstruments(ctx context.Context, instruments []string) error {
	_, err := a.c.AssignInstruments(ctx, a.shard, instruments)
	return err
}

func (a *members) Close() error { return a.c.Close() }
