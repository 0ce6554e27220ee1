package server

import (
	"context"

	"google.golang.org/grpc"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

// Executions sends the drop copy from the time of the call on.
func (m *marketData) Executions(r *pb.ExecutionsRequest, stream grpc.ServerStreamingServer[pb.Execution]) error {
	var only record.Symbol
	if r.Instrument != "" {
		var bad *reject
		if only, _, bad = m.termsOf(r.Instrument); bad != nil {
			return refusal(bad.why, bad.message)
		}
	}
	if r.Account != 0 {
		if _, ok := m.x.Router().Account(r.Account); !ok {
			return m.unknownAccount(r.Account)
		}
	}
	sub, done, err := m.subscribe(gateway.Executions)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := m.streaming(stream.Context())
	defer cancel()
	if err := stream.SendHeader(nil); err != nil { // tells the client that it is subscribed
		return err
	}
	return m.copyExecutions(ctx, sub, stream, only, r.Account)
}

func (m *marketData) copyExecutions(ctx context.Context, sub *gateway.Subscription, stream grpc.ServerStreamingServer[pb.Execution], only record.Symbol, account uint64) error {
	var e gateway.Event
	var seen, told uint64 // lost events: before e, and told to the reader
	for {
		if !sub.TryNext(&e) {
			if lost := sub.Lost(); lost > told {
				if err := stream.Send(&pb.Execution{Missed: lost - told}); err != nil {
					return err
				}
				told = lost
			}
			if sub.Next(ctx, &e) != nil {
				return m.streamEnd(stream.Context())
			}
		}
		// What was told when the ring was empty comes again with the next event.
		seen += e.Missed
		out := execution(&e)
		if out == nil || !concerns(out, only.String(), account) {
			continue
		}
		if seen > told {
			out.Missed, told = seen-told, seen
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

// concerns reports whether e was asked for.
func concerns(e *pb.Execution, instrument string, account uint64) bool {
	if instrument != "" && e.Instrument != instrument {
		return false
	}
	if account == 0 {
		return true
	}
	if e.Order != nil {
		return e.Order.Account == account
	}
	return e.MakerAccount == account || e.TakerAccount == account
}

// execution returns e as the drop copy has it, nil when it is not in it.
func execution(e *gateway.Event) *pb.Execution {
	if e.Kind == gateway.RejectEvent {
		return refusedEvent(&e.Reject)
	}
	if e.Kind != gateway.RecordEvent {
		return nil
	}
	r := &e.Record
	out := &pb.Execution{Instrument: r.Instrument.String(), Seq: r.Seq, Time: r.Time}
	switch r.Type {
	case record.TypeTradeExecuted:
		traded(out, r.TradeExecuted())
		out.MakerClientOrderId, out.TakerClientOrderId = e.MakerClientOrderID, e.TakerClientOrderID
	case record.TypeOrderInsert:
		out.Kind, out.Order = pb.ExecutionKind_EXECUTION_KIND_ACCEPTED, accepted(r.OrderInsert())
	case record.TypeOrderCancel:
		out.Kind, out.Order = pb.ExecutionKind_EXECUTION_KIND_CANCELED, canceled(r.OrderCancel())
	case record.TypeOrderAmend:
		out.Kind, out.Order = pb.ExecutionKind_EXECUTION_KIND_AMENDED, amended(r.OrderAmend())
	default:
		return nil
	}
	return out
}

func traded(out *pb.Execution, t *record.TradeExecuted) {
	out.Kind = pb.ExecutionKind_EXECUTION_KIND_TRADE
	out.TradeId, out.Price, out.Volume = t.TradeID, t.Price, t.Volume
	out.MakerOrderId, out.TakerOrderId = t.MakerOrderID, t.TakerOrderID
	out.MakerAccount, out.TakerAccount = t.MakerAccount, t.TakerAccount
	out.MakerFee, out.TakerFee = t.MakerFee, t.TakerFee
	out.TakerSide, out.MakerOffset, out.TakerOffset = pb.Side(t.TakerSide), pb.Offset(t.MakerOffset), pb.Offset(t.TakerOffset)
}

func accepted(b *record.OrderInsert) *pb.OrderEvent {
	return &pb.OrderEvent{
		OrderId: b.OrderID, ClientOrderId: b.ClientOrderID, Account: b.Account, Side: pb.Side(b.Side), Offset: pb.Offset(b.Offset),
		Kind: kind(b.Kind), TimeInForce: pb.TimeInForce(b.TimeInForce), Price: b.Price, Volume: b.Volume,
	}
}

func canceled(b *record.OrderCancel) *pb.OrderEvent {
	return &pb.OrderEvent{
		OrderId: b.OrderID, ClientOrderId: b.ClientOrderID, Account: b.Account, Side: pb.Side(b.Side), Offset: pb.Offset(b.Offset),
		Price: b.Price, Volume: b.Volume, CancelReason: pb.CancelReason(b.Reason),
	}
}

func amended(b *record.OrderAmend) *pb.OrderEvent {
	return &pb.OrderEvent{
		OrderId: b.OrderID, ClientOrderId: b.ClientOrderID, Account: b.Account, Side: pb.Side(b.Side), Offset: pb.Offset(b.Offset),
		Price: b.Price, Volume: b.Volume, OldPrice: b.OldPrice, OldVolume: b.OldVolume, KeptPriority: b.KeptPriority != 0,
	}
}

func refusedEvent(r *gateway.Rejected) *pb.Execution {
	why := risk.Reason(r.Reason)
	return &pb.Execution{
		Instrument: r.Instrument.String(), Time: r.Time, Kind: pb.ExecutionKind_EXECUTION_KIND_REFUSED,
		Order: &pb.OrderEvent{
			OrderId: r.OrderID, ClientOrderId: r.ClientOrderID, Account: r.Account,
			RejectReason: why.String(), Message: why.Message(),
		},
	}
}

// kind is the protocol's name of k, where a limit order goes without saying.
func kind(k record.Kind) pb.Kind {
	if k == record.Market {
		return pb.Kind_KIND_MARKET
	}
	return pb.Kind_KIND_UNSPECIFIED
}
