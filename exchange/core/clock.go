package core

import "time"

// clockHold is how long a systemClock trusts what it read.
const clockHold = time.Millisecond

// systemClock is the system's clock at about half the price: between two readings of
// it, at most clockHold apart, it adds what the monotonic clock says has passed. A
// step of the system's clock is followed after clockHold. It is for one goroutine at
// a time.
type systemClock struct {
	read time.Time // last reading
	unix int64     // the same in nanoseconds
}

// SystemClock returns a function that returns the system's time in Unix nanoseconds,
// for one goroutine at a time. It may lag a step of the system's clock by a
// millisecond.
func SystemClock() func() int64 { return new(systemClock).now }

// now returns Unix nanoseconds.
func (c *systemClock) now() int64 {
	if passed := time.Since(c.read); passed < clockHold {
		return c.unix + int64(passed)
	}
	c.read = time.Now()
	c.unix = c.read.UnixNano()
	return c.unix
}
