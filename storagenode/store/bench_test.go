package store

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

// BenchmarkAppend measures the FSM goroutine's part; flushes go on beside it.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := opened(b, vfs.Default, b.TempDir(), Options{})
			defer mustClose(b, s)
			const prepared = 64
			var batches []record.Batch
			index, seq := uint64(2), uint64(1)
			b.SetBytes(int64(n * record.Size))
			for b.Loop() {
				if len(batches) == 0 {
					b.StopTimer()
					for range prepared {
						batches = append(batches, makeBatch(b, sym, 5, seq, n))
						seq += uint64(n)
					}
					b.StartTimer()
				}
				index++
				if _, err := s.Append(index, batches[0]); err != nil {
					b.Fatal(err)
				}
				batches = batches[1:]
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds()/1e6, "Mrecords/s")
		})
	}
}

// filled returns a shard with n records, in tables and, the last ones, in memory.
func filled(b *testing.B, n uint64) *Shard {
	s := opened(b, vfs.Default, b.TempDir(), Options{})
	for seq := uint64(1); seq <= n; seq += 1000 {
		mustAppend(b, s, 2+seq, seq, 1000)
	}
	waitFor(b, "flushes", func() bool { return s.memBytes.Load() < 8<<20 })
	return s
}

func BenchmarkScan(b *testing.B) {
	s := filled(b, 500_000)
	defer mustClose(b, s)
	records := 0
	for b.Loop() {
		it, err := s.Scan(sym, ScanOptions{})
		if err != nil {
			b.Fatal(err)
		}
		var sum uint64
		for it.Next() {
			for i := range it.Records() {
				sum += it.Records()[i].Seq
			}
			records += len(it.Records())
		}
		it.Close()
		if it.Err() != nil || sum != 500_000*500_001/2 {
			b.Fatal(sum, it.Err())
		}
	}
	b.ReportMetric(float64(records)/b.Elapsed().Seconds()/1e6, "Mrecords/s")
}

func BenchmarkGet(b *testing.B) {
	s := filled(b, 500_000)
	defer mustClose(b, s)
	for _, kind := range []record.IDKind{record.OrderID, record.TradeID} {
		b.Run(kind.String(), func(b *testing.B) {
			var took []time.Duration
			value := uint64(0)
			for b.Loop() {
				value = (value + 7919) % 120_000
				start := time.Now()
				q := GetQuery{Instrument: sym, ID: record.ID{Kind: kind, Value: 1 + value}}
				if err := s.Get(context.Background(), q, func([]record.Record) error { return nil }); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
		})
	}
}
