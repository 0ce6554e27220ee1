package reads

import (
	"context"
	"encoding/binary"
	"sync/atomic"

	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/record"
)

// engine is a store of several streams that can be asked. One goroutine calls
// append; the other methods may be called beside it from any goroutine.
type engine interface {
	// append adds a batch that continues its stream and keeps its bytes.
	append(stream int, b record.Batch) error
	// byID reads the records of a stream that carry an order's or a trade's id.
	byID(ctx context.Context, stream int, id record.ID) (answer, error)
	// scan reads the records from … to of a stream.
	scan(stream int, from, to uint64) (answer, error)
	// follow calls seen with the last seq that it has read, from seq from on, until
	// ctx ends.
	follow(ctx context.Context, stream int, from uint64, seen func(last uint64)) error
	// flush makes tables of everything and waits until they are in the state in which
	// the engine leaves them when nothing is written.
	flush() error
	// reopen closes the store, which must be flushed, calls between with its directory,
	// and opens it again.
	reopen(between func(dir string) error) error
	// close may be called twice.
	close() error
}

// answer is what a read has seen: the number of records, and all of their bytes
// folded into one word, so that each byte was looked at.
type answer struct {
	records uint64
	digest  uint64
}

func (a *answer) add(b []byte) {
	a.records++
	for ; len(b) >= 32; b = b[32:] {
		a.digest ^= binary.LittleEndian.Uint64(b) ^ binary.LittleEndian.Uint64(b[8:]) ^
			binary.LittleEndian.Uint64(b[16:]) ^ binary.LittleEndian.Uint64(b[24:])
	}
}

// bell tells any number of listeners that something has happened.
type bell struct{ c atomic.Pointer[chan struct{}] }

// next returns a channel that the next ring closes.
func (b *bell) next() <-chan struct{} {
	for {
		if c := b.c.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if b.c.CompareAndSwap(nil, &c) {
			return c
		}
	}
}

func (b *bell) ring() {
	if c := b.c.Swap(nil); c != nil {
		close(*c)
	}
}

// filled is an engine with records in it.
type filled struct {
	engine
	system  string
	ours    bool
	note    string
	streams []history.Stream
	next    []uint64 // seq that append continues each stream with
	records uint64   // of each stream; reads choose among these
}

// fill adds n records to each stream.
func (f *filled) fill(n uint64) error {
	const batch = 1000
	for end := f.next[0] + n; f.next[0] < end; {
		for i := range f.streams {
			if err := f.write(i, int(min(batch, end-f.next[i]))); err != nil {
				return err
			}
		}
	}
	f.records = f.next[0] - 1
	return nil
}

// write adds n records to a stream.
func (f *filled) write(stream, n int) error {
	raw, err := f.streams[stream].Batch(epoch, f.next[stream], n)
	if err != nil {
		return err
	}
	b, err := record.TrustBatch(raw)
	if err != nil {
		return err
	}
	f.next[stream] += uint64(n)
	return f.append(stream, b)
}

// epoch of all batches.
const epoch = 1
