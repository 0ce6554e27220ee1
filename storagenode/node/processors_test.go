package node

import "testing"

func TestProcessors(t *testing.T) {
	for _, c := range []struct {
		asked        string
		chosen, want int
	}{{"", 2, 4}, {"", 64, 66}, {"3", 3, 3}, {"no number", 2, 2}} {
		if got := processors(c.asked, c.chosen); got != c.want {
			t.Errorf("GOMAXPROCS=%q, %d processors: %d, want %d", c.asked, c.chosen, got, c.want)
		}
	}
}
