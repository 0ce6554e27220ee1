package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/rebuild"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// RebuildOptions say what Rebuild reads from.
type RebuildOptions struct {
	// From names the replica that is read for a shard; nil, or a zero Replica,
	// means the shard's leader.
	From func(shard string) client.Replica
	// Progress, if set, is told how many records of how many were applied.
	Progress func(done, total uint64)
}

// Rebuilt is an exchange that was made of stored records alone.
type Rebuilt struct {
	// Exchange has a gateway without room for further records.
	Exchange *core.Exchange
	State    core.State
	Global   uint64 // of the last record
	Records  uint64
	LastSeqs map[record.Symbol]uint64 // by stream
	Took     time.Duration
}

// Rebuild replays what the shards of the client's map hold into an independent
// exchange. It returns rebuild's errors for numbers that are missing or doubled,
// transactions without an end, and records that contradict each other.
func Rebuild(ctx context.Context, c *client.Client, o RebuildOptions) (*Rebuilt, error) {
	began := time.Now()
	ends, err := readEnds(ctx, c, o.From)
	if err != nil {
		return nil, err
	}
	src := openStreams(ctx, c, ends.all())
	defer src.close()
	run := replay{ctx: ctx, total: ends.records(), progress: o.Progress}
	b, err := run.run(src)
	if err != nil {
		return nil, err
	}
	out := &Rebuilt{Records: b.Records(), Global: b.Global(), LastSeqs: b.LastSeqs(), Took: time.Since(began)}
	full := gateway.New(gateway.NewMemory(0, out.Global), gateway.Options{})
	if out.Exchange, err = b.Exchange(full); err != nil {
		return nil, err
	}
	out.State = out.Exchange.State()
	return out, nil
}

// streamEnd is what a stored stream ends with.
type streamEnd struct {
	sym    record.Symbol
	from   client.Replica
	seq    uint64 // 0 for an empty stream
	global uint64
	epoch  uint64
}

// ends are the ends of all streams.
type ends map[record.Symbol]streamEnd

// readEnds asks all shards at once what their streams end with: their leaders,
// or the replicas that from names.
func readEnds(ctx context.Context, c *client.Client, from func(shard string) client.Replica) (ends, error) {
	shards := c.Map().Shards
	answers := make([][]streamEnd, len(shards))
	if from == nil {
		from = func(string) client.Replica { return client.Replica{} }
	}
	g, ctx := errgroup.WithContext(ctx)
	for i := range shards {
		g.Go(func() error {
			var err error
			answers[i], err = shardEnds(ctx, c, &shards[i], from(shards[i].Name))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := make(ends)
	for _, answer := range answers {
		for _, e := range answer {
			all[e.sym] = e
		}
	}
	return all, nil
}

func shardEnds(ctx context.Context, c *client.Client, shard *client.Shard, from client.Replica) ([]streamEnd, error) {
	answer, err := c.Instruments(ctx, shard.Name, from)
	if err != nil {
		return nil, fmt.Errorf("shard %s: %w", shard.Name, err)
	}
	var list []streamEnd
	for _, st := range answer.Instruments {
		sym, err := record.MakeSymbol(st.Instrument)
		if err != nil {
			return nil, fmt.Errorf("shard %s: %w", shard.Name, err)
		}
		if !slices.Contains(shard.Instruments, st.Instrument) {
			if st.LastSeq == 0 {
				continue
			}
			return nil, fmt.Errorf("shard %s holds %d records of %s, which the shard map does not give it: correct the shard map",
				shard.Name, st.LastSeq, st.Instrument)
		}
		list = append(list, streamEnd{sym: sym, from: from, seq: st.LastSeq, global: st.LastGlobal, epoch: st.Epoch})
	}
	return list, nil
}

// global returns the highest global number stored.
func (e ends) global() (highest uint64) {
	for _, end := range e {
		highest = max(highest, end.global)
	}
	return highest
}

// incarnation returns the highest incarnation of a writer that opened a stream.
func (e ends) incarnation() (highest uint64) {
	for _, end := range e {
		highest = max(highest, subscriber.IncarnationOf(end.epoch))
	}
	return highest
}

// same reports whether no stream has gone on since.
func (e ends) same(since ends) bool {
	return maps.EqualFunc(e, since, func(a, b streamEnd) bool { return a.seq == b.seq && a.global == b.global })
}

func (e ends) records() (n uint64) {
	for _, end := range e {
		n += end.seq
	}
	return n
}

// part is a run of a stream's records, both ends included.
type part struct {
	end   streamEnd
	first uint64
}

// all returns all records of all streams.
func (e ends) all() []part {
	parts := make([]part, 0, len(e))
	for _, end := range e {
		parts = append(parts, part{end: end, first: 1})
	}
	return parts
}

// inFlightRecordsMax bounds the records asked for but not yet merged, over all
// streams: 128 MiB.
const inFlightRecordsMax = 1 << 20

// streams is a merged source of several streams, each read by a goroutine.
type streams struct {
	rebuild.Source
	cancel context.CancelFunc
	group  *errgroup.Group
}

// openStreams begins to read parts of streams. extra sources are merged in.
func openStreams(ctx context.Context, c *client.Client, parts []part, extra ...rebuild.Source) *streams {
	ctx, cancel := context.WithCancel(ctx)
	s := &streams{cancel: cancel, group: new(errgroup.Group)}
	portion := max(uint64(inFlightRecordsMax/max(len(parts), 1)), 1024)
	for _, p := range parts {
		if p.first > p.end.seq {
			continue
		}
		src := &streamSource{sym: p.end.sym, chunks: make(chan []record.Record), free: make(chan []record.Record, chunksPerStream)}
		extra = append(extra, src)
		s.group.Go(func() error {
			src.err = src.read(ctx, c, p, portion)
			close(src.chunks)
			return nil
		})
	}
	s.Source = rebuild.Merge(extra...)
	return s
}

// close ends all reading, also in the middle.
func (s *streams) close() {
	s.cancel()
	_ = s.group.Wait() // its errors are the sources'
}

// chunksPerStream is how many buffers a stream is read into in turn.
const chunksPerStream = 2

// streamSource yields one stream. Its reader copies what arrives into one of
// chunksPerStream buffers and waits when none is free.
type streamSource struct {
	sym    record.Symbol
	chunks chan []record.Record
	free   chan []record.Record
	made   int
	chunk  []record.Record
	at     int
	err    error // set before chunks is closed
}

// read asks for portions, so that no more than one of them is under way.
func (s *streamSource) read(ctx context.Context, c *client.Client, p part, portion uint64) error {
	for next := p.first; next <= p.end.seq; next += portion {
		r := client.Range{FromSeq: next, ToSeq: min(next+portion-1, p.end.seq)}
		want := r.ToSeq - r.FromSeq + 1
		err := c.Scan(ctx, s.sym, r, p.end.from, func(rs []record.Record) error {
			want -= uint64(len(rs))
			return s.hand(ctx, rs)
		})
		if err != nil {
			return fmt.Errorf("read %s from seq %d: %w", s.sym, next, err)
		}
		if want != 0 {
			return fmt.Errorf("read %s: %d records of seq %d to %d did not come: %w", s.sym, want, r.FromSeq, r.ToSeq, rebuild.ErrGap)
		}
	}
	return nil
}

func (s *streamSource) hand(ctx context.Context, rs []record.Record) error {
	var buffer []record.Record
	if s.made < chunksPerStream {
		s.made++
	} else {
		select {
		case buffer = <-s.free:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case s.chunks <- append(buffer[:0], rs...):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Next returns the stream's next record.
func (s *streamSource) Next() (*record.Record, error) {
	for s.at == len(s.chunk) {
		if s.chunk != nil {
			s.free <- s.chunk
		}
		var ok bool
		if s.chunk, ok = <-s.chunks; !ok {
			s.chunk, s.at = nil, 0
			if s.err != nil {
				return nil, s.err
			}
			return nil, io.EOF
		}
		s.at = 0
	}
	s.at++
	return &s.chunk[s.at-1], nil
}

// replay drives a rebuild.
type replay struct {
	ctx      context.Context
	total    uint64 // records expected, for progress
	progress func(done, total uint64)
	known    *knownState // looked for on the way, nil for none
	latest   int64       // time of the latest record, Unix nanoseconds
}

// progressRecords is how many records are applied between two looks at the
// context and the caller's progress.
const progressRecords = 1 << 14

// run replays src to its end. When the records are not whole the error wraps
// rebuild.ErrGap or rebuild.ErrTorn, and the rebuilder stands where they still are.
func (p *replay) run(src rebuild.Source) (*rebuild.Rebuilder, error) {
	b := rebuild.New()
	for n := uint64(0); ; n++ {
		if n%progressRecords == 0 {
			if err := p.pause(n); err != nil {
				return nil, err
			}
		}
		r, err := src.Next()
		if errors.Is(err, io.EOF) {
			return b, b.End()
		}
		if err != nil {
			return nil, fmt.Errorf("replay after record %d: %w", b.Global(), err)
		}
		if err := b.Add(r); err != nil {
			return nil, err
		}
		p.latest = max(p.latest, r.Time)
		if p.known != nil && r.Global == p.known.Global {
			if err := p.known.compare(b); err != nil {
				return nil, err
			}
		}
	}
}

func (p *replay) pause(done uint64) error {
	if p.progress != nil {
		p.progress(done, p.total)
	}
	if err := p.ctx.Err(); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	return nil
}
