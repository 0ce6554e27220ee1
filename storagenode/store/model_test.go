package store

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// makeRecord returns the record that every test stores at seq of sym.
func makeRecord(sym record.Symbol, seq uint64) record.Record {
	h := seq*0x9e3779b97f4a7c15 + uint64(sym[0])
	h ^= h >> 29
	r := record.Record{Header: record.Header{
		Version: record.Version, Seq: seq, Global: seq*5 + uint64(sym[0]), Instrument: sym,
		Time: int64(1_000_000 + seq/3*10), // neighbours share times
	}}
	order, account := 1+seq/3, 1+h%97
	older := order - h%min(order, 400) // trades and cancels concern orders of late
	switch seq % 4 {
	case 0:
		r.Type = record.TypeOrderInsert
		r.OrderInsert().OrderID, r.OrderInsert().Account = order, account
	case 1:
		r.Type = record.TypeTradeExecuted
		b := r.TradeExecuted()
		b.TradeID, b.MakerOrderID, b.TakerOrderID = 1+seq/4, older, order
		b.MakerAccount, b.TakerAccount = account, 1+h%89
	case 2:
		r.Type = record.TypeOrderCancel
		r.OrderCancel().OrderID, r.OrderCancel().Account = older, account
	default:
		r.Type = record.TypeAccountUpdate
		r.AccountUpdate().Account = account
	}
	return r
}

func makeRecords(sym record.Symbol, first uint64, n int) []record.Record {
	rs := make([]record.Record, n)
	for i := range rs {
		rs[i] = makeRecord(sym, first+uint64(i))
	}
	return rs
}

func makeBatch(t testing.TB, sym record.Symbol, epoch, first uint64, n int) record.Batch {
	t.Helper()
	b, err := record.AppendBatch(nil, epoch, makeRecords(sym, first, n))
	if err != nil {
		t.Fatal(err)
	}
	batch, err := record.ParseBatch(b)
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

// entry is one entry of a test's log: exactly one of the three is meant.
type entry struct {
	index uint64
	own   []record.Symbol // SetOwned
	sym   record.Symbol
	epoch uint64
	first uint64 // 0: OpenStream
	n     int    // Append
}

func (e *entry) apply(t testing.TB, s *Shard) error {
	switch {
	case e.own != nil:
		return s.SetOwned(e.index, e.own)
	case e.first == 0:
		_, err := s.OpenStream(e.index, e.sym, e.epoch)
		return err
	}
	_, err := s.Append(e.index, makeBatch(t, e.sym, e.epoch, e.first, e.n))
	return err
}

// modelStream is what one stream should hold. Its records follow from lastSeq.
type modelStream struct {
	epoch, lastSeq uint64
}

// model is the plain truth about a log that was applied to its end.
type model map[record.Symbol]*modelStream

// apply returns the code with which the entry must be refused, 0 for none.
func (m model) apply(e *entry) storagepb.Code {
	if e.own != nil {
		for sym, st := range m {
			if st.lastSeq > 0 && !slices.Contains(e.own, sym) {
				return storagepb.Code_CODE_INVALID
			}
		}
		for sym := range m {
			if !slices.Contains(e.own, sym) {
				delete(m, sym)
			}
		}
		for _, sym := range e.own {
			if m[sym] == nil {
				m[sym] = &modelStream{}
			}
		}
		return 0
	}
	st := m[e.sym]
	switch {
	case st == nil:
		return storagepb.Code_CODE_NOT_OWNER
	case e.first == 0 && e.epoch <= st.epoch, e.first != 0 && e.epoch != st.epoch:
		return storagepb.Code_CODE_FENCED
	case e.first == 0:
		st.epoch = e.epoch
		return 0
	}
	last := e.first + uint64(e.n) - 1
	switch {
	case last <= st.lastSeq:
		return storagepb.Code_CODE_DUPLICATE
	case e.first != st.lastSeq+1:
		return storagepb.Code_CODE_GAP
	}
	st.lastSeq = last
	return 0
}

func modelOf(log []entry) model {
	m := model{}
	for i := range log {
		m.apply(&log[i])
	}
	return m
}

// compare fails the test unless s holds exactly what m says.
func (m model) compare(t testing.TB, s *Shard, what string) {
	t.Helper()
	if got := s.Owned(); len(got) != len(m) {
		t.Fatalf("%s: %d instruments owned, want %d", what, len(got), len(m))
	}
	for sym, st := range m {
		stats, err := s.Stats(sym)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		want := makeRecords(sym, 1, int(st.lastSeq))
		got := scan(t, s, sym, ScanOptions{})
		if !slices.Equal(got, want) {
			t.Fatalf("%s: %s holds %d records, not the %d wanted", what, sym, len(got), len(want))
		}
		if chain := crc32.Checksum(record.SliceBytes(want), record.Castagnoli); st.lastSeq > 0 && stats.Chain != chain {
			t.Fatalf("%s: %s has chain %08x, want %08x", what, sym, stats.Chain, chain)
		}
		if stats.Epoch != st.epoch || stats.LastSeq != st.lastSeq || stats.MemtableRecords+stats.TableRecords != st.lastSeq {
			t.Fatalf("%s: %s: stats %+v, want %+v", what, sym, stats, *st)
		}
		if n := len(want); n > 0 {
			last := want[n-1]
			if stats.FirstTime != want[0].Time || stats.LastTime != last.Time || stats.LastGlobal != last.Global {
				t.Fatalf("%s: %s: stats %+v", what, sym, stats)
			}
			if v := s.owned.Load().bySymbol[sym].view.Load(); v.lastRecord == nil || *v.lastRecord != last {
				t.Fatalf("%s: %s: last record is %v", what, sym, v.lastRecord)
			}
		}
	}
}

func scan(t testing.TB, s *Shard, sym record.Symbol, o ScanOptions) []record.Record {
	t.Helper()
	it, err := s.Scan(sym, o)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var rs []record.Record
	for it.Next() {
		rs = append(rs, it.Records()...)
	}
	if it.Err() != nil {
		t.Fatal(it.Err())
	}
	return rs
}

func get(t testing.TB, s *Shard, q GetQuery) []record.Record {
	t.Helper()
	var rs []record.Record
	err := s.Get(context.Background(), q, func(found []record.Record) error {
		rs = append(rs, found...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// smallOptions make flushes and merges happen after a few hundred records.
func smallOptions(t testing.TB) Options {
	return Options{
		MemtableBytesMax: 16 << 10, MemtableTotalBytesMax: 48 << 10, OpenTablesMax: 3,
		OnFatal: func(err error) { t.Errorf("fatal: %v", err) },
	}
}

func mustOpen(t testing.TB, fs vfs.FS, dir string, o Options) *Shard {
	t.Helper()
	s, err := Open(fs, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustClose(t testing.TB, s *Shard) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// wantCode fails unless err is nil or a refusal with the code wanted.
func wantCode(t testing.TB, what string, err error, want storagepb.Code) {
	t.Helper()
	var r *refusal.Error
	switch {
	case want == 0 && err == nil:
	case want != 0 && errors.As(err, &r) && r.Code == want:
	default:
		t.Fatalf("%s: %v, want code %v", what, err, want)
	}
}

var symbols = []record.Symbol{
	record.MustSymbol("IF2501"), record.MustSymbol("IC2501"), record.MustSymbol("BTC/USD"),
	record.MustSymbol("..x"), record.MustSymbol(record.AccountStream),
}

// nextEntry makes a random entry that mostly, not always, is accepted after m.
func nextEntry(rng *rand.Rand, m model, index uint64) entry {
	e := entry{index: index, sym: symbols[rng.IntN(len(symbols))]}
	if len(m) == 0 || rng.IntN(40) == 0 {
		e.own = append([]record.Symbol{}, symbols[:1+rng.IntN(len(symbols))]...)
		return e
	}
	st := m[e.sym]
	if st == nil {
		st = &modelStream{}
	}
	switch p := rng.IntN(20); {
	case p == 0 || st.epoch == 0:
		e.epoch = st.epoch + uint64(rng.IntN(3))
		return e
	case p == 1: // an old or unopened epoch
		e.epoch, e.first, e.n = st.epoch-1+2*rng.Uint64N(2), st.lastSeq+1, 1
		e.epoch = max(e.epoch, 1)
	case p == 2: // a duplicate, an overlap or a gap
		e.epoch, e.n = st.epoch, 1+rng.IntN(50)
		e.first = uint64(max(1, int64(st.lastSeq)-20+rng.Int64N(40)))
	default:
		e.epoch, e.first, e.n = st.epoch, st.lastSeq+1, 1+rng.IntN(60)
	}
	return e
}

// The shard against the model: random entries, with flushes, snapshots, merges,
// and closing and opening in between, on both kinds of file system.
func TestModel(t *testing.T) {
	seed := rand.Uint64()
	for name, fs := range map[string]vfs.FS{"mapped": vfs.Default, "read": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			dir := fs.PathJoin(t.TempDir(), "shard")
			if fs != vfs.Default {
				dir = "shard"
			}
			s := mustOpen(t, fs, dir, smallOptions(t))
			m, log := model{}, []entry(nil)
			for step := range 1500 {
				index := uint64(step + 1)
				e := nextEntry(rng, m, index)
				log = append(log, e)
				wantCode(t, fmt.Sprintf("step %d %+v", step, e), e.apply(t, s), m.apply(&e))
				switch rng.IntN(100) {
				case 0:
					if err := s.Flush(); err != nil {
						t.Fatal(err)
					}
					if s.DurableIndex() != index {
						t.Fatalf("durable index %d after a flush at %d", s.DurableIndex(), index)
					}
				case 1:
					mustClose(t, s)
					s = mustOpen(t, fs, dir, smallOptions(t))
					replay(t, s, log)
				case 2:
					checkSnapshot(t, rng, s, log, fs.PathJoin(fs.PathDir(dir), fmt.Sprintf("snap%d", step)))
				case 3:
					m.compare(t, s, fmt.Sprintf("step %d", step))
					m.compareReads(t, rng, s)
				}
			}
			m.compare(t, s, "at the end")
			mustClose(t, s)
			if _, err := Verify(fs, dir, func(f Finding) { t.Errorf("finding: %+v", f) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// replay applies what the shard's directory does not cover.
func replay(t testing.TB, s *Shard, log []entry) {
	t.Helper()
	for i := range log {
		if log[i].index <= s.DurableIndex() {
			continue
		}
		var r *refusal.Error
		if err := log[i].apply(t, s); err != nil && !errors.As(err, &r) {
			t.Fatal(err)
		}
	}
}

// checkSnapshot takes a snapshot, goes on writing to the shard's own disk, and
// opens the snapshot: it must hold the log up to its cut and no more.
func checkSnapshot(t *testing.T, rng *rand.Rand, s *Shard, log []entry, dir string) {
	t.Helper()
	c := s.Snapshot()
	defer c.Release()
	if rng.IntN(2) == 0 {
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	listing, err := c.Persist(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.DurableIndex() < c.Index() {
		t.Fatalf("durable index %d after a snapshot at %d", s.DurableIndex(), c.Index())
	}
	got, err := VerifyDir(s.fs, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Index != c.Index() || !slices.Equal(got.Files, listing.Files) {
		t.Fatalf("listing %+v, Persist returned %+v", got, listing)
	}
	restored := mustOpen(t, s.fs, dir, smallOptions(t))
	defer mustClose(t, restored)
	if restored.DurableIndex() != c.Index() {
		t.Fatalf("durable index %d of a snapshot at %d", restored.DurableIndex(), c.Index())
	}
	n := 0
	for n < len(log) && log[n].index <= c.Index() {
		n++
	}
	modelOf(log[:n]).compare(t, restored, "restored snapshot")
}

// compareReads compares random scans and searches with brute force.
func (m model) compareReads(t *testing.T, rng *rand.Rand, s *Shard) {
	t.Helper()
	for sym, st := range m {
		all := makeRecords(sym, 1, int(st.lastSeq))
		for range 5 {
			o := ScanOptions{FromSeq: rng.Uint64N(st.lastSeq + 3), ToSeq: rng.Uint64N(st.lastSeq + 3), Limit: rng.Uint64N(200)}
			if rng.IntN(2) == 0 {
				o.FromTime = int64(1_000_000 + rng.Uint64N(st.lastSeq+3)*3)
			}
			if rng.IntN(2) == 0 {
				o.ToTime = int64(1_000_000 + rng.Uint64N(st.lastSeq+3)*3)
			}
			var want []record.Record
			for _, r := range all {
				if r.Seq >= o.FromSeq && (o.ToSeq == 0 || r.Seq <= o.ToSeq) && (o.FromTime == 0 || r.Time >= o.FromTime) &&
					(o.ToTime == 0 || r.Time <= o.ToTime) && (o.Limit == 0 || uint64(len(want)) < o.Limit) {
					want = append(want, r)
				}
			}
			if got := scan(t, s, sym, o); !slices.Equal(got, want) {
				t.Fatalf("%s of %d: scan %+v: %d records, want %d", sym, st.lastSeq, o, len(got), len(want))
			}
			id := record.ID{Kind: record.IDKind(1 + rng.IntN(3)), Value: 1 + rng.Uint64N(st.lastSeq/3+5)}
			limit := rng.Uint64N(5)
			want = nil
			for i := range all {
				if all[i].HasID(id) && (limit == 0 || uint64(len(want)) < limit) {
					want = append(want, all[i])
				}
			}
			if got := get(t, s, GetQuery{Instrument: sym, ID: id, Limit: limit}); !slices.Equal(got, want) {
				t.Fatalf("%s of %d: get %+v: %d records, want %d", sym, st.lastSeq, id, len(got), len(want))
			}
		}
	}
}
