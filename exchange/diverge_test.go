package exchange

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/exchange/gateway"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// mustRefuse opens with config and expects an error of a kind with all the words.
func mustRefuse(t *testing.T, config Config, kind error, words ...string) {
	t.Helper()
	x, err := Open(t.Context(), config)
	if err == nil {
		x.Close()
		t.Fatal("the exchange started")
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("got %v, want %v", err, kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not mention %q", err, word)
		}
	}
}

// traded lets an exchange trade and returns its last state.
func traded(t *testing.T, config Config, seed uint64) Closed {
	t.Helper()
	x := open(t, config)
	if x.Recovery().Records == 0 || x.Recovery().Listed == 3 {
		fund(t, x)
	}
	trade(x, rand.New(rand.NewPCG(seed, seed)), 500)
	closed, err := x.Close()
	if err != nil {
		t.Fatal(err)
	}
	return closed
}

func TestLostOutbox(t *testing.T) {
	storage := startStorage(t, 1)
	config := testConfig(t, storage.Map())
	last := traded(t, config, 1)
	if err := os.RemoveAll(config.OutboxDir); err != nil {
		t.Fatal(err)
	}
	declared := config
	declared.Init = true
	mustRefuse(t, declared, ErrDiverged, "Init", "--init")

	x := open(t, config)
	if r := x.Recovery(); !r.StateChecked || r.FromOutbox || r.Global != last.State.Global {
		t.Errorf("%+v", r)
	}
	mustEqual(t, "the state after the outbox was lost", last.State, state(t, x))
	trade(x, rand.New(rand.NewPCG(2, 2)), 500)
	mustRebuild(t, storage.Map(), closeDrained(t, x))
}

// Records that only a lost outbox held are missed, if the state file is there to
// tell.
func TestLostOutboxWithUndeliveredRecords(t *testing.T) {
	storage := startStorage(t, 1)
	config := testConfig(t, storage.Map())
	traded(t, config, 1)
	storage.Kill()
	cut := config
	cut.DrainWait, cut.CloseWait = 50*time.Millisecond, time.Millisecond
	if closed := traded(t, cut, 2); closed.Drained {
		t.Fatal("something was delivered to nodes that are down")
	}
	for _, m := range storage.Members() {
		if err := storage.StartNode(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(config.OutboxDir); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, config, ErrDiverged, "lost", statePath(config.OutboxDir))
}

// An outbox with another history than the stores' is refused before it writes,
// and stopped when the stores come later.
func TestOutboxOfAnotherHistory(t *testing.T) {
	storage := startStorage(t, 1)
	first := testConfig(t, storage.Map())
	last := traded(t, first, 1)

	other := testConfig(t, noStorage())
	longer := traded(t, storageless(other), 7)
	if longer.State.Global == last.State.Global {
		t.Log("both histories are equally long")
	}
	other.Shards = storage.Map()
	mustRefuse(t, other, ErrDiverged, "is not what the outbox has", "move the outbox away")

	x := open(t, first) // nothing was written
	mustEqual(t, "the first history", last.State, state(t, x))
	closeDrained(t, x)

	storage.Kill()
	late := storageless(other)
	late.OutboxDir = filepath.Join(t.TempDir(), "late")
	x = open(t, late)
	fund(t, x)
	for _, m := range storage.Members() {
		if err := storage.StartNode(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-x.Failed():
	case <-time.After(20 * time.Second):
		t.Fatalf("the exchange goes on: %+v", x.Stats().Lanes)
	}
	if err := x.Err(); !errors.Is(err, ErrDiverged) {
		t.Errorf("got %v", err)
	}
	if _, err := x.State(); !errors.Is(err, ErrClosed) {
		t.Errorf("a failed exchange answers with %v", err)
	}
	x.Close()
	mustRebuild(t, storage.Map(), last.State)
}

func TestOutboxBehindTheStores(t *testing.T) {
	storage := startStorage(t, 1)
	config := testConfig(t, storage.Map())
	traded(t, config, 1)
	behind := filepath.Join(t.TempDir(), "behind")
	if err := os.CopyFS(behind, os.DirFS(config.OutboxDir)); err != nil {
		t.Fatal(err)
	}
	traded(t, config, 2)
	config.OutboxDir = behind
	mustRefuse(t, config, ErrDiverged, "another exchange has written", behind)
}

// An outbox that lost its end with the machine goes on after what the stores
// hold, with and without records that still wait for delivery.
func TestOutboxThatLostItsEnd(t *testing.T) {
	for _, waiting := range []bool{false, true} {
		t.Run(fmt.Sprintf("waiting %t", waiting), func(t *testing.T) {
			storage := startStorage(t, 1)
			config := testConfig(t, storage.Map())
			if waiting {
				offline := storageless(config)
				offline.Shards = noStorage()
				traded(t, offline, 1)
			} else {
				traded(t, config, 1)
			}
			behind := filepath.Join(t.TempDir(), "behind")
			if err := os.CopyFS(behind, os.DirFS(config.OutboxDir)); err != nil {
				t.Fatal(err)
			}
			last := traded(t, config, 2)
			known := knownState{Format: stateFormat, Cluster: "test", NeedsStores: true, path: statePath(behind)}
			if err := known.store(); err != nil {
				t.Fatal(err)
			}
			config.OutboxDir = behind
			x := open(t, config)
			mustEqual(t, "the state", last.State, state(t, x))
			trade(x, rand.New(rand.NewPCG(3, 3)), 500)
			last.State = closeDrained(t, x)
			mustRebuild(t, storage.Map(), last.State)
			x = open(t, config)
			mustEqual(t, "the state after another start", last.State, state(t, x))
			if after, err := loadState(behind, "test"); err != nil || after.NeedsStores {
				t.Errorf("state file %+v, %v", after, err)
			}
		})
	}
}

// A shard that lost its data is noticed, not filled up from the middle.
func TestStoreThatLostItsData(t *testing.T) {
	storage := startStorage(t, 1)
	config := testConfig(t, storage.Map())
	traded(t, config, 1)
	storage.Kill()
	if err := os.RemoveAll(storage.Of("s2")[0].DataDir); err != nil {
		t.Fatal(err)
	}
	for _, m := range storage.Members() {
		if err := storage.StartNode(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := storage.AwaitLeaders(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, config, ErrDiverged, "missing")
}

func TestStoresThatAreNeededAreWaitedFor(t *testing.T) {
	config := testConfig(t, noStorage())
	config.StorageWait = 200 * time.Millisecond
	config.DrainWait = 100 * time.Millisecond
	mustRefuse(t, config, ErrStores, "first start", "--init", "shard s")

	// An outbox that was in use when the machine went down needs them, too.
	traded(t, storageless(config), 1)
	known, err := loadState(config.OutboxDir, "test")
	if err != nil {
		t.Fatal(err)
	}
	known.NeedsStores = true
	if err := known.store(); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, storageless(config), ErrStores, "machine went down")
}

// A start that ends before it could note that the machine went down must not
// make the next one forget it.
func TestMachineThatWentDownIsNotForgotten(t *testing.T) {
	config := storageless(testConfig(t, noStorage()))
	config.StorageWait = 200 * time.Millisecond
	traded(t, config, 1)
	w, err := outbox.Open(config.OutboxDir, outbox.Options{Cluster: "test", BootID: "another boot"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	obstacle := statePath(config.OutboxDir) + ".tmp"
	if err := os.Mkdir(obstacle, 0o755); err != nil {
		t.Fatal(err)
	}
	if x, err := Open(t.Context(), config); err == nil || !strings.Contains(err.Error(), obstacle) {
		t.Fatalf("%v, %v: the state file can not be written", x, err)
	}
	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		mustRefuse(t, config, ErrStores, "machine went down")
	}
}

// A start does not replay a record that is not what was written.
func TestDamagedRecordIsNotReplayed(t *testing.T) {
	const body = 4096 + 9*record.Size + 100 // of the tenth record
	config := storageless(testConfig(t, noStorage()))
	traded(t, config, 1)
	segment := filepath.Join(config.OutboxDir, fmt.Sprintf("segment-%020d", 0))
	f, err := os.OpenFile(segment, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, body); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{b[0] ^ 1}, body); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, config, outbox.ErrDamaged, segment, "offset 5248", "global 10")
}

func TestStateFile(t *testing.T) {
	config := storageless(testConfig(t, noStorage()))
	traded(t, config, 1)
	path := statePath(config.OutboxDir)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	known, err := loadState(config.OutboxDir, "test")
	if err != nil || known.Global == 0 || len(known.Hash) != 64 {
		t.Fatalf("%+v, %v", known, err)
	}
	known.Hash = strings.Repeat("0", 64)
	if err := known.store(); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, config, ErrDiverged, "0000000000000000", path)
	for text, word := range map[string]string{
		"nonsense": "remove it", `{"format":2,"cluster":"test"}`: "format 2", `{"format":1,"cluster":"prod"}`: `"prod"`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		mustRefuse(t, config, nil, word, path)
	}
	if err := os.WriteFile(path, good, 0o644); err != nil {
		t.Fatal(err)
	}
	if x := open(t, config); !x.Recovery().StateChecked {
		t.Error("the state was not compared")
	}
}

// The state is noted while the exchange runs, so that also a killed one is
// compared with something.
func TestStateIsNotedNowAndThen(t *testing.T) {
	config := storageless(testConfig(t, noStorage()))
	config.StateEvery = time.Millisecond
	x := open(t, config)
	fund(t, x)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		known, err := loadState(config.OutboxDir, "test")
		if err != nil {
			t.Fatal(err)
		}
		if known.Global == state(t, x).Global {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("noted: %+v", known)
		}
	}
}

func TestTwoExchangesWithOneOutbox(t *testing.T) {
	config := storageless(testConfig(t, noStorage()))
	x := open(t, config)
	mustRefuse(t, config, outbox.ErrLocked, config.OutboxDir)
	fund(t, x)
	foreign := config
	foreign.Shards = noStorage()
	foreign.Shards.Cluster = "prod"
	if _, err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(statePath(config.OutboxDir)); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, foreign, outbox.ErrWrongCluster, `"test"`, `"prod"`)
}

func TestChangedTerms(t *testing.T) {
	config := storageless(testConfig(t, noStorage()))
	traded(t, config, 1)
	changed := config
	changed.Instruments.Instruments = append([]order.Instrument(nil), config.Instruments.Instruments...)
	terms := &changed.Instruments.Instruments[1]
	terms.LongMarginPPM += 10_000
	terms.MaxOrderVolume++

	x := open(t, changed)
	if r := x.Recovery(); r.Listed != 0 || len(r.Postponed) != 1 || !strings.Contains(r.Postponed[0].Error(), "orders are live") {
		t.Errorf("with live orders: %+v", r)
	}
	settle(t, x, 20250106)
	if _, err := x.Close(); err != nil {
		t.Fatal(err)
	}

	x = open(t, changed)
	view, _ := x.Router().Instrument(terms.Symbol)
	want := *terms
	want.LowerLimit, want.UpperLimit = view.Terms.LowerLimit, view.Terms.UpperLimit // the settlement's
	if x.Recovery().Listed != 1 || view.Terms != want {
		t.Errorf("recovery %+v, terms %+v", x.Recovery(), view.Terms)
	}
	closed, err := x.Close()
	if err != nil {
		t.Fatal(err)
	}
	terms.TickValue++
	mustRefuse(t, changed, ErrTerms, terms.Symbol.String())
	terms.TickValue--
	x = open(t, changed)
	mustEqual(t, "the state after changed terms", closed.State, state(t, x))
}

func TestConfigIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		words  []string
	}{
		"no shards":      {func(c *Config) { c.Shards = nil }, []string{"Shards"}},
		"bad shards":     {func(c *Config) { c.Shards = &client.Map{} }, []string{"Shards"}},
		"no outbox":      {func(c *Config) { c.OutboxDir = "" }, []string{"OutboxDir"}},
		"no instruments": {func(c *Config) { c.Instruments.Instruments = nil }, []string{"Instruments"}},
		"unowned": {func(c *Config) { c.Shards.Shards[0].Instruments = c.Shards.Shards[0].Instruments[:1] }, []string{
			"Shards", record.AccountStream,
		}},
		"listed twice": {func(c *Config) {
			c.Instruments.Instruments = append(c.Instruments.Instruments, c.Instruments.Instruments[0])
		}, []string{"IF2501", "twice"}},
		"terms":       {func(c *Config) { c.Instruments.Instruments[0].TickValue = 0 }, []string{"Instruments[0]", "tick"}},
		"quota":       {func(c *Config) { c.QuotaBytes = -1 }, []string{"QuotaBytes"}},
		"small quota": {func(c *Config) { c.QuotaBytes = 1 }, []string{"QuotaBytes", "use at least"}},
		"segment":     {func(c *Config) { c.SegmentRecords = 33 }, []string{"SegmentRecords"}},
		"instruments": {func(c *Config) {
			c.SegmentRecords = 32
			for range 63 {
				c.Instruments.Instruments = append(c.Instruments.Instruments, c.Instruments.Instruments[0])
			}
		}, []string{"SegmentRecords", "settlement", "use at least 33"}},
		"headroom": {func(c *Config) { c.HeadroomRecords = 1 << 20 }, []string{"HeadroomRecords"}},
		"policy":   {func(c *Config) { c.Policy = gateway.Policy(9) }, []string{"Policy"}},
		"batch":    {func(c *Config) { c.Delivery.BatchRecords = record.MaxBatchRecords + 1 }, []string{"Delivery.BatchRecords", "8192"}},
		"linger":   {func(c *Config) { c.Delivery.Linger = -1 }, []string{"Delivery.Linger"}},
		"window":   {func(c *Config) { c.Delivery.WindowBatches = 1 << 20 }, []string{"Delivery.WindowBatches"}},
		"wait":     {func(c *Config) { c.StorageWait = -1 }, []string{"StorageWait"}},
		"parent": {func(c *Config) { c.OutboxDir = filepath.Join(c.OutboxDir, "deep", "er") }, []string{
			"no such file",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			config := storageless(testConfig(t, noStorage()))
			dir := config.OutboxDir
			c.change(&config)
			mustRefuse(t, config, nil, c.words...)
			for _, path := range []string{dir, statePath(dir)} {
				if _, err := os.Stat(path); err == nil {
					t.Errorf("%s was created", path)
				}
			}
		})
	}
	if _, err := DeliveryPreset("fast"); err == nil || !strings.Contains(err.Error(), "production") {
		t.Errorf("unknown preset: %v", err)
	}
}
