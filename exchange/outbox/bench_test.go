package outbox

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/record"
)

var benchRecord = record.Record{Header: record.Header{
	Version: record.Version, Type: record.TypeOrderInsert, Seq: 1, Time: 1, Instrument: record.MustSymbol("IF2501"),
}}

// drainer frees what the benchmark publishes, as a reader would.
func drainer(b *testing.B, dir string) {
	b.Helper()
	r, err := OpenReader(dir, "drain")
	if err != nil {
		b.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer r.Close()
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				r.SetCursor(r.Published())
			}
		}
	}()
	b.Cleanup(func() { close(stop); <-done })
}

// BenchmarkPublish stands beside its floor, a bare copy to mapped memory, and
// what one would do without an outbox, a buffered channel.
func BenchmarkPublish(b *testing.B) {
	for _, tx := range []int{1, 4} {
		b.Run(map[int]string{1: "outbox/tx1", 4: "outbox/tx4"}[tx], func(b *testing.B) { benchPublish(b, tx) })
	}
	b.Run("floor/copy", benchCopy)
	b.Run("peer/channel", benchChannel)
}

func benchPublish(b *testing.B, tx int) {
	dir := filepath.Join(b.TempDir(), "outbox")
	w, err := Open(dir, Options{Cluster: "bench", QuotaBytes: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	drainer(b, dir)
	waits, i := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		if i%tx == 0 {
			for !w.Reserve(tx) {
				waits++
				time.Sleep(50 * time.Microsecond)
			}
		}
		r := w.Next()
		g := r.Global
		*r = benchRecord
		r.Global, r.Seq = g, g
		if i++; i%tx == 0 {
			w.Commit()
		}
	}
	b.ReportMetric(float64(waits), "waits")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrec/s")
}

func benchCopy(b *testing.B) {
	const n = 4 * 65536
	data, err := unix.Mmap(-1, 0, n*record.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		b.Fatal(err)
	}
	defer unmap(data)
	slots, err := record.View(data)
	if err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		slots[i%n] = benchRecord
		i++
	}
}

func benchChannel(b *testing.B) {
	c := make(chan record.Record, 65536)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range c {
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		c <- benchRecord
	}
	close(c)
	<-done
}

// BenchmarkOtherProcess sends a record to another process, which polls, and
// waits for its echo: half of the round trip is how long a record takes to be
// visible there.
func BenchmarkOtherProcess(b *testing.B) {
	b.Run("polled", func(b *testing.B) {
		benchEcho(b, func(r *Reader) error {
			for r.Published() == r.Position() {
			}
			return nil
		})
	})
	b.Run("waited", func(b *testing.B) {
		benchEcho(b, func(r *Reader) error { return r.Wait(context.Background()) })
	})
}

func benchEcho(b *testing.B, wait func(*Reader) error) {
	w, r := echo(b)
	var times []time.Duration
	for b.Loop() {
		for !w.Reserve(1) {
			time.Sleep(10 * time.Microsecond)
		}
		w.Next().Type = record.TypeDeposit
		start := time.Now()
		w.Commit()
		if err := wait(r); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
		r.Advance(len(r.Peek()))
		r.SetCursor(r.Position())
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2])/2, "p50-ns")
	b.ReportMetric(float64(times[len(times)*99/100])/2, "p99-ns")
}
