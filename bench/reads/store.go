package reads

import (
	"context"
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/bench/calm"
	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

// ours is a shard's store as a node holds it, without the log in front of it.
type ours struct {
	dir     string
	shard   *store.Shard
	streams []history.Stream
	index   uint64 // of the last entry
}

func openOurs(dir string, streams []history.Stream) (*ours, error) {
	o := &ours{dir: dir, streams: streams}
	if err := o.open(); err != nil {
		return nil, err
	}
	o.index = 1
	if err := o.shard.SetOwned(o.index, history.Symbols(streams)); err != nil {
		return nil, err
	}
	for i := range streams {
		o.index++
		if _, err := o.shard.OpenStream(o.index, streams[i].Symbol, epoch); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (o *ours) open() (err error) {
	o.shard, err = store.Open(vfs.Default, o.dir, store.Options{})
	return err
}

func (o *ours) append(_ int, b record.Batch) error {
	o.index++
	_, err := o.shard.Append(o.index, b)
	return err
}

func (o *ours) byID(ctx context.Context, stream int, id record.ID) (a answer, err error) {
	err = o.shard.Get(ctx, store.GetQuery{Instrument: o.streams[stream].Symbol, ID: id}, func(rs []record.Record) error {
		for i := range rs {
			a.add(rs[i].Bytes())
		}
		return nil
	})
	return a, err
}

func (o *ours) scan(stream int, from, to uint64) (a answer, err error) {
	it, err := o.shard.Scan(o.streams[stream].Symbol, store.ScanOptions{FromSeq: from, ToSeq: to})
	if err != nil {
		return a, err
	}
	defer it.Close()
	for it.Next() {
		rs := it.Records()
		for i := range rs {
			a.add(rs[i].Bytes())
		}
	}
	return a, it.Err()
}

func (o *ours) follow(ctx context.Context, stream int, from uint64, seen func(uint64)) error {
	sym := o.streams[stream].Symbol
	for {
		more, err := o.shard.Watch(sym)
		if err != nil {
			return err
		}
		last, err := o.shard.LastSeq(sym)
		if err != nil {
			return err
		}
		if last >= from {
			if _, err := o.scan(stream, from, last); err != nil {
				return err
			}
			seen(last)
			from = last + 1
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

func (o *ours) flush() error {
	return errors.Join(o.shard.Flush(), calm.AwaitWrites(context.Background()))
}

func (o *ours) reopen(between func(dir string) error) error {
	if err := o.close(); err != nil {
		return err
	}
	if err := between(o.dir); err != nil {
		return err
	}
	return o.open()
}

func (o *ours) close() error {
	if o.shard == nil { // a reopening has failed
		return nil
	}
	shard := o.shard
	o.shard = nil
	return shard.Close()
}
