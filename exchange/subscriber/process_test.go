package subscriber

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
)

// running is a Process in this one.
type running struct {
	t      *testing.T
	p      *Process
	cancel context.CancelFunc
	done   chan error
}

func (r *rig) carry() *running {
	r.t.Helper()
	p, err := NewProcess(ProcessConfig{OutboxDir: r.dir, Shards: testMap(), Storage: r.fake, Options: r.options})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	run := &running{t: r.t, p: p, cancel: cancel, done: make(chan error, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run.done <- p.Run(ctx)
	}()
	r.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return run
}

// stop ends the process and returns its error.
func (r *running) stop() error {
	r.cancel()
	return r.ended()
}

func (r *running) ended() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(10 * time.Second):
		r.t.Fatalf("it does not end; it waits for %q", r.p.Waits())
		return nil
	}
}

// awaitWord returns once it waits for something with these words.
func (r *running) awaitWord(words string) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(r.p.Waits(), words) || words == "" && r.p.Waits() != ""; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("it waits for %q, not for %q", r.p.Waits(), words)
		}
	}
}

// fence does what a starting exchange does: it opens all streams with a new
// incarnation.
func (r *rig) fence(incarnation uint64) {
	r.t.Helper()
	for sym := range r.fake.held {
		if _, err := r.fake.OpenStream(r.t.Context(), sym, Epoch(incarnation, 0)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// grant grants what is fenced.
func (r *rig) grant(incarnation uint64) {
	r.t.Helper()
	if err := NewGrant(testMap(), r.writer.Incarnation(), incarnation).Write(r.dir); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) follow(onStop func(string, error)) *Follower {
	r.t.Helper()
	f, err := NewFollower(FollowerConfig{
		OutboxDir: r.dir, Opening: r.writer.Incarnation(), Shards: testMap(), Published: r.writer.Published, OnStop: onStop,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.Run(ctx)
	}()
	r.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return f
}

func (r *rig) mustDrain(f *Follower) {
	r.t.Helper()
	if err := f.WaitDrained(bounded(r.t)); err != nil {
		r.t.Fatal(err)
	}
}

func TestAProcessCarriesUnderAGrantOnly(t *testing.T) {
	r := newRig(t)
	r.publish("A", "C")
	run := r.carry()
	run.awaitWord("has not fenced")
	if _, ok := run.p.Stats(); ok {
		t.Error("it has statistics, and carries nothing")
	}
	r.fence(7)
	r.grant(7)
	f := r.follow(nil)
	r.mustDrain(f)
	run.awaitWord("")
	if s, ok := run.p.Stats(); !ok || s.Persisted != 2 {
		t.Errorf("statistics %+v, %t", s, ok)
	}
	if f.Durable() != 2 {
		t.Errorf("the follower sees %d", f.Durable())
	}
	if err := run.stop(); err != nil {
		t.Error(err)
	}
	r.compare()
}

// The exchange starts again and again, under mischief, and sometimes the process
// does: everything is carried, once, and in order.
func TestAProcessFollowsTheExchange(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	r := newRig(t)
	mischief := rand.New(rand.NewPCG(seed, 4))
	run := r.carry()
	names := []string{"A", "B", record.AccountStream, "C", "D"}
	incarnation := uint64(0)
	for range 12 {
		incarnation += 1 + rng.Uint64N(3)
		r.fake.set(func() { r.fake.rng = nil })
		r.fence(incarnation)
		r.fake.set(func() { r.fake.rng = mischief })
		r.grant(incarnation)
		for range 50 {
			tx := []string{names[rng.IntN(len(names))], names[rng.IntN(len(names))]}
			r.publish(tx...)
		}
		if rng.IntN(3) == 0 {
			if err := run.stop(); err != nil {
				t.Fatal(err)
			}
			run = r.carry()
		}
		if rng.IntN(2) == 0 {
			r.mustDrain(r.follow(nil))
		}
		r.openWriter(0)
	}
	run.awaitWord("has not fenced")
	r.fake.set(func() { r.fake.rng = nil })
	r.fence(incarnation + 1)
	r.grant(incarnation + 1)
	r.mustDrain(r.follow(nil))
	r.compare()
}

// A process that begins fences those before it, of the same start of the exchange,
// although they share no lock: here the earlier one works on a copy of the outbox.
func TestALaterProcessFencesAnEarlierOne(t *testing.T) {
	r := newRig(t)
	r.fence(3)
	r.grant(3)
	r.publish("A", "C")
	gate := make(chan struct{})
	r.fake.gate = gate
	other := *r
	other.dir = copyOf(t, r.dir)
	early := other.carry()
	early.awaitFlight(2)
	late := r.carry()
	late.awaitFlight(2) // so it has opened the streams
	close(gate)
	if err := early.ended(); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the earlier one ended with %v", err)
	}
	r.mustDrain(r.follow(nil))
	r.compare()
	if _, err := readReport(other.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the exchange was told: %v", err)
	}
	if err := late.stop(); err != nil {
		t.Error(err)
	}
}

// awaitFlight returns once n batches are on their way.
func (r *running) awaitFlight(n int) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if s, ok := r.p.Stats(); ok && s.InFlight == n {
			return
		}
		if time.Now().After(end) {
			s, _ := r.p.Stats()
			r.t.Fatalf("not %d batches are on their way: %+v", n, s)
		}
	}
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "outbox")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestNoProcessBesideAnother(t *testing.T) {
	r := newRig(t)
	r.grant(1)
	first := r.carry()
	first.awaitWord("")
	if err := r.carry().ended(); !errors.Is(err, outbox.ErrSubscribed) {
		t.Errorf("the second one ended with %v", err)
	}
	if err := first.stop(); err != nil {
		t.Error(err)
	}
}

// An exchange that is fenced by another one hears of it, and the process waits for
// its next start.
func TestTheExchangeHearsThatItIsFenced(t *testing.T) {
	r := newRig(t)
	r.fence(1)
	r.grant(1)
	told := make(chan error, 1)
	f := r.follow(func(_ string, err error) { told <- err })
	run := r.carry()
	r.publish("A")
	r.mustDrain(f)
	r.fence(5)
	r.publish("B", "C")
	err := f.WaitDrained(bounded(t))
	if !errors.Is(err, ErrFenced) {
		t.Fatalf("waiting for a fenced record ended with %v", err)
	}
	if err := <-told; !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "the subscriber process reports") {
		t.Errorf("the exchange was told %v", err)
	}
	if s := f.Stats(); s.State != StateFenced || s.LagRecords != 2 {
		t.Errorf("statistics %+v", s)
	}
	r.publish("D") // so that both lanes learn it
	run.awaitWord("the next is waited for")
	r.openWriter(0)
	r.fence(6)
	r.grant(6)
	r.mustDrain(r.follow(nil))
	r.compare()
}

// The exchange's own start fences the lanes before they can see it; nobody is told.
func TestTheOwnStartIsNoFence(t *testing.T) {
	r := newRig(t)
	r.fence(1)
	r.grant(1)
	r.carry()
	r.publish("A", "C")
	r.mustDrain(r.follow(nil))
	r.openWriter(0)
	r.fence(2)
	r.publish("A", "C")
	r.grant(2)
	r.mustDrain(r.follow(func(_ string, err error) { t.Errorf("told %v", err) }))
	if _, err := readReport(r.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a report: %v", err)
	}
	r.compare()
}

func TestDivergedIsReported(t *testing.T) {
	r := newRig(t)
	r.publish("A")
	other := r.published[record.MustSymbol("A")][0]
	other.CashMove().Amount++
	r.fake.held[other.Instrument].records = []record.Record{other}
	r.fence(1)
	r.grant(1)
	f := r.follow(nil)
	r.carry()
	if err := f.WaitDurable(bounded(t), 1); !errors.Is(err, ErrDiverged) {
		t.Errorf("it ended with %v", err)
	}
}

func TestAnotherMapOrClusterEndsTheProcess(t *testing.T) {
	r := newRig(t)
	m := testMap()
	m.Shards[0].Instruments, m.Shards[1].Instruments = []string{"A", record.AccountStream}, []string{"B", "C", "D"}
	if err := NewGrant(m, r.writer.Incarnation(), 1).Write(r.dir); err != nil {
		t.Fatal(err)
	}
	if err := r.carry().ended(); !errors.Is(err, ErrOtherShards) || !strings.Contains(err.Error(), "shard s1 has the streams [A B __ACCOUNT__], but [A __ACCOUNT__]") {
		t.Errorf("another map: %v", err)
	}
	m = testMap()
	m.Cluster = "other"
	p, err := NewProcess(ProcessConfig{OutboxDir: r.dir, Shards: m, Storage: r.fake})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); !errors.Is(err, outbox.ErrWrongCluster) {
		t.Errorf("another cluster: %v", err)
	}
	if _, err := NewProcess(ProcessConfig{OutboxDir: r.dir, Shards: m, Storage: r.fake, Options: Options{Window: -1}}); err == nil {
		t.Error("a bad window is taken")
	}
}

// Sessions of a term that are used up end no process: the lane takes the next term.
func TestTheNextTerm(t *testing.T) {
	r := newRig(t)
	for sym := range r.fake.held {
		r.fake.held[sym].epoch = Epoch(1, lastSession(4))
	}
	r.grant(1)
	r.carry()
	r.publish("A", "C")
	r.mustDrain(r.follow(nil))
	r.fake.set(func() {
		if e := r.fake.held[record.MustSymbol("A")].epoch; termOf(uint32(e)) != 5 {
			t.Errorf("epoch %#x", e)
		}
	})
	l := &lane{begun: true, session: lastSession(5) + 1, last: lastSession(5)}
	if err := l.runSession(t.Context()); !errors.Is(err, ErrSessions) {
		t.Errorf("beyond its term a lane ended with %v", err)
	}
	r.compare()
}

func TestAFollowerEndsItsWaits(t *testing.T) {
	r := newRig(t)
	f, err := NewFollower(FollowerConfig{OutboxDir: r.dir, Opening: 1, Shards: testMap(), Published: r.writer.Published, Lost: func() uint64 { return 3 }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.Run(ctx)
	}()
	r.publish("A")
	waited := make(chan error, 1)
	f.OnDurable(1, func(err error) { waited <- err })
	cancel()
	if err := <-waited; !errors.Is(err, ErrStopped) {
		t.Errorf("the wait ended with %v", err)
	}
	<-ended
	if s := f.Stats(); s.State != StateStopped || s.LagRecords != 1 || s.Lost != 3 {
		t.Errorf("statistics %+v", s)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(f.Collector())
	families, err := registry.Gather()
	if err != nil || len(families) != 2 {
		t.Errorf("%d metrics, %v", len(families), err)
	}
}

func TestHandoverFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"", "{", `{"format": 2}`} {
		if err := os.WriteFile(filepath.Join(dir, grantName), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadGrant(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
