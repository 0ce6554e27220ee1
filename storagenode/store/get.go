package store

import (
	"context"
	"errors"
	"sort"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// GetQuery selects records by an id.
type GetQuery struct {
	Instrument record.Symbol // zero: every owned instrument
	ID         record.ID     // Value must not be 0
	Limit      uint64        // records; 0: no limit
}

// errEnough ends a search whose limit is reached.
var errEnough = errors.New("limit reached")

// Get calls yield with the records that carry q.ID, in order of (instrument,
// seq), some at a time. The slice is valid during the call only. An error of
// yield ends the search and is returned. Refusals: CODE_NOT_OWNER, CODE_INVALID.
func (s *Shard) Get(ctx context.Context, q GetQuery, yield func([]record.Record) error) error {
	if q.ID.Value == 0 || q.ID.Kind < record.OrderID || q.ID.Kind > record.AccountID {
		return refusal.New(storagepb.Code_CODE_INVALID, "get: give an order, trade or account id above 0")
	}
	instruments := s.owned.Load().sorted
	if q.Instrument != (record.Symbol{}) {
		in, err := s.find(q.Instrument)
		if err != nil {
			return err
		}
		instruments = []*instrument{in}
	}
	s.metrics.gets.Add(1)
	g := &search{ctx: ctx, shard: s, id: q.ID, limit: q.Limit, yield: yield}
	for _, in := range instruments {
		if err := g.instrument(in); err != nil {
			if errors.Is(err, errEnough) {
				return nil
			}
			return s.read(err)
		}
	}
	return nil
}

// search is one Get under way.
type search struct {
	ctx   context.Context
	shard *Shard
	id    record.ID
	limit uint64 // 0: none
	found uint64
	yield func([]record.Record) error
}

// emit hands records that carry the id to the caller.
func (g *search) emit(rs []record.Record) error {
	if err := g.ctx.Err(); err != nil {
		return err
	}
	if g.limit > 0 && g.found+uint64(len(rs)) >= g.limit {
		if err := g.yield(rs[:g.limit-g.found]); err != nil {
			return err
		}
		return errEnough
	}
	g.found += uint64(len(rs))
	return g.yield(rs)
}

// instrument searches one instrument as it is at the time of the call.
func (g *search) instrument(in *instrument) error {
	v := in.view.Load()
	for next := uint64(1); next <= v.tablesEnd(); {
		if err := g.ctx.Err(); err != nil {
			return err
		}
		t := v.tables[v.tableOf(next)]
		open, err := t.pin()
		if errors.Is(err, errGone) {
			v = in.view.Load()
			continue
		}
		if err != nil {
			return err
		}
		err = g.table(open, next)
		t.unpin()
		if err != nil {
			return err
		}
		next = t.meta.last + 1
	}
	for _, r := range v.runs {
		if r.indexed().has(g.id) {
			if err := g.batches(r.batches); err != nil {
				return err
			}
		}
	}
	return g.batches(v.open)
}

// table searches the records of a table from seq next on.
func (g *search) table(open *sstable.Table, next uint64) error {
	st, err := open.Lookup(g.id, func(rs []record.Record) error {
		if rs[0].Seq < next { // a merge has put records that were searched before them
			if rs = rs[sort.Search(len(rs), func(i int) bool { return rs[i].Seq >= next }):]; len(rs) == 0 {
				return nil
			}
		}
		return g.emit(rs)
	})
	g.shard.metrics.looked(st)
	return err
}

func (g *search) batches(batches [][]record.Record) error {
	for _, rs := range batches {
		if _, err := sstable.Select(rs, g.id, g.emit); err != nil {
			return err
		}
	}
	return nil
}
