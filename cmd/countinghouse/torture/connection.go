package torture

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

const attemptTimeout = time.Second

// connection is a host's client of the cluster, made anew when the members of a
// shard have changed. It is for one goroutine.
type connection struct {
	t       *torture
	host    string
	c       *client.Client
	members uint64 // t.members when c was made
}

func (h *connection) client() (*client.Client, error) {
	members := h.t.members.Load()
	if h.c != nil && h.members == members {
		return h.c, nil
	}
	h.close()
	dial, err := h.t.net.Dialer(h.host)
	if err != nil {
		return nil, err
	}
	h.c, err = client.New(h.t.cluster.Map(), client.Options{
		AttemptTimeout: attemptTimeout, RetryPauseMax: 100 * time.Millisecond,
		Dial: []grpc.DialOption{grpc.WithContextDialer(dial)},
	})
	h.members = members
	return h.c, err
}

func (h *connection) close() {
	if h.c != nil {
		_ = h.c.Close() // what matters was answered before
		h.c = nil
	}
}

// canHappen reports whether faults explain an error: the node was not there, was
// not the leader, or took too long.
func canHappen(err error) bool {
	if r := refusal.FromError(err); r != nil {
		return refusal.Retryable(r.Code)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}
