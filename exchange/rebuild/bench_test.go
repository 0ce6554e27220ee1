package rebuild

import (
	"testing"

	"github.com/countinghouse/countinghouse/record"
)

// BenchmarkRebuild measures merging four streams and applying their records.
func BenchmarkRebuild(b *testing.B) {
	f := newFlow(&testing.T{}, 1)
	for len(f.sink.Records()) < 100_000 {
		f.step()
	}
	records := f.sink.Records()
	sources := streams(records)
	b.SetBytes(int64(len(records)) * record.Size)
	b.ResetTimer()
	for b.Loop() {
		for _, s := range sources {
			s.(*Slice).at = 0
		}
		if _, err := Run(b.Context(), Merge(sources...)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(records))*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrecords/s")
}
