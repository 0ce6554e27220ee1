package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countinghouse/countinghouse/bench/child"
	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/record"
)

// Suite returns the suite "recovery", which kills, restarts and refills storage nodes.
func Suite() measure.Suite {
	return measure.Suite{
		Name:  "recovery",
		About: "a storage node after kill -9, a snapshot to an empty replica, and what flushes and snapshots cost writers; aim: ≥ 5 M records/s recovered",
		Run:   run,
	}
}

// SizesVariable names the environment variable with the sizes, in GB and separated by
// commas, with which a node is killed: the largest needs as much room twice.
const SizesVariable = "BENCH_RECOVERY_GB"

// size is how much is measured.
type size struct {
	restarts []int64 // bytes of records in the shard
	tail     int64   // bytes of records that are written before each kill
	replay   int64   // bytes of records that are in the log only; below 200 MB
	snapshot int64   // bytes of records of the snapshot
	window   time.Duration
}

func sizeOf(b *measure.Bench) (size, error) {
	if b.Quick {
		return size{restarts: []int64{100e6}, tail: 20e6, replay: 100e6, snapshot: 100e6, window: time.Second}, nil
	}
	z := size{restarts: []int64{1e9, 4e9}, tail: 100e6, replay: 200e6, snapshot: 1e9, window: 5 * time.Second}
	if s := os.Getenv(SizesVariable); s != "" {
		z.restarts = nil
		for _, gb := range strings.Split(s, ",") {
			n, err := strconv.ParseFloat(gb, 64)
			if err != nil || n <= 0 {
				return z, fmt.Errorf("%s=%s: give numbers above 0, separated by commas", SizesVariable, s)
			}
			z.restarts = append(z.restarts, int64(n*1e9))
		}
		slices.Sort(z.restarts)
	}
	return z, nil
}

const (
	streamCount = 4
	fillBatch   = 4000 // records
	answerTime  = 2 * time.Minute
	pollTime    = time.Millisecond
)

func run(ctx context.Context, b *measure.Bench) error {
	z, err := sizeOf(b)
	if err != nil {
		return err
	}
	return runSize(ctx, b, z)
}

func runSize(ctx context.Context, b *measure.Bench, z size) error {
	for _, cases := range []func(context.Context, *measure.Bench, size) error{restarts, replays, snapshots, writers} {
		if err := cases(ctx, b, z); err != nil {
			return err
		}
	}
	return nil
}

// member is a node with what it has acknowledged.
type member struct {
	*child.Node
	epoch uint64
	acked []uint64 // last seq, by stream
}

// start starts a node below dir.
func start(ctx context.Context, dir string, args ...string) (*member, error) {
	n, err := child.Start(ctx, dir, history.Streams(streamCount), args...)
	if err != nil {
		return nil, err
	}
	return &member{Node: n, acked: make([]uint64, streamCount)}, nil
}

// write sends a load as a writer of its own.
func (m *member) write(ctx context.Context, l child.Load) error {
	m.epoch++
	w, err := m.Open(ctx, m.epoch)
	if err != nil {
		return err
	}
	err = w.Write(ctx, l)
	m.acked = w.Last()
	return err
}

// fill writes so many bytes of records.
func (m *member) fill(ctx context.Context, bytes int64) error {
	return m.write(ctx, child.Load{Batch: fillBatch, Batches: child.BatchesFor(bytes, fillBatch)})
}

func (m *member) records() (n uint64) {
	for _, last := range m.acked {
		n += last
	}
	return n
}

// crash kills the node, starts it again, and returns how long it took until it
// answered with everything that was acknowledged.
func (m *member) crash(ctx context.Context) (time.Duration, error) {
	if err := m.Kill(); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := m.Restart(ctx); err != nil {
		return 0, err
	}
	err := m.awaitAll(ctx, "")
	return time.Since(begin), err
}

// awaitAll waits until a member, the leader for "", has everything.
func (m *member) awaitAll(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	for {
		lasts, err := m.LastSeqs(ctx, id)
		if err == nil && slices.Equal(lasts, m.acked) {
			return nil
		}
		if err == nil && id == "" { // a leader's answer is complete
			return fmt.Errorf("the node holds up to %v, acknowledged was %v", lasts, m.acked)
		}
		select {
		case <-time.After(pollTime):
		case <-ctx.Done():
			return fmt.Errorf("no member with all records: %w, %w", ctx.Err(), err)
		}
	}
}

func megabytes(bytes int64) string {
	if bytes >= 1e9 {
		return measure.Number(float64(bytes)/1e9) + " GB"
	}
	return measure.Number(float64(bytes)/1e6) + " MB"
}

const nodeNote = "one replica in a process of its own, 4 instruments, batches of 4000 records; from the start of the process to the first answer with everything"

// restarts measures restarts with ordinary flushes and snapshots. The sizes are
// reached one after the other by the same node.
func restarts(ctx context.Context, b *measure.Bench, z size) error {
	dir, remove, err := b.Dir()
	if err != nil {
		return err
	}
	defer remove()
	m, err := start(ctx, filepath.Join(dir, "node"))
	if err != nil {
		return err
	}
	defer m.Close()
	for _, bytes := range z.restarts {
		if missing := bytes - int64(m.records())*record.Size; missing > 0 {
			_, _ = fmt.Fprintf(b.Progress, "writing %s\n", megabytes(missing))
			if err := m.fill(ctx, missing); err != nil {
				return err
			}
		}
		c := measure.Case{Name: "restart after kill -9 with " + megabytes(bytes), Unit: "records/s"}
		f := &floor{dir: dir, bytes: bytes}
		err := b.Compare(ctx, c, measure.Contestant{
			System: "countinghouse", Ours: true, Durable: "everything acknowledged is on disk", Note: nodeNote + "; " + megabytes(z.tail) + " are written before each kill",
			Run: func(ctx context.Context) (measure.Sample, error) { return m.restartSample(ctx, z.tail) },
		}, f.read(), f.checksum())
		if err = errors.Join(err, f.close()); err != nil {
			return err
		}
	}
	return nil
}

func (m *member) restartSample(ctx context.Context, tail int64) (measure.Sample, error) {
	if err := m.fill(ctx, tail); err != nil {
		return measure.Sample{}, err
	}
	inTables, err := m.TableRecords(ctx)
	if err != nil {
		return measure.Sample{}, err
	}
	took, err := m.crash(ctx)
	if err != nil {
		return measure.Sample{}, err
	}
	return measure.Sample{Value: float64(m.records()) / took.Seconds(), More: map[string]float64{
		"restart s": took.Seconds(), "records in the log only": float64(m.records() - inTables),
	}}, nil
}

// replays measures restarts of a node that has nothing in tables, and of one that has
// nothing.
func replays(ctx context.Context, b *measure.Bench, z size) error {
	dir, remove, err := b.Dir()
	if err != nil {
		return err
	}
	defer remove()
	replay := func(bytes int64) func(context.Context) (measure.Sample, error) {
		return func(ctx context.Context) (measure.Sample, error) {
			return replaySample(ctx, filepath.Join(dir, "node"), bytes)
		}
	}
	c := measure.Case{Name: "restart of an empty node", Unit: "s", LowerIsBetter: true}
	err = b.Compare(ctx, c, measure.Contestant{System: "countinghouse", Ours: true, Note: nodeNote, Run: replay(0)})
	if err != nil {
		return err
	}
	f := &floor{dir: dir, bytes: z.replay}
	c = measure.Case{Name: "replay of the log: restart after kill -9 with " + megabytes(z.replay) + " in no table", Unit: "records/s"}
	err = b.Compare(ctx, c, measure.Contestant{
		System: "countinghouse", Ours: true, Durable: "everything acknowledged is on disk", Note: nodeNote + "; the whole restart counts", Run: replay(z.replay),
	}, f.read(), f.checksum())
	return errors.Join(err, f.close())
}

func replaySample(ctx context.Context, dir string, bytes int64) (measure.Sample, error) {
	defer func() { _ = os.RemoveAll(dir) }()
	m, err := start(ctx, dir, "--memtable-bytes", "1000000000")
	if err != nil {
		return measure.Sample{}, err
	}
	defer m.Close()
	if err := m.fill(ctx, bytes); err != nil {
		return measure.Sample{}, err
	}
	switch n, err := m.TableRecords(ctx); {
	case err != nil:
		return measure.Sample{}, err
	case n > 0:
		return measure.Sample{}, fmt.Errorf("%d records are in tables: there is less to replay than is said", n)
	}
	took, err := m.crash(ctx)
	if err != nil {
		return measure.Sample{}, err
	}
	s := measure.Sample{Value: took.Seconds()}
	if bytes > 0 {
		s.Value = float64(m.records()) / took.Seconds()
		s.More = map[string]float64{"restart s": took.Seconds(), "records": float64(m.records())}
	}
	return s, nil
}
