package ingest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/record"
)

// Suite returns the suite "ingest".
func Suite() measure.Suite {
	return measure.Suite{
		Name:  "ingest",
		About: "records/s acknowledged as durable on 3 replicas, one machine and disk; latency of a batch from hand-over to acknowledgement; GOMAXPROCS is two above the cores",
		// As package node does it, but for everybody: it helps whoever writes to files.
		MoreProcessors: 2,
		Run:            run,
	}
}

// systems in the order of the tables.
var systems = []system{floor, overGRPC, inProcess, raftOnBolt, raftOnWAL, boatOnTan, jetStream, etcdKV}

const (
	warmBatches     = 300
	warmTime        = 500 * time.Millisecond
	measureTime     = 2 * time.Second
	measureTimeFast = 1500 * time.Millisecond

	// Three replicas write what they are given once or twice: at most 4 GB a run.
	bytesMax = 640 << 20
)

type shape struct{ records, window, shards int }

func (s shape) String() string {
	name := fmt.Sprintf("batch %d, %d in flight, %d shard", s.records, s.window, s.shards)
	if s.shards > 1 {
		name += "s"
	}
	return name
}

var (
	quickShapes = []shape{{1000, 8, 1}, {100, 1, 1}}
	fullShapes  = []shape{
		{1, 1, 1}, {1, 8, 1}, {100, 1, 1}, {100, 8, 1}, {1000, 1, 1}, {1000, 8, 1},
		// More shards are told apart where there is enough in flight.
		{100, 8, 4}, {1000, 8, 4},
	}
)

func run(ctx context.Context, b *measure.Bench) error {
	shapes, t := fullShapes, measureTime
	if b.Quick {
		shapes, t = quickShapes, measureTimeFast
	}
	for _, s := range shapes {
		l := load{
			shards: s.shards, window: s.window, records: s.records,
			warmBatches: warmBatches, warmTime: warmTime, measureTime: t, bytesMax: bytesMax,
		}
		var contestants []measure.Contestant
		for _, sys := range systems {
			contestants = append(contestants, contestant(b, sys, l))
		}
		if err := b.Compare(ctx, measure.Case{Name: s.String(), Unit: "records/s"}, contestants...); err != nil {
			return err
		}
	}
	return nil
}

func contestant(b *measure.Bench, sys system, l load) measure.Contestant {
	return measure.Contestant{
		System: sys.name, Ours: sys.ours, Durable: sys.durable, Note: sys.note,
		Run: func(ctx context.Context) (measure.Sample, error) {
			dir, remove, err := b.Dir()
			if err != nil {
				return measure.Sample{}, err
			}
			defer remove()
			r, err := runOnce(ctx, sys, dir, l)
			if err != nil {
				return measure.Sample{}, err
			}
			return measure.Sample{Value: r.perSecond(), Latency: r.latency, More: r.more()}, nil
		},
	}
}

// runOnce opens a cluster, drives it and closes it.
func runOnce(ctx context.Context, sys system, dir string, l load) (result, error) {
	batch := makeBatch(l.records)
	if err := settle(dir); err != nil {
		return result{}, err
	}
	c, err := sys.open(ctx, dir, l.shards)
	if err != nil {
		return result{}, err
	}
	r, err := drive(ctx, c, batch, l)
	return r, errors.Join(err, c.Close())
}

// settle ends what the run before has left behind: garbage, and what is not on the
// disk yet.
func settle(dir string) error {
	debug.FreeOSMemory()
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// makeBatch returns records of an order flow, one after another.
func makeBatch(n int) []byte {
	rs := make([]record.Record, n)
	for i := range rs {
		seq := uint64(i + 1)
		r := &rs[i]
		r.Version, r.Type, r.Seq, r.Global, r.Time = record.Version, record.TypeOrderInsert, seq, seq, int64(seq)*1000
		r.Instrument = record.MustSymbol("I")
		o := r.OrderInsert()
		o.OrderID, o.Account, o.Price, o.Volume = seq, seq%7+1, int64(seq%100), 1
	}
	return record.SliceBytes(rs)
}
