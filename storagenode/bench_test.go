package storagenode_test

import (
	"testing"

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

func benchmarkAppend(b *testing.B, n int, logStore replica.LogStore) {
	const size = 1000
	c := newCluster(b, n, func(cfg *replica.Config) {
		cfg.LogStore = logStore
		cfg.WAL.SegmentBytes, cfg.Store.MemtableBytesMax = 64<<20, 8<<20
		cfg.HeartbeatTimeout, cfg.LeaderLease = 0, 0
	})
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
}
