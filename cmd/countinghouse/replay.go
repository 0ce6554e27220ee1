package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/trial"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/orderflow/l3"
	"github.com/countinghouse/countinghouse/orderflow/lobster"
	"github.com/countinghouse/countinghouse/orderflow/reproduce"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// replayFlags are the flags of replay.
type replayFlags struct {
	format         string
	trades, books  []string
	names          []string
	priceDecimals  int
	volumeDecimals int
	follow         bool
	speed          float64
	window         time.Duration
	keep           string
	noKill         bool
}

// replayReport is a trial's report and what became of the recorded trades.
type replayReport struct {
	trial.Report
	Expected   int               `json:"expected_trades"`
	Made       int               `json:"made_trades"`
	Reproduced int               `json:"reproduced_trades"`
	Unknown    int               `json:"unknown_orders"` // rows about orders that the files do not enter
	Gone       uint64            `json:"gone_orders"`    // events about orders that the exchange filled, and the recorded market did not
	Skipped    int               `json:"skipped_rows"`
	Refused    map[string]uint64 `json:"refused"`
	Missing    []string          `json:"not_reproduced"`
}

func newReplay(s *settings) *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:   "replay FILE…",
		Short: "Put recorded order flow through an exchange and its storage, as demo does",
		Long: "Each FILE is the order flow of one instrument; several are merged by time. Formats:\n" +
			"  l3       id,timestamp,exchange.timestamp,price,volume,action,direction; --trades names the file of\n" +
			"           reported trades that belongs to each FILE\n" +
			"  lobster  a LOBSTER message file; --book names the order book file that seeds the opening book\n" +
			"Files may be gzipped. The clock of the exchange is that of the recording. Recorded flow does not say whose\n" +
			"an order is: buyers and sellers are spread over accounts with ample money.\n" +
			"At the end it reports how many of the recorded trades the exchange made, with the same price and volume.",
		Example: "  countinghouse replay --format l3 orders.csv.gz --trades trades.jsonl.gz",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(args); err != nil {
				return output.Exit(output.ExitUsage, err)
			}
			return s.replay(cmd, f, args)
		},
	}
	cmd.Flags().StringVar(&f.format, "format", "", `"l3" or "lobster" (required)`)
	cmd.Flags().StringSliceVar(&f.trades, "trades", nil, "l3: `files` of reported trades, one for each FILE")
	cmd.Flags().StringSliceVar(&f.books, "book", nil, "lobster: order book `files`, one for each FILE")
	cmd.Flags().StringSliceVar(&f.names, "instruments", nil, "`names`, one for each FILE (default: from the files' names)")
	cmd.Flags().IntVar(&f.priceDecimals, "price-decimals", 2, "l3: decimals of a price; the last one is the tick")
	cmd.Flags().IntVar(&f.volumeDecimals, "volume-decimals", 8, "l3: decimals of a volume in the trades file; the last one is the lot")
	cmd.Flags().BoolVar(&f.follow, "follow", false, "l3: where the recording shows a fill that the exchange did not make, take the lots off the book")
	cmd.Flags().Float64Var(&f.speed, "speed", 0, "`times` the recorded speed; 0 for as fast as it goes")
	cmd.Flags().DurationVar(&f.window, "window", 2*time.Second, "how far apart a recorded trade and the exchange's may be")
	cmd.Flags().StringVar(&f.keep, "data-dir", "", "keep all data in this `directory`, which must be empty (default: a temporary one that is removed)")
	cmd.Flags().BoolVar(&f.noKill, "no-kill", false, "leave the storage leader alone")
	if err := cmd.MarkFlagRequired("format"); err != nil {
		cobra.CheckErr(err)
	}
	return cmd
}

func (f *replayFlags) check(files []string) error {
	switch {
	case f.format != "l3" && f.format != "lobster":
		return fmt.Errorf("--format %q: use l3 or lobster", f.format)
	case len(f.trades) > 0 && (f.format != "l3" || len(f.trades) != len(files)):
		return fmt.Errorf("--trades: goes with --format l3, one file for each of the %d FILEs", len(files))
	case len(f.books) > 0 && (f.format != "lobster" || len(f.books) != len(files)):
		return fmt.Errorf("--book: goes with --format lobster, one file for each of the %d FILEs", len(files))
	case len(f.names) > 0 && len(f.names) != len(files):
		return fmt.Errorf("--instruments: %d names for %d FILEs", len(f.names), len(files))
	case f.priceDecimals < 0 || f.priceDecimals > 12 || f.volumeDecimals < 0 || f.volumeDecimals > 12:
		return errors.New("--price-decimals, --volume-decimals: use 0 to 12")
	case f.speed < 0:
		return fmt.Errorf("--speed %g: use 0 or more", f.speed)
	case f.window < 0:
		return fmt.Errorf("--window %v: use 0, for the same instant, or more", f.window)
	}
	return nil
}

// capture is one FILE: what a first reading of it found, and its trades.
type capture struct {
	file, book string
	terms      order.Instrument
	events     uint64
	highest    int64 // price, ticks
	largest    int64 // volume, lots
	expected   []orderflow.Trade
	skipped    int
	unknown    int
}

// symbolOf makes an instrument's name of a file's.
func symbolOf(file string) (record.Symbol, error) {
	base, _, _ := strings.Cut(filepath.Base(file), ".")
	clean := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, base)
	return record.MakeSymbol(clean[:min(len(clean), record.SymbolSize)])
}

// survey reads a capture once, for its terms and its length.
func (f *replayFlags) survey(c *capture, i int) error {
	name, err := symbolOf(c.file)
	if len(f.names) > 0 {
		name, err = record.MakeSymbol(f.names[i])
	}
	if err != nil {
		return err
	}
	source, done, err := f.open(c, func(t orderflow.Trade) { c.expected = append(c.expected, t) })
	if err != nil {
		return err
	}
	defer done()
	var e orderflow.Event
	for {
		more, err := source.Next(&e)
		if err != nil {
			return fmt.Errorf("%s: %w", c.file, err)
		}
		if !more {
			break
		}
		c.events++
		if e.Kind == orderflow.Submit || e.Kind == orderflow.Amend {
			c.highest, c.largest = max(c.highest, e.Price), max(c.largest, e.Volume)
		}
	}
	if c.events == 0 {
		return fmt.Errorf("%s: holds no orders", c.file)
	}
	switch s := source.(type) {
	case *l3.Source:
		c.unknown = s.Stats().UnknownOrders
	case *lobster.Source:
		c.skipped, c.unknown = s.Stats().Skipped(), s.Stats().UnknownOrders
	}
	c.terms = f.cash(name, c)
	if err := c.terms.Check(); err != nil {
		return fmt.Errorf("%s: %w", c.file, err)
	}
	return f.readTrades(c, i)
}

// cash returns the terms of a plain cash instrument without fees whose limits
// leave room for all that a capture holds. The minor unit is one tick times one
// lot, whatever these are.
func (f *replayFlags) cash(name record.Symbol, c *capture) order.Instrument {
	decimals := f.priceDecimals
	if f.format == "lobster" {
		decimals = 2
	}
	return order.Instrument{
		Symbol: name, TickValue: 1, TickSize: 1, Decimals: uint8(decimals), FeeMode: record.FeeByTurnover,
		PriceLimitBP: 10_000, LongMarginPPM: 1_000_000, ShortMarginPPM: 1_000_000,
		LowerLimit: 1, UpperLimit: c.highest, MaxOrderVolume: c.largest,
	}
}

func (f *replayFlags) readTrades(c *capture, i int) error {
	if len(f.trades) == 0 {
		return nil
	}
	in, err := os.Open(f.trades[i])
	if err != nil {
		return err
	}
	defer in.Close()
	c.expected, err = l3.ReadTrades(in, l3.TradeOptions{PriceDecimals: f.priceDecimals, VolumeDecimals: f.volumeDecimals})
	if err != nil {
		return fmt.Errorf("%s: %w", f.trades[i], err)
	}
	return nil
}

// open begins to read a capture. trade, if not nil, takes the trades that the
// capture itself shows.
func (f *replayFlags) open(c *capture, trade func(orderflow.Trade)) (orderflow.Source, func(), error) {
	in, err := os.Open(c.file)
	if err != nil {
		return nil, nil, err
	}
	files := []io.Closer{in}
	done := func() {
		for _, f := range files {
			_ = f.Close() // only read
		}
	}
	var source orderflow.Source
	if f.format == "l3" {
		source, err = l3.NewSource(in, l3.Options{PriceDecimals: f.priceDecimals})
	} else {
		o := lobster.Options{Trade: trade}
		if c.book != "" {
			book, bookErr := os.Open(c.book)
			if bookErr != nil {
				done()
				return nil, nil, bookErr
			}
			files, o.Book = append(files, book), book
		}
		source, err = lobster.NewSource(in, o)
	}
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("%s: %w", c.file, err)
	}
	return source, done, nil
}

func (s *settings) replay(cmd *cobra.Command, f replayFlags, files []string) error {
	flow := &replayFlow{follow: f.follow, speed: f.speed}
	captures, set, err := f.prepare(s.printer(cmd), flow, files)
	if err != nil {
		return output.Exit(output.ExitUsage, err)
	}
	for i, c := range captures {
		source, done, err := f.open(c, nil)
		if err != nil {
			return output.Exit(output.ExitUsage, err)
		}
		defer done()
		flow.sources = append(flow.sources, &recording{symbol: set.Instruments[i].Symbol, source: source})
	}
	if err := flow.begin(); err != nil {
		return output.Exit(output.ExitUsage, err)
	}
	var names []string
	for i := range set.Instruments {
		names = append(names, set.Instruments[i].Symbol.String())
	}
	r := replayReport{Missing: []string{}, Refused: map[string]uint64{}}
	r.Report, err = s.runTrial(cmd, trial.Config{
		Cluster: "replay", Instruments: set, Flow: flow, Clock: flow.clock.Load,
		Shards: spread(names, min(2, len(names)), 3), KillLeader: !f.noKill,
		Inspect: func(ctx context.Context, c *client.Client) error { return r.compare(ctx, c, captures, f.window) },
	}, f.keep)
	if err != nil {
		return err
	}
	r.Gone = flow.gone
	for reason, n := range flow.refused {
		r.Refused[reason.String()] = n
	}
	p := s.printer(cmd)
	if s.format == output.JSON {
		err = p.JSON(&r)
	} else {
		printReport(p, &r.Report)
		printReproduced(p, &r)
	}
	return verdictOf(err, &r.Report)
}

// prepare surveys the files and makes the instruments of them.
func (f *replayFlags) prepare(p *output.Printer, flow *replayFlow, files []string) ([]*capture, order.Set, error) {
	set := order.Set{Currency: "XXX", Decimals: min(f.priceDecimals+f.volumeDecimals, 12)}
	var captures []*capture
	for i, file := range files {
		p.Progress("reading %s", file)
		c := &capture{file: file}
		if len(f.books) > 0 {
			c.book = f.books[i]
		}
		if err := f.survey(c, i); err != nil {
			return nil, set, err
		}
		if slices.ContainsFunc(set.Instruments, func(t order.Instrument) bool { return t.Symbol == c.terms.Symbol }) {
			return nil, set, fmt.Errorf("two FILEs make the instrument %s: name them with --instruments", c.terms.Symbol)
		}
		flow.steps += c.events
		captures, set.Instruments = append(captures, c), append(set.Instruments, c.terms)
	}
	return captures, set, nil
}

// compare reads the trades that are stored and holds them against the recorded.
func (r *replayReport) compare(ctx context.Context, c *client.Client, captures []*capture, window time.Duration) error {
	for _, capt := range captures {
		var made []orderflow.Trade
		err := c.Scan(ctx, capt.terms.Symbol, client.Range{}, client.Replica{}, func(rs []record.Record) error {
			for i := range rs {
				if rs[i].Type == record.TypeTradeExecuted {
					t := rs[i].TradeExecuted()
					made = append(made, orderflow.Trade{Time: t.Time, Price: t.Price, Volume: t.Volume, ID: t.TradeID})
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		result := reproduce.Compare(capt.expected, made, window)
		r.Expected += result.Expected
		r.Made += result.Made
		r.Reproduced += result.Reproduced
		r.Skipped += capt.skipped
		r.Unknown += capt.unknown
		for _, m := range result.Missing {
			r.Missing = append(r.Missing, fmt.Sprintf("%s %s %v", capt.terms.Symbol, time.Unix(0, m.Trade.Time).UTC().Format("15:04:05.000"), m))
		}
	}
	return nil
}

// missingMax bounds the trades that the table lists; -o json has all.
const missingMax = 10

func printReproduced(p *output.Printer, r *replayReport) {
	p.Line("\nrecorded trades: %s; of these the exchange made %s with the same price and volume (it made %s in all)",
		output.Count(r.Expected), output.Count(r.Reproduced), output.Count(r.Made))
	p.Line("rows about orders that the files do not enter: %s; events about orders that are gone already: %s; rows skipped for their type: %s",
		output.Count(r.Unknown), output.Count(r.Gone), output.Count(r.Skipped))
	for reason, n := range r.Refused {
		p.Line("refused for %s: %s", reason, output.Count(n))
	}
	for i, m := range r.Missing {
		if i == missingMax {
			p.Line("  … and %d more; -o json lists all", len(r.Missing)-missingMax)
			break
		}
		p.Line("  not made: %s", m)
	}
}
