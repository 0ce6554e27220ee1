package torture

import (
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/countinghouse/countinghouse/record"
)

var symA = record.MustSymbol("A")

func epochOf(incarnation, session uint64) uint64 { return incarnation<<32 | session }

func made(epoch, writer, seq uint64) record.Record {
	var r record.Record
	fill(&r, symA, origin{writer: writer, epoch: epoch, seq: seq})
	return r
}

// history is a ledger with a normal history: three sessions of two writers.
//
//	1.1 of writer 1 sent 1…100, of which 60 were acknowledged and 70 arrived
//	1.2 of writer 1 sent 71…120, all acknowledged
//	2.1 of writer 2 sent 121…200, of which 180 were acknowledged and 190 arrived
//	3.1 sealed the stream
func history(t *testing.T) (*ledger, *findings) {
	t.Helper()
	f := newFindings(func(text string) { t.Log("finding:", text) })
	l := newLedger(symA, f)
	l.attempt(epochOf(1, 1))
	l.opened(epochOf(1, 1), 1, 0, nil)
	l.sending(epochOf(1, 1), 100)
	l.acknowledged(epochOf(1, 1), 60)
	l.attempt(epochOf(1, 2))
	l.opened(epochOf(1, 2), 1, 70, last(made(epochOf(1, 1), 1, 70)))
	l.sending(epochOf(1, 2), 120)
	l.acknowledged(epochOf(1, 2), 120)
	l.attempt(epochOf(2, 1))
	l.opened(epochOf(2, 1), 2, 120, last(made(epochOf(1, 2), 1, 120)))
	l.sending(epochOf(2, 1), 200)
	l.acknowledged(epochOf(2, 1), 180)
	if f.any() {
		t.Fatal("a normal history has findings")
	}
	return l, f
}

func last(r record.Record) *record.Record { return &r }

// stored returns what every replica must hold at the end of history.
func stored() []record.Record {
	var rs []record.Record
	for seq := uint64(1); seq <= 190; seq++ {
		switch {
		case seq <= 70:
			rs = append(rs, made(epochOf(1, 1), 1, seq))
		case seq <= 120:
			rs = append(rs, made(epochOf(1, 2), 1, seq))
		default:
			rs = append(rs, made(epochOf(2, 1), 2, seq))
		}
	}
	return rs
}

// seal ends the history and replays what a replica holds.
func seal(l *ledger, end uint64, held []record.Record, chain uint32) {
	l.attempt(epochOf(3, 1))
	l.opened(epochOf(3, 1), 3, end, nil)
	p := l.replay("m0", end)
	for part := range slices.Chunk(held, 33) {
		p.take(part)
	}
	p.finish(chain)
}

func chainOf(rs []record.Record) uint32 {
	return crc32.Checksum(record.SliceBytes(rs), record.Castagnoli)
}

func TestNormalHistoryHasNoFindings(t *testing.T) {
	l, f := history(t)
	l.read(stored()[65:130], "scan")
	if got := l.durable(); got != 180 {
		t.Errorf("durable up to %d, not 180", got)
	}
	l.read(stored()[170:185], "scan")
	if got := l.durable(); got != 185 {
		t.Errorf("durable up to %d after seq 185 was read", got)
	}
	seal(l, 190, stored(), chainOf(stored()))
	if f.any() {
		t.Errorf("findings %q", f.list())
	}
	if got := l.acknowledgedRecords(); got != 60+50+60 {
		t.Errorf("%d records acknowledged, not 170", got)
	}
}

// Answers may be noted in another order than the one in which they were given.
func TestLateAnswersAreNoFindings(t *testing.T) {
	l, f := history(t)
	l.attempt(epochOf(2, 2))
	l.attempt(epochOf(4, 1))
	l.opened(epochOf(4, 1), 4, 190, last(made(epochOf(2, 1), 2, 190)))
	l.acknowledged(epochOf(2, 1), 190)          // sent before epoch 4 was opened
	l.opened(epochOf(2, 2), 2, 190, nil)        // as was this
	l.fenced(epochOf(2, 2), epochOf(4, 1))      // which then is fenced
	l.sending(epochOf(4, 1), 300)               //
	l.read(stored()[100:190], "scan of before") //
	if f.any() {
		t.Errorf("findings %q", f.list())
	}
}

// Every kind of breach, in the course of a run.
func TestForgedAnswersAreFound(t *testing.T) {
	flipped := stored()[149:151]
	flipped[1].Body[79] ^= 1
	for name, c := range map[string]struct {
		forge func(*ledger)
		kind  kind
		n     uint64
		want  string
	}{
		"acknowledged records are gone": {func(l *ledger) { l.opened(epochOf(3, 1), 3, 170, nil) }, lost, 10, "up to seq 180 were acknowledged"},
		"a record that was read is gone": {func(l *ledger) {
			l.read(stored()[184:185], "scan")
			l.opened(epochOf(3, 1), 3, 184, nil)
		}, lost, 1, "up to seq 185 were acknowledged or read"},
		"more than was sent":           {func(l *ledger) { l.opened(epochOf(3, 1), 3, 201, nil) }, broken, 1, "sent up to seq 200 only"},
		"a foreign stream":             {func(l *ledger) { l.opened(epochOf(0, 1), 3, 5, nil) }, broken, 5, "found 5 records"},
		"the same epoch twice":         {func(l *ledger) { l.opened(epochOf(2, 1), 2, 190, nil) }, broken, 1, "opened twice"},
		"an old epoch is acknowledged": {func(l *ledger) { l.acknowledged(epochOf(1, 1), 75) }, lost, 5, "although the stream ended at seq 70 when epoch 1.2"},
		"what was not sent":            {func(l *ledger) { l.acknowledged(epochOf(2, 1), 201) }, broken, 1, "did not send it"},
		"an epoch nobody opened":       {func(l *ledger) { l.acknowledged(epochOf(9, 1), 1) }, broken, 1, "did not send it"},
		"fenced by nobody":             {func(l *ledger) { l.fenced(epochOf(2, 1), epochOf(7, 1)) }, broken, 1, "the highest that anybody tried is 2.1"},
		"fenced by a lower epoch":      {func(l *ledger) { l.fenced(epochOf(2, 1), epochOf(1, 2)) }, broken, 1, "fenced by epoch 1.2"},
		"a wrong last record":          {func(l *ledger) { l.opened(epochOf(3, 1), 3, 190, last(made(epochOf(1, 2), 1, 190))) }, lost, 1, "that of epoch 1.2"},
		"a record of a fenced epoch":   {func(l *ledger) { l.read([]record.Record{made(epochOf(1, 1), 1, 71)}, "scan") }, lost, 1, "must be that of epoch 1.2"},
		"a record that was never sent": {func(l *ledger) { l.read([]record.Record{made(epochOf(2, 1), 2, 201)}, "scan") }, broken, 1, "never sent"},
		"one flipped bit":              {func(l *ledger) { l.read(flipped, "scan") }, lost, 1, "none that were sent"},
		"a record in an earlier one's seq": {func(l *ledger) {
			r := made(epochOf(2, 1), 2, 160)
			r.Seq = 150
			l.read([]record.Record{r}, "scan")
		}, reordered, 1, "it is seq 160"},
	} {
		l, f := history(t)
		l.attempt(epochOf(3, 1))
		if strings.HasPrefix(name, "fenced") {
			l, f = history(t)
		}
		c.forge(l)
		if f.count(c.kind) != c.n || !strings.Contains(strings.Join(f.list(), "\n"), c.want) {
			t.Errorf("%s: %d of kind %d, want %d with %q; findings %q", name, f.count(c.kind), c.kind, c.n, c.want, f.list())
		}
	}
}

// Every kind of damage to what a replica holds at the end.
func TestForgedReplicasAreFound(t *testing.T) {
	moved := func(r record.Record, seq uint64) record.Record {
		r.Seq = seq
		return r
	}
	for name, c := range map[string]struct {
		damage func([]record.Record) []record.Record
		want   [kinds]uint64
		text   string
	}{
		"short": {func(rs []record.Record) []record.Record { return rs[:150] }, [kinds]uint64{lost: 40}, "ends at seq 150"},
		"empty": {func([]record.Record) []record.Record { return nil }, [kinds]uint64{lost: 190}, "ends at seq 0"},
		"a hole": {func(rs []record.Record) []record.Record { return slices.Delete(rs, 99, 102) },
			[kinds]uint64{lost: 3}, "has seq 103 where seq 100 must be"},
		"a record twice": {func(rs []record.Record) []record.Record { return slices.Insert(rs, 100, rs[99]) },
			[kinds]uint64{duplicated: 1}, "has seq 100 again"},
		"a batch twice": {func(rs []record.Record) []record.Record { return slices.Insert(rs, 100, slices.Clone(rs[80:100])...) },
			[kinds]uint64{duplicated: 20}, "has seq 81 again"},
		"two places changed": {func(rs []record.Record) []record.Record { rs[99], rs[100] = rs[100], rs[99]; return rs },
			[kinds]uint64{lost: 1, duplicated: 1}, "has seq 101 where seq 100 must be"},
		"the content of an earlier one": {func(rs []record.Record) []record.Record { rs[100] = moved(rs[96], 101); return rs },
			[kinds]uint64{duplicated: 1}, "it is seq 97"},
		"the content of a later one": {func(rs []record.Record) []record.Record { rs[100] = moved(rs[104], 101); return rs },
			[kinds]uint64{reordered: 1}, "it is seq 105"},
		"another epoch": {func(rs []record.Record) []record.Record { rs[80] = made(epochOf(1, 1), 1, 81); return rs },
			[kinds]uint64{lost: 1}, "must be that of epoch 1.2"},
		"one bit": {func(rs []record.Record) []record.Record { rs[5].Body[70] ^= 4; return rs }, [kinds]uint64{lost: 1}, "none that were sent"},
		"too much": {func(rs []record.Record) []record.Record { return append(rs, made(epochOf(2, 1), 2, 191)) },
			[kinds]uint64{broken: 1}, "the stream ended at seq 190"},
	} {
		l, f := history(t)
		held := c.damage(stored())
		seal(l, 190, held, chainOf(held))
		var got [kinds]uint64
		for k := range kinds {
			got[k] = f.count(k)
		}
		if got != c.want || !strings.Contains(strings.Join(f.list(), "\n"), c.text) {
			t.Errorf("%s: lost, duplicated, reordered, broken = %v, want %v with %q; findings %q", name, got, c.want, c.text, f.list())
		}
	}
	l, f := history(t)
	seal(l, 190, stored(), 1)
	if f.count(broken) != 1 {
		t.Error("a wrong chain went unnoticed")
	}
}

func TestContentDiffersInEveryByteOfItsOrigin(t *testing.T) {
	base := made(epochOf(1, 1), writerBase+1, 7)
	for name, r := range map[string]record.Record{
		"epoch": made(epochOf(1, 2), writerBase+1, 7), "writer": made(epochOf(1, 1), writerBase+2, 7), "seq": made(epochOf(1, 1), writerBase+1, 11),
	} {
		same := 0
		for i := firstFiller; i < bodyWords; i++ {
			if word(&r, i) == word(&base, i) {
				same++
			}
		}
		if same > 0 {
			t.Errorf("another %s leaves %d words the same", name, same)
		}
	}
	for seq := uint64(1); seq <= 8; seq++ {
		r := made(epochOf(3, 9), writerBase+5, seq)
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
		if o, whole := originOf(&r, symA); !whole || o != (origin{writerBase + 5, epochOf(3, 9), seq}) {
			t.Errorf("seq %d: origin %+v, %t", seq, o, whole)
		}
		for i := range r.Bytes() {
			damaged := r
			damaged.Bytes()[i] ^= 0x10
			if _, whole := originOf(&damaged, symA); whole && (i < 8 || i >= 16) {
				t.Errorf("seq %d: a change of byte %d goes unnoticed", seq, i)
			}
		}
	}
}

func TestFindingsAreBounded(t *testing.T) {
	told := 0
	f := newFindings(func(string) { told++ })
	for i := range findingsMax + 7 {
		f.add(lost, 2, "finding %d", i)
	}
	f.add(broken, 0, "none")
	if got := f.list(); len(got) != findingsMax+1 || got[findingsMax] != "and 7 findings more" || told != findingsMax {
		t.Errorf("%d texts, the last %q; told %d", len(got), got[len(got)-1], told)
	}
	if f.count(lost) != 2*(findingsMax+7) || f.count(broken) != 0 {
		t.Errorf("%d lost, %d broken", f.count(lost), f.count(broken))
	}
}

func TestOutages(t *testing.T) {
	now := time.Unix(0, 0)
	o := newOutages(func() time.Time { return now })
	after := func(d time.Duration, do func()) { now = now.Add(d); do() }
	o.wait()
	after(50*time.Millisecond, o.acknowledged)  // too short to count
	after(300*time.Millisecond, o.wait)         // a second writer does not begin anew
	after(200*time.Millisecond, o.acknowledged) // 500 ms
	after(10*time.Millisecond, o.rest)
	after(10*time.Millisecond, o.rest)
	after(time.Hour, o.wait) // nobody waited
	after(40*time.Millisecond, o.acknowledged)
	after(2*time.Second, o.rest) // gave up after 2 s
	o.acknowledged()             // late, nobody waits
	o.wait()
	now = now.Add(700 * time.Millisecond)
	h := hdrhistogram.New(1, outageMaxMillis, outageDigits)
	total := o.into(h)
	if total != 3200*time.Millisecond || h.TotalCount() != 3 || fmt.Sprint(h.Max()/10) != "200" {
		t.Errorf("%d outages, %s in all, the longest %d ms", h.TotalCount(), total, h.Max())
	}
}

// A finding that comes again and again leaves room for others.
func TestFindingsAreListedOnce(t *testing.T) {
	f := newFindings(func(string) {})
	for range 3 * findingsMax {
		f.add(broken, 1, "the same")
	}
	f.add(lost, 2, "another")
	if got, want := f.list(), []string{fmt.Sprintf("the same (%d times)", 3*findingsMax), "another"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if f.count(broken) != 3*findingsMax || f.count(lost) != 2 {
		t.Errorf("%v", f.counts)
	}
}
