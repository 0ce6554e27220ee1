// Package history makes the records of instruments that have traded for a while,
// each from its instrument and seq alone, so that any part of a stream can be made
// or checked by itself.
package history

import (
	"fmt"

	"github.com/countinghouse/countinghouse/record"
)

const (
	// Group is the number of records that belong together: three orders, a trade,
	// a cancel, and three states of accounts.
	Group = 8

	ordersOfGroup = 3
	accounts      = 10_000
	restMax       = 64    // groups that an order rests for before it trades, at most
	quoteMax      = 2_000 // groups that an order rests for before it is cancelled, at most
)

// Stream is the history of one instrument among several that share one numbering of
// orders and trades.
type Stream struct {
	Symbol record.Symbol
	number uint64
	of     uint64
}

// Streams returns n of them.
func Streams(n int) []Stream {
	out := make([]Stream, n)
	for i := range out {
		out[i] = Stream{Symbol: record.MustSymbol(fmt.Sprintf("IF%06d", i)), number: uint64(i), of: uint64(n)}
	}
	return out
}

// Symbols returns the streams' instruments.
func Symbols(streams []Stream) []record.Symbol {
	out := make([]record.Symbol, len(streams))
	for i := range streams {
		out[i] = streams[i].Symbol
	}
	return out
}

// Order returns the id of an order that group, from 0, inserts; n is 0 to 2. Order 0
// trades later on, order 1 is cancelled later on, and order 2 trades at once.
func (s *Stream) Order(group uint64, n int) uint64 {
	return (group*s.of+s.number)*ordersOfGroup + uint64(n) + 1
}

// Trade returns the id of the trade in group, from 0.
func (s *Stream) Trade(group uint64) uint64 { return group*s.of + s.number + 1 }

// Fill makes rs the records from seq first on.
func (s *Stream) Fill(rs []record.Record, first uint64) {
	for i := range rs {
		s.fill(&rs[i], first+uint64(i))
	}
}

// Batch returns a batch of n records from seq first on.
func (s *Stream) Batch(epoch, first uint64, n int) ([]byte, error) {
	rs := make([]record.Record, n)
	s.Fill(rs, first)
	return record.AppendBatch(make([]byte, 0, record.BatchHeaderSize+n*record.Size), epoch, rs)
}

func (s *Stream) fill(r *record.Record, seq uint64) {
	group, at := (seq-1)/Group, (seq-1)%Group
	*r = record.Record{Header: record.Header{
		Version: 1, Seq: seq, Global: (seq-1)*s.of + s.number + 1, Time: 1_700_000_000_000_000_000 + int64(seq)*1000, Instrument: s.Symbol,
	}}
	switch at {
	case 0:
		s.insert(r, group, 0)
	case 2, 3:
		s.insert(r, group, int(at)-1)
	case 4:
		s.trade(r, group)
	case 7:
		s.cancel(r, group)
		r.Flags = record.FlagLast
	default:
		s.account(r, group, at)
	}
}

func (s *Stream) insert(r *record.Record, group uint64, n int) {
	r.Type = record.TypeOrderInsert
	o := r.OrderInsert()
	o.OrderID = s.Order(group, n)
	o.ClientOrderID, o.Account = o.OrderID+1_000_000, account(o.OrderID)
	o.Price, o.Volume = price(group), 1+int64(group%9)
	o.FrozenMargin, o.FrozenFee = o.Price*36, o.Price/50
	o.Side, o.Offset, o.Kind, o.TimeInForce = record.Side(1+group%2), record.Open, record.Limit, record.GFD
}

func (s *Stream) trade(r *record.Record, group uint64) {
	r.Type = record.TypeTradeExecuted
	t := r.TradeExecuted()
	t.TradeID, t.TakerOrderID = s.Trade(group), s.Order(group, 2)
	t.MakerOrderID = s.Order(group-mix(group)%(min(group, restMax-1)+1), 0)
	t.MakerAccount, t.TakerAccount = account(t.MakerOrderID), account(t.TakerOrderID)
	t.Price, t.Volume, t.MakerFee, t.TakerFee = price(group), 1, 23, 23
	t.TakerSide, t.MakerOffset, t.TakerOffset = record.Side(1+group%2), record.Open, record.Close
}

func (s *Stream) cancel(r *record.Record, group uint64) {
	r.Type = record.TypeOrderCancel
	c := r.OrderCancel()
	c.OrderID = s.Order(group-mix(group+1)%(min(group, quoteMax-1)+1), 1)
	c.ClientOrderID, c.Account = c.OrderID+1_000_000, account(c.OrderID)
	c.Price, c.Volume = price(group), 1
	c.Side, c.Offset, c.Reason = record.Buy, record.Open, record.CancelByUser
}

func (s *Stream) account(r *record.Record, group, at uint64) {
	r.Type = record.TypeAccountUpdate
	a := r.AccountUpdate()
	a.Account = account(group*Group + at)
	a.Balance, a.Frozen, a.Margin = 1_000_000_000-int64(group), int64(mix(group)%100_000), int64(group%1000)
	a.LongToday, a.ShortToday = int64(group%50), int64(group%40)
}

func account(x uint64) uint64 { return 1 + mix(x)%accounts }

func price(group uint64) int64 { return 20_000 + int64(mix(group/64)%200) }

// mix spreads x over all 64 bits.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
