package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/exchange/outbox"
)

// outboxState is what verify says of an outbox beyond its findings.
type outboxState struct {
	Published   uint64            `json:"published"`
	Incarnation uint64            `json:"incarnation"`
	Cursors     map[string]uint64 `json:"cursors"` // those that can be read
	Good        []globals         `json:"good"`    // records that are whole, ascending
}

// globals is a run of record numbers, both ends included.
type globals struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// verifyOutbox checks an exchange's outbox, also while the exchange runs.
func verifyOutbox(dir string) verdict {
	v := verdict{Target: dir, Member: "outbox", Findings: []finding{}}
	info, err := outbox.Inspect(dir)
	if errors.Is(err, outbox.ErrDamaged) || errors.Is(err, outbox.ErrNotFound) {
		v.Findings = append(v.Findings, finding{File: dir, What: err.Error() + "; without its control file nothing else in the outbox can be judged"})
		return v
	}
	if err != nil {
		v.Error = err.Error()
		return v
	}
	v.OK, v.Cluster, v.Records = true, info.Cluster, info.CheckedRecords
	v.Files = uint64(1 + info.Segments + len(info.Cursors))
	v.Bytes = uint64(info.SegmentBytes)
	for _, p := range info.Problems {
		v.Findings = append(v.Findings, finding{p.File, p.Offset, p.What, p.Harmless})
		v.OK = v.OK && p.Harmless
	}
	v.Outbox = &outboxState{Published: info.Published, Incarnation: info.Incarnation, Cursors: map[string]uint64{}, Good: []globals{}}
	for _, c := range info.Cursors {
		v.Outbox.Cursors[c.Name] = c.Global
	}
	for _, run := range info.Whole {
		v.Outbox.Good = append(v.Outbox.Good, globals(run))
	}
	return v
}

// outboxRunsShown bounds how many runs of good records a line names.
const outboxRunsShown = 8

// line says in words what is good.
func (o *outboxState) line() string {
	good := "no record is kept"
	if len(o.Good) > 0 {
		var runs []string
		for i, run := range o.Good {
			if i == outboxRunsShown {
				runs = append(runs, fmt.Sprintf("and %d more runs", len(o.Good)-i))
				break
			}
			runs = append(runs, fmt.Sprintf("%d to %d", run.First, run.Last))
		}
		good = "globals " + strings.Join(runs, ", ") + " are good"
	}
	return fmt.Sprintf("%s; %s published", good, output.Count(o.Published))
}
