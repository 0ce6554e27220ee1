package main

import (
	"fmt"
	"time"
)

const defaultTimeout = 10 * time.Second

// durationFlag is a positive duration whose zero value is the default timeout.
type durationFlag time.Duration

func (d *durationFlag) orDefault() time.Duration {
	if *d == 0 {
		return defaultTimeout
	}
	return time.Duration(*d)
}

// String returns the duration that is in force.
func (d *durationFlag) String() string { return d.orDefault().String() }

// Type names the flag's type in help texts.
func (d *durationFlag) Type() string { return "duration" }

// Set takes the flag's value.
func (d *durationFlag) Set(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is not a time above zero: write it like 500ms, 10s or 2m", s)
	}
	*d = durationFlag(v)
	return nil
}

// instant is a point in time, given as RFC 3339 or as Unix nanoseconds.
type instant int64

// String returns the instant in RFC 3339, or nothing for zero.
func (i *instant) String() string {
	if *i == 0 {
		return ""
	}
	return clock(int64(*i))
}

// Type names the flag's type in help texts.
func (i *instant) Type() string { return "time" }

// Set takes the flag's value.
func (i *instant) Set(s string) error {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		*i = instant(t.UnixNano())
		return nil
	}
	var ns int64
	var rest string
	if n, _ := fmt.Sscanf(s, "%d%s", &ns, &rest); n == 1 && ns > 0 {
		*i = instant(ns)
		return nil
	}
	return fmt.Errorf("%q is not a time: write it like 2025-01-17T09:30:00Z, or as Unix nanoseconds", s)
}

// clock prints Unix nanoseconds as a time of day with its date, in UTC.
func clock(ns int64) string {
	return time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000000000Z")
}
