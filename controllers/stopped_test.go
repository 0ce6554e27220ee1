//go:build !race

package controllers

import (
	"strings"
	"testing"
)

// The operator is stopped after every single write that it makes, and started
// again: the shard ends in the same place, and nothing that must not be was done
// on the way.
func TestOperatorStoppedAfterEveryWrite(t *testing.T) {
	for name, run := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stopAfterEveryWrite(t, newWorld, run)
		})
	}
}

func stopAfterEveryWrite(t *testing.T, newWorld func(*testing.T) *world, run func(*world)) {
	w := newWorld(t)
	run(w)
	want, stops := w.place(), 0
	for at := 1; ; at++ {
		w := newWorld(t)
		w.stopAt = at
		run(w)
		if len(w.broken) > 0 {
			t.Fatalf("stopped after write %d: %s", at, strings.Join(w.broken, "\n"))
		}
		if got := w.place(); got != want {
			t.Fatalf("stopped after write %d:\n%s\nwant:\n%s", at, got, want)
		}
		w.expect()
		if w.writes < at {
			break
		}
		stops++
	}
	t.Logf("stopped after each of %d writes", stops)
	if stops < 10 {
		t.Errorf("only %d writes", stops)
	}
}
