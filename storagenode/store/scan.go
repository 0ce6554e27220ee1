package store

import (
	"errors"
	"iter"
	"math"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

// ScanOptions select records; all bounds are inclusive and all apply.
type ScanOptions struct {
	FromSeq  uint64 // 0: from the first
	ToSeq    uint64 // 0: to the last at the time of the call
	FromTime int64  // Unix nanoseconds; 0: no bound
	ToTime   int64  // Unix nanoseconds; 0: no bound
	Limit    uint64 // records; 0: no limit
}

// Scan returns an iterator over one instrument's records in order of seq;
// refusal CODE_NOT_OWNER. Close it.
func (s *Shard) Scan(sym record.Symbol, o ScanOptions) (*Iterator, error) {
	in, err := s.find(sym)
	if err != nil {
		return nil, err
	}
	s.metrics.scans.Add(1)
	it := &Iterator{
		shard: s, in: in, next: max(o.FromSeq, 1), to: in.view.Load().lastSeq,
		timed: o.FromTime != 0 || o.ToTime != 0, fromTime: math.MinInt64, toTime: math.MaxInt64, left: math.MaxUint64,
	}
	if o.ToSeq != 0 {
		it.to = min(it.to, o.ToSeq)
	}
	if o.FromTime != 0 {
		it.fromTime = o.FromTime
	}
	if o.ToTime != 0 {
		it.toTime = o.ToTime
	}
	if o.Limit != 0 {
		it.left = o.Limit
	}
	return it, nil
}

// Iterator walks over records in runs that lie together in memory. It is for
// one goroutine. It holds at most one table and one run of batches at a time, so
// that a slow one keeps neither memory nor files from being let go.
type Iterator struct {
	shard *Shard
	in    *instrument

	next, to         uint64 // seqs not loaded yet
	timed            bool
	fromTime, toTime int64
	left             uint64 // of the limit

	// Where next is, when it is in one of these.
	table *table
	open  *sstable.Table
	run   *run

	loaded []record.Record // not looked at yet
	cur    []record.Record
	err    error
}

// Next moves to the next run of records and reports whether there is one.
func (it *Iterator) Next() bool {
	it.cur = nil
	for it.err == nil && it.left > 0 {
		if it.take() {
			it.left -= uint64(len(it.cur))
			return true
		}
		if it.next > it.to {
			break
		}
		it.err = it.shard.read(it.load())
	}
	it.release()
	return false
}

// take moves the next matching records from loaded to cur.
func (it *Iterator) take() bool {
	rs := it.loaded
	if it.timed {
		for len(rs) > 0 && !it.inTime(&rs[0]) {
			rs = rs[1:]
		}
	}
	if len(rs) == 0 {
		it.loaded = nil
		return false
	}
	n := int(min(uint64(len(rs)), it.left))
	if it.timed {
		for i := range rs[:n] {
			if !it.inTime(&rs[i]) {
				n = i
				break
			}
		}
	}
	it.cur, it.loaded = rs[:n:n], rs[n:]
	return true
}

func (it *Iterator) inTime(r *record.Record) bool {
	return r.Time >= it.fromTime && r.Time <= it.toTime
}

// load fills loaded with records from next on and moves next behind them. With
// bounds on time it may pass over records and load none.
func (it *Iterator) load() error {
	switch {
	case it.table != nil && it.next <= it.table.meta.last:
		return it.loadBlock()
	case it.run != nil && it.next <= it.run.last:
		it.loadBatch(it.run.batches)
		return nil
	}
	it.release()
	v := it.in.view.Load()
	if it.next <= v.tablesEnd() {
		return it.enterTable(v.tables[v.tableOf(it.next)])
	}
	if it.run = v.runOf(it.next); it.run == nil {
		it.loadBatch(v.open)
	} else if it.timed {
		if x := it.run.indexed(); x.maxTime < it.fromTime || x.minTime > it.toTime {
			it.next = it.run.last + 1
		}
	}
	return nil
}

func (it *Iterator) enterTable(t *table) error {
	if it.timed && (t.meta.maxTime < it.fromTime || t.meta.minTime > it.toTime) {
		it.next = t.meta.last + 1
		return nil
	}
	open, err := t.pin()
	if errors.Is(err, errGone) {
		return nil // look at the view again
	}
	if err == nil {
		it.table, it.open = t, open
	}
	return err
}

func (it *Iterator) loadBlock() error {
	block := it.open.BlockOf(it.next)
	if it.timed {
		if block = it.open.NextBlockInTime(block, it.fromTime, it.toTime); block == it.open.Blocks() {
			it.next = it.table.meta.last + 1
			return nil
		}
		it.next = max(it.next, it.open.BlockFirstSeq(block))
		if it.next > it.to {
			return nil
		}
	}
	rs, err := it.open.BlockAhead(block, it.open.BlockOf(it.lastWanted())+1)
	if err != nil {
		return err
	}
	it.clip(rs)
	return nil
}

// lastWanted returns the last seq of the present table that the scan comes to, or one
// behind that: bounds on time are not looked at.
func (it *Iterator) lastWanted() uint64 {
	last := min(it.to, it.table.meta.last)
	if !it.timed && it.left <= last-it.next {
		last = it.next + it.left - 1
	}
	return last
}

func (it *Iterator) loadBatch(batches [][]record.Record) {
	it.clip(batches[batchOf(batches, it.next)])
}

// clip loads the records of rs, which holds next, that the scan is about.
func (it *Iterator) clip(rs []record.Record) {
	first, last := rs[0].Seq, lastSeqOf(rs)
	end := min(last, it.to)
	it.loaded = rs[it.next-first : end-first+1]
	it.next = end + 1
}

func (it *Iterator) release() {
	if it.table != nil {
		it.table.unpin()
		it.table, it.open = nil, nil
	}
	it.run = nil
}

// Records returns the current run, 1 or more records, without copying them.
// They are valid until Next or Close is called, and must not be changed.
func (it *Iterator) Records() []record.Record { return it.cur }

// Err returns the error that ended the iteration, or nil at its proper end.
func (it *Iterator) Err() error { return it.err }

// Close releases what the iterator holds. It may be called twice.
func (it *Iterator) Close() {
	it.release()
	it.cur, it.loaded, it.left = nil, nil, 0
}

// All returns the records one by one, for range loops; the caller checks Err
// after it. A record is valid until the loop's next step.
func (it *Iterator) All() iter.Seq[*record.Record] {
	return func(yield func(*record.Record) bool) {
		for it.Next() {
			for i := range it.cur {
				if !yield(&it.cur[i]) {
					return
				}
			}
		}
	}
}
