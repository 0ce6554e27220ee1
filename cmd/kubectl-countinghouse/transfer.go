package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

const transferTimeout = 30 * time.Second

func newTransfer(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "transfer-leader SHARD [MEMBER]",
		Short: "Move a shard's leadership to a member, or to the one that is furthest on",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			sess, err := s.connect(s)
			if err != nil {
				return err
			}
			shard, err := sess.shard(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return sess.transfer(cmd.Context(), s.printer(cmd), shard, first(args[1:]))
		},
	}
}

// checkMember refuses a member that the shard has not; "" is any.
func checkMember(shard *v1.InstrumentShard, id string) error {
	var ids []string
	for _, m := range shard.Status.Members {
		ids = append(ids, m.ID)
	}
	if id == "" || slices.Contains(ids, id) {
		return nil
	}
	return output.Exit(output.ExitUsage, fmt.Errorf("shard %s has no member %q: name one of %s", shard.Name, id, strings.Join(ids, ", ")))
}

func (s *session) transfer(ctx context.Context, p *output.Printer, shard *v1.InstrumentShard, to string) error {
	if err := checkMember(shard, to); err != nil {
		return err
	}
	v, err := s.look(ctx, shard)
	if err != nil {
		return err
	}
	switch {
	case v.leader == nil:
		return output.Exit(output.ExitUnavailable, fmt.Errorf("shard %s: %w: see kubectl countinghouse status %s", shard.Name, errNoLeader, shard.Name))
	case v.leader.Id == to:
		return printTransfer(p, shard.Name, to, to)
	}
	c, err := s.members(ctx, shard, v.running())
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	leader, err := c.TransferLeadership(ctx, shard.Name, to)
	if err != nil {
		return err
	}
	return printTransfer(p, shard.Name, v.leader.Id, leader)
}

func printTransfer(p *output.Printer, shard, from, to string) error {
	if p.Format == output.JSON {
		return p.JSON(map[string]string{"shard": shard, "from": from, "leader": to})
	}
	if from == to {
		p.Line("Member %s leads shard %s already.", to, shard)
		return nil
	}
	p.Line("Member %s leads shard %s now; it was %s.", to, shard, from)
	return nil
}
