package core

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expectations in testdata")

// TestScripts runs testdata/*.txt: blocks of commands, a line of dashes, and what
// they answer and publish. Fields that are zero are left out. After each script
// the exchange is replayed from its records and must come out the same.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScript(t, file) })
	}
}

func runScript(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := newScript(t)
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(string(text), "\n"), "\n\n") {
		commands, _, _ := strings.Cut(block, "\n----")
		out.WriteString(commands + "\n----\n")
		for line := range strings.SplitSeq(commands, "\n") {
			if line != "" && line[0] != '#' {
				out.WriteString(s.run(strings.Fields(line)))
			}
		}
		out.WriteString("\n")
	}
	got := strings.TrimRight(out.String(), "\n") + "\n"
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got != string(text) {
		t.Errorf("%s differs; after a look at it, rewrite with -rewrite:\n%s", file, firstDifference(string(text), got))
	}
	s.checkReplay()
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("line %d\n want: %s\n  got: %s", i+1, w[i], g[i])
		}
	}
	return fmt.Sprintf("want %d lines, got %d", len(w), len(g))
}

type script struct {
	t    *testing.T
	e    *Exchange
	sink *narrowSink
	seen int
	now  int64
}

// narrowSink is a sink in memory whose room a script can set: records at once, and
// the last that fits at all, 0 for no such bound.
type narrowSink struct {
	*gateway.Memory
	room int
	last uint64
}

// Reserve reports whether there is room for n records at once.
func (s *narrowSink) Reserve(n int) bool {
	return n <= s.room && (s.last == 0 || s.Published()+uint64(n) <= s.last) && s.Memory.Reserve(n)
}

func newScript(t *testing.T) *script {
	sink := &narrowSink{Memory: gateway.NewMemory(1<<14, 0), room: 1 << 14}
	return &script{t: t, e: New(gateway.New(sink, gateway.Options{HeadroomRecords: 4})), sink: sink}
}

func (s *script) run(f []string) string {
	s.now++
	var answer string
	switch f[0] {
	case "list":
		answer = s.list(f[1], f[2:])
	case "open":
		answer = receipt(s.e.OpenAccount(s.now, num[uint64](s.t, f[1])))
	case "deposit":
		answer = receipt(s.e.Deposit(s.now, num[uint64](s.t, f[1]), num[int64](s.t, f[2]), 0))
	case "withdraw":
		answer = receipt(s.e.Withdraw(s.now, num[uint64](s.t, f[1]), num[int64](s.t, f[2]), 0))
	case "halt":
		answer = receipt(s.e.Halt(s.now, symbol(s.t, f[1])))
	case "resume":
		answer = receipt(s.e.Resume(s.now, symbol(s.t, f[1])))
	case "buy", "sell":
		answer = result(s.e.Submit(s.now, s.newOrder(f)))
	case "cancel":
		answer = result(s.e.Cancel(s.now, &CancelOrder{symbol(s.t, f[1]), num[uint64](s.t, f[2]), num[uint64](s.t, f[3])}))
	case "amend":
		answer = result(s.e.Amend(s.now, s.amend(f)))
	case "settle":
		answer = s.settle(f)
	case "room":
		s.sink.room = num[int](s.t, f[1])
		return ""
	case "live":
		s.e.SetLiveOrdersMax(num[int](s.t, f[1]))
		return ""
	case "left":
		s.sink.last = s.sink.Published() + num[uint64](s.t, f[1])
		return ""
	case "state":
		return s.state(f[1:])
	default:
		s.t.Fatalf("unknown command %v", f)
	}
	return answer + "\n" + s.published()
}

// list takes the terms' defaults and changes such as margin=200000.
func (s *script) list(name string, changes []string) string {
	terms := testTerms(s.t, name)
	fields := map[string]*int64{
		"fee_open": &terms.FeeOpen, "fee_close": &terms.FeeClose, "fee_close_today": &terms.FeeCloseToday,
		"max_order": &terms.MaxOrderVolume, "position_limit": &terms.PositionLimit,
		"upper": &terms.UpperLimit, "lower": &terms.LowerLimit, "tick_value": &terms.TickValue,
	}
	for _, c := range changes {
		name, value, _ := strings.Cut(c, "=")
		switch {
		case name == "margin":
			terms.LongMarginPPM = num[uint32](s.t, value)
			terms.ShortMarginPPM = terms.LongMarginPPM
		case name == "fees" && value == "turnover":
			terms.FeeMode = record.FeeByTurnover
		case fields[name] != nil:
			*fields[name] = num[int64](s.t, value)
		default:
			s.t.Fatalf("unknown change %q", c)
		}
	}
	r, err := s.e.ListInstrument(s.now, terms)
	if err != nil {
		return "refused: " + err.Error()
	}
	return receipt(r)
}

// testTerms: a tick is worth 10, margin is 10 %, a lot's fee is 2 to open, 3 to
// close, 5 to close today's; limits are 10 % around 1000.
func testTerms(t testing.TB, name string) order.Instrument {
	return order.Instrument{
		Symbol: symbol(t, name), TickValue: 10, TickSize: 1, PriceLimitBP: 1000,
		LongMarginPPM: 100_000, ShortMarginPPM: 100_000,
		FeeMode: record.FeeByLot, FeeOpen: 2, FeeClose: 3, FeeCloseToday: 5,
		LowerLimit: 900, UpperLimit: 1100, MaxOrderVolume: 100, PositionLimit: 150,
	}
}

// newOrder reads: buy X 1 open 5 @1000 [ioc|fok], or … 5 market [fok].
func (s *script) newOrder(f []string) *NewOrder {
	n := &NewOrder{
		Side: record.Buy, Instrument: symbol(s.t, f[1]), Account: num[uint64](s.t, f[2]),
		Offset: map[string]record.Offset{"open": record.Open, "close": record.Close, "close-today": record.CloseToday}[f[3]],
		Volume: num[int64](s.t, f[4]),
	}
	if f[0] == "sell" {
		n.Side = record.Sell
	}
	if f[5] == "market" {
		n.Kind = record.Market
	} else {
		n.Price = num[int64](s.t, strings.TrimPrefix(f[5], "@"))
	}
	if len(f) > 6 {
		n.TimeInForce = map[string]record.TimeInForce{"gfd": record.GFD, "ioc": record.IOC, "fok": record.FOK}[f[6]]
	}
	return n
}

// amend reads: amend X 1 7 [volume] [@price].
func (s *script) amend(f []string) *AmendOrder {
	a := &AmendOrder{Instrument: symbol(s.t, f[1]), Account: num[uint64](s.t, f[2]), OrderID: num[uint64](s.t, f[3])}
	for _, x := range f[4:] {
		if p, is := strings.CutPrefix(x, "@"); is {
			a.Price = num[int64](s.t, p)
		} else {
			a.Volume = num[int64](s.t, x)
		}
	}
	return a
}

func (s *script) settle(f []string) string {
	var prices []SettlementPrice
	for _, x := range f[2:] {
		name, price, _ := strings.Cut(x, "=")
		prices = append(prices, SettlementPrice{symbol(s.t, name), num[int64](s.t, price)})
	}
	r := s.e.Settle(s.now, num[uint32](s.t, f[1]), prices)
	if r.Reason != risk.OK {
		return fmt.Sprintf("refused: %s (%s) canceled=%d", r.Reason, r.Detail, r.OrdersCanceled)
	}
	return fmt.Sprintf("settled canceled=%d skipped=%d close-out=%v", r.OrdersCanceled, r.UpdatesSkipped, r.CloseOut)
}

// state prints the lines that begin with one of the given words, or all.
func (s *script) state(kinds []string) string {
	var b strings.Builder
	for _, line := range s.e.State().Lines {
		keep := len(kinds) == 0
		for _, k := range kinds {
			keep = keep || strings.HasPrefix(line, strings.ReplaceAll(k, ":", " "))
		}
		if keep {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// published prints the records since the last call.
func (s *script) published() string {
	var b strings.Builder
	all := s.sink.Records()
	for i := range all[s.seen:] {
		r := &all[s.seen+i]
		fmt.Fprintf(&b, "  %s %d %s", r.Instrument, r.Seq, r.Type)
		for _, f := range r.Fields() {
			if v := fmt.Sprint(f.Value); v != "0" {
				fmt.Fprintf(&b, " %s=%s", f.Name, v)
			}
		}
		if r.Flags&record.FlagLast != 0 {
			b.WriteString(".")
		}
		b.WriteString("\n")
	}
	s.seen = len(all)
	return b.String()
}

// checkReplay replays what was published and compares the states.
func (s *script) checkReplay() {
	s.t.Helper()
	p := NewReplayer()
	records := s.sink.Records()
	for i := range records {
		if err := p.Apply(&records[i]); err != nil {
			s.t.Fatalf("replay of %s: %v", &records[i], err)
		}
	}
	rebuilt, err := p.Finish(s.e.gw)
	if err != nil {
		s.t.Fatal(err)
	}
	if diff := s.e.State().Diff(rebuilt.State()); diff != nil {
		s.t.Errorf("the replayed exchange differs:\n%s", strings.Join(diff, "\n"))
	}
}

func receipt(r Receipt) string {
	if r.Reason != risk.OK {
		return "refused: " + r.Reason.String()
	}
	return "ok"
}

func result(r Result) string {
	if r.Reason != risk.OK {
		return "refused: " + r.Reason.String()
	}
	return fmt.Sprintf("order %d %s filled=%d remaining=%d", r.OrderID, r.Status, r.Filled, r.Remaining)
}

func symbol(t testing.TB, name string) record.Symbol {
	s, err := record.MakeSymbol(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func num[T int | int64 | uint32 | uint64](t testing.TB, s string) T {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return T(v)
}
