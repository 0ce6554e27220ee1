package lobster

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/orderflow"
)

var rewrite = flag.Bool("rewrite", false, "write the events into testdata instead of comparing")

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// play returns all events of a file as text, and the trades expected of them.
func play(messages, book []byte) (text string, trades []orderflow.Trade, stats Stats, err error) {
	opts := Options{Midnight: 1e18, Instrument: 2, Trade: func(t orderflow.Trade) { trades = append(trades, t) }}
	if book != nil {
		opts.Book = bytes.NewReader(book)
	}
	s, err := NewSource(bytes.NewReader(messages), opts)
	if err != nil {
		return "", nil, Stats{}, err
	}
	var out strings.Builder
	var e orderflow.Event
	for {
		ok, err := s.Next(&e)
		if err != nil || !ok {
			return out.String(), trades, s.Stats(), err
		}
		if e.Instrument != 2 {
			return "", nil, Stats{}, errors.New("an event of another instrument")
		}
		fmt.Fprintln(&out, e.String())
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile("testdata/"+name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(read(t, name)); got != want {
		t.Errorf("events\n%s\nexpected\n%s", got, want)
	}
}

func TestRowsBecomeEvents(t *testing.T) {
	plain := read(t, "message.csv")
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(plain)
	w.Close()
	for name, file := range map[string][]byte{
		"plain": plain, "gzip": z.Bytes(), "CRLF": bytes.ReplaceAll(plain, []byte("\n"), []byte("\r\n")),
	} {
		t.Run(name, func(t *testing.T) {
			got, trades, stats, err := play(file, nil)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "message.events", got)
			want := Stats{
				Rows: 20, Submissions: 4, Reductions: 2, Deletions: 4, Executions: 7, Incoming: 4,
				UnknownOrders: 6, Hidden: 1, Crosses: 1, Halts: 1,
			}
			if stats != want || stats.Skipped() != 3 {
				t.Errorf("counted %+v, expected %+v", stats, want)
			}
			checkTrades(t, trades)
		})
	}
}

func checkTrades(t *testing.T, got []orderflow.Trade) {
	t.Helper()
	const second = 1e9
	want := []orderflow.Trade{
		{Time: 1e18 + 34201.5*second, Price: 58546, Volume: 18, ID: 1},
		{Time: 1e18 + 34201.5*second, Price: 58547, Volume: 2, ID: 2},
		{Time: 1e18 + 34202*second, Price: 58547, Volume: 5, ID: 3},
		{Time: 1e18 + 34202*second, Price: 58533, Volume: 3, ID: 4},
		{Time: 1e18 + 34202*second + 1, Price: 58533, Volume: 7, ID: 5},
		{Time: 1e18 + 34206*second, Price: 58600, Volume: 10, ID: 6},
		{Time: 1e18 + 34206*second, Price: 58700, Volume: 1, ID: 7},
	}
	if !slices.Equal(got, want) {
		t.Errorf("trades %v, expected %v", got, want)
	}
}

// The opening book is the first row without the first message: at 58533 that
// submits 18 of the 36 lots. Cancellations of older orders come off it.
func TestOpeningBook(t *testing.T) {
	got, trades, stats, err := play(read(t, "message.csv"), read(t, "book.csv"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "opening.events", got)
	if stats.Opening != 4 || stats.UnknownOrders != 3 {
		t.Errorf("counted %+v", stats)
	}
	checkTrades(t, trades)
}

func TestFirstMessageIsUndone(t *testing.T) {
	const book = "101,7,99,5"
	for message, want := range map[string]string{
		"1,1,9,5,99,1":   "sell 7@101",                      // the level was made by it
		"1,1,9,2,99,1":   "sell 7@101, buy 3@99",            // it joined the level
		"1,1,9,2,98,1":   "sell 7@101, buy 5@99",            // beyond what the book shows
		"1,3,9,4,99,1":   "sell 7@101, buy 9@99",            // it left the level
		"1,3,9,4,100,1":  "sell 7@101, buy 5@99, buy 4@100", // the level went with it
		"1,2,9,4,101,-1": "sell 11@101, buy 5@99",
		"1,4,9,4,101,-1": "sell 11@101, buy 5@99",
		"1,5,9,4,101,-1": "sell 7@101, buy 5@99",
		"1,7,0,0,-1,-1":  "sell 7@101, buy 5@99",
	} {
		s, err := NewSource(strings.NewReader(message), Options{TickUnits: 1, Book: strings.NewReader(book)})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		var e orderflow.Event
		for {
			ok, err := s.Next(&e)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if e.Order&openingIDs != 0 && e.Kind == orderflow.Submit {
				got = append(got, fmt.Sprintf("%v %d@%d", e.Side, e.Volume, e.Price))
			}
		}
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("%s: opening book %s, expected %s", message, got, want)
		}
	}
}

func TestBadRowsAreNamed(t *testing.T) {
	const good = "10,1,5,10,5853300,1\n"
	for row, says := range map[string]string{
		"1,2,3":                           "line 2: not a LOBSTER file: 3 fields, not 6",
		"10,1,6,10,5853300,1,x":           "line 2: not a LOBSTER file: 7 fields, not 6",
		"x,1,6,10,5853300,1":              "line 2, field time:",
		"9.9,1,6,10,5853300,1":            "line 2, field time:",
		"999999,1,6,10,5853300,1":         "line 2, field time:",
		"10,0,6,10,5853300,1":             "line 2, field type: not a LOBSTER file: 0 is none of 1 to 7",
		"10,8,6,10,5853300,1":             "line 2, field type: not a LOBSTER file: 8 is none",
		"10,,6,10,5853300,1":              "line 2, field type:",
		"10,1,-6,10,5853300,1":            "line 2, field order id:",
		"10,1,5,10,5853300,1":             "line 2, field order id:",
		"10,1,6,0,5853300,1":              "line 2, field size:",
		"10,1,6,1.5,5853300,1":            "line 2, field size:",
		"10,1,6,99999999999999,5853300,1": "line 2, field size:",
		"10,1,6,10,5853350,1":             "line 2, field price:",
		"10,1,6,10,-100,1":                "line 2, field price:",
		"10,1,6,10,5853300,0":             "line 2, field direction:",
		strings.Repeat("1", 1<<17):        "line 2: ",
	} {
		_, _, _, err := play([]byte(good+row+"\n"), nil)
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60s: %v, expected it to say %q", row, err, says)
		}
	}
}

func TestBadBooksAreNamed(t *testing.T) {
	for row, says := range map[string]string{
		"":                                "the file is empty",
		"100,1,200":                       "line 1: not a LOBSTER file: 3 fields",
		"x,1,100,1":                       "line 1, level 1: sell price",
		"200,x,100,1":                     "line 1, level 1: sell size",
		"200,1,100,0":                     "line 1, level 1: buy size",
		"200,1,150,1":                     "line 1, level 1: buy price",
		"200,1,100,1,200,1,-9999999999,0": "line 1, level 2: sell price: not a LOBSTER file: levels are not in order",
		"300,1,200,1,200,1,100,1":         "line 1, level 2: sell price: not a LOBSTER file: levels are not in order",
		"300,1,100,1,400,1,200,1":         "line 1, level 2: buy price: not a LOBSTER file: levels are not in order",
		"100,1,100,1":                     "the best bid is not below the best ask",
		strings.Repeat("1,1,1,1,", 2000):  "fields, not 4 for each of at most",
	} {
		_, _, _, err := play([]byte("10,1,5,10,5853300,1\n"), []byte(row))
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60s: %v, expected it to say %q", row, err, says)
		}
	}
}

func TestTickMustBePositive(t *testing.T) {
	if _, err := NewSource(strings.NewReader(""), Options{TickUnits: -1}); err == nil {
		t.Error("a tick of -1 was taken")
	}
}

// FuzzSource asserts of any file: events are in order and well formed, and name
// orders that the source itself submitted.
func FuzzSource(f *testing.F) {
	f.Add(read(f, "message.csv"), read(f, "book.csv"))
	f.Add([]byte("1,4,1,1,100,1\n1,4,1,1,200,1\n"), []byte("9999999999,0,-9999999999,0"))
	f.Fuzz(func(t *testing.T, messages, book []byte) {
		expected := int64(0)
		opts := Options{TickUnits: 1, Trade: func(t orderflow.Trade) { expected += t.Volume }}
		if len(book) > 0 {
			opts.Book = bytes.NewReader(book)
		}
		s, err := NewSource(bytes.NewReader(messages), opts)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Error(err)
			}
			return
		}
		incoming, err := checkFlow(t, s)
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Error(err)
		}
		if err == nil && incoming != expected {
			t.Errorf("incoming orders of %d lots for trades of %d", incoming, expected)
		}
	})
}

func checkFlow(t *testing.T, s *Source) (incoming int64, err error) {
	open := map[uint64]bool{}
	var last int64
	var e orderflow.Event
	for {
		ok, err := s.Next(&e)
		if err != nil || !ok {
			return incoming, err
		}
		if e.Time < last || e.Price < 0 || e.Volume < 0 || e.Volume == 0 && e.Kind != orderflow.Cancel {
			t.Fatalf("%v after %d", e.String(), last)
		}
		last = e.Time
		if e.Kind != orderflow.Submit && !open[e.Order] {
			t.Fatalf("%v: was not submitted", e.String())
		}
		open[e.Order] = true
		if e.Kind == orderflow.Submit && e.Order&(openingIDs|incomingIDs) == incomingIDs {
			incoming += e.Volume
		}
	}
}
