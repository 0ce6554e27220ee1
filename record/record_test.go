package record

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// sample returns one record of every type, each field with a value of its own,
// so that two fields that swap places can not go unseen.
func sample(t Type) Record {
	r := Record{Header: Header{
		Version: Version, Type: t, Flags: FlagLast,
		Seq: uint64(t), Global: 100 + uint64(t), Time: 1_735_689_600_000_000_000 + int64(t),
		Instrument: MustSymbol("IF2501"),
	}}
	switch t {
	case TypeOrderInsert:
		b := r.OrderInsert()
		b.OrderID, b.ClientOrderID, b.Account, b.Price, b.Volume = 1, 2, 3, 4, 5
		b.FrozenMargin, b.FrozenFee, b.Side, b.Offset, b.Kind, b.TimeInForce = 6, 7, Sell, CloseToday, Market, FOK
	case TypeOrderCancel:
		b := r.OrderCancel()
		b.OrderID, b.ClientOrderID, b.Account, b.Price, b.Volume = 1, 2, 3, -4, 5
		b.ReleasedMargin, b.ReleasedFee, b.Side, b.Offset, b.Reason = 6, 7, Buy, Close, CancelEndOfDay
	case TypeOrderAmend:
		b := r.OrderAmend()
		b.OrderID, b.ClientOrderID, b.Account, b.Price, b.Volume, b.OldPrice, b.OldVolume = 1, 2, 3, 4, 5, 6, 7
		b.FrozenMargin, b.FrozenFee, b.Side, b.Offset, b.KeptPriority = 8, 9, Buy, Open, 1
	case TypeTradeExecuted:
		b := r.TradeExecuted()
		b.TradeID, b.MakerOrderID, b.TakerOrderID, b.MakerAccount, b.TakerAccount = 1, 2, 3, 4, 5
		b.Price, b.Volume, b.MakerFee, b.TakerFee = 6, 7, 8, 9
		b.TakerSide, b.MakerOffset, b.TakerOffset = Sell, Open, CloseToday
	case TypeAccountUpdate:
		b := r.AccountUpdate()
		b.Account, b.Balance, b.Frozen, b.Margin, b.LongToday = 1, -2, 3, 4, 5
		b.LongHistory, b.ShortToday, b.ShortHistory, b.Realised, b.Fees = 6, 7, 8, -9, 10
	case TypeAccountOpened:
		r.AccountOpened().Account = 1
	case TypeDeposit, TypeWithdraw:
		b := r.CashMove()
		b.Account, b.Amount, b.Balance, b.Reference = 1, 2, 3, 4
	case TypeInstrumentListed:
		b := r.InstrumentListed()
		b.TickValue, b.TickSize, b.Decimals, b.FeeMode, b.LongMarginPPM, b.ShortMarginPPM = 1, 2, 3, FeeByLot, 4, 5
		b.FeeOpen, b.FeeClose, b.FeeCloseToday, b.UpperLimit, b.LowerLimit = 6, 7, 8, 9, -10
		b.MaxOrderVolume, b.PositionLimit, b.PriceLimitBP = 11, 12, 1000
	case TypeTradingState:
		r.TradingState().Halted = 1
	case TypeHistoryCut:
		b := r.HistoryCut()
		b.From, b.To, b.Records, b.LastOrderID, b.LastTradeID = 1, 2, 3, 4, 5
	case TypeSettlement:
		b := r.Settlement()
		b.Day, b.Price, b.Previous, b.UpperLimit, b.LowerLimit = 20250117, 2, 3, 4, 5
	}
	return r
}

func allTypes() []Type {
	var ts []Type
	for t := Type(1); t < typeLimit; t++ {
		ts = append(ts, t)
	}
	return ts
}

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs: the format of stored records would change\ngot:\n%swant:\n%s", path, got, want)
	}
}

func TestRecordBytesAreGolden(t *testing.T) {
	for _, typ := range allTypes() {
		r := sample(typ)
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", typ, err)
		}
		js, err := json.Marshal(&r)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, typ.String()+".golden", hex.Dump(r.Bytes())+string(js)+"\n"+r.String()+"\n")
	}
}

// A record read from golden bytes must have the values that were written.
func TestGoldenBytesReadBack(t *testing.T) {
	for _, typ := range allTypes() {
		want := sample(typ)
		aligned := append([]byte(nil), want.Bytes()...)
		shifted := append([]byte{0}, want.Bytes()...)[1:]
		for _, b := range [][]byte{aligned, shifted} {
			rs, err := View(b)
			if err != nil || len(rs) != 1 {
				t.Fatalf("%s: %v, %d records", typ, err, len(rs))
			}
			if rs[0] != want || !reflect.DeepEqual(rs[0].Fields(), want.Fields()) {
				t.Errorf("%s: read back %v, wrote %v", typ, &rs[0], &want)
			}
		}
	}
}

func TestViewDoesNotCopyAlignedBytes(t *testing.T) {
	rs := make([]Record, 3)
	got, err := View(SliceBytes(rs))
	if err != nil || len(got) != 3 || unsafe.Pointer(&got[0]) != unsafe.Pointer(&rs[0]) {
		t.Fatalf("View copied or failed: %v", err)
	}
	if _, err := View(make([]byte, Size+1)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a part of a record: %v, want ErrCorrupt", err)
	}
	if got, err := View(nil); got != nil || err != nil {
		t.Errorf("no bytes: %v, %v", got, err)
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	cases := []struct {
		name   string
		change func(*Record)
		want   error
		text   string
	}{
		{"version", func(r *Record) { r.Version = 2 }, ErrVersion, "version 2"},
		{"zeroed", func(r *Record) { *r = Record{} }, ErrVersion, "version 0"},
		{"type", func(r *Record) { r.Type = typeLimit }, ErrVersion, "record type 13"},
		{"flags", func(r *Record) { r.Flags = 0x8000 }, ErrVersion, "flags 0x8000"},
		{"seq", func(r *Record) { r.Seq = 0 }, ErrCorrupt, "start at 1"},
		{"global", func(r *Record) { r.Global = 0 }, ErrCorrupt, "start at 1"},
		{"instrument", func(r *Record) { r.Instrument = Symbol{} }, ErrCorrupt, "empty name"},
	}
	for _, c := range cases {
		r := sample(TypeDeposit)
		c.change(&r)
		err := r.Check()
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %v with %q", c.name, err, c.want, c.text)
		}
	}
}

func TestSymbols(t *testing.T) {
	for _, name := range []string{"IF2501", AccountStream, "BTC/USD", "a", strings.Repeat("x", SymbolSize)} {
		s, err := MakeSymbol(name)
		if err != nil || s.String() != name {
			t.Errorf("%q: %v, %q", name, err, s)
		}
	}
	for _, name := range []string{"", strings.Repeat("x", SymbolSize+1), "a b", "a\x00b", "a\x00", "\x00", "é"} {
		if _, err := MakeSymbol(name); err == nil {
			t.Errorf("%q must be refused", name)
		}
	}
}

func TestParseType(t *testing.T) {
	for _, typ := range allTypes() {
		if got, err := ParseType(typ.String()); err != nil || got != typ {
			t.Errorf("%s: %v, %v", typ, got, err)
		}
	}
	if _, err := ParseType("Nonsense"); err == nil || !strings.Contains(err.Error(), "OrderInsert") {
		t.Errorf("an unknown name must be answered with the known ones: %v", err)
	}
	if got := Type(200).String(); got != "Type(200)" {
		t.Errorf("got %q", got)
	}
}

func run(n int) []Record {
	rs := make([]Record, n)
	for i := range rs {
		rs[i] = sample(allTypes()[i%len(allTypes())])
		rs[i].Seq, rs[i].Global = uint64(7+i), uint64(1000+3*i)
	}
	return rs
}

func TestBatchBytesAreGolden(t *testing.T) {
	b, err := AppendBatch(nil, 5, run(2))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "batch.golden", hex.Dump(b))
}

func TestBatchRoundTrip(t *testing.T) {
	for _, n := range []int{1, 2, 100, MaxBatchRecords} {
		rs := run(n)
		b, err := AppendBatch([]byte("before"), 5, rs)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseBatch(b[len("before"):])
		if err != nil {
			t.Fatal(err)
		}
		if got.Epoch != 5 || got.FirstSeq != 7 || got.LastSeq() != uint64(6+n) || got.Instrument.String() != "IF2501" || !reflect.DeepEqual(got.Records, rs) {
			t.Errorf("%d records: read back something else", n)
		}
		trusted, err := TrustBatch(b[len("before"):])
		if err != nil || trusted.CRC != got.CRC || len(trusted.Records) != n {
			t.Errorf("TrustBatch: %v", err)
		}
	}
}

func TestAppendBatchRefuses(t *testing.T) {
	gap, mixed, old := run(3), run(3), run(3)
	gap[2].Seq++
	mixed[1].Instrument = MustSymbol("IC2501")
	old[1].Version = 9
	cases := map[string]struct {
		epoch uint64
		rs    []Record
	}{
		"no records": {1, nil}, "too many": {1, make([]Record, MaxBatchRecords+1)}, "epoch 0": {0, run(1)},
		"gap": {1, gap}, "two instruments": {1, mixed}, "unknown version": {1, old},
	}
	for name, c := range cases {
		if b, err := AppendBatch([]byte{1}, c.epoch, c.rs); err == nil || len(b) != 1 {
			t.Errorf("%s: error %v, %d bytes", name, err, len(b))
		}
	}
}

// Every single flipped bit must be noticed: the checksum covers all but itself,
// and it is compared.
func TestEveryFlippedBitIsNoticed(t *testing.T) {
	good, err := AppendBatch(nil, 5, run(3))
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(good) * 8 {
		b := append([]byte(nil), good...)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := ParseBatch(b); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("bit %d of byte %d flipped: %v", bit%8, bit/8, err)
		}
	}
	for n := range len(good) {
		if _, err := ParseBatch(good[:n]); err == nil {
			t.Fatalf("the first %d bytes were taken for a batch", n)
		}
	}
}

// A batch whose checksum is right but whose records are not a run is refused
// all the same: the sender may be wrong.
func TestParseBatchChecksRecords(t *testing.T) {
	for name, change := range map[string]func(*Record){
		"seq":        func(r *Record) { r.Seq += 5 },
		"instrument": func(r *Record) { r.Instrument = MustSymbol("IC2501") },
		"version":    func(r *Record) { r.Version = 77 },
		"type":       func(r *Record) { r.Type = 0 },
	} {
		b, err := AppendBatch(nil, 5, run(3))
		if err != nil {
			t.Fatal(err)
		}
		rs, _ := View(b[BatchHeaderSize:])
		change(&rs[1])
		reseal(b)
		if _, err := ParseBatch(b); err == nil {
			t.Errorf("%s: a bad record inside a well-sealed batch was accepted", name)
		}
	}
}

func reseal(b []byte) {
	crc := batchCRC(b)
	copy(b[44:], []byte{byte(crc), byte(crc >> 8), byte(crc >> 16), byte(crc >> 24)})
}

func FuzzParseBatch(f *testing.F) {
	for _, n := range []int{1, 3} {
		b, err := AppendBatch(nil, 5, run(n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= BatchHeaderSize {
			reseal(b)
		}
		batch, err := ParseBatch(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) && batch.Records != nil {
				t.Fatalf("untyped error with a result: %v", err)
			}
			return
		}
		again, err := AppendBatch(nil, batch.Epoch, batch.Records)
		if err != nil {
			t.Fatalf("an accepted batch can not be written again: %v", err)
		}
		parsed, err := ParseBatch(again)
		if err != nil || !reflect.DeepEqual(parsed.Records, batch.Records) {
			t.Fatalf("written again it reads differently: %v", err)
		}
		for i := range batch.Records {
			_ = batch.Records[i].String()
		}
	})
}

func FuzzDescribe(f *testing.F) {
	for _, typ := range allTypes() {
		r := sample(typ)
		f.Add(r.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		rs, err := View(b)
		if err != nil {
			return
		}
		for i := range rs {
			js, err := json.Marshal(&rs[i])
			if rs[i].Check() == nil && (err != nil || !json.Valid(js)) {
				t.Fatalf("%v: %s", err, js)
			}
			_ = rs[i].String()
		}
	})
}

func BenchmarkParseBatch(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf, err := AppendBatch(nil, 1, run(n))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				if _, err := ParseBatch(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendBatch(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rs := run(n)
			buf := make([]byte, 0, BatchHeaderSize+n*Size)
			b.SetBytes(int64(cap(buf)))
			for b.Loop() {
				if _, err := AppendBatch(buf, 1, rs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Every single flipped byte is named, by its field or its place.
func TestDiffNamesWhatDiffers(t *testing.T) {
	for _, typ := range allTypes() {
		r := sample(typ)
		if diff := r.Diff(&r); diff != nil {
			t.Errorf("a %s differs from itself: %v", typ, diff)
		}
		for i := range Size {
			other := r
			other.Bytes()[i] ^= 0x40
			if r.Diff(&other) == nil {
				t.Errorf("%s: a flip of byte %d makes no difference", typ, i)
			}
		}
	}
	r := sample(TypeTradeExecuted)
	other := r
	other.Seq, other.TradeExecuted().Price = 9, 8
	if got, want := r.Diff(&other), []string{"seq 4 not 9", "price 6 not 8"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBeginAndSetLast(t *testing.T) {
	h := Header{Version: 9, Type: 99, Flags: 0xffff, Seq: 1, Global: 2, Time: 3, Instrument: MustSymbol("X")}
	h.Begin(TypeDeposit)
	want := Header{Version: Version, Type: TypeDeposit, Seq: 1, Global: 2, Time: 3, Instrument: MustSymbol("X")}
	if h != want {
		t.Errorf("begun: %+v", h)
	}
	h.SetLast()
	if want.Flags = FlagLast; h != want {
		t.Errorf("last: %+v", h)
	}
}
