package gateway

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/countinghouse/countinghouse/record"
)

// Topics says what a subscriber is told.
type Topics uint8

// The topics.
const (
	// Executions is the drop copy: the records of orders and trades, and the
	// orders that were refused.
	Executions Topics = 1 << iota
	// MarketData is the trades, and the best prices after every change.
	MarketData
)

// EventKind tells which part of an Event is set.
type EventKind uint8

// The kinds of events.
const (
	RecordEvent EventKind = 1 // Record
	RejectEvent EventKind = 2 // Reject
	TopEvent    EventKind = 3 // Top
)

// Rejected tells that a request was refused.
type Rejected struct {
	Instrument    record.Symbol
	Account       uint64
	ClientOrderID uint64
	OrderID       uint64 // of a cancel or an amend; 0 for a submitted order
	Reason        uint8  // a risk.Reason
	Time          int64  // Unix nanoseconds
}

// Top is the best prices of a book after a transaction. Volume 0 means that the
// side is empty.
type Top struct {
	Instrument          record.Symbol
	Seq                 uint64 // the stream's last record that it reflects
	Change              uint64 // counts the changes of the book, also those whose records were dropped
	BidPrice, BidVolume int64
	AskPrice, AskVolume int64
}

// Event is what a subscriber receives.
type Event struct {
	Kind   EventKind
	Missed uint64 // events passed over before this one, because the subscriber lagged
	Record record.Record
	// Of a trade: the client order ids of its orders, which its record lacks.
	MakerClientOrderID, TakerClientOrderID uint64
	Reject                                 Rejected
	Top                                    Top
}

// ErrClosed means that a subscription was closed.
var ErrClosed = errors.New("subscription closed")

// Limits of the fan-out.
const (
	DefaultRingEvents = 4096
	maxRingEvents     = 1 << 20
)

// Fanout copies events to subscribers without ever waiting for them. The core
// pays nothing for it while there is no subscriber.
type Fanout struct {
	mu   sync.Mutex // guards changes of subs
	subs atomic.Pointer[[]*Subscription]
}

// Subscription is one subscriber's bounded ring of events: one writer, the core,
// and one reader.
//
// Invariant: tail ≤ head ≤ pushed ≤ tail + len(ring).
type Subscription struct {
	fan    *Fanout
	topics Topics
	ring   []Event
	mask   uint64

	pushed uint64 // written by the core, not yet visible
	missed uint64 // since the last event that fitted; the core's

	head   atomic.Uint64 // visible to the reader
	tail   atomic.Uint64 // read
	lost   atomic.Uint64
	asleep atomic.Bool
	wake   chan struct{}
	closed chan struct{}
	once   sync.Once
}

// Subscribe adds a subscriber that is told of topics from now on. ringEvents, 0
// for DefaultRingEvents, is how far it may lag; it is rounded up to a power of
// two and bounded.
func (f *Fanout) Subscribe(topics Topics, ringEvents int) *Subscription {
	if ringEvents <= 0 {
		ringEvents = DefaultRingEvents
	}
	size := 1
	for size < min(ringEvents, maxRingEvents) {
		size <<= 1
	}
	s := &Subscription{
		fan: f, topics: topics, ring: make([]Event, size), mask: uint64(size - 1),
		wake: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	f.change(func(subs []*Subscription) []*Subscription { return append(subs, s) })
	return s
}

// change replaces the list of subscribers; the core reads the old or the new one.
func (f *Fanout) change(edit func([]*Subscription) []*Subscription) {
	f.mu.Lock()
	defer f.mu.Unlock()
	subs := edit(append([]*Subscription(nil), f.list()...))
	f.subs.Store(&subs)
}

func (f *Fanout) list() []*Subscription {
	if p := f.subs.Load(); p != nil {
		return *p
	}
	return nil
}

// Wanted reports whether anyone subscribed to one of the topics.
func (f *Fanout) Wanted(topics Topics) bool {
	for _, s := range f.list() {
		if s.topics&topics != 0 {
			return true
		}
	}
	return false
}

// push copies a record to those who subscribed to one of topics. They see it
// after flush.
func (f *Fanout) push(r *record.Record, topics Topics) {
	for _, s := range f.list() {
		if s.topics&topics == 0 {
			continue
		}
		if e := s.slot(RecordEvent); e != nil {
			e.Record = *r
		}
	}
}

// pushTrade is push of a trade's record.
func (f *Fanout) pushTrade(r *record.Record, t *Trade) {
	for _, s := range f.list() {
		if s.topics&(Executions|MarketData) == 0 {
			continue
		}
		if e := s.slot(RecordEvent); e != nil {
			e.Record = *r
			e.MakerClientOrderID, e.TakerClientOrderID = t.Maker.ClientOrderID, t.Taker.ClientOrderID
		}
	}
}

// Reject tells the drop copy that a request was refused.
func (f *Fanout) Reject(r *Rejected) {
	for _, s := range f.list() {
		if s.topics&Executions == 0 {
			continue
		}
		if e := s.slot(RejectEvent); e != nil {
			e.Reject = *r
		}
	}
	f.flush()
}

// Top tells the market data subscribers a book's best prices.
func (f *Fanout) Top(t *Top) {
	for _, s := range f.list() {
		if s.topics&MarketData == 0 {
			continue
		}
		if e := s.slot(TopEvent); e != nil {
			e.Top = *t
		}
	}
	f.flush()
}

// slot returns the place of the next event, or nil when the ring is full.
func (s *Subscription) slot(kind EventKind) *Event {
	if s.pushed-s.tail.Load() == uint64(len(s.ring)) {
		s.missed++
		s.lost.Add(1)
		return nil
	}
	e := &s.ring[s.pushed&s.mask]
	e.Kind, e.Missed = kind, s.missed
	s.missed = 0
	s.pushed++
	return e
}

// flush makes what was pushed visible and wakes the readers that sleep.
func (f *Fanout) flush() {
	for _, s := range f.list() {
		if s.head.Load() == s.pushed {
			continue
		}
		s.head.Store(s.pushed)
		if s.asleep.Load() && s.asleep.CompareAndSwap(true, false) {
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
	}
}

// Next copies the next event into e, waiting for one. It returns ctx's error or
// ErrClosed. It is for one goroutine.
func (s *Subscription) Next(ctx context.Context, e *Event) error {
	for {
		if s.TryNext(e) {
			return nil
		}
		s.asleep.Store(true)
		if s.TryNext(e) {
			s.asleep.Store(false)
			return nil
		}
		select {
		case <-s.wake:
		case <-s.closed:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TryNext is Next that returns false instead of waiting.
func (s *Subscription) TryNext(e *Event) bool {
	tail := s.tail.Load()
	if tail == s.head.Load() {
		return false
	}
	*e = s.ring[tail&s.mask]
	s.tail.Store(tail + 1)
	return true
}

// Lost returns the number of events passed over so far; any goroutine may call it.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// Close ends the subscription; a waiting Next returns ErrClosed.
func (s *Subscription) Close() {
	s.once.Do(func() {
		s.fan.change(func(subs []*Subscription) []*Subscription {
			for i := range subs {
				if subs[i] == s {
					return append(subs[:i], subs[i+1:]...)
				}
			}
			return subs
		})
		close(s.closed)
	})
}
