package subscriber

import (
	"context"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// Storage is the part of the storage client that lanes use. Lanes call it
// concurrently.
type Storage interface {
	// OpenStream opens an instrument's stream with an epoch, as
	// client.Client.OpenStream does.
	OpenStream(ctx context.Context, sym record.Symbol, epoch uint64) (client.OpenResult, error)
	// Append starts a stream of batches to a shard's leader, until ctx ends.
	Append(ctx context.Context, shard string) (Stream, error)
}

// Stream is a stream of batches, as client.Appender. Send and Recv are called
// by one goroutine each; a batch's bytes stay as they are until its answer.
type Stream interface {
	Send(batch []byte) error
	Recv() (client.Ack, error)
	Close()
}

// FromClient returns the Storage that c reaches.
func FromClient(c *client.Client) Storage { return clientStorage{c} }

type clientStorage struct{ c *client.Client }

func (s clientStorage) OpenStream(ctx context.Context, sym record.Symbol, epoch uint64) (client.OpenResult, error) {
	return s.c.OpenStream(ctx, sym, epoch)
}

func (s clientStorage) Append(ctx context.Context, shard string) (Stream, error) {
	a, err := s.c.Append(ctx, shard)
	if err != nil {
		return nil, err // not a nil *Appender in an interface
	}
	return a, nil
}
