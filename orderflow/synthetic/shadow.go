package synthetic

import "github.com/countinghouse/countinghouse/record"

// resting is an order that the generator believes to be in the book.
type resting struct {
	id        uint64
	account   uint64
	price     int64
	remaining int64
	side      record.Side
	offset    record.Offset
	at        int // its place in its market's live list
	market    int32
	entered   bool // in the live list: known to rest
}

// holding is what an account holds and has orders out to close.
type holding struct {
	long, short               int64 // lots
	closingLong, closingShort int64 // lots of resting and pending closing orders
}

type holder struct {
	account uint64
	market  int32
}

// shadow is the generator's picture of its orders and of what they led to.
type shadow struct {
	orders   map[uint64]*resting
	live     [][]*resting // by market, older before younger but for swaps
	holdings map[holder]*holding
	free     []*resting
}

func newShadow(markets int) *shadow {
	return &shadow{orders: make(map[uint64]*resting), live: make([][]*resting, markets), holdings: make(map[holder]*holding)}
}

func (s *shadow) holding(account uint64, market int32) *holding {
	key := holder{account, market}
	h := s.holdings[key]
	if h == nil {
		h = &holding{}
		s.holdings[key] = h
	}
	return h
}

// closable returns how many lots an account could close with an order of side.
func (h *holding) closable(side record.Side) int64 {
	if side == record.Sell {
		return h.long - h.closingLong
	}
	return h.short - h.closingShort
}

// reserve notes that lots are to be closed, or with a negative number are not.
func (h *holding) reserve(side record.Side, lots int64) {
	if side == record.Sell {
		h.closingLong += lots
	} else {
		h.closingShort += lots
	}
}

// submit notes an order that goes out.
func (s *shadow) submit(o resting) {
	var r *resting
	if n := len(s.free); n > 0 {
		r, s.free = s.free[n-1], s.free[:n-1]
	} else {
		r = new(resting)
	}
	*r = o
	s.orders[o.id] = r
	if o.offset != record.Open {
		s.holding(o.account, o.market).reserve(o.side, o.remaining)
	}
}

// enter puts an order on the live list.
func (s *shadow) enter(r *resting) {
	if !r.entered {
		r.entered, r.at = true, len(s.live[r.market])
		s.live[r.market] = append(s.live[r.market], r)
	}
}

// drop forgets an order and what it had reserved.
func (s *shadow) drop(r *resting) {
	if r.offset != record.Open {
		s.holding(r.account, r.market).reserve(r.side, -r.remaining)
	}
	if r.entered {
		list := s.live[r.market]
		last := list[len(list)-1]
		list[r.at], last.at = last, r.at
		s.live[r.market] = list[:len(list)-1]
	}
	delete(s.orders, r.id)
	s.free = append(s.free, r)
}

// fill applies a fill to the account's holding and to the order.
func (s *shadow) fill(r *resting, lots int64) {
	h := s.holding(r.account, r.market)
	if r.offset != record.Open {
		h.reserve(r.side, -lots)
	}
	switch {
	case r.side == record.Buy && r.offset == record.Open:
		h.long += lots
	case r.side == record.Sell && r.offset == record.Open:
		h.short += lots
	case r.side == record.Sell:
		h.long -= lots
	default:
		h.short -= lots
	}
	if r.remaining -= lots; r.remaining <= 0 {
		r.remaining = 0
		s.drop(r)
	}
}
