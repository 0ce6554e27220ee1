package torture

import (
	"bytes"
	"encoding/binary"

	"github.com/countinghouse/countinghouse/record"
)

// origin says which attempt to write a record it comes from.
type origin struct {
	writer uint64 // number of the writer, above writerBase
	epoch  uint64 // incarnation<<32 | session
	seq    uint64
}

// writerBase keeps numbers of writers and epochs apart from sequence numbers,
// which stand in the ids that Get looks for.
const writerBase = 1 << 48

// tradeEvery makes every fourth record a trade, the others are orders.
const tradeEvery = 4

// The words of a record's body, 8 bytes each: the origin, and then filling.
//
//	word  order           trade
//	   0  OrderID         TradeID        seq
//	   1  ClientOrderID   MakerOrderID   epoch
//	   2  Account         TakerOrderID   writer
//	3…9                                  hash of instrument, origin and word
const (
	seqWord     = 0
	epochWord   = 1
	writerWord  = 2
	firstFiller = 3
	bodyWords   = record.BodySize / 8
)

// fill writes the record that o stands for.
func fill(r *record.Record, sym record.Symbol, o origin) {
	*r = record.Record{Header: record.Header{
		Version: record.Version, Type: record.TypeOrderInsert, Seq: o.seq, Global: o.seq,
		Time: int64(o.seq), Instrument: sym,
	}}
	if isTrade(o.seq) {
		r.Type = record.TypeTradeExecuted
	}
	setWord(r, seqWord, o.seq)
	setWord(r, epochWord, o.epoch)
	setWord(r, writerWord, o.writer)
	state := seedOf(sym, o)
	for i := firstFiller; i < bodyWords; i++ {
		state, _ = fillWord(r, i, state)
	}
}

func isTrade(seq uint64) bool { return seq%tradeEvery == 0 }

func word(r *record.Record, i int) uint64 { return binary.LittleEndian.Uint64(r.Body[8*i:]) }

func setWord(r *record.Record, i int, v uint64) { binary.LittleEndian.PutUint64(r.Body[8*i:], v) }

func seedOf(sym record.Symbol, o origin) uint64 {
	return mix(binary.LittleEndian.Uint64(sym[:8]) ^ mix(binary.LittleEndian.Uint64(sym[8:])^mix(o.writer^mix(o.epoch^mix(o.seq)))))
}

func fillWord(r *record.Record, i int, state uint64) (next, value uint64) {
	next = state + 0x9e3779b97f4a7c15
	value = mix(next)
	setWord(r, i, value)
	return next, value
}

// mix is the finaliser of SplitMix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// originOf returns the origin that a record's content states, and whether all of
// its content agrees with that. The header's seq is not looked at: a whole record
// in the wrong place states the place it was meant for.
func originOf(r *record.Record, sym record.Symbol) (origin, bool) {
	o := origin{writer: word(r, writerWord), epoch: word(r, epochWord), seq: word(r, seqWord)}
	var want record.Record
	fill(&want, sym, o)
	want.Seq = r.Seq
	return o, same(&want, r)
}

// same compares all bytes; == would pass over those that no field has.
func same(a, b *record.Record) bool { return bytes.Equal(a.Bytes(), b.Bytes()) }
