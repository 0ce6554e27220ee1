package l3

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/orderflow"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// events returns all events of a capture as text.
func events(file []byte) (lines []string, stats Stats, err error) {
	s, err := NewSource(bytes.NewReader(file), Options{PriceDecimals: 2, Instrument: 3})
	if err != nil {
		return nil, Stats{}, err
	}
	var e orderflow.Event
	for {
		ok, err := s.Next(&e)
		if !ok || err != nil {
			return lines, s.Stats(), err
		}
		if e.Instrument != 3 {
			return nil, Stats{}, errors.New("an event of another instrument")
		}
		lines = append(lines, e.String())
	}
}

func zipped(t *testing.T, b []byte) []byte {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return z.Bytes()
}

func TestRowsBecomeEvents(t *testing.T) {
	want := strings.Split(strings.TrimSpace(string(read(t, "small.events"))), "\n")
	wantStats := Stats{
		Rows: 14, Created: 4, Cancels: 1, Fills: 4, Reprices: 2, UnknownOrders: 3, Reordered: 1, Repeated: 1,
	}
	plain := read(t, "small.csv")
	for name, file := range map[string][]byte{
		"plain": plain, "gzip": zipped(t, plain),
		"CRLF, no newline at the end": bytes.TrimSpace(bytes.ReplaceAll(plain, []byte("\n"), []byte("\r\n"))),
		"byte order mark":             append([]byte("\xef\xbb\xbf"), plain...),
	} {
		t.Run(name, func(t *testing.T) {
			got, stats, err := events(file)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%v\n%s\nexpected\n%s", err, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if stats != wantStats {
				t.Errorf("counted %+v, expected %+v", stats, wantStats)
			}
		})
	}
}

func TestBadRowsAreNamed(t *testing.T) {
	const good = "1,1000,1000,236.47,5,created,bid\n"
	for name, c := range map[string]struct{ file, says string }{
		"empty":             {"", "the file is empty"},
		"another header":    {"id,time\n", "line 1: not an L3 capture: the header is"},
		"few columns":       {header + "\n1,2,3\n", "line 2: not an L3 capture: 3 columns, not 7"},
		"many columns":      {header + "\n" + good + "1,1000,1000,236.47,5,changed,bid,9\n", "line 3: not an L3 capture: 8 columns"},
		"bad id":            {header + "\nx,1000,1000,236.47,5,created,bid\n", "line 2, column id:"},
		"bad time":          {header + "\n1,-1,1000,236.47,5,created,bid\n", "line 2, column timestamp:"},
		"time too large":    {header + "\n1,9300000000000,1000,236.47,5,created,bid\n", "line 2, column timestamp:"},
		"time goes back":    {header + "\n" + good + "2,999,1000,236.47,5,created,bid\n", "line 3, column timestamp:"},
		"bad exchange time": {header + "\n1,1000,,236.47,5,created,bid\n", "line 2, column exchange.timestamp:"},
		"off tick":          {header + "\n1,1000,1000,236.471,5,created,bid\n", "line 2, column price:"},
		"bad volume":        {header + "\n1,1000,1000,236.47,5.5,created,bid\n", "line 2, column volume:"},
		"no volume":         {header + "\n1,1000,1000,236.47,0,created,bid\n", "line 2, column volume:"},
		"bad action":        {header + "\n1,1000,1000,236.47,5,made,bid\n", "line 2, column action:"},
		"bad direction":     {header + "\n1,1000,1000,236.47,5,created,buy\n", "line 2, column direction:"},
		"created twice":     {header + "\n" + good + good, "line 3, column id:"},
		"endless line":      {header + "\n" + strings.Repeat("1", 1<<17), "not an L3 capture: line 2:"},
		"damaged gzip":      {"\x1f\x8b\x00", "not an L3 capture"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := events([]byte(c.file))
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, expected it to say %q", err, c.says)
			}
		})
	}
}

func TestCutGzipIsAnError(t *testing.T) {
	var long strings.Builder
	long.WriteString(header + "\n")
	for range 1000 {
		long.WriteString("9,1000,1000,236.47,5,changed,bid\n")
	}
	z := zipped(t, []byte(long.String()))
	if _, _, err := events(z[:len(z)-8]); !errors.Is(err, ErrFormat) {
		t.Errorf("a cut file read as %v", err)
	}
}

func TestReadTrades(t *testing.T) {
	file := read(t, "small.trades")
	want := []orderflow.Trade{
		{Time: 1430438404645e6, Price: 23647, Volume: 21144331, ID: 8111041},
		{Time: 1430438421672e6, Price: 23661, Volume: 883518573, ID: 8111043},
		{Time: 1430442721068e6, Price: 23662, Volume: 100, ID: 8111281},
		{Time: 1430442721069e6, Price: 23662, Volume: 1000000000, ID: 8111282},
	}
	opts := TradeOptions{PriceDecimals: 2, VolumeDecimals: 8}
	for _, b := range [][]byte{file, zipped(t, file)} {
		got, err := ReadTrades(bytes.NewReader(b), opts)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
	}
	for line, says := range map[string]string{
		`x trade {}`: "receive time",
		`1 quote {}`: `second field is "quote"`,
		`1 trade {`:  "object",
		`1 trade {}`: "price",
		`1 trade []`: "object",
		`1 trade {"price": -1, "amount": 1, "id": 1}`:           "price",
		`1 trade {"price": 1, "amount": 1e-31, "id": 1}`:        "amount",
		`1 trade {"price": 1, "amount": 1e-9, "id": 1}`:         "less than a lot",
		`1 trade {"price": 1, "amount": 1e30, "id": 1}`:         "amount",
		`1 trade {"price": 1, "amount": 1e99999999, "id": 1}`:   "amount",
		`99999999999999 trade {"price":1,"amount":1,"id":1}`:    "receive time",
		`1 trade {"price": "1", "amount": 1, "id": -1}`:         "object",
		`1 trade {"price": 12, "amount": 1, "id": 1} trailing?`: "object",
	} {
		_, err := ReadTrades(strings.NewReader(string(file)+line+"\n"), opts)
		if !errors.Is(err, ErrFormat) || !strings.HasPrefix(err.Error(), "line 5: ") || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func FuzzSource(f *testing.F) {
	for _, name := range []string{"small.csv"} {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(header + "\n1,1000,1000,236.47,0,created,bid\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := NewSource(bytes.NewReader(file), Options{PriceDecimals: 2})
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		checkFlow(t, s)
	})
}

// checkFlow asserts what holds of the events of any file.
func checkFlow(t *testing.T, s *Source) {
	submitted := map[uint64]bool{}
	last := int64(0)
	var e orderflow.Event
	for {
		ok, err := s.Next(&e)
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatalf("%v", err)
		}
		if !ok || err != nil {
			return
		}
		if e.Time < last || e.Price < 0 || e.Volume < 0 {
			t.Fatalf("%v after %d", e.String(), last)
		}
		last = e.Time
		if (e.Kind == orderflow.Submit) == submitted[e.Order] {
			t.Fatalf("%v: submitted before: %v", e.String(), submitted[e.Order])
		}
		if e.Kind == orderflow.Submit && e.Volume == 0 {
			t.Fatalf("%v", e.String())
		}
		submitted[e.Order] = true
	}
}

func FuzzReadTrades(f *testing.F) {
	b, err := os.ReadFile("testdata/small.trades")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, file []byte) {
		trades, err := ReadTrades(bytes.NewReader(file), TradeOptions{PriceDecimals: 2, VolumeDecimals: 8})
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Error(err)
		}
		for _, trade := range trades {
			if trade.Volume <= 0 || trade.Price < 0 || trade.Time < 0 {
				t.Errorf("%+v", trade)
			}
		}
	})
}
