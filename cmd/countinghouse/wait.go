package main

import (
	"context"
	"errors"
	"time"
)

var errNoAnswer = errors.New("no answer within the timeout")

// untilFirst returns a context that ends, with errNoAnswer as its cause, unless
// started is called within d.
func untilFirst(parent context.Context, d time.Duration) (ctx context.Context, started func()) {
	ctx, cancel := context.WithCancelCause(parent)
	timer := time.AfterFunc(d, func() { cancel(errNoAnswer) })
	return ctx, func() { timer.Stop() }
}
