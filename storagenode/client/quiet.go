package client

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// receiver is the part of a stream of records that reading it needs.
type receiver interface {
	Recv() (*storagepb.Records, error)
}

// quiet ends a stream on which no message comes in time, so that the read goes
// on at another node. The time the caller takes for a message does not count.
type quiet struct {
	receiver
	within time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	ctx    context.Context
}

var errQuiet = status.Error(codes.DeadlineExceeded, "the node sent nothing in time")

// watchQuiet returns a context for opening the stream, which must be opened in
// time, too.
func watchQuiet(ctx context.Context, within time.Duration) (context.Context, *quiet) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &quiet{within: within, ctx: ctx, cancel: cancel, timer: time.AfterFunc(within, func() { cancel(errQuiet) })}
}

func (q *quiet) stop() {
	q.timer.Stop()
	q.cancel(nil)
}

func (q *quiet) watch(r receiver) *quiet {
	q.receiver = r
	return q
}

// Recv returns the next message, or errQuiet when it took too long.
func (q *quiet) Recv() (*storagepb.Records, error) {
	q.timer.Reset(q.within)
	m, err := q.receiver.Recv()
	q.timer.Stop()
	if err != nil && context.Cause(q.ctx) == errQuiet { //nolint:errorlint // the very value
		return nil, errQuiet
	}
	return m, err
}
