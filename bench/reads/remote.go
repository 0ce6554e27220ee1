package reads

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/bench/child"
	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

const remoteNote = "one replica in a process of its own, asked as the leader by one caller of storagenode/client, over gRPC on loopback"

// remote is a node that is asked over gRPC.
type remote struct {
	node    *child.Node
	records uint64 // of each stream
	epoch   uint64 // of the latest writer
}

// startRemote fills a node with so many records of each stream.
func startRemote(ctx context.Context, dir string, streams []history.Stream, records uint64) (*remote, error) {
	n, err := child.Start(ctx, dir, streams)
	if err != nil {
		return nil, err
	}
	r := &remote{node: n}
	if err := r.write(ctx, child.Load{Batch: 1000, Batches: int(records/1000) * len(streams)}); err != nil {
		n.Close()
		return nil, err
	}
	r.records = records / 1000 * 1000
	return r, nil
}

// write sends a load as a writer of its own.
func (r *remote) write(ctx context.Context, l child.Load) error {
	r.epoch++
	w, err := r.node.Open(ctx, r.epoch)
	if err != nil {
		return err
	}
	return w.Write(ctx, l)
}

func (r *remote) point(kind record.IDKind) read {
	a := newAsker(r.node.Streams, r.records)
	return func(ctx context.Context) (n uint64, err error) {
		stream, id := a.id(kind)
		by := client.ByID{Order: id.Value}
		if kind == record.TradeID {
			by = client.ByID{Trade: id.Value}
		}
		err = r.node.Client.Get(ctx, r.node.Streams[stream].Symbol, by, client.Replica{}, func(rs []record.Record) error {
			n += uint64(len(rs))
			return nil
		})
		if err == nil && n == 0 {
			err = fmt.Errorf("the node has no %s %d", id.Kind, id.Value)
		}
		return n, err
	}
}

// window reads a range of n records, or a whole stream for n 0.
func (r *remote) window(n uint64) read {
	a := newAsker(r.node.Streams, r.records)
	if n == 0 {
		n = r.records
	}
	return func(ctx context.Context) (got uint64, err error) {
		stream, from, to := a.span(n)
		err = r.node.Client.Scan(ctx, r.node.Streams[stream].Symbol, client.Range{FromSeq: from, ToSeq: to}, client.Replica{}, func(rs []record.Record) error {
			got += uint64(len(rs))
			return nil
		})
		if err == nil && got != n {
			err = fmt.Errorf("the node: %d records of a range of %d", got, n)
		}
		return got, err
	}
}

// beside is filled.beside, over ingest.
func (r *remote) beside(ctx context.Context, do func(context.Context) (measure.Sample, error)) (measure.Sample, error) {
	writeCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var writeErr error
	wg.Go(func() {
		writeErr = r.write(writeCtx, child.Load{Batch: writeRecords, Endless: true, Interval: writeTick})
	})
	s, err := do(ctx)
	cancel()
	wg.Wait()
	if errors.Is(writeErr, context.Canceled) {
		writeErr = nil
	}
	s.More = map[string]float64{"written records/s": writeRecords / writeTick.Seconds()}
	return s, errors.Join(writeErr, err)
}

// tail follows stream 0 while batches are written to all streams in turn. Beside it
// stands how long the acknowledgement took, which needs the same commit.
func (r *remote) tail(ctx context.Context, d time.Duration) (measure.Sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lasts, err := r.node.LastSeqs(ctx, "")
	if err != nil {
		return measure.Sample{}, err
	}
	batches := int(d / tailTick)
	w := newStopwatch(lasts[0], batches)
	failed := make(chan error, 1)
	go func() {
		failed <- r.node.Client.Tail(ctx, r.node.Streams[0].Symbol, lasts[0]+1, client.Replica{}, func(rs []record.Record) error {
			w.stop(rs[len(rs)-1].Seq)
			return nil
		})
	}()
	acked := measure.NewHistogram()
	err = r.write(ctx, child.Load{
		Batch: tailBatch, Batches: batches * len(lasts), Interval: tailTick / time.Duration(len(lasts)),
		Sending: func(stream int, last uint64) {
			if stream == 0 {
				w.start(last)
			}
		},
		Acked: func(stream int, _ uint64, took time.Duration) {
			if stream == 0 {
				acked.Record(took)
			}
		},
	})
	if err != nil {
		return measure.Sample{}, err
	}
	s, err := w.sample(ctx, failed)
	if err != nil {
		return s, err
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		return s, fmt.Errorf("the follower ended: %w", err)
	}
	l := acked.Latency()
	s.More = map[string]float64{"acknowledged p50 µs": float64(l.P50) / 1e3, "acknowledged p99 µs": float64(l.P99) / 1e3}
	return s, nil
}
