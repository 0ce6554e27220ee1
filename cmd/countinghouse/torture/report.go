package torture

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report is a run's result. Its JSON form is what machines read.
type Report struct {
	OK       bool    `json:"ok"`
	Complete bool    `json:"complete"` // everything was checked
	Seed     uint64  `json:"seed"`
	Shards   int     `json:"shards"`
	Replicas int     `json:"replicas"` // of each shard
	Seconds  float64 `json:"seconds"`

	Faults      map[string]uint64 `json:"faults"`
	FaultsTotal uint64            `json:"faults_total"`
	Acked       uint64            `json:"acked"`  // records acknowledged
	Stored      uint64            `json:"stored"` // records in the streams at the end
	Lost        uint64            `json:"lost"`
	Duplicated  uint64            `json:"duplicated"`
	Reordered   uint64            `json:"reordered"`
	Unavailable Unavailable       `json:"unavailable_ms"`

	Batches   uint64 `json:"batches"`
	Sessions  uint64 `json:"sessions"`  // append streams that were opened
	Takeovers uint64 `json:"takeovers"` // writers that were succeeded
	Fenced    uint64 `json:"fenced"`    // writers that noticed
	Provoked  uint64 `json:"provoked"`  // wrong batches that were refused as they should
	Reads     Reads  `json:"reads"`

	ReplicasChecked   int      `json:"replicas_checked"`
	RecordsCompared   uint64   `json:"records_compared"`
	ReplicasIdentical bool     `json:"replicas_identical"`
	Verified          int      `json:"directories_verified"`
	Findings          []string `json:"findings"`
}

// Unavailable describes the times, of 100 ms and more, in which a shard
// acknowledged nothing although a writer waited, in milliseconds.
type Unavailable struct {
	Count int64 `json:"count"`
	P50   int64 `json:"p50"`
	P99   int64 `json:"p99"`
	Max   int64 `json:"max"`
	Total int64 `json:"total"` // over all shards
}

// Reads counts reads that were checked.
type Reads struct {
	Scans   uint64 `json:"scans"`   // by the leader
	Gets    uint64 `json:"gets"`    // by the leader
	Stale   uint64 `json:"stale"`   // scans by any replica
	Tailed  uint64 `json:"tailed"`  // records that followers got
	Records uint64 `json:"records"` // of scans and gets
	Failed  uint64 `json:"failed"`  // because of a fault
}

// report returns what is known so far.
func (t *torture) report() Report {
	r := t.result
	r.Seed, r.Shards, r.Replicas = t.Seed, t.Shards, t.Replicas
	r.Seconds = time.Since(t.began).Seconds()
	r.Faults, r.FaultsTotal = t.faults.all(), t.faults.total()
	for _, s := range t.shards {
		for _, l := range s.ledgers {
			r.Acked += l.acknowledgedRecords()
		}
	}
	r.Lost, r.Duplicated, r.Reordered = t.found.count(lost), t.found.count(duplicated), t.found.count(reordered)
	r.Unavailable = t.unavailable()
	c := &t.counts
	r.Batches, r.Sessions, r.Takeovers = c.batches.Load(), c.sessions.Load(), c.takeovers.Load()
	r.Fenced, r.Provoked = c.fenced.Load(), c.provoked.Load()
	r.Reads = Reads{
		Scans: c.scans.Load(), Gets: c.gets.Load(), Stale: c.stale.Load(),
		Tailed: c.tails.Load(), Records: c.readRecords.Load(), Failed: c.readsFailed.Load(),
	}
	r.Findings = t.found.list()
	r.OK = r.Complete && !t.found.any()
	return r
}

func (t *torture) unavailable() Unavailable {
	h := hdrhistogram.New(1, outageMaxMillis, outageDigits)
	var total time.Duration
	for _, s := range t.shards {
		total += s.outages.into(h)
	}
	out := Unavailable{Count: h.TotalCount(), Total: total.Milliseconds()}
	if out.Count > 0 {
		out.P50, out.P99, out.Max = h.ValueAtQuantile(50), h.ValueAtQuantile(99), h.Max()
	}
	return out
}
