package replicas

import (
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func TestReplicasAreCompared(t *testing.T) {
	shard := client.Shard{Name: "s1", Instruments: []string{"A"}}
	at := func(seq uint64, chain uint32, epoch uint64) []*storagepb.InstrumentStats {
		return []*storagepb.InstrumentStats{{Instrument: "A", LastSeq: seq, Chain: chain, Epoch: epoch, TableRecords: seq}}
	}
	type answer struct {
		member string
		held   []*storagepb.InstrumentStats
	}
	short := at(5, 1, 1)
	short[0].TableRecords = 4
	for name, c := range map[string]struct {
		answers  []answer
		settled  bool
		says     string
		harmless bool
	}{
		"same":             {[]answer{{"m0", at(5, 1, 1)}, {"m1", at(5, 1, 1)}}, true, "", false},
		"other records":    {[]answer{{"m0", at(5, 1, 1)}, {"m1", at(5, 2, 1)}}, true, "different records", false},
		"seen on the way":  {[]answer{{"m0", at(5, 1, 1)}, {"m1", at(4, 9, 1)}, {"m0", at(6, 3, 1)}, {"m1", at(5, 2, 1)}}, false, "different records", false},
		"behind":           {[]answer{{"m0", at(5, 1, 1)}, {"m1", at(4, 9, 1)}}, false, "m1 at seq 4", true},
		"other epoch":      {[]answer{{"m0", at(5, 1, 1)}, {"m1", at(5, 1, 2)}}, false, "epoch 0.2", true},
		"not there":        {[]answer{{"m0", at(5, 1, 1)}, {"m1", nil}}, false, "m1 does not hold it", true},
		"records missing":  {[]answer{{"m0", at(5, 1, 1)}, {"m1", short}}, true, "holds 4 records", false},
		"caught up at end": {[]answer{{"m0", at(5, 1, 1)}, {"m1", at(4, 9, 1)}, {"m1", at(5, 1, 1)}}, true, "", false},
	} {
		var cmp comparison
		for i, a := range c.answers {
			cmp.note(a.member, &storagepb.InstrumentsResponse{Instruments: a.held, AppliedIndex: uint64(i)})
		}
		cmp.endRound()
		if got := cmp.settled(shard.Instruments); got != c.settled {
			t.Errorf("%s: settled %t", name, got)
		}
		found := cmp.findings(shard)
		if c.says == "" && len(found) > 0 || c.says != "" && (len(found) == 0 || !strings.Contains(found[0].What, c.says) || found[0].Harmless != c.harmless) {
			t.Errorf("%s: %+v", name, found)
		}
	}
}

// Members that have applied the same entries, and differ, will not become the same.
func TestASteadyDifferenceIsDamage(t *testing.T) {
	shard := client.Shard{Name: "s1", Instruments: []string{"A"}}
	var cmp comparison
	for round := range 2 {
		for i, member := range []string{"m0", "m1"} {
			st := &storagepb.InstrumentStats{Instrument: "A", LastSeq: 5, TableRecords: 5, Epoch: uint64(i)}
			cmp.note(member, &storagepb.InstrumentsResponse{Instruments: []*storagepb.InstrumentStats{st}, AppliedIndex: 7})
		}
		cmp.endRound()
		found := cmp.findings(shard)
		if len(found) != 1 || found[0].Harmless != (round == 0) {
			t.Errorf("round %d: %+v", round, found)
		}
	}
}
