package fire

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

var (
	flagSeed     = flag.Uint64("fire.seed", 0, "first seed of a longer run (0: the fixed seeds)")
	flagSeconds  = flag.Int("fire.seconds", 0, "how long to go on with the seeds that follow")
	flagLength   = flag.Duration("fire.length", 4*time.Second, "how long the faults of one seed last")
	flagReplicas = flag.Int("fire.replicas", 0, "replicas (0: 5 for every third seed, else 3)")
	flagKeep     = flag.String("fire.keep", "", "directory for what is left of a run with a finding (default: a temporary one)")
)

// fixedSeeds are run by plain "go test".
var fixedSeeds = []uint64{1, 2, 3, 4, 5, 6}

// TestClusterUnderFire runs a shard under faults for each seed. A seed fixes the
// plan: which faults come when, what clients do, what crashes leave. It does not
// fix the goroutines' timing, so that a finding may need several runs of its seed
// to be seen again.
func TestClusterUnderFire(t *testing.T) {
	if *flagSeed == 0 && *flagSeconds == 0 {
		messages := map[string]int{}
		for _, seed := range fixedSeeds {
			for what, n := range runSeed(t, seed) {
				messages[what] += n
			}
		}
		for _, what := range messageFaultNames {
			if messages[what] == 0 {
				t.Errorf("no %s in any run", what)
			}
		}
		return
	}
	until := time.Now().Add(time.Duration(*flagSeconds) * time.Second)
	for seed := max(*flagSeed, 1); ; seed++ {
		runSeed(t, seed)
		if time.Now().After(until) || t.Failed() {
			return
		}
	}
}

func replicasOf(seed uint64) int {
	switch {
	case *flagReplicas > 0:
		return *flagReplicas
	case seed%3 == 0:
		return 5
	}
	return 3
}

// runSeed returns how many messages met each fault.
func runSeed(t *testing.T, seed uint64) (messages map[string]int) {
	messages = map[string]int{}
	t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
		c, err := newCluster(seed, replicasOf(seed))
		if err == nil {
			err = c.burn(*flagLength)
		}
		summary := c.summary()
		if err != nil {
			t.Errorf("seed %d: %v\n%s\n%s", seed, err, summary, c.keep(err))
		}
		c.close()
		t.Log(summary)
		for _, what := range messageFaultNames {
			messages[what] = c.occurred(what)
		}
	})
	return messages
}

// burn runs clients and faults for a while and checks everything after.
func (c *cluster) burn(length time.Duration) error {
	w := c.startWork()
	n := &nemesis{c: c, rng: c.random()}
	c.clients.Go(n.run)
	c.sleep(length)
	c.stop()
	c.clients.Wait()
	c.note("clients stopped")
	for _, m := range c.all() { // faults that are still to come do not come
		m.spare()
	}
	return errors.Join(c.found(), c.checkAll(w))
}

// work is what the clients of a run bring back.
type work struct {
	mu    sync.Mutex
	stale []*stale
	tails []*follower
}

func (c *cluster) startWork() *work {
	w := new(work)
	for i, name := range instruments {
		c.clients.Go(func() { c.rivals(name) })
		k := c.client(fmt.Sprintf("tail-%d", i))
		c.clients.Go(func() {
			f := k.tail(name)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.tails = append(w.tails, f)
		})
	}
	for i := range 3 {
		c.clients.Go(c.client(fmt.Sprintf("reader-%d", i)).readStates)
	}
	c.clients.Go(c.client("scanner").readRecords)
	c.clients.Go(func() {
		reads := c.client("stale").readStale()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.stale = append(w.stale, reads...)
	})
	c.clients.Go(c.client("operator").changeMembers)
	return w
}

// rivals starts writers of one instrument: from time to time one with a higher
// incarnation takes over from those that run.
func (c *cluster) rivals(instrument string) {
	rng := c.random()
	for incarnation := uint64(1); c.ctx.Err() == nil; incarnation++ {
		c.clients.Go(c.writer(instrument, incarnation).run)
		c.sleep(500*time.Millisecond + time.Duration(rng.IntN(2000))*time.Millisecond)
	}
}

// checkAll waits until the shard is at rest, reads everything, takes the power
// from all members, reads everything again, and judges the run.
func (c *cluster) checkAll(w *work) error {
	states, err := c.settle()
	c.note("settled")
	if err != nil {
		return err
	}
	k := c.client("last reader")
	for _, m := range c.present() {
		k.readState(context.Background(), m)
	}
	k.close()
	finals, err := c.streams(states)
	if err != nil {
		return err
	}
	errs := []error{c.judge(w, finals)}
	c.note("judged")
	errs = append(errs, c.checkPowerOff(finals))
	c.note("power off checked")
	errs = append(errs, c.checkDisks(), c.found())
	c.note("disks checked")
	return errors.Join(errs...)
}

// note keeps when a part of the run was over.
func (c *cluster) note(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notes = append(c.notes, fmt.Sprintf("%s at %.1fs", what, c.history.now().Seconds()))
}

func (c *cluster) judge(w *work, finals map[string][]byte) error {
	byInstrument := map[string][]*op{}
	for _, o := range c.history.all() {
		byInstrument[o.instrument] = append(byInstrument[o.instrument], o)
	}
	errs := []error{checkStale(w.stale, finals)}
	for _, f := range w.tails {
		errs = append(errs, f.check(finals))
	}
	for _, name := range instruments {
		errs = append(errs, checkInstrument(name, byInstrument[name], finals[name]))
	}
	return errors.Join(errs...)
}

// checkPowerOff checks that what all members hold is on their disks.
func (c *cluster) checkPowerOff(before map[string][]byte) error {
	c.powerOff()
	states, err := c.settle()
	if err != nil {
		return fmt.Errorf("after a power failure of all: %w", err)
	}
	after, err := c.streams(states)
	if err != nil {
		return fmt.Errorf("after a power failure of all: %w", err)
	}
	for name, content := range before {
		if string(after[name]) != string(content) {
			return fmt.Errorf("after a power failure of all: %s has other records", name)
		}
	}
	return nil
}

func (c *cluster) close() {
	c.stop()
	c.clients.Wait()
	for _, m := range c.all() {
		_ = m.stop()
	}
	c.post.close()
	c.background.Wait()
}

// summary counts what happened.
func (c *cluster) summary() string {
	counts := map[string]int{}
	for _, o := range c.history.all() {
		counts[kindNames[o.kind]+" "+outcomeNames[o.outcome]]++
	}
	var parts []string
	for _, k := range kindNames {
		for _, o := range outcomeNames {
			if n := counts[k+" "+o]; n > 0 {
				parts = append(parts, fmt.Sprintf("%s %s %d", k, o, n))
			}
		}
	}
	return "operations: " + strings.Join(parts, ", ") + "\nfaults: " + c.counted() + "\n" + strings.Join(c.notes, ", ")
}

// keep saves disks, logs and the history, and says where.
func (c *cluster) keep(cause error) string {
	dir, err := os.MkdirTemp(*flagKeep, fmt.Sprintf("fire-seed-%d-", c.seed))
	if err != nil {
		return err.Error()
	}
	var ops strings.Builder
	for _, o := range c.history.all() {
		fmt.Fprintln(&ops, o)
	}
	errs := []error{
		os.WriteFile(filepath.Join(dir, "history.txt"), []byte(ops.String()), 0o644),
		os.WriteFile(filepath.Join(dir, "log.txt"), []byte(c.log.String()), 0o644),
	}
	for _, m := range c.all() {
		errs = append(errs, m.present().save(filepath.Join(dir, m.id)))
	}
	var wrong *linearizabilityError
	if errors.As(cause, &wrong) {
		errs = append(errs, porcupine.VisualizePath(model, wrong.info, filepath.Join(dir, "history.html")))
	}
	return fmt.Sprintf("kept in %s (%v)", dir, errors.Join(errs...))
}
