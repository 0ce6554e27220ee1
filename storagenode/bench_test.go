package storagenode_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// BenchmarkAppend sends batches of 1000 records on one stream to a shard whose
// members share this process and one disk. records/s is what was acknowledged as
// durable on a quorum.
func BenchmarkAppend(b *testing.B) {
	for name, n := range map[string]int{"1 replica": 1, "3 replicas": 3} {
		for _, logStore := range []replica.LogStore{replica.LogStoreWAL, replica.LogStoreBolt} {
			b.Run(name+"/"+string(logStore), func(b *testing.B) { benchmarkAppend(b, n, logStore) })
		}
	}
}

// BenchmarkCommit sends one batch at a time to a shard of three members that share this
// process and one disk: an operation is the way of a batch to a quorum's disks and back.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("%d records", size), func(b *testing.B) {
			c := newCluster(b, 3, func(cfg *replica.Config) { forBenchmark(cfg, replica.LogStoreWAL) })
			leader := c.leader()
			open(b, leader, "A", 1)
			stream, err := leader.ingest().Append(testContext(b))
			if err != nil {
				b.Fatal(err)
			}
			var seq uint64 = 1
			for b.Loop() {
				if err := stream.Send(&storagepb.AppendRequest{Batch: batch(b, "A", 1, seq, size)}); err != nil {
					b.Fatal(err)
				}
				if r, err := stream.Recv(); err != nil || r.Refusal != nil {
					b.Fatal(r, err)
				}
				seq += uint64(size)
			}
		})
	}
}

// BenchmarkAppendTLS is BenchmarkAppend of three replicas with and without TLS on
// all connections.
func BenchmarkAppendTLS(b *testing.B) {
	b.Run("plain", func(b *testing.B) {
		benchmarkAppendTo(b, newCluster(b, 3, func(cfg *replica.Config) { forBenchmark(cfg, replica.LogStoreWAL) }))
	})
	b.Run("tls", func(b *testing.B) {
		c, _ := newClusterTLS(b, 3, func(cfg *replica.Config) { forBenchmark(cfg, replica.LogStoreWAL) })
		benchmarkAppendTo(b, c)
	})
}

func forBenchmark(cfg *replica.Config, logStore replica.LogStore) {
	cfg.LogStore = logStore
	cfg.WAL.SegmentBytes, cfg.Store.MemtableBytesMax = 64<<20, 64<<20
	// A machine that is busy with other things must not cost the leadership.
	cfg.HeartbeatTimeout, cfg.LeaderLease = 5*time.Second, 0
}

func benchmarkAppend(b *testing.B, n int, logStore replica.LogStore) {
	benchmarkAppendTo(b, newCluster(b, n, func(cfg *replica.Config) { forBenchmark(cfg, logStore) }))
}

func benchmarkAppendTo(b *testing.B, c *cluster) {
	const size = 1000
	leader := c.leader()
	open(b, leader, "A", 1)
	stream, err := leader.ingest().Append(testContext(b))
	if err != nil {
		b.Fatal(err)
	}
	batches := make([][]byte, b.N)
	for i := range batches {
		batches[i] = batch(b, "A", 1, uint64(i)*size+1, size)
	}
	b.SetBytes(size * record.Size)
	b.ResetTimer()
	cpu := cpuTime(b)
	go func() {
		for _, batch := range batches {
			if stream.Send(&storagepb.AppendRequest{Batch: batch}) != nil {
				return
			}
		}
	}()
	for range b.N {
		r, err := stream.Recv()
		if err != nil || r.Refusal != nil {
			b.Fatal(r, err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)*size/b.Elapsed().Seconds(), "records/s")
	// Of all members and the client, which a machine's other work does not change.
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N)/1000, "cpu-µs/op")
}

// cpuTime returns the processor time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
