package exchange

import (
	"context"
	"errors"
	"time"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// RebuildOptions say what Rebuild reads from.
type RebuildOptions struct {
	// From names the replica that is read for a shard; nil, or a zero Replica,
	// means the shard's leader.
	From func(shard string) client.Replica
	// Progress, if set, is told how many records of how many were applied.
	Progress func(done, total uint64)
}

// Rebuilt is an exchange that was made of stored records alone.
type Rebuilt struct {
	// Exchange has a gateway without room for further records.
	Exchange *core.Exchange
	State    core.State
	Global   uint64 // of the last record
	Records  uint64
	LastSeqs map[record.Symbol]uint64 // by stream
	Took     time.Duration
}

// Rebuild replays what the shards of the client's map hold into an independent
// exchange. It returns rebuild's errors for numbers that are missing or doubled,
// transactions without an end, and records that contradict each other.
func Rebuild(ctx context.Context, c *client.Client, o RebuildOptions) (*Rebuilt, error) {
	return nil, errors.ErrUnsupported
}
