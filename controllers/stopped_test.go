//go:build !race

package controllers

import (
	"strings"
	"testing"
)

// The same after each of the first writes of a recovery in which a member is given
// up that has its volume.
func TestOperatorStoppedWhileItIsolates(t *testing.T) {
	want := ""
	for at := range 13 {
		w := newWorld(t)
		w.loseThreeOfFive()
		if at > 0 {
			w.stopAt = w.writes + at
		}
		w.recoverFrom("futures-3")
		w.converge()
		w.expect()
		if at == 0 {
			want = w.place()
		} else if got := w.place(); got != want {
			t.Fatalf("stopped after write %d:\n%s\nwant:\n%s", at, got, want)
		}
	}
}

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
	if stops < 5 {
		t.Errorf("only %d writes", stops)
	}
}
