package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

var sym = symbols[0]

// opened returns a shard that owns sym with epoch 5 open, after entry 2.
func opened(t testing.TB, fs vfs.FS, dir string, o Options) *Shard {
	t.Helper()
	s := mustOpen(t, fs, dir, o)
	if err := s.SetOwned(1, []record.Symbol{sym}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenStream(2, sym, 5); err != nil {
		t.Fatal(err)
	}
	return s
}

func mustAppend(t testing.TB, s *Shard, index, first uint64, n int) {
	t.Helper()
	last, err := s.Append(index, makeBatch(t, sym, 5, first, n))
	if err != nil || last != first+uint64(n)-1 {
		t.Fatalf("append of %d records from %d: last seq %d, %v", n, first, last, err)
	}
}

func TestRefusals(t *testing.T) {
	s := opened(t, vfs.NewMem(), "shard", smallOptions(t))
	defer mustClose(t, s)
	mustAppend(t, s, 3, 1, 10)
	cases := []struct {
		name         string
		epoch, first uint64
		n            int
		want         refusal.Error // without the message
		says         string
	}{
		{"duplicate", 5, 1, 10, refusal.Error{Code: storagepb.Code_CODE_DUPLICATE, LastSeq: 10, ExpectedSeq: 11, Epoch: 5}, "go on from 11"},
		{"old duplicate", 5, 3, 2, refusal.Error{Code: storagepb.Code_CODE_DUPLICATE, LastSeq: 10, ExpectedSeq: 11, Epoch: 5}, "stored already"},
		{"gap", 5, 12, 1, refusal.Error{Code: storagepb.Code_CODE_GAP, LastSeq: 10, ExpectedSeq: 11, Epoch: 5}, "missing"},
		{"straddle", 5, 9, 5, refusal.Error{Code: storagepb.Code_CODE_GAP, LastSeq: 10, ExpectedSeq: 11, Epoch: 5}, "starts at 11"},
		{"old epoch", 4, 11, 1, refusal.Error{Code: storagepb.Code_CODE_FENCED, LastSeq: 10, Epoch: 5}, "epoch 4 may not append"},
		{"unopened epoch", 6, 11, 1, refusal.Error{Code: storagepb.Code_CODE_FENCED, LastSeq: 10, Epoch: 5}, "open the stream first"},
	}
	for i, c := range cases {
		_, err := s.Append(uint64(4+i), makeBatch(t, sym, c.epoch, c.first, c.n))
		var got *refusal.Error
		if !errors.As(err, &got) {
			t.Fatalf("%s: %v", c.name, err)
		}
		if !strings.Contains(got.Message, c.says) || !strings.Contains(got.Message, sym.String()) {
			t.Errorf("%s: message %q does not say %q", c.name, got.Message, c.says)
		}
		bare := *got
		bare.Message, c.want.Instrument = "", sym.String()
		if bare != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, bare, c.want)
		}
	}
	_, err := s.Append(20, makeBatch(t, symbols[1], 5, 1, 1))
	wantCode(t, "not owned", err, storagepb.Code_CODE_NOT_OWNER)
	_, err = s.OpenStream(21, sym, 5)
	wantCode(t, "epoch again", err, storagepb.Code_CODE_FENCED)
	wantCode(t, "off the list", s.SetOwned(22, symbols[1:]), storagepb.Code_CODE_INVALID)
	wantCode(t, "bad symbol", s.SetOwned(23, []record.Symbol{sym, {}}), storagepb.Code_CODE_INVALID)
	wantCode(t, "get without id", s.Get(context.Background(), GetQuery{}, nil), storagepb.Code_CODE_INVALID)
	if last, _ := s.LastSeq(sym); last != 10 {
		t.Errorf("last seq %d after refusals, want 10", last)
	}
	res, err := s.OpenStream(24, sym, 6)
	if err != nil || res.Epoch != 6 || res.LastSeq != 10 || *res.LastRecord != makeRecord(sym, 10) {
		t.Errorf("open: %+v, %v", res, err)
	}
	if n := testutil.CollectAndCount(s, "countinghouse_store_refusals_total"); n != 5 {
		t.Errorf("%d codes counted, want 5", n)
	}
}

// Entries that the directory covers are skipped, also those that were refused,
// and later ones are applied: the state is that of a replica that never stopped.
func TestReplay(t *testing.T) {
	fs := vfs.NewMem()
	s := opened(t, fs, "shard", smallOptions(t))
	mustAppend(t, s, 3, 1, 10)
	if err := s.flushInstrument(s.owned.Load().bySymbol[sym]); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, 4, 11, 5)
	mustClose(t, s)
	s = mustOpen(t, fs, "shard", smallOptions(t))
	defer mustClose(t, s)
	if s.DurableIndex() != 0 {
		t.Errorf("durable index %d without a checkpoint", s.DurableIndex())
	}
	if err := s.SetOwned(1, []record.Symbol{sym}); err != nil {
		t.Error(err)
	}
	if res, err := s.OpenStream(2, sym, 5); err != nil || res.Epoch != 5 {
		t.Errorf("replayed open: %+v, %v", res, err)
	}
	if last, err := s.Append(3, makeBatch(t, sym, 5, 1, 10)); err != nil || last != 10 {
		t.Errorf("replayed append: %d, %v", last, err)
	}
	mustAppend(t, s, 4, 11, 5)
	if got := scan(t, s, sym, ScanOptions{}); !slices.Equal(got, makeRecords(sym, 1, 15)) {
		t.Errorf("%d records after the replay", len(got))
	}
}

// The log that is replayed must be the one that the records came from: an entry
// that did not make the state at its index is refused, not skipped.
func TestReplayOfAnotherLogIsRefused(t *testing.T) {
	other := makeBatch(t, sym, 5, 11, 5)
	for name, replay := range map[string]func(*Shard) error{
		"fewer records": func(s *Shard) error { _, err := s.Append(4, makeBatch(t, sym, 5, 11, 4)); return err },
		"other epoch":   func(s *Shard) error { _, err := s.Append(4, makeBatch(t, sym, 6, 11, 5)); return err },
		"other content": func(s *Shard) error {
			rs := makeRecords(sym, 11, 5)
			rs[4].Body[3]++
			b, err := record.AppendBatch(nil, 5, rs)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := record.ParseBatch(b)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Append(4, parsed)
			return err
		},
		"open stream": func(s *Shard) error { _, err := s.OpenStream(4, sym, 9); return err },
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := opened(t, fs, "shard", smallOptions(t))
			mustAppend(t, s, 3, 1, 10)
			mustAppend(t, s, 4, 11, 5)
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			s = mustOpen(t, fs, "shard", smallOptions(t))
			defer mustClose(t, s)
			if s.HighestIndex() != 4 {
				t.Errorf("highest index %d", s.HighestIndex())
			}
			if last, err := s.Append(4, other); err != nil || last != 15 {
				t.Errorf("the same entry: %d, %v", last, err)
			}
			if err := replay(s); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "entry 4") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A flush right after Open, before the log is replayed, must not claim entries
// that only one instrument covers.
func TestFlushBeforeReplayClaimsNothing(t *testing.T) {
	fs := vfs.NewMem()
	s := opened(t, fs, "shard", smallOptions(t))
	if err := s.SetOwned(3, symbols[:2]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenStream(4, symbols[1], 1); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, 5, 1, 10)
	if err := s.flushInstrument(s.owned.Load().bySymbol[sym]); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s) // entry 4 is in the log only
	s = mustOpen(t, fs, "shard", smallOptions(t))
	defer mustClose(t, s)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if s.DurableIndex() >= 4 {
		t.Errorf("durable index %d, but entry 4 is not in the directory", s.DurableIndex())
	}
}

func TestMergeKeepsTablesFew(t *testing.T) {
	s := opened(t, vfs.Default, t.TempDir(), smallOptions(t))
	for i := range uint64(200) {
		mustAppend(t, s, 3+i, 1+5*i, 5)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	in := s.owned.Load().bySymbol[sym]
	waitFor(t, "merges", func() bool { return len(in.view.Load().tables) < mergeTables })
	if got := scan(t, s, sym, ScanOptions{}); !slices.Equal(got, makeRecords(sym, 1, 1000)) {
		t.Errorf("%d records after merges", len(got))
	}
	waitFor(t, "old files to go", func() bool {
		names, err := os.ReadDir(in.dir)
		return err == nil && len(names) == len(in.view.Load().tables)+1
	})
	if s.metrics.merges.Load() == 0 {
		t.Error("nothing was merged")
	}
	mustClose(t, s)
}

// waitFor waits for what a background goroutine will do, without an event of its
// own to wait for.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestMergeRange(t *testing.T) {
	sizes := func(mib ...int64) (ts []*table) {
		for _, n := range mib {
			ts = append(ts, &table{meta: tableMeta{size: n << 20}})
		}
		return ts
	}
	cases := []struct {
		tables   []*table
		from, to int
	}{
		{nil, 0, 0},
		{sizes(1, 1, 1, 1, 1, 1, 1), 0, 0},
		{sizes(1, 1, 1, 1, 1, 1, 1, 1), 0, 8},
		{sizes(900, 8, 8, 8, 1, 8, 8, 8, 8, 1), 1, 10},
		{sizes(8, 8, 8, 64, 8, 8, 8, 8, 8), 0, 9},
		{sizes(512, 512, 512, 512, 512, 512, 512, 512), 0, 2},
		{sizes(1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000), 0, 0},
	}
	for i, c := range cases {
		if from, to := mergeRange(c.tables, 1<<30); from != c.from || to != c.to {
			t.Errorf("case %d: tables %d to %d, want %d to %d", i, from, to, c.from, c.to)
		}
	}
	// However tables arrive, few stay below half the largest size.
	rng := rand.New(rand.NewPCG(1, 2))
	var ts []*table
	for range 20_000 {
		ts = append(ts, &table{meta: tableMeta{size: 1 + rng.Int64N(16<<20)}})
		for {
			from, to := mergeRange(ts, 1<<30)
			if to == from {
				break
			}
			merged := &table{}
			for _, t := range ts[from:to] {
				merged.meta.size += t.meta.size
			}
			if to-from < 2 || merged.meta.size > 1<<30 {
				t.Fatalf("merge of %d tables into %d bytes", to-from, merged.meta.size)
			}
			ts = slices.Concat(ts[:from], []*table{merged}, ts[to:])
		}
	}
	small := 0
	for _, t := range ts {
		if t.meta.size < 512<<20 {
			small++
		}
	}
	if small > 5*mergeTables {
		t.Errorf("%d small tables of %d", small, len(ts))
	}
}

// A snapshot's cut stays readable while flushes and merges replace everything it
// was made of, and its directory is the same whatever happened in between.
func TestSnapshotSurvivesMerges(t *testing.T) {
	fs := vfs.NewMem()
	s := opened(t, fs, "shard", smallOptions(t))
	defer mustClose(t, s)
	for i := range uint64(5) {
		mustAppend(t, s, 3+i, 1+5*i, 5)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	mustAppend(t, s, 8, 26, 3)
	c := s.Snapshot()
	for i := range uint64(20) {
		mustAppend(t, s, 9+i, 29+5*i, 5)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "merges", func() bool { return len(s.owned.Load().bySymbol[sym].view.Load().tables) < mergeTables })
	if _, err := c.Persist("snap"); err != nil {
		t.Fatal(err)
	}
	c.Release()
	c.Release()
	if _, err := VerifyDir(fs, "snap"); err != nil {
		t.Fatal(err)
	}
	r := mustOpen(t, fs, "snap", smallOptions(t))
	defer mustClose(t, r)
	if got := scan(t, r, sym, ScanOptions{}); !slices.Equal(got, makeRecords(sym, 1, 28)) {
		t.Errorf("%d records in the snapshot, want 28", len(got))
	}
	if _, err := c.Persist("snap"); err == nil {
		t.Error("a snapshot was written over another")
	}
}

func TestVerifyDirRefuses(t *testing.T) {
	for name, harm := range map[string]func(fs vfs.FS){
		"missing":  func(fs vfs.FS) { _ = fs.Remove("snap/instruments/IF2501/MANIFEST") },
		"foreign":  func(fs vfs.FS) { _ = writeSynced(fs, "snap/instruments/IF2501/x.sst", []byte("x")) },
		"replaced": func(fs vfs.FS) { _ = writeSynced(fs, "snap/SHARD", (&shardState{}).encode()) },
		"no list":  func(fs vfs.FS) { _ = fs.Remove("snap/SNAPSHOT") },
	} {
		fs := vfs.NewMem()
		s := opened(t, fs, "shard", smallOptions(t))
		mustAppend(t, s, 3, 1, 10)
		c := s.Snapshot()
		if _, err := c.Persist("snap"); err != nil {
			t.Fatal(err)
		}
		c.Release()
		mustClose(t, s)
		harm(fs)
		if _, err := VerifyDir(fs, "snap"); err == nil || !strings.Contains(err.Error(), "snap/") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Readers of every kind run beside appends, flushes and merges; each sees a
// prefix of the stream, whole and in order, and the tail misses no wake-up.
func TestReadersBesideWriter(t *testing.T) {
	o := smallOptions(t)
	o.OpenTablesMax = 1
	s := opened(t, vfs.Default, t.TempDir(), o)
	const batches, size = 400, 13
	const total = batches * size
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() { follow(t, s, total) })
		wg.Go(func() { scanAndSearch(t, s, done) })
	}
	for i := range uint64(batches) {
		mustAppend(t, s, 3+i, 1+size*i, size)
		if i%97 == 0 {
			c := s.Snapshot()
			wg.Go(func() {
				defer c.Release()
				if err := s.Flush(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	close(done)
	wg.Wait()
	if _, err := s.Verify(context.Background(), func(f Finding) { t.Errorf("finding %+v", f) }, nil); err != nil {
		t.Error(err)
	}
	mustClose(t, s)
}

// follow tails the stream up to seq total.
func follow(t *testing.T, s *Shard, total uint64) {
	for next := uint64(1); next <= total; {
		changed, err := s.Watch(sym)
		if err != nil {
			t.Error(err)
			return
		}
		it, err := s.Scan(sym, ScanOptions{FromSeq: next})
		if err != nil {
			t.Error(err)
			return
		}
		start := next
		for r := range it.All() {
			if *r != makeRecord(sym, next) {
				t.Errorf("got %v at seq %d", r, next)
				it.Close()
				return
			}
			next++
		}
		it.Close()
		if it.Err() != nil {
			t.Error(it.Err())
			return
		}
		if next == start {
			select {
			case <-changed:
			case <-time.After(20 * time.Second):
				t.Errorf("no wake-up after seq %d", next-1)
				return
			}
		}
	}
}

func scanAndSearch(t *testing.T, s *Shard, done chan struct{}) {
	for id := uint64(1); ; id++ {
		select {
		case <-done:
			return
		default:
		}
		last, _ := s.LastSeq(sym)
		if last == 0 {
			continue
		}
		if got := scan(t, s, sym, ScanOptions{ToSeq: last}); uint64(len(got)) != last {
			t.Errorf("%d records of %d", len(got), last)
		}
		q := GetQuery{ID: record.ID{Kind: record.AccountID, Value: 1 + id%97}}
		seq := uint64(0)
		for _, r := range get(t, s, q) {
			if r.Seq <= seq || !r.HasID(q.ID) || r != makeRecord(sym, r.Seq) {
				t.Errorf("search %v: got %v after seq %d", q.ID, &r, seq)
			}
			seq = r.Seq
		}
	}
}

func TestWatchEndsWithItsInstrument(t *testing.T) {
	s := mustOpen(t, vfs.NewMem(), "shard", smallOptions(t))
	if err := s.SetOwned(1, symbols); err != nil {
		t.Fatal(err)
	}
	off, err := s.Watch(symbols[1])
	if err != nil {
		t.Fatal(err)
	}
	kept, err := s.Watch(symbols[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetOwned(2, symbols[:1]); err != nil {
		t.Fatal(err)
	}
	<-off
	select {
	case <-kept:
		t.Error("woken without a cause")
	default:
	}
	mustClose(t, s)
	<-kept
	late, err := s.Watch(symbols[0])
	if err != nil {
		t.Fatal(err)
	}
	<-late
}

func TestOpenRefuses(t *testing.T) {
	harm := map[string]func(fs vfs.FS){
		"shard/SHARD":                      func(fs vfs.FS) { _ = fs.Remove("shard/SHARD") },
		"shard/instruments/IF2501":         func(fs vfs.FS) { _ = fs.Remove("shard/instruments/IF2501/MANIFEST") },
		"00000000000000000010.sst":         func(fs vfs.FS) { _ = fs.Remove("shard/instruments/IF2501/" + tableName(1, 10)) },
		"shard/instruments/not an escaped": func(fs vfs.FS) { _ = fs.MkdirAll("shard/instruments/not an escaped", 0o755) },
	}
	for names, f := range harm {
		fs := vfs.NewMem()
		s := opened(t, fs, "shard", smallOptions(t))
		if _, err := Open(fs, "shard", smallOptions(t)); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Errorf("opened twice: %v", err)
		}
		mustAppend(t, s, 3, 1, 10)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
		f(fs)
		if _, err := Open(fs, "shard", smallOptions(t)); err == nil || !strings.Contains(err.Error(), names) {
			t.Errorf("%s: %v", names, err)
		}
		findings := 0
		if _, err := Verify(fs, "shard", func(Finding) { findings++ }); err != nil || findings == 0 {
			t.Errorf("%s: Verify: %v, %d findings", names, err, findings)
		}
	}
}

func TestDirNames(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range []string{"IF2501", ".", "..", "...", "a/b", "/", "a.b", "__ACCOUNT__", "//////", "BTC/USD"} {
		sym := record.MustSymbol(name)
		dir := dirName(sym)
		back, err := symbolOf(dir)
		if err != nil || back != sym || strings.Contains(dir, "/") || dir == "." || dir == ".." || seen[dir] {
			t.Errorf("%s → %s → %s, %v", name, dir, back, err)
		}
		seen[dir] = true
	}
	for _, dir := range []string{"%2E%2E", "a%2Eb", "", "é"} {
		if _, err := symbolOf(dir); err == nil {
			t.Errorf("%q was taken for an instrument's directory", dir)
		}
	}
	if tempSuffix != sstable.TempSuffix {
		t.Error("tables' temporary names would not be recognised")
	}
}

// Append waits when flushing does not keep up, and goes on when it does.
func TestBackPressure(t *testing.T) {
	o := smallOptions(t)
	o.MemtableBytesMax, o.MemtableTotalBytesMax = 1<<30, 8<<10
	s := opened(t, vfs.NewMem(), "shard", o)
	in := s.owned.Load().bySymbol[sym]
	in.diskMu.Lock() // the flush hangs
	first := uint64(1)
	for i := uint64(3); s.memBytes.Load() < 2*o.MemtableTotalBytesMax; i++ {
		mustAppend(t, s, i, first, 10)
		first += 10
	}
	appended := make(chan struct{})
	go func() {
		defer close(appended)
		mustAppend(t, s, 1000, first, 10)
	}()
	waitFor(t, "the append to stall", func() bool { return s.metrics.stalls.Load() == 1 })
	select {
	case <-appended:
		t.Error("the append did not wait")
	default:
	}
	in.diskMu.Unlock()
	<-appended
	mustClose(t, s)
	if s.memBytes.Load() >= 2*o.MemtableTotalBytesMax {
		t.Errorf("%d bytes in memtables", s.memBytes.Load())
	}
}

// Ten thousand instruments: what costs nothing on disk costs no descriptor and
// little memory.
func TestTenThousandInstruments(t *testing.T) {
	const n = 10_000
	fs, dir := vfs.FS(vfs.NewMem()), "shard"
	syms := make([]record.Symbol, n)
	for i := range syms {
		syms[i] = record.MustSymbol("I" + strings.Repeat("0", 2) + string(rune('A'+i/1000)) + string(rune('A'+i/100%10)) + string(rune('A'+i/10%10)) + string(rune('A'+i%10)))
	}
	s := mustOpen(t, fs, dir, Options{OpenTablesMax: 100})
	if err := s.SetOwned(1, syms); err != nil {
		t.Fatal(err)
	}
	before := heap()
	index := uint64(1)
	for _, sym := range syms {
		if _, err := s.OpenStream(index+1, sym, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Append(index+2, makeBatch(t, sym, 1, 1, 2)); err != nil {
			t.Fatal(err)
		}
		index += 2
	}
	if each := (heap() - before) / n; each > 4<<10 {
		t.Errorf("%d bytes for each instrument of 2 records", each)
	}
	start := time.Now()
	c := s.Snapshot()
	if d := time.Since(start); d > time.Second {
		t.Errorf("capturing a snapshot took %v", d)
	}
	if _, err := c.Persist("snap"); err != nil {
		t.Fatal(err)
	}
	c.Release()
	for i := range syms {
		if got := scan(t, s, syms[i], ScanOptions{}); len(got) != 2 {
			t.Fatalf("%s: %d records", syms[i], len(got))
		}
	}
	if n := s.cache.len(); n > 100 {
		t.Errorf("%d tables open, the bound is 100", n)
	}
	if got := get(t, s, GetQuery{ID: record.ID{Kind: record.TradeID, Value: 1}}); len(got) != n {
		t.Errorf("a search in all instruments found %d records", len(got))
	}
	mustClose(t, s)
	s = mustOpen(t, fs, dir, Options{})
	if s.DurableIndex() != index || len(s.Instruments()) != n {
		t.Errorf("opened again: durable index %d, want %d; %d instruments", s.DurableIndex(), index, len(s.Instruments()))
	}
	mustClose(t, s)
}

// Mapped tables hold no file descriptors.
func TestTablesHoldNoDescriptors(t *testing.T) {
	syms := make([]record.Symbol, 200)
	for i := range syms {
		syms[i] = record.MustSymbol("X" + string(rune('A'+i/20)) + string(rune('A'+i%20)))
	}
	s := mustOpen(t, vfs.Default, t.TempDir(), Options{})
	defer mustClose(t, s)
	if err := s.SetOwned(1, syms); err != nil {
		t.Fatal(err)
	}
	for i, sym := range syms {
		if _, err := s.OpenStream(uint64(2+2*i), sym, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Append(uint64(3+2*i), makeBatch(t, sym, 1, 1, 2)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, sym := range syms {
		scan(t, s, sym, ScanOptions{})
	}
	if n := s.cache.len(); n != len(syms) {
		t.Errorf("%d tables open", n)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if len(fds) > 50 {
		t.Errorf("%d file descriptors open", len(fds))
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
