package store

import (
	"math"
	"slices"
	"sort"
	"sync/atomic"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

// view is an instrument's whole state at one moment. It never changes once it
// is published: readers load it once and need no lock.
//
// Invariant: tables, runs and open hold the records 1 … lastSeq, in this order,
// each once.
type view struct {
	epoch      uint64
	index      uint64 // Raft index of the last entry that changed the instrument
	lastSeq    uint64
	lastGlobal uint64
	firstTime  int64
	lastTime   int64
	chain      uint32
	lastRecord *record.Record // nil when lastSeq is 0

	tables      []*table
	runs        []*run
	open        [][]record.Record // batches that make no run yet
	openRecords int
	memBytes    int64 // of the batches in runs and open
}

// runRecords is the number of records from which on batches are closed into a
// run.
const runRecords = sstable.BlockRecords

// batchOverhead is what a batch costs beside its bytes, about.
const batchOverhead = 64

// run is a part of the memtable that gets no more batches.
type run struct {
	first, last uint64
	batches     [][]record.Record
	index       atomic.Pointer[runIndex]
}

// runIndex is made when a run is first searched; runs that nobody searches
// before they are flushed cost nothing.
type runIndex struct {
	ranges           [record.AccountID]idRange // by record.IDKind − 1
	ids              *sstable.Bloom
	minTime, maxTime int64
}

// idRange is the least and greatest id of one kind; of none, one that holds nothing.
type idRange struct{ min, max uint64 }

// has reports whether the run may hold id; false is certain. Ids rise with time, so
// that most of those that are asked for are below the range of what is still in
// memory: that spares the filter's lines of memory.
func (x *runIndex) has(id record.ID) bool {
	r := &x.ranges[id.Kind-1]
	return id.Value >= r.min && id.Value <= r.max && x.ids.Has(id)
}

func (x *runIndex) add(id record.ID) {
	r := &x.ranges[id.Kind-1]
	r.min, r.max = min(r.min, id.Value), max(r.max, id.Value)
	x.ids.Add(id)
}

func (r *run) indexed() *runIndex {
	if x := r.index.Load(); x != nil {
		return x
	}
	x := makeRunIndex(r.batches)
	r.index.CompareAndSwap(nil, x) // two at once make the same
	return x
}

func makeRunIndex(batches [][]record.Record) *runIndex {
	var ids [record.MaxIDs]record.ID
	n := 0
	for _, rs := range batches {
		for i := range rs {
			n += rs[i].IDs(&ids)
		}
	}
	x := &runIndex{ids: sstable.NewBloom(n), minTime: batches[0][0].Time, maxTime: batches[0][0].Time}
	for i := range x.ranges {
		x.ranges[i].min = math.MaxUint64
	}
	for _, rs := range batches {
		for i := range rs {
			x.minTime, x.maxTime = min(x.minTime, rs[i].Time), max(x.maxTime, rs[i].Time)
			for _, id := range ids[:rs[i].IDs(&ids)] {
				x.add(id)
			}
		}
	}
	return x
}

// seal returns the view with its open batches made a run.
func (v *view) seal() *view {
	if len(v.open) == 0 {
		return v
	}
	next := *v
	next.runs = append(v.runs, newRun(v.open)) // in spare room that no earlier view sees
	next.open, next.openRecords = nil, 0
	return &next
}

func newRun(batches [][]record.Record) *run {
	return &run{first: batches[0][0].Seq, last: lastSeqOf(batches[len(batches)-1]), batches: batches}
}

func lastSeqOf(rs []record.Record) uint64 { return rs[len(rs)-1].Seq }

// tablesEnd returns the last seq that is in a table.
func (v *view) tablesEnd() uint64 {
	if n := len(v.tables); n > 0 {
		return v.tables[n-1].meta.last
	}
	return 0
}

// tableOf returns the position of the table that holds seq, which is in one.
func (v *view) tableOf(seq uint64) int {
	return sort.Search(len(v.tables), func(i int) bool { return v.tables[i].meta.last >= seq })
}

// runOf returns the run that holds seq, or nil if that is among the open
// batches. seq must be in the memtable.
func (v *view) runOf(seq uint64) *run {
	i := sort.Search(len(v.runs), func(i int) bool { return v.runs[i].last >= seq })
	if i == len(v.runs) {
		return nil
	}
	return v.runs[i]
}

// batchOf returns the position of the batch that holds seq.
func batchOf(batches [][]record.Record, seq uint64) int {
	return sort.Search(len(batches), func(i int) bool { return lastSeqOf(batches[i]) >= seq })
}

// manifest states v as a file with the given tables, which must hold all of
// v's records.
func (v *view) manifest(sym record.Symbol, tables []tableMeta) *manifest {
	return &manifest{
		instrument: sym, index: v.index, epoch: v.epoch, lastSeq: v.lastSeq, lastGlobal: v.lastGlobal,
		firstTime: v.firstTime, lastTime: v.lastTime, chain: v.chain, lastRecord: v.lastRecord, tables: tables,
	}
}

func viewOf(m *manifest, tables []*table) *view {
	return &view{
		epoch: m.epoch, index: m.index, lastSeq: m.lastSeq, lastGlobal: m.lastGlobal,
		firstTime: m.firstTime, lastTime: m.lastTime, chain: m.chain, lastRecord: m.lastRecord, tables: tables,
	}
}

// withFlushed returns the view after its first runs, up to seq last, went into
// the table t.
func (v *view) withFlushed(t *table, last uint64) *view {
	next := *v
	next.tables = append(slices.Clip(v.tables), t)
	done := sort.Search(len(v.runs), func(i int) bool { return v.runs[i].last > last })
	for _, r := range v.runs[:done] {
		next.memBytes -= r.bytes()
	}
	next.runs = slices.Clone(v.runs[done:]) // lets go of the flushed ones
	if next.lastRecord != nil && len(next.runs) == 0 && len(next.open) == 0 {
		last := *next.lastRecord // lets go of its batch
		next.lastRecord = &last
	}
	return &next
}

// bytes returns what the run counts for in memBytes.
func (r *run) bytes() int64 {
	return int64(r.last-r.first+1)*record.Size + int64(len(r.batches))*(record.BatchHeaderSize+batchOverhead)
}

// withMerged returns the view with t in the place of the tables at from … to−1.
func (v *view) withMerged(t *table, from, to int) *view {
	next := *v
	next.tables = slices.Concat(v.tables[:from], []*table{t}, v.tables[to:])
	return &next
}
