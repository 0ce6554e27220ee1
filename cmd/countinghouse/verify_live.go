package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/audit"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
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

// comparePause is between two looks at replicas that are not at the same place.
const comparePause = 100 * time.Millisecond

// compareShard compares the replicas of a shard that answer, until they are at the
// same place or the time is up: while there are writers they rarely are.
func compareShard(ctx context.Context, p *output.Printer, c *client.Client, shard client.Shard, wait time.Duration) verdict {
	p.Progress("comparing the replicas of %s", shard.Name)
	v := verdict{Target: "replicas of " + shard.Name, Cluster: c.Map().Cluster, Shard: shard.Name, Findings: []finding{}}
	var cmp comparison
	for deadline := time.Now().Add(wait); ; {
		answering := 0
		for _, m := range shard.Members {
			held, err := c.Instruments(ctx, shard.Name, client.Replica{Member: m.ID})
			if err == nil {
				answering++
				cmp.note(m.ID, held)
			}
		}
		cmp.endRound()
		if answering < 2 && len(shard.Members) > 1 {
			v.Error = "fewer than two replicas answer: there is nothing to compare"
			return v
		}
		if cmp.settled(shard.Instruments) || len(cmp.differences) > 0 || time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
		time.Sleep(comparePause)
	}
	v.Findings, v.Records = cmp.findings(shard), cmp.records()
	v.OK = !slices.ContainsFunc(v.Findings, func(f finding) bool { return !f.Harmless })
	return v
}

// comparison is what replicas have said of the streams that they hold.
type comparison struct {
	latest      map[string]map[string]*storagepb.InstrumentStats // by member and instrument
	chains      map[position]claim
	differences []string

	// steady says that all members have applied the same entries, and did so a round
	// ago: what differs now differs for good.
	steady        bool
	applied, last map[string]uint64 // Raft index by member, in this round and the one before
}

// position is a place in a stream, at which all replicas have the same hash.
type position struct {
	instrument string
	seq        uint64
}

type claim struct {
	member string
	chain  uint32
}

// note takes what a member holds.
func (c *comparison) note(member string, held *storagepb.InstrumentsResponse) {
	if c.latest == nil {
		c.latest, c.chains = map[string]map[string]*storagepb.InstrumentStats{}, map[position]claim{}
		c.applied = map[string]uint64{}
	}
	c.applied[member] = held.AppliedIndex
	streams := map[string]*storagepb.InstrumentStats{}
	for _, st := range held.Instruments {
		streams[st.Instrument] = st
		if st.MemtableRecords+st.TableRecords != st.LastSeq {
			c.differ("%s: %s holds %d records of a stream that ends with seq %d", st.Instrument, member, st.MemtableRecords+st.TableRecords, st.LastSeq)
		}
		at := position{st.Instrument, st.LastSeq}
		if first, ok := c.chains[at]; !ok {
			c.chains[at] = claim{member, st.Chain}
		} else if first.chain != st.Chain {
			c.differ("%s: the records up to seq %d have the hash %08x on %s, and %08x on %s: the replicas hold different records",
				st.Instrument, st.LastSeq, first.chain, first.member, st.Chain, member)
		}
	}
	c.latest[member] = streams
}

// endRound is called when all members that answer have been noted.
func (c *comparison) endRound() {
	indices := slices.Collect(maps.Values(c.applied))
	c.steady = maps.Equal(c.applied, c.last) && len(slices.Compact(indices)) == 1
	c.last, c.applied = c.applied, map[string]uint64{}
}

func (c *comparison) differ(format string, args ...any) {
	if d := fmt.Sprintf(format, args...); !slices.Contains(c.differences, d) {
		c.differences = append(c.differences, d)
	}
}

// settled reports whether all members are at the same place in all streams.
func (c *comparison) settled(instruments []string) bool {
	return !slices.ContainsFunc(instruments, func(name string) bool { return c.apart(name) != "" })
}

// apart says how members differ in a stream for the present, "" if they do not.
func (c *comparison) apart(name string) string {
	var first *storagepb.InstrumentStats
	var holder string
	for _, member := range sortedKeys(c.latest) {
		st := c.latest[member][name]
		switch {
		case st == nil:
			return fmt.Sprintf("%s: %s does not hold it", name, member)
		case first == nil:
			first, holder = st, member
		case st.LastSeq != first.LastSeq || st.Epoch != first.Epoch:
			return fmt.Sprintf("%s: %s is at seq %d of epoch %s, %s at seq %d of epoch %s", name,
				holder, first.LastSeq, epochName(first.Epoch), member, st.LastSeq, epochName(st.Epoch))
		}
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// findings returns the differences, and what was not at the same place at the end.
// Unless that is steady it is harmless: a replica may be behind, or the stream may
// be written.
func (c *comparison) findings(shard client.Shard) []finding {
	all := []finding{}
	for _, d := range c.differences {
		all = append(all, finding{File: shard.Name, What: d + "; find out which one is right with verify of the stopped members, and replace the other"})
	}
	for _, name := range shard.Instruments {
		apart := c.apart(name)
		if apart != "" && c.steady {
			all = append(all, finding{File: shard.Name, What: apart + ", though they have applied the same entries of the log; replace the member that is wrong"})
		} else if apart != "" {
			all = append(all, finding{File: shard.Name, What: apart + "; not compared there: is it written to, or does a member lag?", Harmless: true})
		}
	}
	return all
}

// records returns how many records the streams of one member have.
func (c *comparison) records() (n uint64) {
	for _, member := range sortedKeys(c.latest) {
		var held uint64
		for _, st := range c.latest[member] {
			held += st.LastSeq
		}
		n = max(n, held)
	}
	return n
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
