package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/storagenode/node"
)

// The test binary runs itself as a storage node.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "node" {
		os.Exit(node.Execute(context.Background(), os.Args[2:]))
	}
	os.Exit(m.Run())
}

func config(t *testing.T, seed uint64) Config {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Seed: seed, Duration: 8 * time.Second, Dir: t.TempDir(), Shards: 1, Replicas: 3, Rate: 2000,
		NodeCommand: []string{self, "node"}, Stop: make(chan struct{}),
		Progress: func(string, ...any) {}, Note: t.Logf,
	}
}

func showEvents(t *testing.T, dir string) {
	t.Helper()
	if b, err := os.ReadFile(dir + "/" + eventFile); err == nil && t.Failed() {
		t.Logf("%s", b)
	}
}

func TestShortTorture(t *testing.T) {
	for _, seed := range []uint64{1, 2} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		c := config(t, seed)
		r, err := Run(ctx, c)
		cancel()
		text, _ := json.Marshal(r)
		t.Logf("%s", text)
		if err != nil || !r.OK || r.Lost+r.Duplicated+r.Reordered != 0 {
			t.Errorf("seed %d: %v, %q", seed, err, r.Findings)
		}
		if r.Acked == 0 || r.Stored < r.Acked || r.RecordsCompared != 3*r.Stored || r.FaultsTotal == 0 ||
			r.Sessions == 0 || r.Reads.Scans == 0 || r.Reads.Tailed == 0 || r.ReplicasChecked != 3 || r.Verified != 3 || !r.ReplicasIdentical {
			t.Errorf("seed %d: not everything was done", seed)
		}
		showEvents(t, c.Dir)
	}
}

// A run that is stopped early checks what was written so far.
func TestStopEndsTheFaults(t *testing.T) {
	c := config(t, 3)
	stop := make(chan struct{})
	c.Duration, c.Stop = time.Hour, stop
	time.AfterFunc(4*time.Second, func() { close(stop) })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := Run(ctx, c)
	if err != nil || !r.OK || !r.Complete || r.RecordsCompared != 3*r.Stored {
		t.Errorf("%v: %+v", err, r)
	}
	showEvents(t, c.Dir)
}

// A run whose context ends says that it is not complete, and leaves no process.
func TestCancelEndsTheRun(t *testing.T) {
	c := config(t, 4)
	c.Duration = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	r, err := Run(ctx, c)
	if err == nil || r.OK || r.Complete || len(r.Findings) != 0 {
		t.Errorf("%v: %+v", err, r)
	}
}

func TestDirectoryInUseIsRefused(t *testing.T) {
	c := config(t, 5)
	if err := os.WriteFile(c.Dir+"/"+eventFile, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if r, err := Run(t.Context(), c); err == nil || r.OK {
		t.Errorf("a directory that is in use: %v", err)
	}
}

// The seed decides which faults come, when, and where.
func TestSeedDecidesThePlan(t *testing.T) {
	draw := func(seed uint64) (out []string) {
		c := &torture{Config: Config{Seed: seed}, shards: []*shard{{name: "s1"}, {name: "s2"}}}
		for n := range uint64(500) {
			in, f, after := c.plan(n)
			out = append(out, fmt.Sprint(f.kind, in.s.name, after, in.random.Uint64()))
		}
		return out
	}
	if !slices.Equal(draw(7), draw(7)) {
		t.Error("the same seed plans differently")
	}
	if slices.Equal(draw(7), draw(8)) {
		t.Error("another seed plans the same")
	}
	drawn := strings.Join(draw(7), "\n")
	for i := range kindsOfFaults {
		if !strings.Contains(drawn, kindsOfFaults[i].kind) {
			t.Errorf("%s never comes in 500 faults", kindsOfFaults[i].kind)
		}
	}
}
