package core

import (
	"testing"
	"time"
)

// The clock never strays further from the system's than the two readings of the
// latter around it are apart.
func TestSystemClock(t *testing.T) {
	var c systemClock
	c.now()
	first := c.read
	const slack = int64(time.Microsecond) // the rates of the two clocks differ while one is adjusted
	for end := time.Now().Add(5 * clockHold); time.Now().Before(end); {
		before := time.Now().UnixNano()
		now := c.now()
		after := time.Now().UnixNano()
		if now < before-slack || now > after+slack {
			t.Fatalf("%d is not between %d and %d", now, before, after)
		}
	}
	c.now() // the first reading is older than clockHold, however long the test was held up
	if !c.read.After(first) {
		t.Errorf("the last reading is from %v, the first one", c.read)
	}
}
