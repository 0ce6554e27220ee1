package output

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestTableAlignsNumbersRight(t *testing.T) {
	var b strings.Builder
	New(Human, &b, nil).Table([]string{"shard", "records", "state"}, [][]string{
		{"s1", "1,234", "leader"}, {"shard-2", "7", "é"},
	})
	want := "" +
		"shard    records  state\n" +
		"s1         1,234  leader\n" +
		"shard-2        7  é\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	New(Human, &b, nil).Table([]string{"", ""}, [][]string{{"lost", "0"}})
	if b.String() != "lost  0\n" {
		t.Errorf("a table without a header: %q", b.String())
	}
}

func TestPipedOutputHasNoEscapes(t *testing.T) {
	var out, progress strings.Builder
	p := New(Human, &out, &progress)
	p.Progress("half %d%%", 50)
	p.Note("killed")
	p.Line("verdict %s", p.Good("ok"))
	if got := out.String() + progress.String(); strings.Contains(got, "\x1b") || strings.Contains(got, "\r") {
		t.Errorf("escape sequences in %q", got)
	}
	if progress.String() != "half 50%\nkilled\n" || out.String() != "verdict ok\n" {
		t.Errorf("got %q and %q", out.String(), progress.String())
	}
}

func TestJSONIsOneLine(t *testing.T) {
	var b strings.Builder
	if err := New(JSON, &b, nil).JSON(map[string]any{"ok": true, "seed": 7}); err != nil {
		t.Fatal(err)
	}
	if b.String() != "{\"ok\":true,\"seed\":7}\n" {
		t.Errorf("got %q", b.String())
	}
	if err := New(JSON, &b, nil).JSON(func() {}); err == nil {
		t.Error("a value that has no JSON form must give an error")
	}
}

func TestFormatFlag(t *testing.T) {
	var f Format
	if err := f.Set("json"); err != nil || f != JSON {
		t.Errorf("%v, %q", err, f)
	}
	if err := f.Set("xml"); err == nil || !strings.Contains(err.Error(), `"json"`) {
		t.Errorf("an unknown format must be answered with the known ones: %v", err)
	}
}

func TestUnits(t *testing.T) {
	for got, want := range map[string]string{
		Count(0): "0", Count(999): "999", Count(1000): "1,000", Count(-1234567): "-1,234,567", Count(uint64(1) << 63): "9,223,372,036,854,775,808",
		Bytes(0): "0 B", Bytes(1023): "1023 B", Bytes(1024): "1.0 KiB", Bytes(3 << 30): "3.0 GiB",
		Nanos(0): "0 ns", Nanos(999): "999 ns", Nanos(1500): "1.5 µs", Nanos(2_000_000): "2.0 ms", Nanos(3_500_000_000): "3.50 s",
		Clip("abcdef", 4): "abc…", Clip("abc", 4): "abc",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestExitCodes(t *testing.T) {
	base := errors.New("no")
	wrapped := fmt.Errorf("scan: %w", Exit(ExitUsage, base))
	if ExitCode(nil) != ExitOK || ExitCode(base) != ExitFailed || ExitCode(wrapped) != ExitUsage {
		t.Error("exit codes are wrong")
	}
	if !errors.Is(wrapped, base) || Exit(ExitUsage, nil) != nil {
		t.Error("Exit must wrap its cause and keep nil")
	}
}
