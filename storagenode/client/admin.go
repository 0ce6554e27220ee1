package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// unary runs one call on the shard's leader, or once on a member when from
// names one.
func unary[Req, Resp any](ctx context.Context, c *Client, shardName string, from Replica, req Req,
	method func(storagepb.AdminClient, context.Context, Req, ...grpc.CallOption) (Resp, error),
) (Resp, error) {
	var answer Resp
	err := c.route(ctx, shardName, from, func(ctx context.Context, conn *grpc.ClientConn) error {
		ctx, cancel := c.attempt(ctx)
		defer cancel()
		var err error
		answer, err = method(storagepb.NewAdminClient(conn), ctx, req)
		return err
	})
	return answer, err
}

// Status returns a member's own view of its shard. An error means that the
// member did not answer; it is asked once.
func (c *Client) Status(ctx context.Context, shardName, member string) (*storagepb.StatusResponse, error) {
	return unary(ctx, c, shardName, Replica{member}, &storagepb.StatusRequest{}, storagepb.AdminClient.Status)
}

// Leader returns the status of the member that leads the shard, which it looks
// for until ctx ends.
func (c *Client) Leader(ctx context.Context, shardName string) (*storagepb.StatusResponse, error) {
	s, err := c.shardByName(shardName)
	if err != nil {
		return nil, err
	}
	var answer *storagepb.StatusResponse
	err = c.onLeader(ctx, s, func(ctx context.Context, conn *grpc.ClientConn) error {
		if err := c.askForLeader(ctx, s, conn); err != nil {
			return err
		}
		ctx, cancel := c.attempt(ctx)
		defer cancel()
		var err error
		answer, err = storagepb.NewAdminClient(conn).Status(ctx, &storagepb.StatusRequest{})
		return err
	})
	return answer, err
}

// AddLearner adds a replica that receives the log but has no vote. A prevIndex
// other than 0 makes the change only if the membership is still that one.
func (c *Client) AddLearner(ctx context.Context, shardName, id, address string, prevIndex uint64) (uint64, error) {
	answer, err := unary(ctx, c, shardName, Replica{},
		&storagepb.AddLearnerRequest{Id: id, Address: address, PrevIndex: prevIndex}, storagepb.AdminClient.AddLearner)
	return answer.GetMembershipIndex(), err
}

// Promote makes a learner that has caught up a voter.
func (c *Client) Promote(ctx context.Context, shardName, id string, prevIndex uint64) (uint64, error) {
	answer, err := unary(ctx, c, shardName, Replica{},
		&storagepb.PromoteRequest{Id: id, PrevIndex: prevIndex}, storagepb.AdminClient.Promote)
	return answer.GetMembershipIndex(), err
}

// Remove takes a member out of the shard.
func (c *Client) Remove(ctx context.Context, shardName, id string, prevIndex uint64) (uint64, error) {
	answer, err := unary(ctx, c, shardName, Replica{},
		&storagepb.RemoveRequest{Id: id, PrevIndex: prevIndex}, storagepb.AdminClient.Remove)
	return answer.GetMembershipIndex(), err
}

// TransferLeadership moves the leadership to the named member, or to the voter
// that is furthest on, and returns who leads then. When the answer is lost it
// returns an error and leaves it there: the shard may have a leader by then who
// would have to go at once. It takes as long as ctx allows.
func (c *Client) TransferLeadership(ctx context.Context, shardName, id string) (string, error) {
	s, err := c.shardByName(shardName)
	if err != nil {
		return "", err
	}
	var answer *storagepb.TransferLeadershipResponse
	err = c.onLeader(ctx, s, func(ctx context.Context, conn *grpc.ClientConn) error {
		if err := c.askForLeader(ctx, s, conn); err != nil {
			return err
		}
		var err error
		answer, err = storagepb.NewAdminClient(conn).TransferLeadership(ctx, &storagepb.TransferLeadershipRequest{Id: id})
		return once(err)
	})
	if err == nil {
		s.confirm("") // who answered leads no longer
	}
	return answer.GetLeaderId(), err
}

// AssignInstruments replaces the list of instruments that the shard owns.
func (c *Client) AssignInstruments(ctx context.Context, shardName string, instruments []string) ([]string, error) {
	answer, err := unary(ctx, c, shardName, Replica{},
		&storagepb.AssignInstrumentsRequest{Instruments: instruments}, storagepb.AdminClient.AssignInstruments)
	return answer.GetInstruments(), err
}

// Snapshot makes a member take a snapshot and shorten its log. That takes as
// long as ctx allows.
func (c *Client) Snapshot(ctx context.Context, shardName, member string) (*storagepb.SnapshotResponse, error) {
	var answer *storagepb.SnapshotResponse
	err := c.onMember(ctx, shardName, member, func(ctx context.Context, conn *grpc.ClientConn) error {
		var err error
		answer, err = storagepb.NewAdminClient(conn).Snapshot(ctx, &storagepb.SnapshotRequest{})
		return err
	})
	return answer, err
}

// SafeToRestart asks a member whether its shard keeps its quorum without it.
func (c *Client) SafeToRestart(ctx context.Context, shardName, member string) (*storagepb.SafeToRestartResponse, error) {
	return unary(ctx, c, shardName, Replica{member}, &storagepb.SafeToRestartRequest{}, storagepb.AdminClient.SafeToRestart)
}

// Verify makes a member re-read and check everything it holds. It calls report
// for every message, findings and progress alike, and returns the last one.
func (c *Client) Verify(ctx context.Context, shardName, member string, report func(*storagepb.VerifyResponse)) (*storagepb.VerifyResponse, error) {
	var last *storagepb.VerifyResponse
	err := c.onMember(ctx, shardName, member, func(ctx context.Context, conn *grpc.ClientConn) error {
		stream, err := storagepb.NewAdminClient(conn).Verify(ctx, &storagepb.VerifyRequest{})
		if err != nil {
			return err
		}
		for {
			message, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			report(message)
			last = message
		}
	})
	if err == nil && !last.GetDone() {
		err = fmt.Errorf("shard %s, member %s: verify ended without a verdict", shardName, member)
	}
	return last, err
}
