package l3

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/record"
)

// ErrFormat means that a file is not a capture of this format. The message names
// the line and the column.
var ErrFormat = errors.New("not an L3 capture")

const (
	header    = "id,timestamp,exchange.timestamp,price,volume,action,direction"
	columns   = 7
	ordersMax = 1 << 26 // orders of one capture that are kept track of
)

var columnNames = bytes.Split([]byte(header), []byte(","))

// Options say how a capture's numbers are to be read.
type Options struct {
	// PriceDecimals is the number of decimals of a price: 2 makes a tick 0.01.
	// At most 12.
	PriceDecimals int
	// Instrument is what the events carry in their Instrument field.
	Instrument int32
}

// Stats count what a source has read.
type Stats struct {
	Rows          int // rows of the file, without the header
	Created       int
	Cancels       int
	Fills         int // changed or deleted by a fill
	Reprices      int // Amend events
	UnknownOrders int // rows that name an order which had not been created by then
	Reordered     int // of these, orders that were created afterwards
	Repeated      int // rows about an order that had been deleted before
}

// Source reads a capture row by row. It implements orderflow.Source.
type Source struct {
	lines *orderflow.Lines
	opts  Options
	stats Stats
	last  int64 // receive time of the last row, ms

	orders map[uint64]state
	queue  [2]orderflow.Event // events that follow the one handed out
	queued int
}

// state is what the rows so far said of one order.
type state struct {
	price int64
	phase phase
}

type phase uint8

const (
	unknown phase = iota
	open
	deleted
	deletedUncreated // deleted before it was created, or older than the capture
)

// NewSource reads a capture, gzipped or plain, from r and checks its header. The
// error wraps ErrFormat if it is none.
func NewSource(r io.Reader, opts Options) (*Source, error) {
	lines, err := orderflow.NewLines(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	first, ok := lines.Next()
	switch got := bytes.TrimPrefix(first, []byte("\xef\xbb\xbf")); {
	case lines.Err() != nil:
		return nil, fmt.Errorf("%w: %w", ErrFormat, lines.Err())
	case !ok:
		return nil, fmt.Errorf("%w: the file is empty", ErrFormat)
	case string(got) != header:
		return nil, fmt.Errorf("line %d: %w: the header is %.100q, not %q", lines.Number(), ErrFormat, got, header)
	}
	return &Source{lines: lines, opts: opts, orders: map[uint64]state{}}, nil
}

// Stats returns the counts so far.
func (s *Source) Stats() Stats { return s.stats }

// Next implements orderflow.Source. Errors wrap ErrFormat.
func (s *Source) Next(e *orderflow.Event) (bool, error) {
	for s.queued == 0 {
		line, ok := s.lines.Next()
		if !ok {
			return false, s.end()
		}
		row, err := s.parse(line)
		if err != nil {
			return false, err
		}
		if err := s.apply(row); err != nil {
			return false, err
		}
	}
	*e = s.queue[0]
	s.queue[0] = s.queue[1]
	s.queued--
	return true, nil
}

func (s *Source) end() error {
	if err := s.lines.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

func (s *Source) push(e orderflow.Event) {
	s.queue[s.queued] = e
	s.queued++
}

// apply queues the events of one row, at most two.
func (s *Source) apply(row row) error {
	s.stats.Rows++
	st := s.orders[row.id]
	event := orderflow.Event{Time: row.received * 1e6, Order: row.id, Instrument: s.opts.Instrument}
	switch {
	case row.action == created:
		return s.create(row, st, event)
	case st.phase == unknown || st.phase == deletedUncreated:
		s.stats.UnknownOrders++
		if row.action == removed {
			s.orders[row.id] = state{phase: deletedUncreated}
		}
		return s.bounded()
	case st.phase == deleted:
		s.stats.Repeated++
		return nil
	}
	s.change(row, st, event)
	return nil
}

func (s *Source) create(row row, st state, event orderflow.Event) error {
	if st.phase == open || st.phase == deleted {
		return s.columnError(0, fmt.Errorf("order %d is created a second time", row.id))
	}
	if row.volume == 0 {
		return s.columnError(4, errors.New("an order of nothing is created"))
	}
	s.stats.Created++
	submit := event
	submit.Kind, submit.Side, submit.Price, submit.Volume = orderflow.Submit, row.side, row.price, row.volume
	submit.Offset, submit.OrderKind, submit.TimeInForce = record.Open, record.Limit, record.GFD
	s.push(submit)
	next := state{price: row.price, phase: open}
	if st.phase == deletedUncreated {
		s.stats.Reordered++
		next.phase = deleted
		event.Kind = orderflow.Cancel
		s.push(event)
	}
	s.orders[row.id] = next
	return s.bounded()
}

// change queues the events of a row about an order that is open.
func (s *Source) change(row row, st state, event orderflow.Event) {
	if row.action == removed && row.volume > 0 {
		s.stats.Cancels++
		event.Kind = orderflow.Cancel
		s.push(event)
		s.orders[row.id] = state{phase: deleted}
		return
	}
	observe, amend := event, event
	observe.Kind, observe.Volume = orderflow.Observe, row.volume
	amend.Kind, amend.Price = orderflow.Amend, row.price
	switch {
	case row.price == st.price:
		s.stats.Fills++
		s.push(observe)
	case row.action == removed:
		s.stats.Fills++
		s.stats.Reprices++
		s.push(amend)
		s.push(observe)
	default:
		s.stats.Reprices++
		s.push(observe)
		s.push(amend)
	}
	st.price = row.price
	if row.action == removed {
		st.phase = deleted
	}
	s.orders[row.id] = st
}

func (s *Source) bounded() error {
	if len(s.orders) > ordersMax {
		return fmt.Errorf("line %d: more than %d orders in one capture; split the file", s.lines.Number(), ordersMax)
	}
	return nil
}
