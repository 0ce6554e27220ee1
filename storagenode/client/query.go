package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Replica names the replica that answers a read. The zero value is the leader;
// with a member's id the read is stale: it sees what that replica has applied.
type Replica struct {
	Member string
}

func (r Replica) stale() bool { return r.Member != "" }

// Range selects records of one instrument; all bounds are inclusive and zero
// means none.
type Range struct {
	FromSeq, ToSeq   uint64
	FromTime, ToTime int64 // Unix nanoseconds
	Limit            uint64
}

// ByID selects records by exactly one of the ids.
type ByID struct {
	Order, Trade, Account uint64
	Limit                 uint64 // 0: no limit
}

// Yield takes some records, which are valid during the call only. An error ends
// the read and is returned by it.
type Yield func([]record.Record) error

// errYield marks an error of the caller's own, which is never retried.
type errYield struct{ error }

func (e errYield) Unwrap() error { return e.error }

// Scan reads a range of an instrument's records in order of seq. When the leader
// changes it goes on with the next record.
func (c *Client) Scan(ctx context.Context, sym record.Symbol, r Range, from Replica, yield Yield) error {
	progress := resume{sym: sym, next: max(r.FromSeq, 1), limit: r.Limit}
	return c.read(ctx, sym, from, func(ctx context.Context, conn *grpc.ClientConn) error {
		if progress.full() || r.ToSeq != 0 && progress.next > r.ToSeq {
			return nil
		}
		ctx, quiet := watchQuiet(ctx, c.o.AttemptTimeout)
		defer quiet.stop()
		stream, err := storagepb.NewQueryClient(conn).Scan(ctx, &storagepb.ScanRequest{
			Instrument: sym.String(), FromSeq: progress.next, ToSeq: r.ToSeq,
			FromTime: r.FromTime, ToTime: r.ToTime, Limit: progress.left(), Stale: from.stale(),
		})
		if err != nil {
			return err
		}
		return progress.drain(quiet.watch(stream), yield, r.FromTime == 0 && r.ToTime == 0)
	})
}

// Tail follows an instrument's stream from fromSeq on, 0 for what comes after
// the call, until ctx ends, whose error it then returns. When the leader changes
// it goes on with the next record: none is missed or seen twice.
func (c *Client) Tail(ctx context.Context, sym record.Symbol, fromSeq uint64, from Replica, yield Yield) error {
	if fromSeq == 0 {
		last, err := c.lastSeq(ctx, sym, from)
		if err != nil {
			return err
		}
		fromSeq = last + 1
	}
	progress := resume{sym: sym, next: fromSeq}
	return c.read(ctx, sym, from, func(ctx context.Context, conn *grpc.ClientConn) error {
		stream, err := storagepb.NewQueryClient(conn).Tail(ctx, &storagepb.TailRequest{
			Instrument: sym.String(), FromSeq: progress.next, Stale: from.stale(),
		})
		if err != nil {
			return err
		}
		if err := progress.drain(stream, yield, true); err != nil {
			return err
		}
		return refusal.New(storagepb.Code_CODE_UNAVAILABLE, "the node ended the stream")
	})
}

// lastSeq returns the last seq of an instrument.
func (c *Client) lastSeq(ctx context.Context, sym record.Symbol, from Replica) (uint64, error) {
	def := c.m.ShardOf(sym.String())
	if def == nil {
		_, err := c.shardOf(sym)
		return 0, err
	}
	answer, err := c.Instruments(ctx, def.Name, from)
	if err != nil {
		return 0, err
	}
	for _, st := range answer.Instruments {
		if st.Instrument == sym.String() {
			return st.LastSeq, nil
		}
	}
	return 0, fmt.Errorf("tail %s: %w", sym, refusal.ErrNotOwner)
}

// Get finds the records of an instrument that carry an id, in order of seq.
func (c *Client) Get(ctx context.Context, sym record.Symbol, id ByID, from Replica, yield Yield) error {
	progress := resume{sym: sym, limit: id.Limit}
	return c.read(ctx, sym, from, func(ctx context.Context, conn *grpc.ClientConn) error {
		if progress.full() {
			return nil
		}
		ctx, quiet := watchQuiet(ctx, c.o.AttemptTimeout)
		defer quiet.stop()
		stream, err := storagepb.NewQueryClient(conn).Get(ctx, &storagepb.GetRequest{
			Instrument: sym.String(), OrderId: id.Order, TradeId: id.Trade, Account: id.Account,
			Limit: id.Limit, Stale: from.stale(),
		})
		if err != nil {
			return err
		}
		return progress.drain(quiet.watch(stream), yield, false)
	})
}

// Instruments states what a shard holds.
func (c *Client) Instruments(ctx context.Context, shardName string, from Replica) (*storagepb.InstrumentsResponse, error) {
	var answer *storagepb.InstrumentsResponse
	call := func(ctx context.Context, conn *grpc.ClientConn) error {
		ctx, cancel := c.attempt(ctx)
		defer cancel()
		var err error
		answer, err = storagepb.NewQueryClient(conn).Instruments(ctx, &storagepb.InstrumentsRequest{Stale: from.stale()})
		return err
	}
	err := c.route(ctx, shardName, from, call)
	return answer, err
}

// route runs call on the leader or on the replica that is asked for.
func (c *Client) route(ctx context.Context, shardName string, from Replica, call func(context.Context, *grpc.ClientConn) error) error {
	if from.stale() {
		return c.onMember(ctx, shardName, from.Member, call)
	}
	s, err := c.shardByName(shardName)
	if err != nil {
		return err
	}
	return c.onLeader(ctx, s, call)
}

// read runs a streaming read of an instrument on the leader or a replica.
func (c *Client) read(ctx context.Context, sym record.Symbol, from Replica, call func(context.Context, *grpc.ClientConn) error) error {
	s, err := c.shardOf(sym)
	if err != nil {
		return err
	}
	streamCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	if from.stale() {
		err = c.onMember(streamCtx, s.def.Name, from.Member, call)
	} else {
		err = c.onLeader(streamCtx, s, call)
	}
	var own errYield
	if errors.As(err, &own) {
		return own.error
	}
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// resume remembers how far a read has come, so that another replica can go on.
type resume struct {
	sym   record.Symbol
	next  uint64 // seq that is wanted next; earlier ones have been yielded
	limit uint64 // 0: none
	given uint64
}

func (p *resume) full() bool { return p.limit != 0 && p.given >= p.limit }

func (p *resume) left() uint64 {
	if p.limit == 0 {
		return 0
	}
	return p.limit - p.given
}

// drain yields what the stream brings until its end. Records that were yielded
// before are passed over. With dense set a missing seq is an error, since then
// every record of the range was asked for.
func (p *resume) drain(stream receiver, yield Yield, dense bool) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		rs, err := record.View(message.Data)
		if err != nil {
			return fmt.Errorf("read %s: %w", p.sym, err)
		}
		for len(rs) > 0 && rs[0].Seq < p.next {
			rs = rs[1:]
		}
		if len(rs) == 0 {
			continue
		}
		if err := p.check(rs, dense); err != nil {
			return err
		}
		p.next, p.given = rs[len(rs)-1].Seq+1, p.given+uint64(len(rs))
		if err := yield(rs); err != nil {
			return errYield{err}
		}
	}
}

// check reports records that are not what was asked for.
func (p *resume) check(rs []record.Record, dense bool) error {
	next := p.next
	for i := range rs {
		r := &rs[i]
		if err := r.Check(); err != nil {
			return fmt.Errorf("read %s: %w", p.sym, err)
		}
		if r.Instrument != p.sym || r.Seq < next || dense && next != 0 && r.Seq != next {
			return fmt.Errorf("read %s: %w: got %s seq %d, expected seq %d", p.sym, record.ErrCorrupt, r.Instrument, r.Seq, next)
		}
		next = r.Seq + 1
	}
	return nil
}
