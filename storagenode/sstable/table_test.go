package sstable

import (
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

var symbol = record.MustSymbol("IF2501")

// flow returns n records from seq first on that look like an exchange's: orders,
// cancels, trades between orders of late, account updates.
func flow(first uint64, n int) []record.Record {
	rs := make([]record.Record, n)
	for i := range rs {
		seq := first + uint64(i)
		rng := rand.New(rand.NewPCG(seq, 1))
		r := &rs[i]
		r.Header = record.Header{Version: record.Version, Seq: seq, Global: 3*seq + 1, Time: int64(1_700_000_000_000_000_000 + 1000*(seq/2)), Instrument: symbol}
		order := 1000 + seq/3
		switch seq % 6 {
		case 0, 1:
			r.Type = record.TypeOrderInsert
			r.OrderInsert().OrderID, r.OrderInsert().Account = order, 1+rng.Uint64N(300)
		case 2:
			r.Type = record.TypeOrderCancel
			r.OrderCancel().OrderID, r.OrderCancel().Account = order-rng.Uint64N(min(order-999, 500)), 1+rng.Uint64N(300)
		case 3:
			r.Type = record.TypeTradeExecuted
			b := r.TradeExecuted()
			b.TradeID, b.MakerOrderID, b.TakerOrderID = seq/6+1, order-rng.Uint64N(min(order-999, 500)), order
			b.MakerAccount, b.TakerAccount = 1+rng.Uint64N(300), 1+rng.Uint64N(300)
		default:
			r.Type = record.TypeAccountUpdate
			r.AccountUpdate().Account = 1 + rng.Uint64N(300)
		}
	}
	return rs
}

func write(t testing.TB, fs vfs.FS, dir, name string, rs []record.Record) Info {
	t.Helper()
	w, err := Create(fs, dir, name, WriterOptions{Instrument: rs[0].Instrument, FirstSeq: rs[0].Seq, ChainBefore: 7})
	if err != nil {
		t.Fatal(err)
	}
	for rest := rs; len(rest) > 0; { // in uneven pieces
		n := min(len(rest), 1+len(rest)%701)
		if err := w.Append(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	info, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func open(t testing.TB, fs vfs.FS, path string) *Table {
	t.Helper()
	table, err := Open(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	return table
}

// eachFS runs f on a real file system, mapped, and on one in memory, read.
func eachFS(t *testing.T, f func(t *testing.T, fs vfs.FS, dir string)) {
	t.Run("mapped", func(t *testing.T) { f(t, vfs.Default, t.TempDir()) })
	t.Run("read", func(t *testing.T) { f(t, vfs.NewMem(), "") })
}

func readAll(t *testing.T, table *Table) []record.Record {
	t.Helper()
	var got []record.Record
	for i := range table.Blocks() {
		rs, err := table.Block(i)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rs...)
	}
	return got
}

func TestRoundTrip(t *testing.T) {
	eachFS(t, func(t *testing.T, fs vfs.FS, dir string) {
		for _, n := range []int{1, 2, 511, 512, 513, 8192, 8193, 20_000} {
			rs := flow(5, n)
			info := write(t, fs, dir, "a.sst", rs)
			table := open(t, fs, fs.PathJoin(dir, "a.sst"))
			if !slices.Equal(readAll(t, table), rs) {
				t.Fatalf("%d records: read back something else", n)
			}
			data := record.SliceBytes(rs)
			got, last := table.Info(), rs[n-1]
			want := Info{
				Instrument: symbol, FirstSeq: 5, LastSeq: uint64(4 + n), FirstTime: rs[0].Time, LastTime: last.Time,
				MinTime: rs[0].Time, MaxTime: last.Time, LastGlobal: last.Global, ChainBefore: 7,
				ChainAfter:  CombineCRC(7, crc32.Checksum(data, record.Castagnoli), int64(len(data))),
				TimesAscend: true, IDs: got.IDs, Size: got.Size,
			}
			if got != want {
				t.Errorf("%d records: info %+v, want %+v", n, got, want)
			}
			raw := readFile(t, fs, fs.PathJoin(dir, "a.sst"))
			if crc := crc32.Checksum(raw, record.Castagnoli); crc != info.CRC || int64(len(raw)) != info.Size {
				t.Errorf("%d records: Finish says CRC %08x and %d bytes, the file has %08x and %d", n, info.CRC, info.Size, crc, len(raw))
			}
			if err := table.Verify(func(c *CorruptError) { t.Error(c) }, func(int) error { return nil }); err != nil {
				t.Error(err)
			}
		}
	})
}

func readFile(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(slices.Clone(b)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func lookup(table *Table, id record.ID) (seqs []uint64, st LookupStats, err error) {
	st, err = table.Lookup(id, func(rs []record.Record) error {
		for i := range rs {
			seqs = append(seqs, rs[i].Seq)
		}
		return nil
	})
	return seqs, st, err
}

func TestLookupFindsWhatAScanFinds(t *testing.T) {
	eachFS(t, func(t *testing.T, fs vfs.FS, dir string) {
		rs := flow(1, groupBlocks*BlockRecords+5000) // two filter groups
		write(t, fs, dir, "a.sst", rs)
		table := open(t, fs, fs.PathJoin(dir, "a.sst"))
		want := map[record.ID][]uint64{}
		var ids [record.MaxIDs]record.ID
		for i := range rs {
			for _, id := range ids[:rs[i].IDs(&ids)] {
				if seqs := want[id]; len(seqs) == 0 || seqs[len(seqs)-1] != rs[i].Seq {
					want[id] = append(seqs, rs[i].Seq)
				}
			}
		}
		rng := rand.New(rand.NewPCG(1, 2))
		var searched, wasted int
		for range 300 {
			r := &rs[rng.IntN(len(rs))]
			id := ids[rng.IntN(r.IDs(&ids))]
			if id.Kind == record.AccountID && rng.IntN(20) != 0 {
				continue // in every block; a few of them do
			}
			got, st, err := lookup(table, id)
			if err != nil || !slices.Equal(got, want[id]) {
				t.Fatalf("%v: %v, %d records, want %d", id, err, len(got), len(want[id]))
			}
			searched, wasted = searched+st.Blocks, wasted+st.FalsePositives
		}
		if wasted > searched/4 {
			t.Errorf("%d of %d blocks were searched in vain", wasted, searched)
		}
		for _, id := range []record.ID{{Kind: record.OrderID, Value: 1}, {Kind: record.TradeID, Value: 1 << 60}, {Kind: record.AccountID}} {
			if got, st, err := lookup(table, id); got != nil || err != nil || st.Blocks != 0 {
				t.Errorf("%v: %v, %v, %d blocks searched", id, got, err, st.Blocks)
			}
		}
	})
}

func TestLookupStopsOnYieldsError(t *testing.T) {
	fs := vfs.NewMem()
	write(t, fs, "", "a.sst", flow(1, 5000))
	stop := errors.New("stop")
	calls := 0
	_, err := open(t, fs, "a.sst").Lookup(record.ID{Kind: record.AccountID, Value: 5}, func([]record.Record) error {
		calls++
		return stop
	})
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("error %v after %d calls", err, calls)
	}
}

func TestTimes(t *testing.T) {
	for _, ascend := range []bool{true, false} {
		rng := rand.New(rand.NewPCG(3, 4))
		rs := flow(1, 30*BlockRecords+7)
		for i := range rs {
			rs[i].Time = int64(i / 3)
			if !ascend {
				rs[i].Time = int64(i) + rng.Int64N(2000) - 1000
			}
		}
		fs := vfs.NewMem()
		write(t, fs, "", "a.sst", rs)
		table := open(t, fs, "a.sst")
		if table.Info().TimesAscend != ascend {
			t.Errorf("TimesAscend is %t", !ascend)
		}
		for range 500 {
			from := rng.Int64N(18_000) - 1500
			to := from + rng.Int64N(500)
			want := map[int]bool{}
			for i := range rs {
				if rs[i].Time >= from && rs[i].Time <= to {
					want[i/BlockRecords] = true
				}
			}
			for b := table.NextBlockInTime(0, from, to); b < table.Blocks(); b = table.NextBlockInTime(b+1, from, to) {
				delete(want, b)
			}
			if len(want) != 0 {
				t.Fatalf("ascend %t, times %d to %d: blocks %v were passed over", ascend, from, to, want)
			}
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	gap, other := flow(1, 600), flow(1, 600)
	gap[599].Seq++
	other[3].Instrument = record.MustSymbol("IC2501")
	for name, rs := range map[string][]record.Record{"gap": gap, "instrument": other, "first seq": flow(2, 10)} {
		fs := vfs.NewMem()
		w, err := Create(fs, "", "a.sst", WriterOptions{Instrument: symbol, FirstSeq: 1})
		if err != nil {
			t.Fatal(err)
		}
		err = w.Append(rs)
		if err == nil {
			_, err = w.Finish()
		} else {
			w.Abort()
		}
		if !errors.Is(err, record.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
		if names, _ := fs.List(""); len(names) != 0 {
			t.Errorf("%s: files left: %v", name, names)
		}
	}
	w, err := Create(vfs.NewMem(), "", "a.sst", WriterOptions{Instrument: symbol, FirstSeq: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err == nil {
		t.Error("a table without records was written")
	}
}

// Every byte of a table, flipped: whatever can still be read is what was
// written, and what can not be read fails with ErrCorrupt or ErrVersion.
func TestEveryFlippedByteIsNoticed(t *testing.T) {
	rs := flow(9, 10)
	eachFS(t, func(t *testing.T, fs vfs.FS, dir string) {
		path := fs.PathJoin(dir, "a.sst")
		write(t, fs, dir, "a.sst", rs)
		good := readFile(t, fs, path)
		for i := range good {
			bad := slices.Clone(good)
			bad[i] ^= byte(1 + i%255)
			writeFile(t, fs, path, bad)
			noticed := false
			note := func(err error) {
				if err == nil {
					return
				}
				noticed = true
				if !errors.Is(err, record.ErrCorrupt) && !errors.Is(err, record.ErrVersion) || !strings.Contains(err.Error(), "a.sst") {
					t.Fatalf("byte %d: %v", i, err)
				}
			}
			table, err := Open(fs, path)
			note(err)
			if err != nil {
				continue
			}
			got, err := table.Block(0)
			note(err)
			if err == nil && !slices.Equal(got, rs) {
				t.Fatalf("byte %d: a changed record was served", i)
			}
			for j := range rs {
				var ids [record.MaxIDs]record.ID
				for _, id := range ids[:rs[j].IDs(&ids)] {
					seqs, _, err := lookup(table, id)
					note(err)
					if err == nil && !slices.Contains(seqs, rs[j].Seq) {
						t.Fatalf("byte %d: record %d was not found by its %v", i, rs[j].Seq, id)
					}
				}
			}
			reported := 0
			if err := table.Verify(func(c *CorruptError) { reported++; note(c) }, func(int) error { return nil }); err != nil {
				t.Fatal(err)
			}
			if !noticed || reported == 0 {
				t.Fatalf("byte %d: flipped, unnoticed (Verify reported %d)", i, reported)
			}
			_ = table.Close()
		}
	})
}

func TestEveryTruncationIsNoticed(t *testing.T) {
	fs := vfs.NewMem()
	write(t, fs, "", "a.sst", flow(9, 3))
	good := readFile(t, fs, "a.sst")
	for n := range good {
		writeFile(t, fs, "a.sst", good[:n])
		if _, err := Open(fs, "a.sst"); !errors.Is(err, record.ErrCorrupt) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
	}
}

func TestCorruptBlockNamesWhatIsLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sst")
	write(t, vfs.Default, filepath.Dir(path), "a.sst", flow(1, 1200))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[BlockSize+5] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	table := open(t, vfs.Default, path)
	_, err = table.Block(1)
	var c *CorruptError
	if !errors.As(err, &c) || c.File != path || c.Offset != BlockSize || c.Block != 1 || c.FirstSeq != 513 || c.LastSeq != 1024 {
		t.Fatalf("got %v", err)
	}
	for _, i := range []int{0, 2} {
		if _, err := table.Block(i); err != nil {
			t.Errorf("block %d is whole: %v", i, err)
		}
	}
}

// A page that the disk can not deliver must be an error, not the process's end.
func TestFaultInMappingIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sst")
	write(t, vfs.Default, filepath.Dir(path), "a.sst", flow(1, 20_000))
	table := open(t, vfs.Default, path)
	if err := os.Truncate(path, BlockSize); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Block(0); err != nil {
		t.Error(err)
	}
	if _, err := table.Block(5); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestCombineCRC(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		b := make([]byte, rng.IntN(100_000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		cut := rng.IntN(len(b) + 1)
		sum := func(b []byte) uint32 { return crc32.Checksum(b, record.Castagnoli) }
		if got := CombineCRC(sum(b[:cut]), sum(b[cut:]), int64(len(b)-cut)); got != sum(b) {
			t.Fatalf("%d + %d bytes: %08x, want %08x", cut, len(b)-cut, got, sum(b))
		}
	}
}

func TestChainBatch(t *testing.T) {
	var chain, want uint32
	first := uint64(1)
	for _, n := range []int{1, 7, 100, 1000, record.MaxBatchRecords} {
		rs := flow(first, n)
		first += uint64(n)
		b, err := record.AppendBatch(nil, 3, rs)
		if err != nil {
			t.Fatal(err)
		}
		batch, err := record.ParseBatch(b)
		if err != nil {
			t.Fatal(err)
		}
		chain = ChainBatch(chain, &batch)
		want = crc32.Update(want, record.Castagnoli, record.SliceBytes(rs))
		if chain != want {
			t.Fatalf("after %d records: chain %08x, want %08x", first-1, chain, want)
		}
	}
}

func TestBloom(t *testing.T) {
	const n = 1000
	b := NewBloom(n)
	for v := range uint64(n) {
		b.Add(record.ID{Kind: record.OrderID, Value: 1 + v})
	}
	wrong := 0
	for v := range uint64(n) {
		if !b.Has(record.ID{Kind: record.OrderID, Value: 1 + v}) {
			t.Fatalf("order %d is not in the filter", v)
		}
		if b.Has(record.ID{Kind: record.TradeID, Value: 1 + v}) {
			wrong++
		}
	}
	if wrong > 5 {
		t.Errorf("%d of %d ids are there in error", wrong, n)
	}
}

// The bytes of a table of this version must stay readable, and writing the same
// records must give the same bytes: replicas are compared by them.
func TestGoldenTable(t *testing.T) {
	fs := vfs.NewMem()
	rs := flow(5, BlockRecords/64)
	write(t, fs, "", "a.sst", rs)
	got := readFile(t, fs, "a.sst")
	path := filepath.Join("testdata", "table-v1.sst")
	if *rewrite {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Error("the format of stored tables would change")
	}
	table := open(t, vfs.Default, path)
	if !slices.Equal(readAll(t, table), rs) {
		t.Error("the golden table reads differently")
	}
}

func FuzzFooter(f *testing.F) {
	fs := vfs.NewMem()
	info := write(f, fs, "", "a.sst", flow(1, 700))
	raw := readFile(f, fs, "a.sst")
	f.Add(raw[len(raw)-FooterSize:], info.Size)
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) == FooterSize { // let the fuzzer past the checksum
			crc := crc32.Checksum(b[:footerCRCOffset], record.Castagnoli)
			b = append(slices.Clone(b[:footerCRCOffset]), byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24))
		}
		foot, err := parseFooter(b, size)
		if err != nil {
			return
		}
		again, err := parseFooter(foot.encode(), size)
		if err != nil || *again != *foot {
			t.Fatalf("an accepted footer reads differently when written again: %v", err)
		}
	})
}

// FuzzOpen feeds whole files whose checksums are made right, so that the checks
// behind them are reached.
func FuzzOpen(f *testing.F) {
	fs := vfs.NewMem()
	write(f, fs, "", "a.sst", flow(1, 3))
	f.Add(readFile(f, fs, "a.sst"), true)
	f.Add(readFile(f, fs, "a.sst"), false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			b = reseal(b)
		}
		fs := vfs.NewMem()
		writeFile(t, fs, "a.sst", b)
		table, err := Open(fs, "a.sst")
		if err != nil {
			return
		}
		for i := range table.Blocks() {
			_, _ = table.Block(i)
		}
		for kind := record.OrderID; kind <= record.AccountID; kind++ {
			_, _, _ = lookup(table, record.ID{Kind: kind, Value: table.Info().IDs[kind-1].Min})
		}
		if err := table.Verify(func(*CorruptError) {}, func(int) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
}

// reseal makes the index's and footer's checksums right where they can be found.
func reseal(b []byte) []byte {
	if len(b) < FooterSize {
		return b
	}
	b = slices.Clone(b)
	foot := b[len(b)-FooterSize:]
	put := func(off int, v uint32) { copy(foot[off:], []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)}) }
	var probe [8]uint64
	for i := range 2 {
		for j := range 8 {
			probe[i] |= uint64(foot[128+8*i+j]) << (8 * j)
		}
	}
	if off, n := probe[0], probe[1]; off < uint64(len(b)) && n < uint64(len(b))-off {
		put(144, crc32.Checksum(b[off:off+n], record.Castagnoli))
	}
	put(footerCRCOffset, crc32.Checksum(foot[:footerCRCOffset], record.Castagnoli))
	return b
}

func benchTable(b *testing.B, n int) *Table {
	dir := b.TempDir()
	write(b, vfs.Default, dir, "a.sst", flow(1, n))
	return open(b, vfs.Default, filepath.Join(dir, "a.sst"))
}

func BenchmarkWrite(b *testing.B) {
	rs := flow(1, 1<<16)
	b.SetBytes(int64(len(rs) * record.Size))
	for b.Loop() {
		write(b, vfs.NewMem(), "", "a.sst", rs)
	}
}

func BenchmarkScan(b *testing.B) {
	const n = 1 << 19
	table := benchTable(b, n)
	b.ResetTimer()
	records := 0
	for b.Loop() {
		var sum uint64
		for i := range table.Blocks() {
			rs, err := table.Block(i)
			if err != nil {
				b.Fatal(err)
			}
			for j := range rs {
				sum += rs[j].Seq
			}
			records += len(rs)
		}
		if sum != n*(n+1)/2 {
			b.Fatal(sum)
		}
	}
	b.ReportMetric(float64(records)/b.Elapsed().Seconds()/1e6, "Mrecords/s")
}

func BenchmarkLookup(b *testing.B) {
	table := benchTable(b, 1<<19)
	for _, id := range []record.ID{{Kind: record.OrderID, Value: 90_000}, {Kind: record.TradeID, Value: 50_000}, {Kind: record.OrderID, Value: 1_000_000_000}} {
		b.Run(fmt.Sprint(id.Kind, id.Value), func(b *testing.B) {
			v := id
			for b.Loop() {
				v.Value = id.Value + uint64(b.N)%30_000
				if _, err := table.Lookup(v, func([]record.Record) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
