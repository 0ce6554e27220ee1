package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// twoProcesses are an exchange and a subscriber that share an outbox.
type twoProcesses struct {
	cluster  *localcluster.Cluster
	client   *client.Client
	exchange []string // arguments
	carrier  []string
}

func newTwoProcesses(t *testing.T, exchangeArgs ...string) *twoProcesses {
	t.Helper()
	cluster, shards := storage(t)
	c, err := client.New(cluster.Map(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	outbox := filepath.Join(t.TempDir(), "outbox")
	common := []string{"--shards", shards, "--outbox", outbox, "--linger", "2ms"}
	return &twoProcesses{
		cluster: cluster, client: c,
		exchange: append(append([]string{
			"--subscriber", "external", "--segment-records", "4096", "--quota", "64MiB", "--state-every", "20ms", "--log-level", "warn", "--close-wait", "20s",
		}, common...), exchangeArgs...),
		carrier: common,
	}
}

// carry starts a subscriber.
func (w *twoProcesses) carry(t *testing.T, more ...string) *program {
	t.Helper()
	p, _ := spawn(t, "subscriber", append(append([]string{}, w.carrier...), more...)...)
	return p
}

// await waits until the program has logged words.
func (p *program) await(t *testing.T, words string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(p.log.String(), words); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not log %q: %s", words, p.log)
		}
	}
}

func (p *program) mustRun(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
		t.Fatalf("it ended with code %d: %s", p.cmd.ProcessState.ExitCode(), p.log)
	default:
	}
}

// Exchange and subscriber are killed at random instants while orders flow, one of
// them or both at once. Every order that was answered is stored once, and what was
// called durable was stored by then.
func TestEitherProcessIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newTwoProcesses(t)
	s := w.carry(t) // first of all: there is no outbox yet
	s.await(t, "has not made the outbox yet")
	var all []ack
	killed := map[string]int{}
	for round := range kills + 1 {
		if rng.IntN(3) == 0 { // the recovery is not spared either
			p, _ := begin(t, w.exchange...)
			time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
			p.kill()
		}
		p := mustStart(t, w.exchange...)
		if round == kills {
			mustEqualReplay(t, w.client, p)
			if code := p.terminate(t); code != exitOK {
				t.Errorf("exit code %d: %s", code, p.log)
			}
			if code := s.terminate(t); code != exitOK {
				t.Errorf("the subscriber's exit code is %d: %s", code, s.log)
			}
			break
		}
		if round == 0 {
			fund(t, p)
		}
		// Meanwhile the subscriber is killed as well, once or more often.
		var beside sync.WaitGroup
		carriers := rand.New(rand.NewPCG(rng.Uint64(), 2))
		if rng.IntN(4) > 0 {
			beside.Go(func() {
				for range 1 + carriers.IntN(3) {
					time.Sleep(time.Duration(carriers.Int64N(int64(80 * time.Millisecond))))
					s.kill()
					s = w.carry(t)
					killed["subscriber"]++
				}
			})
		}
		acks := tradeAndKill(t, p, rng)
		beside.Wait()
		killed["exchange"]++
		mustHaveDurable(t, w.client, acks)
		all = append(all, acks...)
		s.mustRun(t)
	}
	t.Logf("killed: %v", killed)
	mustHaveAll(t, w.client, all)
}

// The exchange trades while no subscriber runs and all storage is stopped, and what
// it took is carried later, in whichever order the processes come back.
func TestTradesWithoutSubscriberAndStorage(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	w := newTwoProcesses(t, "--init")
	p := mustStart(t, w.exchange...)
	fund(t, p)
	for _, m := range w.cluster.Members() {
		if err := w.cluster.KillNode(m.ID); err != nil {
			t.Fatal(err)
		}
	}
	acks := tradeAndKill(t, p, rand.New(rand.NewPCG(1, 1)))
	if len(acks) == 0 {
		t.Fatal("nothing was traded")
	}
	for _, a := range acks {
		if a.durable {
			t.Fatalf("order %d was called durable, and nothing is stored", a.orderID)
		}
	}
	// Without the stores it starts from its outbox alone, and trades again.
	p = mustStart(t, append(append([]string{}, w.exchange...), "--drain-wait", "50ms")...)
	s := w.carry(t)
	s.await(t, "has not fenced the writers before it yet")
	more := tradeFor(t, p, 100*time.Millisecond)
	for _, m := range w.cluster.Members() {
		if err := w.cluster.StartNode(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	mustEqualReplay(t, w.client, p)
	p.kill()
	mustHaveAll(t, w.client, append(acks, more...))
}

// tradeFor lets traders loose on an exchange that is not killed. It returns what
// they were told by then.
func tradeFor(t *testing.T, p *program, d time.Duration) []ack {
	t.Helper()
	tr := &trader{rng: rand.New(rand.NewPCG(7, 7))}
	conn := p.dial(t)
	done := make(chan error, 1)
	go func() { done <- tr.run(t.Context(), pb.NewOrderEntryClient(conn)) }()
	time.Sleep(d)
	conn.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return tr.acks
}

// What was published is carried while the exchange does not run.
func TestCarriesWithoutTheExchange(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	w := newTwoProcesses(t)
	p := mustStart(t, w.exchange...)
	fund(t, p)
	acks := tradeAndKill(t, p, rand.New(rand.NewPCG(2, 2)))
	for name, seq := range stored(t, w.client) {
		if seq != 0 {
			t.Fatalf("%s holds %d records, and nobody carries", name, seq)
		}
	}
	w.carry(t)
	last := map[string]uint64{}
	for _, a := range acks {
		last[a.instrument] = max(last[a.instrument], a.seq)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		held, lacks := stored(t, w.client), ""
		for name, seq := range last {
			if held[name] < seq {
				lacks = fmt.Sprintf("%s holds %d of %d", name, held[name], seq)
			}
		}
		if lacks == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatal(lacks)
		}
	}
}

// A stopped subscriber keeps a second one out; when it is dead, the second one goes
// on. Nobody carries beside an exchange that does so itself.
func TestOneSubscriberAtATime(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	w := newTwoProcesses(t)
	p := mustStart(t, w.exchange...)
	first := w.carry(t)
	first.await(t, "carrying")
	if err := first.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	second := w.carry(t)
	<-second.exited
	if code := second.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(second.log.String(), fmt.Sprint("process ", first.cmd.Process.Pid)) {
		t.Fatalf("the second one ended with code %d: %s", code, second.log)
	}
	fund(t, p)
	if err := first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	mustEqualReplay(t, w.client, p)
	p.terminate(t)

	inside := append(append([]string{}, w.exchange...), "--subscriber", "internal")
	p = start(t, inside...)
	<-p.exited
	if code := p.cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(p.log.String(), "--subscriber=external") {
		t.Fatalf("beside a subscriber the exchange ended with code %d: %s", code, p.log)
	}
	first.kill()
	mustStart(t, inside...)
	second = w.carry(t)
	<-second.exited
	if code := second.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(second.log.String(), "another process carries") {
		t.Fatalf("beside an exchange that carries itself it ended with code %d: %s", code, second.log)
	}
}

// An exchange that went on elsewhere has fenced the old one. The old subscriber
// writes no more, and tells its exchange, which stops.
func TestAnotherExchangeTakesOver(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	w := newTwoProcesses(t)
	old := mustStart(t, w.exchange...)
	s := w.carry(t)
	fund(t, old)
	mustEqualReplay(t, w.client, old)
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	tradeFor(t, old, 50*time.Millisecond) // for which there is no room in the other history
	other := newArgs(w.exchange, "--outbox", filepath.Join(t.TempDir(), "other"))
	fresh := mustStart(t, other...)
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	<-old.exited
	if code := old.cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(old.log.String(), "fenced by a later writer") {
		t.Fatalf("the old exchange ended with code %d: %s", code, old.log)
	}
	s.await(t, "the next is waited for")
	w.carrier = newArgs(w.carrier, "--outbox", other[len(other)-1])
	w.carry(t)
	fund2 := pb.NewAccountsClient(fresh.dial(t))
	if _, err := fund2.Deposit(t.Context(), &pb.CashRequest{Account: 1, Amount: 1}); err != nil {
		t.Fatal(err)
	}
	mustEqualReplay(t, w.client, fresh)
	s.mustRun(t)
}

// newArgs returns arguments of which a later one wins.
func newArgs(args []string, more ...string) []string {
	return append(append([]string{}, args...), more...)
}

// Ready says whether records are carried, and what is waited for.
func TestSubscriberTellsWhatItWaitsFor(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	w := newTwoProcesses(t)
	s := w.carry(t, "--metrics-listen", address)
	s.await(t, "has not made the outbox yet")
	mustGet(t, "http://"+address+"/healthz", http.StatusOK)
	mustGet(t, "http://"+address+"/readyz", http.StatusServiceUnavailable)
	p := mustStart(t, w.exchange...)
	s.await(t, "carrying")
	mustGet(t, "http://"+address+"/readyz", http.StatusOK)
	fund(t, p)
	mustEqualReplay(t, w.client, p)
	mustGet(t, "http://"+address+"/metrics", http.StatusOK)
}

func mustGet(t *testing.T, url string, code int) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != code {
		t.Fatalf("%s answers %s", url, r.Status)
	}
}
