package orders

import (
	"runtime"
	"runtime/metrics"
)

// runtimeCounts are what the Go runtime counts, so far.
type runtimeCounts struct {
	mallocs, bytes uint64
	cycles         uint64
	pauses         *metrics.Float64Histogram
}

const (
	pausesMetric = "/sched/pauses/total/gc:seconds"
	cyclesMetric = "/gc/cycles/total:gc-cycles"
)

func readRuntime() runtimeCounts {
	samples := []metrics.Sample{{Name: pausesMetric}, {Name: cyclesMetric}}
	metrics.Read(samples)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtimeCounts{mallocs: m.Mallocs, bytes: m.TotalAlloc, cycles: samples[1].Value.Uint64(), pauses: samples[0].Value.Float64Histogram()}
}

// since returns, as further figures of a sample, what was counted between before
// and c while so many orders were carried out.
func (c runtimeCounts) since(before runtimeCounts, orders int) map[string]float64 {
	return map[string]float64{
		"allocations/order":     float64(c.mallocs-before.mallocs) / float64(orders),
		"allocated bytes/order": float64(c.bytes-before.bytes) / float64(orders),
		"gc cycles":             float64(c.cycles - before.cycles),
		"gc pause max µs":       longest(before.pauses, c.pauses) * 1e6,
	}
}

// longest returns the upper end of the highest bucket in which after counts more
// than before, 0 if there is none.
func longest(before, after *metrics.Float64Histogram) float64 {
	for i := len(after.Counts) - 1; i >= 0; i-- {
		if after.Counts[i] > before.Counts[i] {
			upper := after.Buckets[i+1]
			if upper > 1e9 { // the last one has no end
				return after.Buckets[i]
			}
			return upper
		}
	}
	return 0
}
