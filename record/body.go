package record

import "unsafe"

// Side tells whether an order buys or sells.
type Side uint8

// The sides.
const (
	Buy  Side = 1
	Sell Side = 2
)

// Opposite returns the other side.
func (s Side) Opposite() Side { return Buy + Sell - s }

// Offset tells whether an order opens a position or closes one, and which.
type Offset uint8

// The offsets. Close takes positions carried over from earlier trading days,
// CloseToday those opened on the current one.
const (
	Open       Offset = 1
	Close      Offset = 2
	CloseToday Offset = 3
)

// Kind is the kind of an order.
type Kind uint8

// The kinds. A market order carries no price of its own.
const (
	Limit  Kind = 1
	Market Kind = 2
)

// TimeInForce says how long an order may rest.
type TimeInForce uint8

// The times in force.
const (
	GFD TimeInForce = 1 // good for day: rests until settlement
	IOC TimeInForce = 2 // immediate or cancel: the rest is cancelled
	FOK TimeInForce = 3 // fill or kill: all at once or nothing
)

// CancelReason says why an order left the book unfilled.
type CancelReason uint8

// The reasons of an OrderCancel.
const (
	CancelByUser   CancelReason = 1
	CancelIOC      CancelReason = 2 // rest of an IOC or market order
	CancelFOK      CancelReason = 3 // a FOK order that could not fill at once
	CancelEndOfDay CancelReason = 4 // GFD order at settlement
)

// OrderInsert is an order that passed the risk checks, as it enters matching.
type OrderInsert struct {
	Header
	OrderID       uint64 // 48
	ClientOrderID uint64 // 56: the submitter's own id, 0 when it gave none
	Account       uint64 // 64
	Price         int64  // 72: ticks; for a market order the limit it may trade up or down to
	Volume        int64  // 80: lots
	FrozenMargin  int64  // 88: minor units
	FrozenFee     int64  // 96: minor units
	Side          Side
	Offset        Offset
	Kind          Kind
	TimeInForce   TimeInForce
	_             [20]byte
}

// OrderCancel takes what is left of an order off the book.
type OrderCancel struct {
	Header
	OrderID        uint64 // 48
	ClientOrderID  uint64 // 56
	Account        uint64 // 64
	Price          int64  // 72: ticks, as in the order
	Volume         int64  // 80: lots cancelled
	ReleasedMargin int64  // 88: minor units unfrozen
	ReleasedFee    int64  // 96: minor units unfrozen
	Side           Side
	Offset         Offset
	Reason         CancelReason
	_              [21]byte
}

// OrderAmend changes a resting order's price or what is left of its volume.
type OrderAmend struct {
	Header
	OrderID       uint64 // 48
	ClientOrderID uint64 // 56
	Account       uint64 // 64
	Price         int64  // 72: ticks, after the change
	Volume        int64  // 80: lots left, after the change
	OldPrice      int64  // 88: ticks
	OldVolume     int64  // 96: lots left before
	FrozenMargin  int64  // 104: minor units, after the change
	FrozenFee     int64  // 112: minor units, after the change
	Side          Side
	Offset        Offset
	KeptPriority  uint8 // 1 when the order kept its place in the queue
	_             [5]byte
}

// TradeExecuted is one fill: a taker meets a maker at the maker's price.
type TradeExecuted struct {
	Header
	TradeID      uint64 // 48
	MakerOrderID uint64 // 56
	TakerOrderID uint64 // 64
	MakerAccount uint64 // 72
	TakerAccount uint64 // 80
	Price        int64  // 88: ticks
	Volume       int64  // 96: lots
	MakerFee     int64  // 104: minor units charged
	TakerFee     int64  // 112: minor units charged
	TakerSide    Side
	MakerOffset  Offset
	TakerOffset  Offset
	_            [5]byte
}

// AccountUpdate states an account after the transaction it ends. The positions
// and sums are those in the record's instrument; in AccountStream they are zero.
type AccountUpdate struct {
	Header
	Account      uint64 // 48
	Balance      int64  // 56: minor units: deposits − withdrawals + realised profit − fees
	Frozen       int64  // 64: minor units held for resting orders, margin and fees, all instruments
	Margin       int64  // 72: minor units held for positions, all instruments
	LongToday    int64  // 80: lots
	LongHistory  int64  // 88: lots
	ShortToday   int64  // 96: lots
	ShortHistory int64  // 104: lots
	Realised     int64  // 112: minor units of profit realised in the instrument, ever
	Fees         int64  // 120: minor units of fees paid in the instrument, ever
}

// AccountOpened adds an account, in AccountStream.
type AccountOpened struct {
	Header
	Account uint64 // 48
	_       [72]byte
}

// CashMove is the body of Deposit and Withdraw, in AccountStream.
type CashMove struct {
	Header
	Account   uint64 // 48
	Amount    int64  // 56: minor units, > 0
	Balance   int64  // 64: minor units, after
	Reference uint64 // 72: the caller's own id, 0 when it gave none
	_         [48]byte
}

// FeeMode says how an instrument's fees are reckoned.
type FeeMode uint8

// The fee modes.
const (
	FeeByTurnover FeeMode = 1 // parts per million of the turnover
	FeeByLot      FeeMode = 2 // minor units per lot
)

// InstrumentListed states an instrument's terms. The first record of every
// instrument's stream is one; a later one changes the terms from there on.
type InstrumentListed struct {
	Header
	TickValue      int64   // 48: minor units that one lot gains when the price rises one tick
	TickSize       uint32  // 56: one tick in units of 10^-Decimals of the quoted price
	Decimals       uint8   // 60
	FeeMode        FeeMode // 61
	PriceLimitBP   uint16  // 62: daily limits, basis points either side of the settlement before
	LongMarginPPM  uint32  // 64: parts per million of the turnover
	ShortMarginPPM uint32  // 68
	FeeOpen        int64   // 72: per FeeMode
	FeeClose       int64   // 80
	FeeCloseToday  int64   // 88
	UpperLimit     int64   // 96: ticks; highest price that is accepted
	LowerLimit     int64   // 104: ticks; lowest price that is accepted
	MaxOrderVolume int64   // 112: lots per order
	PositionLimit  int64   // 120: lots per account and side, 0 for none
}

// TradingState halts or resumes trading in an instrument.
type TradingState struct {
	Header
	Halted uint8 // 48: 1 halted, 0 trading
	_      [79]byte
}

// Settlement ends an instrument's trading day: positions are marked to Price,
// today's become history, and the limits of the next day apply.
type Settlement struct {
	Header
	Day        uint32 // 48: yyyymmdd of the day that ends
	_          uint32
	Price      int64 // 56: ticks
	Previous   int64 // 64: ticks, the settlement before
	UpperLimit int64 // 72: ticks, next day
	LowerLimit int64 // 80: ticks, next day
	_          [40]byte
}

// HistoryCut says that records which are stored do not count: others before them
// were lost with the outbox that held them, and nothing can be rebuilt from what
// followed. Every stream that holds such records has one, and all of them are one
// transaction, the first that counts again. Its first record has Global To + 1.
type HistoryCut struct {
	Header
	From        uint64 // 48: global of the last record that counts, 0 if none does
	To          uint64 // 56: global of the last record that does not
	Records     uint64 // 64: of this stream, that do not count
	LastOrderID uint64 // 72: highest order id seen, counted or not: none is given twice
	LastTradeID uint64 // 80: the same of trades
	_           [40]byte
}

// The typed views share the record's memory.

// OrderInsert views r, whose Type is TypeOrderInsert.
func (r *Record) OrderInsert() *OrderInsert { return (*OrderInsert)(unsafe.Pointer(r)) }

// OrderCancel views r, whose Type is TypeOrderCancel.
func (r *Record) OrderCancel() *OrderCancel { return (*OrderCancel)(unsafe.Pointer(r)) }

// OrderAmend views r, whose Type is TypeOrderAmend.
func (r *Record) OrderAmend() *OrderAmend { return (*OrderAmend)(unsafe.Pointer(r)) }

// TradeExecuted views r, whose Type is TypeTradeExecuted.
func (r *Record) TradeExecuted() *TradeExecuted { return (*TradeExecuted)(unsafe.Pointer(r)) }

// AccountUpdate views r, whose Type is TypeAccountUpdate.
func (r *Record) AccountUpdate() *AccountUpdate { return (*AccountUpdate)(unsafe.Pointer(r)) }

// AccountOpened views r, whose Type is TypeAccountOpened.
func (r *Record) AccountOpened() *AccountOpened { return (*AccountOpened)(unsafe.Pointer(r)) }

// CashMove views r, whose Type is TypeDeposit or TypeWithdraw.
func (r *Record) CashMove() *CashMove { return (*CashMove)(unsafe.Pointer(r)) }

// InstrumentListed views r, whose Type is TypeInstrumentListed.
func (r *Record) InstrumentListed() *InstrumentListed { return (*InstrumentListed)(unsafe.Pointer(r)) }

// TradingState views r, whose Type is TypeTradingState.
func (r *Record) TradingState() *TradingState { return (*TradingState)(unsafe.Pointer(r)) }

// Settlement views r, whose Type is TypeSettlement.
func (r *Record) Settlement() *Settlement { return (*Settlement)(unsafe.Pointer(r)) }

// HistoryCut views r, whose Type is TypeHistoryCut.
func (r *Record) HistoryCut() *HistoryCut { return (*HistoryCut)(unsafe.Pointer(r)) }

// A struct that is not exactly one record long makes one of these arrays'
// lengths negative, which does not compile.
var (
	_ [Size - unsafe.Sizeof(Record{})]struct{}
	_ [unsafe.Sizeof(Record{}) - Size]struct{}
	_ [HeaderSize - unsafe.Sizeof(Header{})]struct{}
	_ [unsafe.Sizeof(Header{}) - HeaderSize]struct{}
	_ = [1]struct{}{}[Size-unsafe.Sizeof(OrderInsert{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(OrderCancel{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(OrderAmend{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(TradeExecuted{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(AccountUpdate{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(AccountOpened{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(CashMove{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(InstrumentListed{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(TradingState{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(Settlement{})]
	_ = [1]struct{}{}[Size-unsafe.Sizeof(HistoryCut{})]
)
