// Package output prints what the command line has to say: aligned tables and
// progress for people, JSON for machines.
package output

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// Format is how results are printed.
type Format string

// The formats.
const (
	Human Format = "table"
	JSON  Format = "json"
)

// String returns the format's name.
func (f *Format) String() string { return string(*f) }

// Type names the flag's type in help texts.
func (f *Format) Type() string { return "format" }

// Set takes the value of the -o flag.
func (f *Format) Set(s string) error {
	switch Format(s) {
	case Human, JSON:
		*f = Format(s)
		return nil
	}
	return fmt.Errorf("unknown output format %q: use %q or %q", s, Human, JSON)
}

// Printer writes results to one stream and progress to another. It is for use
// by one goroutine.
type Printer struct {
	Format Format
	out    io.Writer
	live   io.Writer // progress; nil when nobody watches
	colour bool
	width  int
	drawn  bool // a progress line is on the screen

	told   string // format of the last progress line that was printed elsewhere
	toldAt time.Time
}

const (
	widthDefault = 80
	widthMin     = 20 // what is narrower is not believed
)

// New returns a printer of results to out. Progress goes to progress, in place
// when that is a terminal and as plain lines otherwise.
func New(format Format, out, progress io.Writer) *Printer {
	p := &Printer{Format: format, out: out, live: progress, width: widthDefault}
	if width, terminal := Width(out); terminal {
		p.colour, p.width = os.Getenv("NO_COLOR") == "", width
	}
	return p
}

// Width returns the width in columns of the terminal that w is, and whether it is
// one.
func Width(w io.Writer) (columns int, terminal bool) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > widthMin {
		return columns, true
	}
	return widthDefault, true
}

// JSON prints v as one line of JSON.
func (p *Printer) JSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	_, err = fmt.Fprintf(p.out, "%s\n", b)
	return err
}

// Line prints a line of human text.
func (p *Printer) Line(format string, args ...any) {
	p.endProgress()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// tellEvery is the pause between two lines of the same work where they add up.
const tellEvery = 400 * time.Millisecond

// Progress shows what long work is doing: one line that replaces the one before
// on a terminal, a line of its own now and then elsewhere.
func (p *Printer) Progress(format string, args ...any) {
	if p.live == nil {
		return
	}
	line := fmt.Sprintf(format, args...)
	f, ok := p.live.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		if format != p.told || time.Since(p.toldAt) >= tellEvery {
			p.told, p.toldAt = format, time.Now()
			fmt.Fprintln(p.live, line)
		}
		return
	}
	fmt.Fprintf(p.live, "\r\x1b[K%s", Clip(line, p.width-1))
	p.drawn = true
}

// Note prints a line that stays among the progress.
func (p *Printer) Note(format string, args ...any) {
	if p.live == nil {
		return
	}
	p.endProgress()
	fmt.Fprintf(p.live, format+"\n", args...)
}

func (p *Printer) endProgress() {
	if p.drawn {
		fmt.Fprint(p.live, "\r\x1b[K")
		p.drawn = false
	}
}

// Good and Bad colour a verdict where colours are on.
func (p *Printer) Good(s string) string { return p.paint("32", s) }

// Bad colours s as a failure where colours are on.
func (p *Printer) Bad(s string) string { return p.paint("31", s) }

func (p *Printer) paint(code, s string) string {
	if !p.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// Table prints rows below a header, which is left out when it says nothing.
// Columns are aligned: those whose cells are all numbers to the right, others to
// the left.
func (p *Printer) Table(header []string, rows [][]string) {
	p.endProgress()
	widths, right := measure(header, rows)
	write := func(cells []string) {
		var b strings.Builder
		for i, c := range cells {
			pad := strings.Repeat(" ", max(0, widths[i]-utf8.RuneCountInString(c)))
			switch {
			case right[i]:
				b.WriteString(pad + c)
			case i < len(cells)-1:
				b.WriteString(c + pad)
			default:
				b.WriteString(c)
			}
			if i < len(cells)-1 {
				b.WriteString("  ")
			}
		}
		fmt.Fprintln(p.out, strings.TrimRight(b.String(), " "))
	}
	if strings.Join(header, "") != "" {
		write(header)
	}
	for _, row := range rows {
		write(row)
	}
}

func measure(header []string, rows [][]string) (widths []int, right []bool) {
	widths, right = make([]int, len(header)), make([]bool, len(header))
	for i, h := range header {
		widths[i], right[i] = utf8.RuneCountInString(h), len(rows) > 0
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
			right[i] = right[i] && numeric(row[i])
		}
	}
	return widths, right
}

func numeric(s string) bool {
	return s == "" || s == "-" || strings.Trim(s, "0123456789., -+%") == ""
}

// Clip cuts s to width columns.
func Clip(s string, width int) string {
	if r := []rune(s); len(r) > width && width > 1 {
		return string(r[:width-1]) + "…"
	}
	return s
}

// Count prints n with separators between the thousands.
func Count[T ~int | ~int32 | ~int64 | ~uint32 | ~uint64](n T) string {
	s := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// Bytes prints n in the largest binary unit in which it is at least 1.
func Bytes(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// Nanos prints a duration given in nanoseconds with three digits or so.
func Nanos(ns int64) string {
	switch v := float64(ns); {
	case ns < 1000:
		return fmt.Sprintf("%d ns", ns)
	case ns < 1_000_000:
		return fmt.Sprintf("%.1f µs", v/1e3)
	case ns < 1_000_000_000:
		return fmt.Sprintf("%.1f ms", v/1e6)
	default:
		return fmt.Sprintf("%.2f s", v/1e9)
	}
}

// The exit codes of the command line.
const (
	ExitOK          = 0
	ExitFailed      = 1 // the work was done and found something wrong
	ExitUsage       = 2 // the command's words or a file it was given are wrong
	ExitUnavailable = 3 // a server could not be reached or is not ready
	ExitInterrupted = 130
)

// ExitError is an error that decides the exit code.
type ExitError struct {
	Code int
	Err  error
}

// Error returns the cause's text.
func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// Exit wraps err with an exit code; a nil err stays nil.
func Exit(code int, err error) error {
	if err == nil {
		return nil
	}
	return &ExitError{Code: code, Err: err}
}

// ExitCode returns the code that err decides, ExitFailed when it decides none.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	var e *ExitError
	if errors.As(err, &e) {
		return e.Code
	}
	return ExitFailed
}
