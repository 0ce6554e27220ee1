package record

import "unsafe"

// IDKind says what an id names.
type IDKind uint8

// The kinds of ids by which records are found. Their numbers are part of the
// sorted tables' format.
const (
	OrderID   IDKind = 1
	TradeID   IDKind = 2
	AccountID IDKind = 3
)

// String returns "order", "trade" or "account".
func (k IDKind) String() string {
	switch k {
	case OrderID:
		return "order"
	case TradeID:
		return "trade"
	case AccountID:
		return "account"
	}
	return "unknown"
}

// ID is one order, trade or account that a record is about. The value 0 names
// nothing.
type ID struct {
	Kind  IDKind
	Value uint64
}

// MaxIDs is the largest number of ids that one record has.
const MaxIDs = 5

// IDs writes the ids of r to dst and returns how many there are. Ids of value 0
// are left out; an id that both sides of a trade share is there twice.
func (r *Record) IDs(dst *[MaxIDs]ID) int {
	n := 0
	add := func(kind IDKind, value uint64) {
		if value != 0 {
			dst[n] = ID{kind, value}
			n++
		}
	}
	switch r.Type {
	case TypeOrderInsert, TypeOrderCancel, TypeOrderAmend:
		b := r.OrderInsert() // the three have their ids at the same offsets
		add(OrderID, b.OrderID)
		add(AccountID, b.Account)
	case TypeTradeExecuted:
		b := r.TradeExecuted()
		add(OrderID, b.MakerOrderID)
		add(OrderID, b.TakerOrderID)
		add(TradeID, b.TradeID)
		add(AccountID, b.MakerAccount)
		add(AccountID, b.TakerAccount)
	case TypeAccountUpdate, TypeAccountOpened, TypeDeposit, TypeWithdraw:
		add(AccountID, r.AccountOpened().Account) // at the same offset in all four
	}
	return n
}

// HasID reports whether r is about the given order, trade or account. No record
// is about an id of value 0.
func (r *Record) HasID(id ID) bool {
	if id.Value == 0 {
		return false
	}
	switch id.Kind {
	case OrderID:
		return r.hasOrder(id.Value)
	case TradeID:
		return r.Type == TypeTradeExecuted && r.TradeExecuted().TradeID == id.Value
	case AccountID:
		return r.hasAccount(id.Value)
	}
	return false
}

func (r *Record) hasOrder(id uint64) bool {
	switch r.Type {
	case TypeOrderInsert, TypeOrderCancel, TypeOrderAmend:
		return r.OrderInsert().OrderID == id
	case TypeTradeExecuted:
		b := r.TradeExecuted()
		return b.MakerOrderID == id || b.TakerOrderID == id
	}
	return false
}

func (r *Record) hasAccount(id uint64) bool {
	switch r.Type {
	case TypeOrderInsert, TypeOrderCancel, TypeOrderAmend:
		return r.OrderInsert().Account == id
	case TypeTradeExecuted:
		b := r.TradeExecuted()
		return b.MakerAccount == id || b.TakerAccount == id
	case TypeAccountUpdate, TypeAccountOpened, TypeDeposit, TypeWithdraw:
		return r.AccountOpened().Account == id
	}
	return false
}

// IndexID returns the position of the first record in rs that HasID, or −1.
//
// Ids are rare, and types follow each other in no order that a processor could
// foresee. So the words where an id of the kind may stand are compared first, whatever
// the record's type is: these branches are hardly ever taken.
func IndexID(rs []Record, id ID) int {
	if id.Value == 0 {
		return -1
	}
	switch id.Kind {
	case OrderID:
		return indexOrder(rs, id.Value)
	case TradeID:
		return indexTrade(rs, id.Value)
	case AccountID:
		return indexAccount(rs, id.Value)
	}
	return -1
}

func indexOrder(rs []Record, id uint64) int {
	for i := range rs {
		t, o := rs[i].TradeExecuted(), rs[i].OrderInsert()
		if (o.OrderID == id || t.MakerOrderID == id || t.TakerOrderID == id) && rs[i].hasOrder(id) {
			return i
		}
	}
	return -1
}

func indexTrade(rs []Record, id uint64) int {
	for i := range rs {
		if rs[i].TradeExecuted().TradeID == id && rs[i].Type == TypeTradeExecuted {
			return i
		}
	}
	return -1
}

func indexAccount(rs []Record, id uint64) int {
	for i := range rs {
		a, o, t := rs[i].AccountOpened(), rs[i].OrderInsert(), rs[i].TradeExecuted()
		if (a.Account == id || o.Account == id || t.MakerAccount == id || t.TakerAccount == id) && rs[i].hasAccount(id) {
			return i
		}
	}
	return -1
}

// The offsets that IDs, hasOrder and hasAccount rely on.
var (
	_ = [1]struct{}{}[unsafe.Offsetof(OrderInsert{}.OrderID)-unsafe.Offsetof(OrderCancel{}.OrderID)]
	_ = [1]struct{}{}[unsafe.Offsetof(OrderInsert{}.OrderID)-unsafe.Offsetof(OrderAmend{}.OrderID)]
	_ = [1]struct{}{}[unsafe.Offsetof(OrderInsert{}.Account)-unsafe.Offsetof(OrderCancel{}.Account)]
	_ = [1]struct{}{}[unsafe.Offsetof(OrderInsert{}.Account)-unsafe.Offsetof(OrderAmend{}.Account)]
	_ = [1]struct{}{}[unsafe.Offsetof(AccountOpened{}.Account)-unsafe.Offsetof(AccountUpdate{}.Account)]
	_ = [1]struct{}{}[unsafe.Offsetof(AccountOpened{}.Account)-unsafe.Offsetof(CashMove{}.Account)]
)
