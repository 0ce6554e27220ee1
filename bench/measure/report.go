package measure

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"
)

// Report is everything that one suite measured.
type Report struct {
	Suite       string       `json:"suite"`
	About       string       `json:"about"`
	Time        time.Time    `json:"time"`
	Took        string       `json:"took"`
	Machine     Machine      `json:"machine"`
	Quick       bool         `json:"quick"`
	Runs        int          `json:"runs"`
	Points      []Point      `json:"points"`
	Comparisons []Comparison `json:"comparisons"`
}

// Comparison sets one of our figures beside one of another system in the same case.
type Comparison struct {
	Name          string  `json:"name"`
	Ours          float64 `json:"ours"`
	Theirs        float64 `json:"theirs"`
	Unit          string  `json:"unit"`
	Ratio         float64 `json:"ratio"` // ours / theirs
	LowerIsBetter bool    `json:"lower_is_better"`
	// Decided is false where the ranges of the runs overlap: the difference may be chance.
	Decided bool `json:"decided"`
}

// Better says whether ours is at least as good as theirs, by the medians.
func (c *Comparison) Better() bool { return c.LowerIsBetter == (c.Ratio < 1) || c.Ratio == 1 }

// Report returns what the suite measured so far.
func (b *Bench) Report(s Suite, m Machine, start time.Time) Report {
	return Report{
		Suite: s.Name, About: s.About, Time: start.UTC().Truncate(time.Second),
		Took:    time.Since(start).Round(time.Second).String(),
		Machine: m, Quick: b.Quick, Runs: max(b.Runs, 1),
		Points: b.points, Comparisons: compare(s.Name, b.points),
	}
}

func compare(suite string, points []Point) []Comparison {
	out := []Comparison{}
	for i := range points {
		ours := &points[i]
		if !ours.Ours {
			continue
		}
		for j := range points {
			theirs := &points[j]
			if theirs.Ours || theirs.Case != ours.Case || theirs.Unit != ours.Unit || theirs.Value == 0 {
				continue
			}
			out = append(out, Comparison{
				Name: fmt.Sprintf("%s: %s: %s / %s", suite, ours.Case, ours.System, theirs.System),
				Ours: ours.Value, Theirs: theirs.Value, Unit: ours.Unit,
				Ratio: ours.Value / theirs.Value, LowerIsBetter: ours.LowerIsBetter,
				Decided: ours.Min() > theirs.Max() || ours.Max() < theirs.Min(),
			})
		}
	}
	return out
}

// WriteJSON writes v, indented, to a file, whose directory it creates.
func WriteJSON(name string, v any) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

// Print writes the report's tables: one a case, ratios against the first of ours.
func (r *Report) Print(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "\n%s: %s\n", r.Suite, r.About); err != nil {
		return err
	}
	for start := 0; start < len(r.Points); {
		end := start
		for end < len(r.Points) && r.Points[end].Case == r.Points[start].Case && r.Points[end].Unit == r.Points[start].Unit {
			end++
		}
		if err := printCase(w, r.Points[start:end]); err != nil {
			return err
		}
		start = end
	}
	return printLegend(w, r.Points)
}

func printCase(w io.Writer, points []Point) error {
	var ours *Point
	for i := range points {
		if points[i].Ours && ours == nil {
			ours = &points[i]
		}
	}
	_, _ = fmt.Fprintf(w, "\n  %s\n", points[0].Case)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "  \t%s\tmin–max\tours/it\tp50\tp99\tp99.9\tmax\t\n", points[0].Unit)
	for i := range points {
		p := &points[i]
		_, _ = fmt.Fprintf(t, "  %s\t%s\t%s–%s\t%s\t%s\n", p.System, Number(p.Value), Number(p.Min()), Number(p.Max()), ratio(ours, p), latencies(p.Latency))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return printMore(w, points)
}

// ratio is marked with ~ where the difference is not decided.
func ratio(ours, p *Point) string {
	if ours == nil || ours == p || p.Value == 0 {
		return ""
	}
	s := fmt.Sprintf("%.2f", ours.Value/p.Value)
	if ours.Min() <= p.Max() && p.Min() <= ours.Max() {
		return "~" + s
	}
	return s
}

func latencies(l *Latency) string {
	if l == nil {
		return "\t\t\t\t"
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t", span(l.P50), span(l.P99), span(l.P999), span(l.Max))
}

// printMore writes the further figures of a case.
func printMore(w io.Writer, points []Point) error {
	for _, p := range points {
		var parts []string
		for _, name := range sortedKeys(p.More) {
			parts = append(parts, name+" "+Number(p.More[name]))
		}
		if len(parts) == 0 {
			continue
		}
		if err := printWrapped(w, "    "+p.System+": ", strings.Join(parts, "; ")); err != nil {
			return err
		}
	}
	return nil
}

// printLegend writes once what is to be known of the contestants.
func printLegend(w io.Writer, points []Point) error {
	var texts []string
	systems := map[string][]string{}
	for _, p := range points {
		text := strings.Join(slices.DeleteFunc([]string{p.Durable, p.Note}, func(s string) bool { return s == "" }), "; ")
		if text == "" || slices.Contains(systems[text], p.System) {
			continue
		}
		if systems[text] == nil {
			texts = append(texts, text)
		}
		systems[text] = append(systems[text], p.System)
	}
	for i, text := range texts {
		head := "  " + strings.Join(systems[text], ", ") + ": "
		if i == 0 {
			head = "\n" + head
		}
		if err := printWrapped(w, head, text); err != nil {
			return err
		}
	}
	return nil
}

// lineWidth is what a terminal shows of a line without breaking it.
const lineWidth = 100

// printWrapped writes text behind head, in lines that are broken between words.
func printWrapped(w io.Writer, head, text string) error {
	margin := strings.TrimPrefix(head, "\n")
	indent := strings.Repeat(" ", len(margin)-len(strings.TrimLeft(margin, " "))+2)
	line := head
	for i, word := range strings.Fields(text) {
		if i > 0 && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > lineWidth {
			if _, err := fmt.Fprintln(w, strings.TrimRight(line, " ")); err != nil {
				return err
			}
			line = indent
		} else if i > 0 {
			line += " "
		}
		line += word
	}
	_, err := fmt.Fprintln(w, strings.TrimRight(line, " "))
	return err
}
