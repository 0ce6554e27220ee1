package docs

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

// byteTable is a table of offsets, sizes and fields.
type byteTable struct {
	line    line // of its head
	total   int  // bytes that the page says it has; 0 if it does not
	rows    []byteRow
	heading string
}

type byteRow struct {
	number             int
	offset, size, text string
}

var (
	totalInHeading = regexp.MustCompile(`, (\d+) bytes$`)
	totalInText    = regexp.MustCompile(`^(\d+) bytes;`)
)

func byteTables(t *testing.T) []*byteTable {
	t.Helper()
	var all []*byteTable
	var table *byteTable
	total, heading := 0, ""
	for _, l := range readPage(t, formats) {
		if l.heading != heading {
			heading, total = l.heading, totalOf(totalInHeading, l.heading)
		}
		total = max(total, totalOf(totalInText, l.text))
		cells := strings.Split(l.text, "|")
		switch {
		case len(cells) < 5:
			table = nil
		case strings.TrimSpace(cells[1]) == "Offset":
			table = &byteTable{line: l, total: total, heading: heading}
			all = append(all, table)
		case table != nil && !strings.HasPrefix(cells[1], "---"):
			trim := strings.TrimSpace
			table.rows = append(table.rows, byteRow{l.number, trim(cells[1]), trim(cells[2]), trim(strings.Join(cells[3:len(cells)-1], "|"))})
		}
	}
	return all
}

func totalOf(pattern *regexp.Regexp, s string) int {
	m := pattern.FindStringSubmatch(s)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// after returns where the next row begins: a number, or terms joined by +.
func after(offset, size string) string {
	a, errA := strconv.Atoi(offset)
	b, errB := strconv.Atoi(size)
	switch {
	case errA == nil && errB == nil:
		return strconv.Itoa(a + b)
	case offset == "0":
		return size
	}
	return offset + " + " + size
}

// Every byte of a format stands in exactly one row.
func TestByteTablesHaveNoHoles(t *testing.T) {
	tables := byteTables(t)
	if len(tables) < 30 {
		t.Fatalf("the page has %d byte tables only", len(tables))
	}
	for _, table := range tables {
		want := "0"
		if _, ok := bodies[firstWord(table.heading)]; ok {
			want, table.total = strconv.Itoa(record.HeaderSize), record.Size
		}
		for _, r := range table.rows {
			if r.offset != want {
				t.Errorf("%s:%d: offset %s, the row before ends at %s", formats, r.number, r.offset, want)
			}
			want = after(r.offset, r.size)
		}
		if table.total != 0 && want != strconv.Itoa(table.total) {
			t.Errorf("%s:%d: the table ends at %s, the page says %d bytes", formats, table.line.number, want, table.total)
		}
	}
}

var firstWordPattern = regexp.MustCompile(`^\w+`)

func firstWord(s string) string { return firstWordPattern.FindString(s) }

// bodies are the records' bodies by the headings of their tables.
var bodies = map[string]struct {
	view  any
	types []record.Type
}{
	"OrderInsert":      {record.OrderInsert{}, []record.Type{record.TypeOrderInsert}},
	"OrderCancel":      {record.OrderCancel{}, []record.Type{record.TypeOrderCancel}},
	"OrderAmend":       {record.OrderAmend{}, []record.Type{record.TypeOrderAmend}},
	"TradeExecuted":    {record.TradeExecuted{}, []record.Type{record.TypeTradeExecuted}},
	"AccountUpdate":    {record.AccountUpdate{}, []record.Type{record.TypeAccountUpdate}},
	"AccountOpened":    {record.AccountOpened{}, []record.Type{record.TypeAccountOpened}},
	"CashMove":         {record.CashMove{}, []record.Type{record.TypeDeposit, record.TypeWithdraw}},
	"InstrumentListed": {record.InstrumentListed{}, []record.Type{record.TypeInstrumentListed}},
	"TradingState":     {record.TradingState{}, []record.Type{record.TypeTradingState}},
	"Settlement":       {record.Settlement{}, []record.Type{record.TypeSettlement}},
	"HistoryCut":       {record.HistoryCut{}, []record.Type{record.TypeHistoryCut}},
}

// The bodies' tables say what the structs are, and every type has a table.
func TestBodiesAreTheStructs(t *testing.T) {
	documented := map[record.Type]bool{}
	for _, table := range byteTables(t) {
		name := firstWord(table.heading)
		body, ok := bodies[name]
		if !ok {
			continue
		}
		for _, typ := range body.types {
			documented[typ] = true
			if !strings.Contains(table.heading, strconv.Itoa(int(typ))) {
				t.Errorf("%s: the heading %q does not say type %d", formats, table.heading, typ)
			}
		}
		want := layoutOf(reflect.TypeOf(body.view))
		var got []string
		for _, r := range table.rows {
			got = append(got, fmt.Sprintf("%s %s %s", r.offset, r.size, firstWord(r.text)))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s:\ngot  %q\nwant %q", formats, name, got, want)
		}
	}
	for typ := record.Type(1); typ.Known(); typ++ {
		if !documented[typ] {
			t.Errorf("%s: no table has %s", formats, typ)
		}
	}
}

// layoutOf returns "offset size name" of each field behind the header; padding
// is called zero.
func layoutOf(view reflect.Type) []string {
	var rows []string
	for i := range view.NumField() {
		f := view.Field(i)
		if f.Name == "Header" {
			continue
		}
		name := f.Name
		if name == "_" {
			name = "zero"
		}
		rows = append(rows, fmt.Sprintf("%d %d %s", f.Offset, f.Type.Size(), name))
	}
	return rows
}
