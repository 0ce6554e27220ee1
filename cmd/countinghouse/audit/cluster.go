package audit

import (
	"context"
	"fmt"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// Cluster reads the members of a cluster, each its own records.
type Cluster struct{ Client *client.Client }

// Scan implements Source.
func (c Cluster) Scan(ctx context.Context, _, member string, sym record.Symbol, first, last uint64, yield func([]record.Record) error) error {
	return c.Client.Scan(ctx, sym, client.Range{FromSeq: first, ToSeq: last}, client.Replica{Member: member}, yield)
}

// LastSeq implements Source.
func (c Cluster) LastSeq(ctx context.Context, shard, member string, sym record.Symbol) (uint64, error) {
	held, err := c.Client.Instruments(ctx, shard, client.Replica{Member: member})
	if err != nil {
		return 0, err
	}
	for _, st := range held.Instruments {
		if st.Instrument == sym.String() {
			return st.LastSeq, nil
		}
	}
	return 0, nil
}

// Streams returns the streams of a shard map, with all members of their shards.
func Streams(m *client.Map) ([]Stream, error) {
	var streams []Stream
	for _, s := range m.Shards {
		members := make([]string, len(s.Members))
		for i := range s.Members {
			members[i] = s.Members[i].ID
		}
		for _, name := range s.Instruments {
			sym, err := record.MakeSymbol(name)
			if err != nil {
				return nil, fmt.Errorf("shard map: shard %s: %w", s.Name, err)
			}
			streams = append(streams, Stream{Shard: s.Name, Instrument: sym, Members: members})
		}
	}
	return streams, nil
}
