package orderflow

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestLines(t *testing.T) {
	l, err := NewLines(strings.NewReader("\na\n\n\nb,c"))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := l.Next(); !ok || string(got) != "a" || l.Number() != 2 {
		t.Errorf("line %d: %q, %v", l.Number(), got, ok)
	}
	if got, ok := l.Next(); !ok || string(got) != "b,c" || l.Number() != 5 {
		t.Errorf("line %d: %q, %v", l.Number(), got, ok)
	}
	if _, ok := l.Next(); ok || l.Err() != nil {
		t.Errorf("after the end: %v, %v", ok, l.Err())
	}
}

func TestLinesReportsReadErrors(t *testing.T) {
	broken := errors.New("disk on fire")
	if _, err := NewLines(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	l, err := NewLines(io.MultiReader(strings.NewReader("a\nb\n"), iotest.ErrReader(broken)))
	if err != nil {
		t.Fatal(err)
	}
	for ok := true; ok; {
		_, ok = l.Next()
	}
	if err := l.Err(); !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "line 3: ") {
		t.Errorf("%v", err)
	}
}

func TestFields(t *testing.T) {
	var f [3][]byte
	for line, want := range map[string]bool{"a,b,c": true, ",,": true, "a,b": false, "a,b,c,d": false, "": false, "a": false} {
		if got := Fields([]byte(line), f[:]); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
	if Fields([]byte("x,,yz"), f[:]); string(f[0]) != "x" || len(f[1]) != 0 || string(f[2]) != "yz" {
		t.Errorf("%q", f)
	}
}
