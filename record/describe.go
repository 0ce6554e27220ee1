package record

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Field is one named value of a record: an int64, uint64 or string.
type Field struct {
	Name  string
	Value any
}

var (
	sideNames   = []string{Buy: "buy", Sell: "sell"}
	offsetNames = []string{Open: "open", Close: "close", CloseToday: "close-today"}
	kindNames   = []string{Limit: "limit", Market: "market"}
	tifNames    = []string{GFD: "GFD", IOC: "IOC", FOK: "FOK"}
	reasonNames = []string{CancelByUser: "user", CancelIOC: "IOC", CancelFOK: "FOK", CancelEndOfDay: "end-of-day"}
	feeNames    = []string{FeeByTurnover: "turnover", FeeByLot: "lot"}
)

func nameOf(names []string, v uint8) string {
	if int(v) < len(names) && names[v] != "" {
		return names[v]
	}
	return strconv.Itoa(int(v))
}

// String returns "buy" or "sell", or the number of an unknown side.
func (s Side) String() string { return nameOf(sideNames, uint8(s)) }

// String returns "open", "close" or "close-today", or the number of an unknown offset.
func (o Offset) String() string { return nameOf(offsetNames, uint8(o)) }

// String returns "limit" or "market", or the number of an unknown kind.
func (k Kind) String() string { return nameOf(kindNames, uint8(k)) }

// String returns "GFD", "IOC" or "FOK", or the number of an unknown one.
func (t TimeInForce) String() string { return nameOf(tifNames, uint8(t)) }

// String returns the reason's name, or the number of an unknown one.
func (c CancelReason) String() string { return nameOf(reasonNames, uint8(c)) }

// String returns "turnover" or "lot", or the number of an unknown mode.
func (m FeeMode) String() string { return nameOf(feeNames, uint8(m)) }

// Fields returns the record's body as named values, in the order of the byte
// table. A record of an unknown type has none.
func (r *Record) Fields() []Field {
	switch r.Type {
	case TypeOrderInsert:
		b := r.OrderInsert()
		return []Field{
			{"order_id", b.OrderID}, {"client_order_id", b.ClientOrderID}, {"account", b.Account},
			{"price", b.Price}, {"volume", b.Volume},
			{"frozen_margin", b.FrozenMargin}, {"frozen_fee", b.FrozenFee},
			{"side", b.Side.String()}, {"offset", b.Offset.String()},
			{"kind", b.Kind.String()}, {"time_in_force", b.TimeInForce.String()},
		}
	case TypeOrderCancel:
		b := r.OrderCancel()
		return []Field{
			{"order_id", b.OrderID}, {"client_order_id", b.ClientOrderID}, {"account", b.Account},
			{"price", b.Price}, {"volume", b.Volume},
			{"released_margin", b.ReleasedMargin}, {"released_fee", b.ReleasedFee},
			{"side", b.Side.String()}, {"offset", b.Offset.String()}, {"reason", b.Reason.String()},
		}
	case TypeOrderAmend:
		b := r.OrderAmend()
		return []Field{
			{"order_id", b.OrderID}, {"client_order_id", b.ClientOrderID}, {"account", b.Account},
			{"price", b.Price}, {"volume", b.Volume}, {"old_price", b.OldPrice}, {"old_volume", b.OldVolume},
			{"frozen_margin", b.FrozenMargin}, {"frozen_fee", b.FrozenFee},
			{"side", b.Side.String()}, {"offset", b.Offset.String()}, {"kept_priority", uint64(b.KeptPriority)},
		}
	case TypeTradeExecuted:
		b := r.TradeExecuted()
		return []Field{
			{"trade_id", b.TradeID}, {"maker_order_id", b.MakerOrderID}, {"taker_order_id", b.TakerOrderID},
			{"maker_account", b.MakerAccount}, {"taker_account", b.TakerAccount},
			{"price", b.Price}, {"volume", b.Volume}, {"maker_fee", b.MakerFee}, {"taker_fee", b.TakerFee},
			{"taker_side", b.TakerSide.String()},
			{"maker_offset", b.MakerOffset.String()}, {"taker_offset", b.TakerOffset.String()},
		}
	case TypeAccountUpdate:
		b := r.AccountUpdate()
		return []Field{
			{"account", b.Account}, {"balance", b.Balance}, {"frozen", b.Frozen}, {"margin", b.Margin},
			{"long_today", b.LongToday}, {"long_history", b.LongHistory},
			{"short_today", b.ShortToday}, {"short_history", b.ShortHistory},
			{"realised", b.Realised}, {"fees", b.Fees},
		}
	case TypeAccountOpened:
		return []Field{{"account", r.AccountOpened().Account}}
	case TypeDeposit, TypeWithdraw:
		b := r.CashMove()
		return []Field{
			{"account", b.Account}, {"amount", b.Amount}, {"balance", b.Balance}, {"reference", b.Reference},
		}
	case TypeInstrumentListed:
		b := r.InstrumentListed()
		return []Field{
			{"tick_value", b.TickValue}, {"tick_size", uint64(b.TickSize)}, {"decimals", uint64(b.Decimals)},
			{"fee_mode", b.FeeMode.String()}, {"price_limit_bp", uint64(b.PriceLimitBP)},
			{"long_margin_ppm", uint64(b.LongMarginPPM)}, {"short_margin_ppm", uint64(b.ShortMarginPPM)},
			{"fee_open", b.FeeOpen}, {"fee_close", b.FeeClose}, {"fee_close_today", b.FeeCloseToday},
			{"upper_limit", b.UpperLimit}, {"lower_limit", b.LowerLimit},
			{"max_order_volume", b.MaxOrderVolume}, {"position_limit", b.PositionLimit},
		}
	case TypeTradingState:
		return []Field{{"halted", uint64(r.TradingState().Halted)}}
	case TypeHistoryCut:
		b := r.HistoryCut()
		return []Field{
			{"from", b.From}, {"to", b.To}, {"records", b.Records},
			{"last_order_id", b.LastOrderID}, {"last_trade_id", b.LastTradeID},
		}
	case TypeSettlement:
		b := r.Settlement()
		return []Field{
			{"day", uint64(b.Day)}, {"price", b.Price}, {"previous", b.Previous},
			{"upper_limit", b.UpperLimit}, {"lower_limit", b.LowerLimit},
		}
	}
	return nil
}

// MarshalJSON returns the record as one flat object: the header's fields, then
// those of Fields.
func (r *Record) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	fmt.Fprintf(&b, `{"type":%q,"instrument":%q,"seq":%d,"global":%d,"time":%d,"last":%t`,
		r.Type, r.Instrument, r.Seq, r.Global, r.Time, r.Flags&FlagLast != 0)
	for _, f := range r.Fields() {
		v, err := json.Marshal(f.Value)
		if err != nil {
			return nil, fmt.Errorf("record seq %d, field %s: %w", r.Seq, f.Name, err)
		}
		fmt.Fprintf(&b, ",%q:%s", f.Name, v)
	}
	b.WriteByte('}')
	return []byte(b.String()), nil
}

// String returns the record on one line: type, instrument, seq and fields.
func (r *Record) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s seq=%d global=%d time=%d", r.Type, r.Instrument, r.Seq, r.Global, r.Time)
	for _, f := range r.Fields() {
		fmt.Fprintf(&b, " %s=%v", f.Name, f.Value)
	}
	return b.String()
}

// Diff names the fields in which two records differ as "name mine not theirs",
// header first; nil when all bytes are the same. Bodies of different types are
// not compared, and bytes that belong to no field are told by their offset.
func (r *Record) Diff(other *Record) []string {
	mine, theirs := r.described(), other.described()
	if r.Type != other.Type {
		mine, theirs = mine[:headerFields], theirs[:headerFields]
	}
	var differ []string
	for i := range mine {
		if mine[i].Value != theirs[i].Value {
			differ = append(differ, fmt.Sprintf("%s %v not %v", mine[i].Name, mine[i].Value, theirs[i].Value))
		}
	}
	if differ == nil {
		a, b := r.Bytes(), other.Bytes()
		for i := range a {
			if a[i] != b[i] {
				return []string{fmt.Sprintf("byte %d %#02x not %#02x", i, a[i], b[i])}
			}
		}
	}
	return differ
}

const headerFields = 6

// described returns the header's fields, then those of Fields.
func (r *Record) described() []Field {
	header := [headerFields]Field{
		{"type", r.Type.String()}, {"instrument", r.Instrument.String()},
		{"seq", r.Seq}, {"global", r.Global}, {"time", r.Time}, {"flags", r.Flags},
	}
	return append(header[:], r.Fields()...)
}
