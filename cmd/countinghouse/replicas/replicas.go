// Package replicas compares what the replicas of a shard hold, by the epoch, last
// number and chained hash of each stream.
package replicas

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Finding is a difference between replicas.
type Finding struct {
	What string // where, and what to do
	// Harmless marks what may be a replica that is behind, or a stream that is written.
	Harmless bool
}

// Result is what a comparison found.
type Result struct {
	Findings []Finding
	Records  uint64 // of the member that holds most
	// Answered is the number of members that could be compared.
	Answered int
}

// OK reports whether the replicas are the same, as far as they could be compared.
func (r *Result) OK() bool {
	return !slices.ContainsFunc(r.Findings, func(f Finding) bool { return !f.Harmless })
}

// comparePause is between two looks at replicas that are not at the same place.
const comparePause = 100 * time.Millisecond

// Compare compares the replicas of a shard that answer, until they are at the same
// place or the time is up: while there are writers they rarely are. The error says
// that there is nothing to compare.
func Compare(ctx context.Context, c *client.Client, shard client.Shard, wait time.Duration) (Result, error) {
	var cmp comparison
	var out Result
	for deadline := time.Now().Add(wait); ; {
		out.Answered = 0
		for _, m := range shard.Members {
			held, err := c.Instruments(ctx, shard.Name, client.Replica{Member: m.ID})
			if err == nil {
				out.Answered++
				cmp.note(m.ID, held)
			}
		}
		cmp.endRound()
		if out.Answered < 2 && len(shard.Members) > 1 {
			return out, errors.New("fewer than two replicas answer: there is nothing to compare")
		}
		if cmp.settled(shard.Instruments) || len(cmp.differences) > 0 || time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
		time.Sleep(comparePause)
	}
	out.Findings, out.Records = cmp.findings(shard), cmp.records()
	return out, nil
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
				holder, first.LastSeq, EpochName(first.Epoch), member, st.LastSeq, EpochName(st.Epoch))
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
func (c *comparison) findings(shard client.Shard) []Finding {
	all := []Finding{}
	for _, d := range c.differences {
		all = append(all, Finding{What: d + "; find out which one is right with verify of the stopped members, and replace the other"})
	}
	for _, name := range shard.Instruments {
		apart := c.apart(name)
		if apart != "" && c.steady {
			all = append(all, Finding{What: apart + ", though they have applied the same entries of the log; replace the member that is wrong"})
		} else if apart != "" {
			all = append(all, Finding{What: apart + "; not compared there: is it written to, or does a member lag?", Harmless: true})
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

// EpochName prints an epoch as the writer's incarnation and session.
func EpochName(epoch uint64) string { return fmt.Sprintf("%d.%d", epoch>>32, epoch&0xffffffff) }
