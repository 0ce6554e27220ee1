package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// recordWriter prints records as they come: a line each, or a JSON object each.
type recordWriter struct {
	out    io.Writer
	format output.Format
	only   map[record.Type]bool // nil: all
	width  int                  // of the terminal, to which lines are cut; 0: none
	header bool
	cut    bool // some line was
	some   bool // a record was written
}

func (w *recordWriter) yield(rs []record.Record) error {
	var b strings.Builder
	for i := range rs {
		r := &rs[i]
		if w.only != nil && !w.only[r.Type] {
			continue
		}
		w.some = true
		if w.format == output.JSON {
			js, err := r.MarshalJSON()
			if err != nil {
				return err
			}
			b.Write(js)
			b.WriteByte('\n')
			continue
		}
		w.line(&b, r)
	}
	_, err := io.WriteString(w.out, b.String())
	return err
}

// line writes a record for people. On a terminal it leaves the global number and
// the date out, so that there is room for the first fields.
func (w *recordWriter) line(b *strings.Builder, r *record.Record) {
	head := fmt.Sprintf("%10s  %12s  %-30s  %-16s %s", "seq", "global", "time", "type", "fields")
	line := fmt.Sprintf("%10d  %12d  %-30s  %-16s", r.Seq, r.Global, clock(r.Time), r.Type)
	if w.width > 0 {
		head = fmt.Sprintf("%8s  %-15s  %-13s %s", "seq", "time", "type", "fields")
		line = fmt.Sprintf("%8d  %s  %-13s", r.Seq, time.Unix(0, r.Time).UTC().Format("15:04:05.000000"), r.Type)
	}
	for _, f := range r.Fields() {
		line += fmt.Sprintf(" %s=%v", f.Name, f.Value)
	}
	if w.width > 0 && utf8.RuneCountInString(line) > w.width {
		line, w.cut = output.Clip(line, w.width), true
	}
	if !w.header {
		w.header = true
		fmt.Fprintln(b, head)
	}
	fmt.Fprintln(b, line)
}

// closing returns what is to be said after the last record, "" for nothing.
func (w *recordWriter) closing() string {
	switch {
	case w.format == output.JSON:
		return ""
	case !w.some:
		return "no records"
	case w.cut:
		return "lines are cut to the width of the terminal; -o json prints every field"
	}
	return ""
}

// typesFlag selects record types by name.
type typesFlag struct{ names []string }

func (f *typesFlag) bind(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.names, "type", nil, "print only records of these `types`, such as TradeExecuted")
}

func (f *typesFlag) set() (map[record.Type]bool, error) {
	if len(f.names) == 0 {
		return nil, nil
	}
	only := make(map[record.Type]bool)
	for _, name := range f.names {
		t, err := record.ParseType(name)
		if err != nil {
			return nil, output.Exit(output.ExitUsage, err)
		}
		only[t] = true
	}
	return only, nil
}

func newScan(s *settings) *cobra.Command {
	var t target
	var types typesFlag
	var r client.Range
	var from, to instant
	cmd := &cobra.Command{
		Use:   "scan INSTRUMENT",
		Short: "Print an instrument's records, by sequence number or time",
		Example: "  countinghouse scan IF2501 --shards shards.yaml --from 1 --limit 20\n" +
			"  countinghouse scan __ACCOUNT__ --shards shards.yaml -o json",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.FromTime, r.ToTime = int64(from), int64(to)
			if err := checkRange(r); err != nil {
				return output.Exit(output.ExitUsage, err)
			}
			return s.printRecords(cmd, &t, &types, args[0], func(ctx context.Context, c *client.Client, sym record.Symbol, yield client.Yield) error {
				return c.Scan(ctx, sym, r, t.from(), yield)
			})
		},
	}
	t.bind(cmd)
	types.bind(cmd)
	cmd.Flags().Uint64Var(&r.FromSeq, "from", 0, "first sequence `number`")
	cmd.Flags().Uint64Var(&r.ToSeq, "to", 0, "last sequence `number`")
	cmd.Flags().Var(&from, "since", "not before this `time`")
	cmd.Flags().Var(&to, "until", "not after this `time`")
	cmd.Flags().Uint64Var(&r.Limit, "limit", 0, "at most this `many` records are read")
	return cmd
}

// checkRange refuses a range in which no record can be.
func checkRange(r client.Range) error {
	switch {
	case r.ToSeq != 0 && r.FromSeq > r.ToSeq:
		return fmt.Errorf("--from %d --to %d: the range is empty", r.FromSeq, r.ToSeq)
	case r.ToTime != 0 && r.FromTime > r.ToTime:
		return fmt.Errorf("--since %s --until %s: the range is empty", clock(r.FromTime), clock(r.ToTime))
	}
	return nil
}

func newTail(s *settings) *cobra.Command {
	var t target
	var types typesFlag
	var fromSeq, last uint64
	var follow bool
	cmd := &cobra.Command{
		Use:   "tail INSTRUMENT",
		Short: "Print an instrument's last records, and with -f every further one as it is stored",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.printRecords(cmd, &t, &types, args[0], func(ctx context.Context, c *client.Client, sym record.Symbol, yield client.Yield) error {
				next, err := tailStart(ctx, c, sym, t.from(), fromSeq, last)
				if err != nil {
					return err
				}
				if !follow {
					return c.Scan(ctx, sym, client.Range{FromSeq: next}, t.from(), yield)
				}
				err = c.Tail(cmd.Context(), sym, next, t.from(), yield)
				if errors.Is(err, context.Canceled) {
					return nil
				}
				return err
			})
		},
	}
	t.bind(cmd)
	types.bind(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().Uint64Var(&fromSeq, "from", 0, "start at this sequence `number`")
	cmd.Flags().Uint64VarP(&last, "last", "n", 10, "start `this` many records before the end")
	return cmd
}

// tailStart returns the seq at which a tail starts.
func tailStart(ctx context.Context, c *client.Client, sym record.Symbol, from client.Replica, fromSeq, last uint64) (uint64, error) {
	if fromSeq != 0 {
		return fromSeq, nil
	}
	shard := c.Map().ShardOf(sym.String())
	if shard == nil {
		return 1, nil // the read that follows says what is wrong
	}
	answer, err := c.Instruments(ctx, shard.Name, from)
	if err != nil {
		return 0, err
	}
	for _, st := range answer.Instruments {
		if st.Instrument == sym.String() {
			return st.LastSeq - min(last, st.LastSeq) + 1, nil
		}
	}
	return 1, nil
}

func newGet(s *settings) *cobra.Command {
	var t target
	var types typesFlag
	var id client.ByID
	cmd := &cobra.Command{
		Use:     "get INSTRUMENT",
		Short:   "Print all records of an order, a trade or an account",
		Example: "  countinghouse get IF2501 --shards shards.yaml --order 4711",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.printRecords(cmd, &t, &types, args[0], func(ctx context.Context, c *client.Client, sym record.Symbol, yield client.Yield) error {
				return c.Get(ctx, sym, id, t.from(), yield)
			})
		},
	}
	t.bind(cmd)
	types.bind(cmd)
	cmd.Flags().Uint64Var(&id.Order, "order", 0, "order `id`")
	cmd.Flags().Uint64Var(&id.Trade, "trade", 0, "trade `id`")
	cmd.Flags().Uint64Var(&id.Account, "account", 0, "account `id`")
	cmd.Flags().Uint64Var(&id.Limit, "limit", 0, "at most this `many` records")
	cmd.MarkFlagsOneRequired("order", "trade", "account")
	cmd.MarkFlagsMutuallyExclusive("order", "trade", "account")
	return cmd
}

// printRecords runs a read and prints what it yields. The timeout bounds the
// time until the first records only: a long scan may take its time.
func (s *settings) printRecords(cmd *cobra.Command, t *target, types *typesFlag, instrument string,
	read func(context.Context, *client.Client, record.Symbol, client.Yield) error,
) error {
	sym, err := instrumentArg(instrument)
	if err != nil {
		return err
	}
	only, err := types.set()
	if err != nil {
		return err
	}
	c, err := t.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	w := &recordWriter{out: cmd.OutOrStdout(), format: s.format, only: only}
	w.width, _ = output.Width(w.out)
	ctx, started := untilFirst(cmd.Context(), t.timeout.orDefault())
	err = read(ctx, c, sym, func(rs []record.Record) error {
		started()
		return w.yield(rs)
	})
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errNoAnswer) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	if note := w.closing(); err == nil && note != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), note)
	}
	return reached(err)
}
