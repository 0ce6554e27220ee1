package matching

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

var rewrite = flag.Bool("rewrite", false, "write the scripts' results into testdata instead of comparing")

// TestScripts runs testdata/*.txt. A script is a list of cases: commands, a line
// "----", and what they print, up to an empty line. The book lives on from case
// to case. Commands:
//
//	ID buy|sell LOTS@PRICE [ioc|fok|market]   submit; what is left of a GFD order rests
//	cancel ID
//	amend ID LOTS@PRICE
//	canfill buy|sell LOTS@PRICE
//	best
//	depth N
//	book                                      every order, sells from the worst price down
//
// "#" starts a comment, which may stand before a case or between its commands.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata: %v", err)
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
	d := driver{book: New(), live: map[uint64]*order.Order{}}
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		commands, want, _ := strings.Cut(strings.TrimRight(block, "\n"), "\n----")
		want = strings.TrimPrefix(want, "\n")
		got := d.run(commands)
		if got != want && !*rewrite {
			t.Errorf("%s:\n%s\n---- got\n%s\n---- want\n%s", file, commands, got, want)
		}
		if err := d.book.check(); err != nil {
			t.Fatalf("%s: after\n%s\n%v", file, commands, err)
		}
		fmt.Fprintf(&out, "%s\n----\n%s\n\n", commands, got)
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(strings.TrimRight(out.String(), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

type driver struct {
	book *Book
	live map[uint64]*order.Order
	out  strings.Builder
}

func (d *driver) run(commands string) string {
	d.out.Reset()
	for line := range strings.SplitSeq(commands, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if f := strings.Fields(line); len(f) > 0 {
			if err := d.command(f); err != nil {
				fmt.Fprintf(&d.out, "%s: %v\n", strings.Join(f, " "), err)
			}
		}
	}
	return strings.TrimRight(d.out.String(), "\n")
}

func (d *driver) command(f []string) error {
	switch arg := append(f, "", "", "")[1:]; f[0] {
	case "cancel":
		return d.cancel(arg[0])
	case "amend":
		return d.amend(arg[0], arg[1])
	case "canfill":
		return d.canFill(arg[0], arg[1])
	case "best":
		d.best()
	case "depth":
		return d.depth(arg[0])
	case "book":
		d.printBook()
	default:
		return d.submit(f[0], arg[0], arg[1], arg[2])
	}
	return nil
}

func parseSide(s string) (record.Side, error) {
	switch s {
	case "buy":
		return record.Buy, nil
	case "sell":
		return record.Sell, nil
	}
	return 0, fmt.Errorf("side %q", s)
}

func parseAt(s string) (lots, price int64, err error) {
	before, after, _ := strings.Cut(s, "@")
	lots, err1 := strconv.ParseInt(before, 10, 64)
	price, err2 := strconv.ParseInt(after, 10, 64)
	return lots, price, errors.Join(err1, err2)
}

func (d *driver) submit(id, side, at, how string) error {
	o := d.book.Acquire()
	o.Kind, o.TimeInForce = record.Limit, record.GFD
	switch how {
	case "":
	case "ioc":
		o.TimeInForce = record.IOC
	case "fok":
		o.TimeInForce = record.FOK
	case "market":
		o.Kind, o.TimeInForce = record.Market, record.IOC
	default:
		return fmt.Errorf("%q is no kind of order", how)
	}
	var err error
	if o.ID, err = strconv.ParseUint(id, 10, 64); err != nil {
		return err
	}
	if o.Side, err = parseSide(side); err != nil {
		return err
	}
	if o.Volume, o.Price, err = parseAt(at); err != nil {
		return err
	}
	o.Remaining = o.Volume
	d.match(o)
	return nil
}

func (d *driver) match(o *order.Order) {
	fills := d.book.Match(o, nil)
	for _, f := range fills {
		fmt.Fprintf(&d.out, "%d takes %d@%d of %d", o.ID, f.Volume, f.Price, f.Maker.ID)
		if f.MakerDone {
			d.out.WriteString(", which is done")
			delete(d.live, f.Maker.ID)
			d.book.Release(f.Maker)
		}
		d.out.WriteByte('\n')
	}
	switch {
	case o.Remaining == 0:
		fmt.Fprintf(&d.out, "%d is done\n", o.ID)
		d.book.Release(o)
	case o.TimeInForce != record.GFD:
		fmt.Fprintf(&d.out, "%d is cancelled with %d left\n", o.ID, o.Remaining)
		d.book.Release(o)
	default:
		d.book.Rest(o)
		d.live[o.ID] = o
		fmt.Fprintf(&d.out, "%d rests %d@%d\n", o.ID, o.Remaining, o.Price)
	}
}

func (d *driver) find(id string) (*order.Order, error) {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return nil, err
	}
	o := d.live[n]
	if o == nil {
		return nil, errors.New("no such order")
	}
	return o, nil
}

func (d *driver) cancel(id string) error {
	o, err := d.find(id)
	if err != nil {
		return err
	}
	fmt.Fprintf(&d.out, "%d is cancelled with %d left\n", o.ID, o.Remaining)
	delete(d.live, o.ID)
	d.book.Remove(o)
	d.book.Release(o)
	return nil
}

// amend does what the order router does with an amend that crosses.
func (d *driver) amend(id, at string) error {
	o, err := d.find(id)
	if err != nil {
		return err
	}
	lots, price, err := parseAt(at)
	if err != nil {
		return err
	}
	if best, _, ok := d.book.Best(o.Side.Opposite()); ok && reaches(o.Side, price, best) {
		d.book.Remove(o)
		o.Price, o.Remaining, o.Volume = price, lots, lots
		d.match(o)
		return nil
	}
	place := "keeps its place"
	if !d.book.Amend(o, price, lots) {
		place = "goes to the end"
	}
	fmt.Fprintf(&d.out, "%d is %d@%d and %s\n", o.ID, o.Remaining, o.Price, place)
	return nil
}

func (d *driver) canFill(side, at string) error {
	s, err := parseSide(side)
	if err != nil {
		return err
	}
	lots, price, err := parseAt(at)
	if err == nil {
		fmt.Fprintln(&d.out, d.book.CanFill(s, price, lots))
	}
	return err
}

func (d *driver) best() {
	for _, side := range []record.Side{record.Sell, record.Buy} {
		if price, volume, ok := d.book.Best(side); ok {
			fmt.Fprintf(&d.out, "%-4v %d@%d\n", side, volume, price)
		} else {
			fmt.Fprintf(&d.out, "%-4v none\n", side)
		}
	}
}

func (d *driver) depth(n string) error {
	levels, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	for _, side := range []record.Side{record.Sell, record.Buy} {
		fmt.Fprintf(&d.out, "%v, %d orders\n", side, d.book.Orders(side))
		for _, l := range d.book.Depth(side, levels, nil) {
			fmt.Fprintf(&d.out, "  %d: %d lots, %d orders\n", l.Price, l.Volume, l.Orders)
		}
	}
	return nil
}

func (d *driver) printBook() {
	lines := map[record.Side][]string{}
	for _, side := range []record.Side{record.Sell, record.Buy} {
		last := int64(0)
		d.book.Each(side, func(o *order.Order) bool {
			if l := lines[side]; len(l) == 0 || o.Price != last {
				lines[side] = append(l, fmt.Sprintf("%-4v %d:", side, o.Price))
			}
			last = o.Price
			l := lines[side]
			l[len(l)-1] += fmt.Sprintf(" #%d %d", o.ID, o.Remaining)
			return true
		})
	}
	for i := len(lines[record.Sell]) - 1; i >= 0; i-- {
		fmt.Fprintln(&d.out, lines[record.Sell][i])
	}
	for _, l := range lines[record.Buy] {
		fmt.Fprintln(&d.out, l)
	}
	if len(lines) == 0 {
		fmt.Fprintln(&d.out, "empty")
	}
}
