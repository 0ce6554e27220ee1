package lobster

import (
	"fmt"
	"io"

	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/record"
)

const (
	// ordersMax bounds the orders of one file that are open at one time.
	ordersMax = 1 << 26
	// incomingMax bounds the lots of one synthesised incoming order.
	incomingMax = 1 << 60

	// Ids in files are at most 2^60; those that are made up lie above.
	incomingIDs = 1 << 62
	openingIDs  = 1 << 63
)

// Options say how a file's numbers are to be read.
type Options struct {
	// TickUnits is one tick in 1/10,000 of the currency; 0 means 100, a cent.
	TickUnits int64
	// Midnight is the start of the file's day, in nanoseconds since the Unix epoch.
	Midnight int64
	// Instrument is what the events carry in their Instrument field.
	Instrument int32
	// Book, if not nil, is an order book file whose first row, with the first
	// message undone, is the opening book. It is read before the first event.
	Book io.Reader
	// Trade, if not nil, is called with every expected trade, in the order of the
	// file, before Next returns the incoming order that makes it.
	Trade func(orderflow.Trade)
}

// Stats count what a source has read.
type Stats struct {
	Rows          int // rows of the message file
	Submissions   int
	Reductions    int // partial cancellations
	Deletions     int
	Executions    int // visible; each is an expected trade
	Incoming      int // incoming orders synthesised from them
	Opening       int // orders of the opening book
	UnknownOrders int // rows about orders that neither the file nor the opening book has
	Hidden        int // skipped: type 5
	Crosses       int // skipped: type 6
	Halts         int // skipped: type 7
}

// Skipped returns the number of rows that were skipped for their type.
func (s Stats) Skipped() int { return s.Hidden + s.Crosses + s.Halts }

// Source reads a message file row by row. It implements orderflow.Source.
type Source struct {
	lines *orderflow.Lines
	opts  Options
	stats Stats
	last  int64 // time of the last row

	// orders holds the open lots of the orders that the file submitted.
	orders  map[uint64]int64
	opening map[place]*openingOrder

	// incoming collects the executions of one incoming order; Volume 0: none.
	incoming orderflow.Event
	queue    []orderflow.Event // those from head on are made and not handed out yet
	head     int
	started  bool
	ended    bool
}

// place is where orders of the opening book are looked for.
type place struct {
	side  record.Side
	price int64
}

type openingOrder struct {
	id   uint64
	open int64 // lots
}

// NewSource reads a message file, gzipped or plain, from r.
func NewSource(r io.Reader, opts Options) (*Source, error) {
	if opts.TickUnits == 0 {
		opts.TickUnits = 100
	}
	if opts.TickUnits < 0 {
		return nil, fmt.Errorf("tick of %d units: a tick is at least 1", opts.TickUnits)
	}
	lines, err := orderflow.NewLines(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return &Source{lines: lines, opts: opts, orders: map[uint64]int64{}, opening: map[place]*openingOrder{}}, nil
}

// Stats returns the counts so far.
func (s *Source) Stats() Stats { return s.stats }

// Next implements orderflow.Source. Errors wrap ErrFormat.
func (s *Source) Next(e *orderflow.Event) (bool, error) {
	for s.head == len(s.queue) {
		s.queue, s.head = s.queue[:0], 0
		if s.ended {
			return false, nil
		}
		if err := s.step(); err != nil {
			return false, err
		}
	}
	*e = s.queue[s.head]
	s.head++
	return true, nil
}

// step reads one row.
func (s *Source) step() error {
	line, ok := s.lines.Next()
	if !ok {
		s.ended = true
		s.flush()
		if err := s.lines.Err(); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return nil
	}
	row, err := s.parse(line)
	if err != nil {
		return err
	}
	s.stats.Rows++
	if !s.started {
		s.started = true
		if err := s.open(row); err != nil {
			return err
		}
	}
	return s.apply(row)
}

func (s *Source) apply(r row) error {
	switch r.kind {
	case hiddenExecution:
		s.stats.Hidden++
	case crossTrade:
		s.stats.Crosses++
	case tradingHalt:
		s.stats.Halts++
	case execution:
		return s.execute(r)
	case submission:
		s.flush()
		return s.submit(r)
	default:
		s.flush()
		s.cancel(r)
	}
	return nil
}

func (s *Source) event(r row, kind orderflow.Kind) orderflow.Event {
	return orderflow.Event{Time: s.opts.Midnight + r.time, Kind: kind, Order: r.order, Instrument: s.opts.Instrument}
}

func (s *Source) submit(r row) error {
	if _, open := s.orders[r.order]; open {
		return s.fieldError(2, fmt.Errorf("order %d is submitted while it is open", r.order))
	}
	if len(s.orders) == ordersMax {
		return fmt.Errorf("line %d: more than %d open orders; split the file", s.lines.Number(), ordersMax)
	}
	s.stats.Submissions++
	s.orders[r.order] = r.size
	s.queue = append(s.queue, s.limitOrder(r))
	return nil
}

func (s *Source) limitOrder(r row) orderflow.Event {
	e := s.event(r, orderflow.Submit)
	e.Side, e.Price, e.Volume = r.side, r.price, r.size
	e.Offset, e.OrderKind, e.TimeInForce = record.Open, record.Limit, record.GFD
	return e
}

// cancel handles partial cancellations and deletions.
func (s *Source) cancel(r row) {
	if r.kind == partialCancel {
		s.stats.Reductions++
	} else {
		s.stats.Deletions++
	}
	open, known := s.orders[r.order]
	switch {
	case !known:
		s.cancelOpening(r)
	case r.kind == deletion || r.size >= open:
		delete(s.orders, r.order)
		s.queue = append(s.queue, s.event(r, orderflow.Cancel))
	default:
		s.orders[r.order] = open - r.size
		s.queue = append(s.queue, s.reduction(r))
	}
}

func (s *Source) reduction(r row) orderflow.Event {
	e := s.event(r, orderflow.Reduce)
	e.Volume = r.size
	return e
}

// cancelOpening takes a cancellation of an order that is older than the file from
// the opening book.
func (s *Source) cancelOpening(r row) {
	o := s.opening[place{r.side, r.price}]
	if o == nil || o.open == 0 {
		s.stats.UnknownOrders++
		return
	}
	r.order = o.id
	if r.size >= o.open {
		o.open = 0
		s.queue = append(s.queue, s.event(r, orderflow.Cancel))
		return
	}
	o.open -= r.size
	s.queue = append(s.queue, s.reduction(r))
}

// execute adds an execution to the incoming order that it belongs to.
func (s *Source) execute(r row) error {
	e := s.event(r, orderflow.Submit)
	e.Side, e.Price, e.Volume = r.side.Opposite(), r.price, r.size
	e.Offset, e.OrderKind, e.TimeInForce = record.Open, record.Limit, record.IOC
	in := &s.incoming
	if in.Volume > 0 && (in.Time != e.Time || in.Side != e.Side) {
		s.flush()
	}
	switch {
	case in.Volume == 0:
		s.stats.Incoming++
		*in = e
		in.Order = incomingIDs | uint64(s.stats.Incoming)
	case in.Volume > incomingMax-r.size:
		return s.fieldError(3, fmt.Errorf("the executions of one incoming order add up to more than %d", int64(incomingMax)))
	default:
		in.Volume += r.size
		in.Price = worse(in.Side, in.Price, r.price)
	}
	s.filled(r)
	s.stats.Executions++
	if s.opts.Trade != nil {
		s.opts.Trade(orderflow.Trade{Time: e.Time, Price: r.price, Volume: r.size, ID: uint64(s.stats.Executions)})
	}
	return nil
}

// worse returns the price that is worse for an incoming order.
func worse(side record.Side, a, b int64) int64 {
	if side == record.Buy {
		return max(a, b)
	}
	return min(a, b)
}

// filled takes an execution off what is open of the order that rested.
func (s *Source) filled(r row) {
	if open, known := s.orders[r.order]; known {
		if open > r.size {
			s.orders[r.order] = open - r.size
		} else {
			delete(s.orders, r.order)
		}
		return
	}
	if o := s.opening[place{r.side, r.price}]; o != nil && o.open > 0 {
		o.open = max(0, o.open-r.size)
		return
	}
	s.stats.UnknownOrders++
}

// flush queues the incoming order that is being collected.
func (s *Source) flush() {
	if s.incoming.Volume > 0 {
		s.queue = append(s.queue, s.incoming)
		s.incoming.Volume = 0
	}
}
