package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

// The fields that machines rely on.
var reportFields = []string{
	"ok", "seed", "orders", "trades", "notifications", "batches", "order_latency_ns", "order_latency_during_failover_ns",
	"failover_ms", "lag_records_max", "replicas_identical", "rebuild_identical",
}

func checkReport(t *testing.T, out string, fields ...string) map[string]any {
	t.Helper()
	got := objects(t, out)
	if len(got) != 1 {
		t.Fatalf("%d objects instead of one:\n%s", len(got), out)
	}
	for _, name := range append(fields, reportFields...) {
		if _, ok := got[0][name]; !ok {
			t.Errorf("field %q is missing in %s", name, out)
		}
	}
	n := got[0]["notifications"].(map[string]any)
	if got[0]["ok"] != true || n["lost"] != 0.0 || n["duplicated"] != 0.0 || n["received"] != n["persisted"] || n["received"] == 0.0 {
		t.Errorf("not a good run: %s", out)
	}
	return got[0]
}

func TestDemo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	out, progress, err := execute(t, "demo", "--seconds", "4", "--rate", "2500", "--accounts", "50", "--seed", "42", "-o", "json", "--data-dir", dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress)
	}
	got := checkReport(t, out)
	if got["seed"] != 42.0 || got["trades"] == 0.0 || got["failover_ms"] == 0.0 || !strings.Contains(progress, "with SIGKILL") {
		t.Errorf("%s\n%s", out, progress)
	}
	nodes, err := filepath.Glob(filepath.Join(dir, "s?-?"))
	if err != nil || len(nodes) != 6 {
		t.Fatalf("the data of %d nodes was kept: %v", len(nodes), err)
	}
	if _, _, err := execute(t, append([]string{"verify"}, nodes...)...); err != nil {
		t.Errorf("verify of what was kept: %v", err)
	}
	if _, _, err := execute(t, "demo", "--data-dir", dir); output.ExitCode(err) != output.ExitUsage || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a second demo in the same directory: %v", err)
	}
}

func TestReplayOfSmallFiles(t *testing.T) {
	l3, lobster := "../../orderflow/l3/testdata/", "../../orderflow/lobster/testdata/"
	out, progress, err := execute(t, "replay", "--format", "l3", l3+"small.csv", "--trades", l3+"small.trades", "-o", "json")
	if err != nil {
		t.Fatalf("%v\n%s", err, progress)
	}
	got := checkReport(t, out, "expected_trades", "reproduced_trades", "unknown_orders", "skipped_rows")
	if got["expected_trades"] == 0.0 || got["unknown_orders"] != 3.0 {
		t.Errorf("%s", out)
	}
	out, progress, err = execute(t, "replay", "--format", "lobster", lobster+"message.csv", "--book", lobster+"book.csv", "--no-kill", "-o", "json", "--instruments", "TEST")
	if err != nil {
		t.Fatalf("%v\n%s", err, progress)
	}
	got = checkReport(t, out, "expected_trades", "reproduced_trades", "unknown_orders", "skipped_rows")
	if got["expected_trades"] == 0.0 || got["reproduced_trades"] == 0.0 || got["skipped_rows"] == 0.0 {
		t.Errorf("%s", out)
	}
}

func TestBadTradingInput(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.csv")
	text := "id,timestamp,exchange.timestamp,price,volume,action,direction\n1,1000,1000,236.47,x,created,bid\n"
	if err := os.WriteFile(bad, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"--format":        {"replay", "--format", "csv", bad},
		"line 2":          {"replay", "--format", "l3", bad},
		"missing.csv":     {"replay", "--format", "l3", "missing.csv"},
		"--book":          {"replay", "--format", "l3", bad, "--book", bad},
		"--trades":        {"replay", "--format", "lobster", bad, "--trades", bad},
		"--instruments":   {"replay", "--format", "l3", bad, "--instruments", "A,B"},
		"--seconds 0":     {"demo", "--seconds", "0"},
		"--rate -1":       {"demo", "--rate", "-1"},
		"--accounts 1":    {"demo", "--accounts", "1"},
		"--replicas 2":    {"demo", "--replicas", "2"},
		"--replicas 1":    {"demo", "--replicas", "1"},
		"--shards-count ": {"demo", "--shards-count", "9"},
	} {
		_, _, err := execute(t, args...)
		if output.ExitCode(err) != output.ExitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want a usage error with %q", args, err, want)
		}
	}
}
