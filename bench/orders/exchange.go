package orders

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/matching"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/record"
)

// system is what requests are sent to.
type system interface {
	do(r *request)
	// refused returns how many requests were refused that were taken when they
	// were drawn, or the other way round.
	refused() int
	close() error
}

// opener opens a system that has carried out the flow's warm-up. dir is empty and
// on the disk that is measured.
type opener func(f *flow, dir string) (system, error)

// exchangeSystem is the core behind its router.
type exchangeSystem struct {
	router *core.Router
	sender sender
	lost   int
	end    func() error
}

func (s *exchangeSystem) do(r *request) {
	if res := s.sender.send(r, s.router); (res.Reason == risk.OK) != r.taken {
		s.lost++
	}
}

func (s *exchangeSystem) refused() int { return s.lost }
func (s *exchangeSystem) close() error { return s.end() }

// quotaBytes is the room of the outbox: four million records.
const quotaBytes = 9 << 26

// openExchange opens an exchange that publishes to an outbox, which a reader
// empties: as exchange.Open does, but that nothing is delivered anywhere.
func openExchange(f *flow, dir string) (system, error) {
	const cursor = "reader"
	w, err := outbox.Open(filepath.Join(dir, "outbox"), outbox.Options{
		Cluster: "bench", QuotaBytes: quotaBytes, HeadroomRecords: -1, Cursors: []string{cursor},
	})
	if err != nil {
		return nil, err
	}
	r, err := outbox.OpenReader(w.Dir(), cursor)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	var reader sync.WaitGroup
	reader.Go(func() { discard(ctx, r) })
	end := func() error {
		stop()
		reader.Wait()
		return errors.Join(r.Close(), w.Close())
	}
	s, err := startExchange(f, w, end)
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return s, nil
}

// discard is done with whatever is published.
func discard(ctx context.Context, r *outbox.Reader) {
	for r.Wait(ctx) == nil {
		r.SetCursor(r.Published())
	}
}

// openUnpublished opens an exchange whose records go nowhere.
func openUnpublished(f *flow, _ string) (system, error) {
	return startExchange(f, &blindSink{}, func() error { return nil })
}

func startExchange(f *flow, sink gateway.Sink, end func() error) (*exchangeSystem, error) {
	ex := core.New(gateway.New(sink, gateway.Options{}))
	if err := f.prepare(ex); err != nil {
		return nil, err
	}
	s := &exchangeSystem{router: core.NewRouter(nil), end: end}
	s.router.Start(ex)
	for i := range f.warm {
		s.do(&f.warm[i])
	}
	if s.lost > 0 {
		return nil, fmt.Errorf("%d requests of the warm-up had another result than when they were drawn", s.lost)
	}
	return s, nil
}

// blindSink hands out the same few slots again and again.
type blindSink struct {
	slots  [64]record.Record
	global uint64
}

func (b *blindSink) Reserve(int) bool  { return true }
func (b *blindSink) Commit()           {}
func (b *blindSink) Published() uint64 { return b.global }

func (b *blindSink) Next() *record.Record {
	b.global++
	r := &b.slots[b.global%uint64(len(b.slots))]
	*r = record.Record{}
	r.Global = b.global
	return r
}

// matchingSystem is the books alone: no checks, no accounts, no records.
type matchingSystem struct {
	books map[record.Symbol]*matching.Book
	live  []*order.Order // by order id; nil when it does not rest
	fills []matching.Fill
	lost  int
}

func openMatching(f *flow, _ string) (system, error) {
	s := &matchingSystem{books: map[record.Symbol]*matching.Book{}, live: make([]*order.Order, f.orders+1)}
	for _, t := range f.terms {
		s.books[t.Symbol] = matching.New()
	}
	for i := range f.warm {
		s.do(&f.warm[i])
	}
	return s, nil
}

func (s *matchingSystem) do(r *request) {
	if !r.taken {
		return
	}
	b := s.books[r.order.Instrument]
	if r.kind == orderflow.Submit {
		s.submit(b, r)
		return
	}
	o := s.live[r.id]
	if o == nil {
		s.lost++
		return
	}
	if r.kind == orderflow.Cancel {
		b.Remove(o)
		s.release(b, o)
		return
	}
	s.amend(b, o, r)
}

func (s *matchingSystem) submit(b *matching.Book, r *request) {
	o := b.Acquire()
	o.ID, o.Side, o.Kind, o.TimeInForce = r.id, r.order.Side, r.order.Kind, r.order.TimeInForce
	o.Price, o.Volume, o.Remaining = r.order.Price, r.order.Volume, r.order.Volume
	s.match(b, o)
}

func (s *matchingSystem) match(b *matching.Book, o *order.Order) {
	s.fills = b.Match(o, s.fills[:0])
	for i := range s.fills {
		if s.fills[i].MakerDone {
			s.release(b, s.fills[i].Maker)
		}
	}
	if o.Remaining == 0 || o.TimeInForce != record.GFD {
		s.release(b, o)
		return
	}
	b.Rest(o)
	s.live[o.ID] = o
}

func (s *matchingSystem) amend(b *matching.Book, o *order.Order, r *request) {
	price, remaining := o.Price, o.Remaining
	if r.order.Price != 0 {
		price = r.order.Price
	}
	if r.order.Volume != 0 {
		remaining = r.order.Volume
	}
	if price == o.Price && remaining <= o.Remaining {
		b.Amend(o, price, remaining)
		return
	}
	b.Remove(o)
	o.Price, o.Volume, o.Remaining = price, remaining, remaining
	s.match(b, o)
}

func (s *matchingSystem) release(b *matching.Book, o *order.Order) {
	s.live[o.ID] = nil
	b.Release(o)
}

func (s *matchingSystem) refused() int { return s.lost }
func (s *matchingSystem) close() error { return nil }

// nothing does nothing: what is left are the clock and the machine.
type nothing struct{}

func openNothing(*flow, string) (system, error) { return nothing{}, nil }
func (nothing) do(*request)                     {}
func (nothing) refused() int                    { return 0 }
func (nothing) close() error                    { return nil }
