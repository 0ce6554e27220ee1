package subscriber

import (
	"time"
	"unsafe"

	"github.com/countinghouse/countinghouse/record"
)

// group gathers records of one instrument for a batch. They are copied once,
// to the place in the batch's bytes where they are sent from.
type group struct {
	buffer      []byte // header, then room for the batch's records; nil when empty
	count       int
	firstSeq    uint64
	firstGlobal uint64
	since       time.Time // when the first record came
}

// batcher holds the groups of a lane and says which are due. It knows neither
// the clock nor the network.
type batcher struct {
	size   int
	linger time.Duration
	// order lists the streams with a group, the one that has waited longest
	// first. Invariant: a stream is in order iff its group has records.
	order []*stream
	free  [][]byte // buffers for reuse; bounded by streams + window
}

func (b *batcher) bufferBytes() int { return record.BatchHeaderSize + b.size*record.Size }

func (b *batcher) takeBuffer() []byte {
	if n := len(b.free); n > 0 {
		buf := b.free[n-1]
		b.free = b.free[:n-1]
		return buf
	}
	return make([]byte, b.bufferBytes())
}

// giveBack takes the buffer of an answered batch. After an error buffers are
// left to the collector: a transport may still be reading them.
func (b *batcher) giveBack(buf []byte) { b.free = append(b.free, buf[:b.bufferBytes()]) }

func (b *batcher) full(s *stream) bool { return s.group.count == b.size }

// add puts r at the end of its stream's group, which must not be full.
func (b *batcher) add(s *stream, r *record.Record, now time.Time) {
	g := &s.group
	if g.count == 0 {
		*g = group{buffer: b.takeBuffer(), firstSeq: r.Seq, firstGlobal: r.Global, since: now}
		b.order = append(b.order, s)
	}
	copy(g.buffer[record.BatchHeaderSize+g.count*record.Size:], r.Bytes())
	g.count++
}

// due returns the stream whose group is to be sent next, or nil. With idle set
// every group is due; else those that are full or have lingered long enough.
func (b *batcher) due(now time.Time, idle bool) *stream {
	if len(b.order) == 0 {
		return nil
	}
	if s := b.order[0]; idle || now.Sub(s.group.since) >= b.linger {
		return s
	}
	for _, s := range b.order {
		if b.full(s) {
			return s
		}
	}
	return nil
}

// untilDue returns how long it takes until a group is due by lingering.
func (b *batcher) untilDue(now time.Time) (time.Duration, bool) {
	if len(b.order) == 0 {
		return 0, false
	}
	return b.linger - now.Sub(b.order[0].group.since), true
}

// remove takes a stream's group out to be sent.
func (b *batcher) remove(s *stream) group {
	for i := range b.order {
		if b.order[i] == s {
			b.order = append(b.order[:i], b.order[i+1:]...)
			break
		}
	}
	g := s.group
	s.group = group{}
	return g
}

// clear forgets every group. Their buffers were never sent, so they are kept.
func (b *batcher) clear() {
	for _, s := range b.order {
		b.giveBack(s.group.buffer)
		s.group = group{}
	}
	b.order = b.order[:0]
}

// oldest returns the lowest global that is gathered and not sent.
func (b *batcher) oldest() (uint64, bool) {
	lowest, found := uint64(0), false
	for _, s := range b.order {
		if g := s.group.firstGlobal; !found || g < lowest {
			lowest, found = g, true
		}
	}
	return lowest, found
}

// seal writes the batch's header before its records and returns its bytes.
func (g *group) seal(epoch uint64) ([]byte, error) {
	rs := unsafe.Slice((*record.Record)(unsafe.Pointer(&g.buffer[record.BatchHeaderSize])), g.count)
	// The records lie where AppendBatch puts them: it moves nothing.
	return record.AppendBatch(g.buffer[:0], epoch, rs)
}
