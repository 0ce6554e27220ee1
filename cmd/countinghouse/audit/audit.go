// Package audit reads everything that a cluster stores back from every replica
// and states, record by record, whether it is what an exchange published.
package audit

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"

	"github.com/countinghouse/countinghouse/record"
)

// Source reads one replica.
type Source interface {
	// Scan yields the records of one instrument from the member's own store,
	// in order, with seq from first to last, both inclusive.
	Scan(ctx context.Context, shard, member string, sym record.Symbol, first, last uint64, yield func([]record.Record) error) error
	// LastSeq returns the last seq that the member holds of the instrument.
	LastSeq(ctx context.Context, shard, member string, sym record.Symbol) (uint64, error)
}

// Stream is one instrument's stream and the replicas that hold it.
type Stream struct {
	Shard      string
	Instrument record.Symbol
	Members    []string
}

// Result is what an audit found. Lost, Duplicated and Differences are zero when
// everything is right.
type Result struct {
	// Persisted counts the records of all streams, each once.
	Persisted uint64
	// Lost counts the global numbers from 1 to the last one published that no
	// stream holds, and that no HistoryCut gives up.
	Lost uint64
	// GivenUp counts those that no stream holds and that a HistoryCut gives up.
	GivenUp uint64
	// Duplicated counts records whose global number another record has too.
	Duplicated uint64
	// Beyond counts records with a global number above the last one published.
	Beyond uint64
	// BytesCompared counts the bytes of other replicas that were held against
	// the first one's.
	BytesCompared uint64
	// Differences says where replicas differ or a stream is not whole; at most
	// differencesMax of them, with DifferencesTotal counting all.
	Differences      []string
	DifferencesTotal int
}

// Identical reports whether all replicas hold the same whole streams.
func (r *Result) Identical() bool { return r.DifferencesTotal == 0 }

const (
	differencesMax = 20
	windowRecords  = 8192 // records that are compared at a time
)

// auditor collects the findings of one run.
type auditor struct {
	source Source
	seen   []uint64 // bitmap of global numbers
	last   uint64   // last global number published
	cuts   map[cut]bool
	result Result
}

// cut is a range of global numbers that do not count, both ends included.
type cut struct{ first, last uint64 }

// Run compares all replicas of all streams byte by byte and counts every global
// number from 1 to published. progress is called with the records read so far.
// The error says that a replica could not be read, not that it is wrong.
func Run(ctx context.Context, source Source, streams []Stream, published uint64, progress func(records uint64)) (Result, error) {
	a := &auditor{source: source, seen: make([]uint64, published/64+1), last: published, cuts: map[cut]bool{}}
	for _, s := range streams {
		if err := a.stream(ctx, s, progress); err != nil {
			return a.result, fmt.Errorf("audit of %s: %w", s.Instrument, err)
		}
	}
	a.giveUp()
	a.result.Lost = published - (a.result.Persisted - a.result.Duplicated - a.result.Beyond) - a.result.GivenUp
	return a.result, nil
}

// giveUp counts the numbers in cuts that are on no record. Cuts may overlap: one
// that was not stored as a whole is repeated.
func (a *auditor) giveUp() {
	cuts := slices.SortedFunc(maps.Keys(a.cuts), func(c, d cut) int { return cmp.Compare(c.first, d.first) })
	next := uint64(0)
	for _, c := range cuts {
		first, last := max(c.first, next), min(c.last, a.last)
		if first <= last {
			a.result.GivenUp += last - first + 1 - a.seenIn(first, last)
			next = last + 1
		}
	}
}

// seenIn counts the numbers from first to last that were on a record.
func (a *auditor) seenIn(first, last uint64) (n uint64) {
	for word := first / 64; word <= last/64; word++ {
		in := a.seen[word]
		if word == first/64 {
			in &= math.MaxUint64 << (first % 64)
		}
		if word == last/64 {
			in &= math.MaxUint64 >> (63 - last%64)
		}
		n += uint64(bits.OnesCount64(in))
	}
	return n
}

// stream audits one instrument, a window of records at a time.
func (a *auditor) stream(ctx context.Context, s Stream, progress func(uint64)) error {
	last, err := a.lengths(ctx, s)
	if err != nil {
		return err
	}
	reference := make([]record.Record, 0, windowRecords)
	for first := uint64(1); first <= last; first += windowRecords {
		end := min(last, first+windowRecords-1)
		reference = reference[:0]
		err := a.source.Scan(ctx, s.Shard, s.Members[0], s.Instrument, first, end, func(rs []record.Record) error {
			reference = append(reference, rs...)
			return nil
		})
		if err != nil {
			return fmt.Errorf("member %s: %w", s.Members[0], err)
		}
		a.count(s, first, end, reference)
		for _, member := range s.Members[1:] {
			if err := a.compare(ctx, s, member, first, end, reference); err != nil {
				return fmt.Errorf("member %s: %w", member, err)
			}
		}
		progress(a.result.Persisted)
	}
	return nil
}

// lengths returns the length of the first member's stream, and notes members
// whose stream has another one.
func (a *auditor) lengths(ctx context.Context, s Stream) (uint64, error) {
	var reference uint64
	for i, member := range s.Members {
		last, err := a.source.LastSeq(ctx, s.Shard, member, s.Instrument)
		if err != nil {
			return 0, fmt.Errorf("member %s: %w", member, err)
		}
		if i == 0 {
			reference = last
		} else if last != reference {
			a.differ("%s: %s holds %d records, %s holds %d", s.Instrument, s.Members[0], reference, member, last)
		}
	}
	return reference, nil
}

// count checks the numbering of a window of the first member's records.
func (a *auditor) count(s Stream, first, last uint64, rs []record.Record) {
	a.result.Persisted += uint64(len(rs))
	if uint64(len(rs)) != last-first+1 {
		a.differ("%s: %s yields %d records from seq %d to %d", s.Instrument, s.Members[0], len(rs), first, last)
	}
	for i := range rs {
		r := &rs[i]
		if r.Seq != first+uint64(i) || r.Instrument != s.Instrument {
			a.differ("%s: %s has %s seq %d in place of seq %d", s.Instrument, s.Members[0], r.Instrument, r.Seq, first+uint64(i))
		}
		a.mark(r.Global)
		if r.Type == record.TypeHistoryCut {
			a.cuts[cut{r.HistoryCut().From + 1, r.HistoryCut().To}] = true
		}
	}
}

func (a *auditor) mark(global uint64) {
	if global == 0 || global > a.last {
		a.result.Beyond++
		return
	}
	word, bit := &a.seen[global/64], uint64(1)<<(global%64)
	if *word&bit != 0 {
		a.result.Duplicated++
	}
	*word |= bit
}

// compare holds a member's window against the first member's, byte by byte.
func (a *auditor) compare(ctx context.Context, s Stream, member string, first, last uint64, want []record.Record) error {
	rest := want
	err := a.source.Scan(ctx, s.Shard, member, s.Instrument, first, last, func(rs []record.Record) error {
		n := min(len(rs), len(rest))
		if !bytes.Equal(record.SliceBytes(rs[:n]), record.SliceBytes(rest[:n])) {
			i := 0
			for rs[i] == rest[i] {
				i++
			}
			a.differ("%s: %s and %s differ from seq %d on", s.Instrument, s.Members[0], member, rest[i].Seq)
		}
		if n < len(rs) {
			a.differ("%s: %s has more than %s after seq %d", s.Instrument, member, s.Members[0], last)
		}
		a.result.BytesCompared += uint64(n) * record.Size
		rest = rest[n:]
		return nil
	})
	if err == nil && len(rest) > 0 {
		a.differ("%s: %s lacks %d records from seq %d on that %s has", s.Instrument, member, len(rest), rest[0].Seq, s.Members[0])
	}
	return err
}

func (a *auditor) differ(format string, args ...any) {
	a.result.DifferencesTotal++
	if len(a.result.Differences) < differencesMax {
		a.result.Differences = append(a.result.Differences, fmt.Sprintf(format, args...))
	}
}
