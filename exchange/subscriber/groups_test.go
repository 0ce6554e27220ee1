package subscriber

import (
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
)

func testRecord(name string, seq uint64) *record.Record {
	return &record.Record{Header: record.Header{
		Version: record.Version, Type: record.TypeDeposit, Seq: seq, Global: seq, Instrument: record.MustSymbol(name),
	}}
}

func TestWhenGroupsAreDue(t *testing.T) {
	b := batcher{size: 3, linger: 10 * time.Millisecond}
	x, y := &stream{sym: record.MustSymbol("X")}, &stream{sym: record.MustSymbol("Y")}
	now := time.Unix(1000, 0)
	if b.due(now, true) != nil {
		t.Fatal("nothing is gathered")
	}
	if _, ok := b.untilDue(now); ok {
		t.Fatal("nothing is gathered")
	}
	b.add(x, testRecord("X", 1), now)
	b.add(y, testRecord("Y", 1), now.Add(time.Millisecond))
	if b.due(now, true) != x {
		t.Error("idle: the oldest group is due at once")
	}
	if b.due(now.Add(9*time.Millisecond), false) != nil {
		t.Error("busy: nothing is due before the linger time")
	}
	if d, ok := b.untilDue(now.Add(9 * time.Millisecond)); !ok || d != time.Millisecond {
		t.Errorf("due in %v", d)
	}
	if b.due(now.Add(10*time.Millisecond), false) != x {
		t.Error("the oldest group has lingered")
	}
	b.add(y, testRecord("Y", 2), now)
	b.add(y, testRecord("Y", 3), now)
	if !b.full(y) || b.due(now, false) != y {
		t.Error("a full group is due at once, also behind an older one")
	}
	if g, ok := b.oldest(); !ok || g != 1 {
		t.Errorf("oldest %d", g)
	}
	g := b.remove(y)
	if g.count != 3 || g.firstSeq != 1 || b.due(now, false) != nil {
		t.Errorf("%+v", g)
	}
	bytes, err := g.seal(5)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := record.ParseBatch(bytes)
	if err != nil || batch.Epoch != 5 || len(batch.Records) != 3 || batch.Records[2] != *testRecord("Y", 3) {
		t.Fatalf("%v %+v", err, batch)
	}
	b.giveBack(bytes)
	b.clear()
	if len(b.free) != 2 || len(b.order) != 0 || x.group.count != 0 {
		t.Errorf("%d buffers", len(b.free))
	}
}

func BenchmarkGather(b *testing.B) {
	bt := batcher{size: 1000, linger: time.Hour}
	s := &stream{sym: record.MustSymbol("X")}
	now, r := time.Now(), testRecord("X", 1)
	b.SetBytes(record.Size)
	b.ReportAllocs()
	for b.Loop() {
		bt.add(s, r, now)
		r.Seq++
		if bt.full(s) {
			g := bt.remove(s)
			bytes, err := g.seal(1)
			if err != nil {
				b.Fatal(err)
			}
			bt.giveBack(bytes)
		}
	}
}
