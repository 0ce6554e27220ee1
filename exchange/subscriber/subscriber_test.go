package subscriber

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

func testMap() *client.Map {
	return &client.Map{Cluster: "test", Shards: []client.Shard{
		{Name: "s1", Instruments: []string{"A", "B", record.AccountStream}, Members: []client.Member{{ID: "s1-0", Address: "127.0.0.1:1"}}},
		{Name: "s2", Instruments: []string{"C", "D"}, Members: []client.Member{{ID: "s2-0", Address: "127.0.0.1:2"}}},
	}}
}

// rig is an outbox, a fake cluster and what was published.
type rig struct {
	t         *testing.T
	dir       string
	writer    *outbox.Writer
	fake      *fakeStorage
	options   Options
	published map[record.Symbol][]record.Record
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		t: t, dir: filepath.Join(t.TempDir(), "outbox"), fake: newFake(t, testMap()), published: map[record.Symbol][]record.Record{},
		options: Options{
			BatchRecords: 10, Linger: time.Millisecond, Window: 3, RetryMin: 100 * time.Microsecond, RetryMax: time.Millisecond,
			OpenTimeout: 5 * time.Second, AckTimeout: 5 * time.Second,
		},
	}
	r.openWriter(0)
	return r
}

func (r *rig) openWriter(start uint64) {
	r.t.Helper()
	if r.writer != nil {
		r.writer.Close()
	}
	w, err := outbox.Open(r.dir, outbox.Options{
		Cluster: "test", SegmentRecords: 256, QuotaBytes: 4 << 20, AheadSegments: outbox.AheadMin, StartGlobal: start, Cursors: CursorNames(testMap()),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.writer = w
	r.t.Cleanup(func() { w.Close() })
}

// publish publishes one transaction with a record for each name.
func (r *rig) publish(names ...string) {
	r.t.Helper()
	end := time.Now().Add(10 * time.Second)
	for !r.writer.Reserve(len(names)) {
		if time.Now().After(end) {
			r.t.Fatalf("no room in the outbox: %+v", r.writer.Stats())
		}
		time.Sleep(100 * time.Microsecond)
	}
	r.write(names)
}

func (r *rig) write(names []string) {
	var slots []*record.Record
	for _, name := range names {
		slot := r.writer.Next()
		sym := record.MustSymbol(name)
		slot.Version, slot.Type, slot.Instrument = record.Version, record.TypeDeposit, sym
		slot.Seq, slot.Time = uint64(len(r.published[sym])+1), time.Now().UnixNano()
		slot.CashMove().Amount = int64(slot.Global * 7)
		slots = append(slots, slot)
		r.published[sym] = append(r.published[sym], record.Record{})
	}
	r.writer.Commit()
	for _, slot := range slots {
		r.published[slot.Instrument][slot.Seq-1] = *slot
	}
}

// start runs a Subscriber until the test ends or stop is called, which returns
// Run's error.
func (r *rig) start(incarnation uint64) (*Subscriber, func() error) {
	r.t.Helper()
	s, err := New(Config{OutboxDir: r.dir, Incarnation: incarnation, Shards: testMap(), Storage: r.fake, Options: r.options})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var result error
	stopped := false
	stop := func() error {
		if !stopped {
			cancel()
			result, stopped = <-done, true
		}
		return result
	}
	r.t.Cleanup(func() { _ = stop() })
	return s, stop
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (r *rig) drain(s *Subscriber) {
	r.t.Helper()
	if err := s.WaitDrained(bounded(r.t)); err != nil {
		r.t.Fatalf("%v; %+v", err, s.Lanes())
	}
}

// compare demands that the shards hold what was published, once, in order.
func (r *rig) compare() {
	r.t.Helper()
	for sym, want := range r.published {
		got := r.fake.records(sym)
		if len(got) != len(want) {
			r.t.Fatalf("%s: %d records stored, %d published", sym, len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				r.t.Fatalf("%s seq %d differs", sym, i+1)
			}
		}
	}
}

func TestEverythingArrivesOnceInOrderUnderMischief(t *testing.T) {
	names := []string{"A", "B", "C", "D", record.AccountStream}
	for seed := range uint64(8) {
		r := newRig(t)
		r.fake.rng = rand.New(rand.NewPCG(seed, 1))
		rng := rand.New(rand.NewPCG(seed, 2))
		s, stop := r.start(1)
		for range 400 {
			tx := make([]string, 1+rng.IntN(12))
			for i := range tx {
				tx[i] = names[rng.IntN(len(names))]
			}
			r.publish(tx...)
		}
		r.drain(s)
		r.compare()
		if st := s.Stats(); st.Received != r.writer.Published() || st.Persisted != st.Received || st.LagRecords != 0 || st.Cursor != r.writer.Published() || st.Errors == 0 {
			t.Errorf("seed %d: %+v of %d", seed, st, r.writer.Published())
		}
		if r.fake.flightMax > r.options.Window {
			t.Errorf("seed %d: %d batches in flight, the window is %d", seed, r.fake.flightMax, r.options.Window)
		}
		if err := stop(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		for _, l := range s.lanes {
			if n := len(l.batcher.free); n > len(l.streams)+r.options.Window {
				t.Errorf("seed %d: %d buffers kept", seed, n)
			}
		}
		if t.Failed() || seed == 0 {
			t.Logf("seed %d: mischief %v", seed, r.fake.mischief)
		}
	}
}

// Restarts in the middle of mischief, each with the next incarnation.
func TestRestartsGoOnWhereTheShardsAre(t *testing.T) {
	r := newRig(t)
	r.fake.rng = rand.New(rand.NewPCG(3, 3))
	for incarnation := uint64(1); incarnation <= 10; incarnation++ {
		s, stop := r.start(incarnation)
		for range 60 {
			r.publish("A", "C", "B", "A", record.AccountStream)
		}
		if incarnation == 10 {
			r.drain(s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	r.compare()
}

func TestWindowIsRespectedAndFullBatchesAreSent(t *testing.T) {
	r := newRig(t)
	r.fake.gate, r.fake.sends = make(chan struct{}), make(chan int, 1000)
	r.options.Linger = time.Hour
	for range 105 {
		r.publish("A")
	}
	s, _ := r.start(1)
	for range 3 {
		if n := <-r.fake.sends; n != 10 {
			t.Fatalf("a batch of %d, expected a full one", n)
		}
	}
	for range 7 {
		select {
		case n := <-r.fake.sends:
			t.Fatalf("a batch of %d beyond the window", n)
		default:
		}
		r.fake.gate <- struct{}{}
		if n := <-r.fake.sends; n != 10 {
			t.Fatalf("a batch of %d, expected a full one", n)
		}
	}
	// The last five wait until nothing is on its way, however long the linger.
	for range 3 {
		r.fake.gate <- struct{}{}
	}
	if n := <-r.fake.sends; n != 5 {
		t.Fatalf("a batch of %d, expected the rest of 5", n)
	}
	r.fake.gate <- struct{}{}
	r.drain(s)
	r.compare()
	if r.fake.flightMax != 3 || s.Stats().Batches != 11 {
		t.Errorf("%d in flight, %+v", r.fake.flightMax, s.Stats())
	}
}

func TestStorageAwayForLong(t *testing.T) {
	r := newRig(t)
	r.fake.down = true
	s, stop := r.start(1)
	n := 0
	for ; r.writer.Reserve(3) || r.writer.Stats().RefusedQuota == 0; n++ {
		if r.writer.Reserve(3) {
			r.write([]string{"A", "C", "B"})
		} else {
			time.Sleep(50 * time.Microsecond)
		}
	}
	if st := s.Stats(); st.LagRecords != r.writer.Published() || st.Persisted != 0 || st.Errors == 0 || st.LastError == nil || st.LagAge <= 0 {
		t.Errorf("%+v of %d", st, r.writer.Published())
	}
	r.fake.set(func() { r.fake.down = false })
	r.drain(s)
	r.publish("A", "D")
	r.drain(s)
	r.compare()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, l := range s.lanes {
		if n := len(l.batcher.free); n > len(l.streams)+r.options.Window {
			t.Errorf("%d buffers after a long backlog", n)
		}
	}
}

// A lane that has delivered everything must not show the age of what it delivered
// when the next record, of any shard, is published.
func TestALaneThatIsDoneHasNoAge(t *testing.T) {
	r := newRig(t)
	r.fake.down = true
	s, stop := r.start(1)
	r.publish("A", "C")
	for _, l := range s.lanes {
		for l.snapshot(time.Now()).LagAge == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	r.fake.set(func() { r.fake.down = false })
	r.drain(s)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	r.publish("B")
	for _, l := range s.lanes {
		if st := l.snapshot(time.Now().Add(time.Hour)); st.LagRecords == 0 || st.LagAge != 0 {
			t.Errorf("%+v", st)
		}
	}
}

func TestHungLeaderIsLeft(t *testing.T) {
	r := newRig(t)
	r.options.AckTimeout = 20 * time.Millisecond
	r.fake.hang = true
	s, _ := r.start(1)
	for range 50 {
		r.publish("A", "C")
	}
	for s.Stats().Errors < 2 {
		time.Sleep(time.Millisecond)
	}
	if err := s.Stats().LastError; !strings.Contains(err.Error(), "no answer within 20ms") {
		t.Errorf("got %v", err)
	}
	r.fake.set(func() { r.fake.hang = false })
	r.drain(s)
	r.compare()
}

func TestFencedByALaterIncarnationStopsForGood(t *testing.T) {
	r := newRig(t)
	r.publish("A", "C")
	s, stop := r.start(1)
	r.drain(s)
	if _, err := r.fake.OpenStream(t.Context(), record.MustSymbol("A"), Epoch(2, 1)); err != nil {
		t.Fatal(err)
	}
	r.publish("A", "C")
	if err := s.WaitDurable(bounded(t), 3); !errors.Is(err, ErrFenced) {
		t.Fatalf("got %v", err)
	}
	if err := s.lanes[1].cursor.wait(bounded(t), 4); err != nil {
		t.Errorf("the other shard goes on: %v", err)
	}
	if err := s.WaitDrained(bounded(t)); !errors.Is(err, ErrFenced) {
		t.Errorf("got %v", err)
	}
	if got := s.Lanes()[0].State; got != StateFenced {
		t.Errorf("state %v", got)
	}
	if err := stop(); !errors.Is(err, ErrFenced) {
		t.Errorf("got %v", err)
	}
	if n := len(r.fake.records(record.MustSymbol("A"))); n != 1 {
		t.Errorf("%d records", n)
	}
}

func TestOwnEpochInARefusalIsNoFence(t *testing.T) {
	r := newRig(t)
	r.fake.loseOpen = 3
	r.publish("A", "B", "C")
	s, _ := r.start(1)
	r.drain(s)
	r.compare()
}

func TestDivergedShardStopsForGood(t *testing.T) {
	r := newRig(t)
	r.publish("A", "A")
	a := record.MustSymbol("A")
	other := r.published[a][0]
	other.CashMove().Amount++
	r.fake.held[a].records = []record.Record{other}
	s, stop := r.start(1)
	if err := s.WaitDrained(bounded(t)); !errors.Is(err, ErrDiverged) {
		t.Fatalf("got %v", err)
	}
	if err := stop(); !errors.Is(err, ErrDiverged) || s.Lanes()[0].State != StateDiverged {
		t.Errorf("got %v", err)
	}
}

func TestShardAheadOfTheOutboxIsDiverged(t *testing.T) {
	r := newRig(t)
	r.publish("A")
	a := record.MustSymbol("A")
	ahead := r.published[a][0]
	ahead.Global = 99
	r.fake.held[a].records = []record.Record{ahead}
	s, _ := r.start(1)
	if err := s.WaitDrained(bounded(t)); !errors.Is(err, ErrDiverged) {
		t.Fatalf("got %v", err)
	}
}

func TestShardThatLostRecordsIsNoticed(t *testing.T) {
	r := newRig(t)
	r.publish("A", "A", "A")
	s, stop := r.start(1)
	r.drain(s)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	h := r.fake.held[record.MustSymbol("A")]
	h.records = h.records[:1]
	r.publish("A")
	s, _ = r.start(2)
	if err := s.WaitDrained(bounded(t)); !errors.Is(err, ErrMissing) {
		t.Fatalf("got %v", err)
	}
}

func TestUnownedInstrumentIsKeptAndReported(t *testing.T) {
	r := newRig(t)
	r.publish("A", "X", "C", "X")
	s, stop := r.start(1)
	if err := s.WaitDrained(bounded(t)); !errors.Is(err, ErrUnowned) {
		t.Fatalf("got %v", err)
	}
	if err := s.WaitDurable(bounded(t), 1); err != nil {
		t.Error(err)
	}
	for _, global := range []uint64{2, 3} { // the second is stored, but not what stands before it
		if err := s.WaitDurable(bounded(t), global); !errors.Is(err, ErrUnowned) {
			t.Errorf("record %d: %v", global, err)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Unowned != 2 || !strings.Contains(st.LastError.Error(), "X seq 1") || st.Cursor != 1 {
		t.Errorf("%+v", st)
	}
}

func TestVoidsArePassedOver(t *testing.T) {
	r := newRig(t)
	r.publish("A", "C")
	r.openWriter(7)
	r.publish("A", "C")
	s, _ := r.start(1)
	r.drain(s)
	r.compare()
	if st := s.Stats(); st.Cursor != 9 || st.Unowned != 0 {
		t.Errorf("%+v", st)
	}
}

// A record that was damaged in the outbox is not certified with a checksum of
// its own and shipped. What stands before it is delivered, and nothing behind it.
func TestDamagedRecordIsNotShipped(t *testing.T) {
	const segmentHeader, damaged = 4096, 38
	for _, c := range []struct {
		name   string
		offset int64
		says   string
	}{
		{"instrument", segmentHeader + (damaged-1)*record.Size + 32, "8832"},
		{"body", segmentHeader + (damaged-1)*record.Size + 100, "8832"},
		{"check word", segmentHeader + 256*record.Size + (damaged-1)*8, "37160"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			for range 20 {
				r.publish("A", "C", record.AccountStream)
			}
			file := filepath.Join(r.dir, "segment-00000000000000000000")
			flip(t, file, c.offset)
			s, err := New(Config{OutboxDir: r.dir, Incarnation: 1, Shards: testMap(), Storage: r.fake, Options: r.options})
			if err != nil {
				t.Fatal(err)
			}
			err = s.Run(bounded(t)) // ends by itself: every lane reads every record
			for _, says := range []string{file, "offset " + c.says, fmt.Sprintf("global %d", damaged)} {
				if !errors.Is(err, ErrOutbox) || !errors.Is(err, outbox.ErrDamaged) || !strings.Contains(err.Error(), says) {
					t.Errorf("%q is not in: %v", says, err)
				}
			}
			stored := 0
			for sym, want := range r.published {
				for i, got := range r.fake.records(sym) {
					stored++
					if got.Global >= damaged || got != want[i] {
						t.Errorf("stored: %v", &got)
					}
				}
			}
			if stored != damaged-1 || s.Stats().Cursor != damaged-1 {
				t.Errorf("%d records are stored, and the cursor is at %d", stored, s.Stats().Cursor)
			}
		})
	}
}

func flip(t *testing.T, file string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

func TestDurableWatermark(t *testing.T) {
	r := newRig(t)
	r.fake.gate = make(chan struct{})
	s, stop := r.start(1)
	r.publish("A")
	called := make(chan error, 1)
	s.OnDurable(1, func(err error) { called <- err })
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.WaitDurable(short, 1); !errors.Is(err, context.DeadlineExceeded) || s.Durable() != 0 {
		t.Fatalf("got %v", err)
	}
	if n := len(s.whole.waiting); n != 1 {
		t.Fatalf("%d waiters left, a cancelled wait must go", n)
	}
	r.fake.gate <- struct{}{}
	if err := <-called; err != nil || s.Durable() != 1 {
		t.Fatal(err)
	}
	s.OnDurable(1, func(err error) { called <- err })
	if err := <-called; err != nil {
		t.Fatal(err)
	}
	s.OnDurable(2, func(err error) { called <- err })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-called; !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
}

// A record is durable when an exchange can be rebuilt with it, which needs what
// other shards are to keep of the time before it.
func TestDurableMeansAllBefore(t *testing.T) {
	r := newRig(t)
	c := r.fake.held[record.MustSymbol("C")]
	shard := c.shard
	r.fake.set(func() { c.shard = "s9" })
	r.publish("A", "C", "A")
	s, _ := r.start(1)
	if err := s.lanes[0].cursor.wait(bounded(t), 3); err != nil {
		t.Fatal(err)
	}
	called := make(chan error, 1)
	s.OnDurable(3, func(err error) { called <- err })
	if err := s.WaitDurable(bounded(t), 1); err != nil {
		t.Fatal(err)
	}
	if len(called) > 0 || s.Durable() != 1 {
		t.Fatalf("durable up to %d while record 2 is not stored", s.Durable())
	}
	r.fake.set(func() { c.shard = shard })
	if err := <-called; err != nil || s.Durable() != 3 {
		t.Fatalf("durable up to %d, %v", s.Durable(), err)
	}
}

func TestRefusalsAreRetriedWithTheReasonShown(t *testing.T) {
	r := newRig(t)
	r.fake.held[record.MustSymbol("A")].shard = "s2" // s1 says that it is not the owner
	s, _ := r.start(1)
	r.publish("A")
	for s.Stats().Errors < 3 {
		time.Sleep(time.Millisecond)
	}
	if err := s.Stats().LastError; !errors.Is(err, refusal.ErrNotOwner) {
		t.Errorf("got %v", err)
	}
	r.fake.set(func() { r.fake.held[record.MustSymbol("A")].shard = "s1" })
	r.drain(s)
	r.compare()
}

func TestMetrics(t *testing.T) {
	r := newRig(t)
	r.publish("A", "C", "A")
	s, _ := r.start(1)
	r.drain(s)
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(s.Collector()); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			sum[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{"received_records_total": 3, "persisted_records_total": 3, "lag_records": 0, "state": 2} {
		if got := sum["countinghouse_subscriber_"+name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestBadConfig(t *testing.T) {
	r := newRig(t)
	good := Config{OutboxDir: r.dir, Incarnation: 1, Shards: testMap(), Storage: r.fake}
	for field, spoil := range map[string]func(*Config){
		"Incarnation":  func(c *Config) { c.Incarnation = 1 << 32 },
		"BatchRecords": func(c *Config) { c.Options.BatchRecords = record.MaxBatchRecords + 1 },
		"Window":       func(c *Config) { c.Options.Window = -1 },
		"Shards":       func(c *Config) { c.Shards = nil },
		"cluster":      func(c *Config) { c.Shards.Cluster = "" },
	} {
		c := good
		c.Shards = testMap()
		spoil(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
	good.OutboxDir = t.TempDir()
	if _, err := New(good); !errors.Is(err, outbox.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}
