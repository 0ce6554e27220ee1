package subscriber

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// fakeStorage is a cluster in memory that keeps the contract's rules about
// epochs and numbers, and otherwise misbehaves as it is told.
type fakeStorage struct {
	t      *testing.T
	shards *client.Map

	mu        sync.Mutex
	held      map[record.Symbol]*fakeInstrument
	rng       *rand.Rand // nil: no mischief
	down      bool
	hang      bool // take batches and never answer
	loseOpen  int  // answers to OpenStream to lose
	flightMax int
	sends     chan int       // if set, the record count of each batch that arrives
	gate      chan struct{}  // if set, each batch waits for one token before it is handled
	mischief  map[string]int // how often each happened
	live      map[*fakeStream]bool
}

type fakeInstrument struct {
	shard   string
	epoch   uint64
	records []record.Record
}

var errDown = refusal.New(storagepb.Code_CODE_UNAVAILABLE, "the fake is down")

func newFake(t *testing.T, m *client.Map) *fakeStorage {
	f := &fakeStorage{t: t, shards: m, held: map[record.Symbol]*fakeInstrument{}, mischief: map[string]int{}, live: map[*fakeStream]bool{}}
	for _, s := range m.Shards {
		for _, name := range s.Instruments {
			f.held[record.MustSymbol(name)] = &fakeInstrument{shard: s.Name}
		}
	}
	return f
}

// chance reports true once in n times while there is mischief. mu is held.
func (f *fakeStorage) chance(what string, n int) bool {
	if f.rng == nil || f.rng.IntN(n) != 0 {
		return false
	}
	f.mischief[what]++
	return true
}

func (f *fakeStorage) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeStorage) OpenStream(ctx context.Context, sym record.Symbol, epoch uint64) (client.OpenResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return client.OpenResult{}, errDown
	}
	if f.chance("open refused", 10) {
		return client.OpenResult{}, refusal.New(storagepb.Code_CODE_NOT_LEADER, "the leader has changed")
	}
	h := f.held[sym]
	if epoch <= h.epoch {
		r := refusal.New(storagepb.Code_CODE_FENCED, "epoch %#x is not above %#x", epoch, h.epoch)
		r.Epoch = h.epoch
		return client.OpenResult{}, r
	}
	h.epoch = epoch
	if f.loseOpen > 0 || f.chance("open answer lost", 15) {
		f.loseOpen--
		return client.OpenResult{}, errors.New("connection lost")
	}
	res := client.OpenResult{Epoch: epoch, LastSeq: uint64(len(h.records))}
	if res.LastSeq > 0 {
		last := h.records[res.LastSeq-1]
		res.LastRecord = &last
	}
	return res, nil
}

func (f *fakeStorage) Append(ctx context.Context, shard string) (Stream, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errDown
	}
	if f.chance("append refused", 10) {
		return nil, refusal.New(storagepb.Code_CODE_NOT_LEADER, "the leader has changed")
	}
	s := &fakeStream{f: f, shard: shard, batches: make(chan []byte, 64), answers: make(chan client.Ack, 64), dead: make(chan struct{})}
	f.live[s] = true
	context.AfterFunc(ctx, func() { s.kill(ctx.Err()) })
	go s.serve()
	return s, nil
}

// fakeStream is one append stream.
type fakeStream struct {
	f       *fakeStorage
	shard   string
	batches chan []byte
	answers chan client.Ack
	dead    chan struct{}
	once    sync.Once
	err     error
	flight  int // guarded by f.mu
}

func (s *fakeStream) kill(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.dead)
	})
}

func (s *fakeStream) Close() {
	s.kill(context.Canceled)
	s.f.set(func() { delete(s.f.live, s) })
}

func (s *fakeStream) Send(batch []byte) error {
	s.f.mu.Lock()
	s.flight++
	s.f.flightMax = max(s.f.flightMax, s.flight)
	sends := s.f.sends
	s.f.mu.Unlock()
	select {
	case <-s.dead:
		return s.err
	case s.batches <- batch: // not copied: the sender must leave it alone
	}
	if sends != nil {
		b, err := record.ParseBatch(batch)
		if err != nil {
			return err
		}
		sends <- len(b.Records)
	}
	return nil
}

func (s *fakeStream) Recv() (client.Ack, error) {
	// An answer that has come before the end is still delivered.
	select {
	case a := <-s.answers:
		return a, nil
	default:
	}
	select {
	case a := <-s.answers:
		return a, nil
	case <-s.dead:
		return client.Ack{}, s.err
	}
}

func (s *fakeStream) serve() {
	for {
		s.f.mu.Lock()
		gate := s.f.gate
		s.f.mu.Unlock()
		var batch []byte
		select {
		case <-s.dead:
			return
		case batch = <-s.batches:
		}
		if gate != nil {
			select {
			case <-s.dead:
				return
			case <-gate:
			}
		}
		if !s.handle(batch) {
			return
		}
	}
}

// handle stores a batch and answers, or does neither, or only one of them.
func (s *fakeStream) handle(bytes []byte) bool {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.hang:
		return true
	case f.down || f.chance("stream dropped", 40):
		s.kill(errors.New("connection lost"))
		return false
	case f.chance("slow", 20):
		f.mu.Unlock()
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		f.mu.Lock()
	}
	b, err := record.ParseBatch(bytes)
	if err != nil {
		f.t.Errorf("a broken batch arrived: %v", err)
		return false
	}
	a := client.Ack{Instrument: b.Instrument, Epoch: b.Epoch, FirstSeq: b.FirstSeq, LastSeq: b.LastSeq()}
	if f.chance("disk full", 40) {
		a.Refusal = refusal.New(storagepb.Code_CODE_DISK_FULL, "the fake's disk is full")
	} else if a.Refusal = f.store(s.shard, &b); a.Refusal == nil && f.chance("answer lost", 40) {
		s.kill(errors.New("connection lost"))
		return false
	}
	s.flight--
	s.answers <- a
	return true
}

// store applies the contract's rules. mu is held.
func (f *fakeStorage) store(shard string, b *record.Batch) *refusal.Error {
	h := f.held[b.Instrument]
	last := uint64(len(h.records))
	r := &refusal.Error{Instrument: b.Instrument.String(), LastSeq: last, ExpectedSeq: last + 1, Epoch: h.epoch}
	switch {
	case h.shard != shard:
		r.Code, r.Message = storagepb.Code_CODE_NOT_OWNER, "not owner"
	case b.Epoch != h.epoch:
		r.Code, r.Message = storagepb.Code_CODE_FENCED, "fenced"
	case b.LastSeq() <= last:
		r.Code, r.Message = storagepb.Code_CODE_DUPLICATE, "duplicate"
	case b.FirstSeq != last+1:
		r.Code, r.Message = storagepb.Code_CODE_GAP, fmt.Sprintf("expected seq %d", last+1)
	default:
		h.records = append(h.records, b.Records...)
		return nil
	}
	return r
}

func (f *fakeStorage) records(sym record.Symbol) []record.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]record.Record(nil), f.held[sym].records...)
}
