package main

import (
	"context"
	"fmt"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/audit"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/replicas"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func verifyLive(ctx context.Context, p *output.Printer, t *target, records bool) ([]verdict, error) {
	c, err := t.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var all []verdict
	for _, shard := range c.Map().Shards {
		for _, m := range shard.Members {
			if t.replica == "" || t.replica == m.ID {
				all = append(all, verifyMember(ctx, p, c, shard.Name, m))
			}
		}
	}
	if len(all) == 0 {
		return nil, output.Exit(output.ExitUsage, fmt.Errorf("no member %q in the shard map", t.replica))
	}
	if t.replica == "" {
		for _, shard := range c.Map().Shards {
			all = append(all, compareShard(ctx, p, c, shard, t.timeout.orDefault()))
		}
	}
	if records {
		all = append(all, compareRecords(ctx, p, c))
	}
	return all, nil
}

func verifyMember(ctx context.Context, p *output.Printer, c *client.Client, shard string, m client.Member) verdict {
	v := verdict{Target: m.Address, Cluster: c.Map().Cluster, Shard: shard, Member: m.ID, Findings: []finding{}}
	last, err := c.Verify(ctx, shard, m.ID, func(r *storagepb.VerifyResponse) {
		if r.Finding != "" {
			v.Findings = append(v.Findings, finding{File: r.File, Offset: r.Offset, What: r.Finding})
		}
		p.Progress("verifying %s: %s records, %s", m.ID, output.Count(r.Records), output.Bytes(r.Bytes))
	})
	if err != nil {
		v.Error = err.Error()
		return v
	}
	v.OK, v.Files, v.Bytes, v.Records = last.Ok, last.Files, last.Bytes, last.Records
	return v
}

// compareShard compares the replicas of a shard that answer.
func compareShard(ctx context.Context, p *output.Printer, c *client.Client, shard client.Shard, wait time.Duration) verdict {
	p.Progress("comparing the replicas of %s", shard.Name)
	v := verdict{Target: "replicas of " + shard.Name, Cluster: c.Map().Cluster, Shard: shard.Name, Findings: []finding{}}
	result, err := replicas.Compare(ctx, c, shard, wait)
	if err != nil {
		v.Error = err.Error()
		return v
	}
	for _, f := range result.Findings {
		v.Findings = append(v.Findings, finding{File: shard.Name, What: f.What, Harmless: f.Harmless})
	}
	v.Records, v.OK = result.Records, result.OK()
	return v
}

// compareRecords reads everything from all replicas.
func compareRecords(ctx context.Context, p *output.Printer, c *client.Client) verdict {
	v := verdict{Target: "all records", Cluster: c.Map().Cluster, Findings: []finding{}}
	result, err := auditAll(ctx, p, c)
	if err != nil {
		v.Error = err.Error()
		return v
	}
	found := func(format string, args ...any) {
		v.Findings = append(v.Findings, finding{File: "all streams", What: fmt.Sprintf(format, args...)})
	}
	for _, d := range result.Differences {
		found("%s", d)
	}
	if result.Lost > 0 {
		found("%d of the numbers that run through all streams are on no record", result.Lost)
	}
	if result.GivenUp > 0 {
		p.Note("%s records were lost with an outbox and given up, as a HistoryCut says", output.Count(result.GivenUp))
	}
	if result.Duplicated > 0 {
		found("%d of the numbers that run through all streams are on more than one record", result.Duplicated)
	}
	if result.Beyond > 0 {
		found("%d records have a number that no stream ends with, or none: is the cluster being written to?", result.Beyond)
	}
	v.Records, v.Bytes, v.OK = result.Persisted, result.BytesCompared, len(v.Findings) == 0
	return v
}

func auditAll(ctx context.Context, p *output.Printer, c *client.Client) (audit.Result, error) {
	streams, err := audit.Streams(c.Map())
	if err != nil {
		return audit.Result{}, err
	}
	var last uint64
	for _, s := range c.Map().Shards {
		held, err := c.Instruments(ctx, s.Name, client.Replica{})
		if err != nil {
			return audit.Result{}, err
		}
		for _, st := range held.Instruments {
			last = max(last, st.LastGlobal)
		}
	}
	return audit.Run(ctx, audit.Cluster{Client: c}, streams, last, func(records uint64) {
		p.Progress("comparing records: %s", output.Count(records))
	})
}
