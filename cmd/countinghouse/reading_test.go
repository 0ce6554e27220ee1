package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/audit"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/node"
)

// The test binary runs itself as a storage node.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "node" {
		os.Exit(node.Execute(context.Background(), os.Args[2:]))
	}
	os.Exit(m.Run())
}

const testRecords = 500

// startCluster runs a shard of three nodes that holds testRecords inserts of
// IF2501, and returns it with its shard map's file.
func startCluster(t *testing.T) (*localcluster.Cluster, string) {
	t.Helper()
	command, err := nodeCommand()
	if err != nil {
		t.Fatal(err)
	}
	c, err := localcluster.Start(t.Context(), localcluster.Options{
		Cluster: "test", Dir: t.TempDir(), Command: command,
		Args:   []string{"--segment-bytes", "4194304", "--heartbeat-timeout", "500ms"},
		Shards: []localcluster.Shard{{Name: "s1", Instruments: []string{"IF2501"}, Replicas: 3}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	path, err := c.WriteMap()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitLeaders(t.Context()); err != nil {
		t.Fatal(err)
	}
	fill(t, c.Map())
	return c, path
}

func fill(t *testing.T, m *client.Map) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := client.New(m, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sym := record.MustSymbol("IF2501")
	if _, err := c.OpenStream(ctx, sym, 1); err != nil {
		t.Fatal(err)
	}
	a, err := c.Append(ctx, "s1")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	rs := make([]record.Record, testRecords)
	for i := range rs {
		rs[i].Header = record.Header{
			Version: record.Version, Type: record.TypeOrderInsert, Flags: record.FlagLast,
			Seq: uint64(i + 1), Global: uint64(i + 1), Time: int64(1e18) + int64(i), Instrument: sym,
		}
		o := rs[i].OrderInsert()
		o.OrderID, o.Account, o.Price, o.Volume = uint64(i+1), uint64(i%7+1), 100, 1
		o.Side, o.Offset, o.Kind, o.TimeInForce = record.Buy, record.Open, record.Limit, record.GFD
	}
	batch, err := record.AppendBatch(nil, 1, rs)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Send(batch); err != nil {
		t.Fatal(err)
	}
	if ack, err := a.Recv(); err != nil || ack.Refusal != nil || ack.LastSeq != testRecords {
		t.Fatalf("%+v, %v", ack, err)
	}
	for _, member := range m.Shards[0].Members { // which tests read from, too
		for last := uint64(0); last < testRecords; time.Sleep(time.Millisecond) {
			if last, err = (audit.Cluster{Client: c}).LastSeq(ctx, "s1", member.ID, sym); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestReadingAndVerifying(t *testing.T) {
	c, shards := startCluster(t)
	t.Run("scan", func(t *testing.T) { checkScan(t, shards) })
	t.Run("get", func(t *testing.T) { checkGet(t, shards) })
	t.Run("tail", func(t *testing.T) { checkTail(t, shards) })
	t.Run("stats", func(t *testing.T) { checkStats(t, shards) })
	t.Run("verify live", func(t *testing.T) { checkVerifyLive(t, shards) })
	t.Run("wrong", func(t *testing.T) { checkWrong(t, shards) })
	c.Stop()
	t.Run("verify stopped", func(t *testing.T) {
		for _, m := range c.Members() {
			checkVerify(t, true, m.DataDir)
		}
	})
	t.Run("verify damaged", func(t *testing.T) { checkDamaged(t, c.Members()[1].DataDir) })
	t.Run("down", func(t *testing.T) {
		_, _, err := execute(t, "scan", "IF2501", "--shards", shards, "--timeout", "300ms")
		if output.ExitCode(err) != output.ExitUnavailable || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "shard s1") {
			t.Errorf("with all nodes down: %v, exit code %d", err, output.ExitCode(err))
		}
	})
}

// objects parses a JSON object from each line.
func objects(t *testing.T, text string) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(text) {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, o)
	}
	return all
}

func checkScan(t *testing.T, shards string) {
	for _, args := range [][]string{nil, {"--replica", "s1-2"}} {
		out, _, err := execute(t, append([]string{"scan", "IF2501", "--shards", shards, "-o", "json", "--from", "11", "--to", "20"}, args...)...)
		got := objects(t, out)
		if err != nil || len(got) != 10 || got[0]["seq"] != 11.0 || got[9]["order_id"] != 20.0 {
			t.Errorf("%v: %v, %d records", args, err, len(got))
		}
	}
	out, _, err := execute(t, "scan", "IF2501", "--shards", shards, "--since", "1000000000000000490")
	if lines := strings.Count(out, "\n"); err != nil || lines != 11 || !strings.Contains(out, "order_id=500") {
		t.Errorf("by time: %v, %d lines\n%s", err, lines, out)
	}
	out, _, err = execute(t, "scan", "IF2501", "--shards", shards, "--type", "TradeExecuted")
	if err != nil || out != "" {
		t.Errorf("there are no trades: %v, %q", err, out)
	}
	for want, args := range map[string][]string{
		"no records\n": {"get", "IF2501", "--order", "999999"},
		"":             {"get", "IF2501", "--order", "1"},
	} {
		if _, note, err := execute(t, append(args, "--shards", shards)...); err != nil || note != want {
			t.Errorf("%v: %q, %v", args, note, err)
		}
	}
	if _, note, err := execute(t, "get", "IF2501", "--order", "999999", "--shards", shards, "-o", "json"); err != nil || note != "" {
		t.Errorf("a machine is told %q", note)
	}
}

// On a terminal every record takes one line of its width.
func TestRecordsFitTheTerminal(t *testing.T) {
	rs := make([]record.Record, 2)
	for i := range rs {
		rs[i].Header = record.Header{Version: record.Version, Type: record.TypeOrderInsert, Seq: 123456, Global: 7, Time: int64(1e18), Instrument: record.MustSymbol("IF2501")}
		rs[i].OrderInsert().OrderID = 42
	}
	for _, width := range []int{0, 60, 80, 400} {
		var out strings.Builder
		w := &recordWriter{out: &out, format: output.Human, width: width}
		if err := w.yield(rs); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		cut := width == 60 || width == 80
		if len(lines) != 3 || w.cut != cut || (w.closing() != "") != cut || !strings.Contains(lines[2], "order_id=42") {
			t.Errorf("width %d: cut %t, %q", width, w.cut, lines)
		}
		for _, line := range lines {
			if n := utf8.RuneCountInString(line); width > 0 && n > width {
				t.Errorf("width %d: a line of %d: %s", width, n, line)
			}
		}
	}
}

func checkGet(t *testing.T, shards string) {
	out, _, err := execute(t, "get", "IF2501", "--shards", shards, "--account", "3", "-o", "json")
	if got := objects(t, out); err != nil || len(got) != 72 || got[0]["account"] != 3.0 {
		t.Errorf("%v, %d records", err, len(got))
	}
	out, _, err = execute(t, "get", "IF2501", "--shards", shards, "--order", "42")
	if err != nil || !strings.Contains(out, "order_id=42 ") {
		t.Errorf("%v\n%s", err, out)
	}
}

func checkTail(t *testing.T, shards string) {
	out, _, err := execute(t, "tail", "IF2501", "--shards", shards, "-n", "3", "-o", "json")
	if got := objects(t, out); err != nil || len(got) != 3 || got[0]["seq"] != 498.0 {
		t.Errorf("%v\n%s", err, out)
	}
}

func checkStats(t *testing.T, shards string) {
	out, _, err := execute(t, "stats", "--shards", shards)
	if err != nil || !strings.Contains(out, "leader") || strings.Count(out, "follower") != 2 || !strings.Contains(out, "IF2501") {
		t.Errorf("%v\n%s", err, out)
	}
	out, _, err = execute(t, "stats", "--shards", shards, "-o", "json", "--replica", "s1-1")
	if err != nil || !strings.Contains(out, `"member":"s1-1"`) || strings.Contains(out, `"member":"s1-0"`) {
		t.Errorf("%v\n%s", err, out)
	}
}

func checkVerify(t *testing.T, ok bool, args ...string) string {
	t.Helper()
	out, _, err := execute(t, append([]string{"verify", "-o", "json"}, args...)...)
	got := objects(t, out)
	if len(got) != 1 || got[0]["ok"] != ok || (err == nil) != ok {
		t.Errorf("verify %v: %v\n%s", args, err, out)
	}
	return out
}

func checkVerifyLive(t *testing.T, shards string) {
	out := checkVerify(t, true, "--shards", shards, "--records")
	for _, want := range []string{`"target":"replicas of s1"`, `"target":"all records"`, `"records":500`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
	if _, _, err := execute(t, "verify", "--shards", shards, "--records", "--replica", "s1-0"); output.ExitCode(err) != output.ExitUsage {
		t.Errorf("--records of one replica: %v", err)
	}
}

// checkDamaged flips one bit of the log's first entry: whole ones behind it tell
// it from a write that a crash cut short.
func checkDamaged(t *testing.T, dir string) {
	segments, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no log segments in %s: %v", dir, err)
	}
	flip(t, segments[0], 4096+60)
	out, _, err := execute(t, "verify", dir)
	if output.ExitCode(err) != output.ExitFailed || !strings.Contains(out, segments[0]) || !strings.Contains(out, "DAMAGED") {
		t.Errorf("%v\n%s", err, out)
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
	b[0] ^= 1
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

func checkWrong(t *testing.T, shards string) {
	for want, args := range map[string][]string{
		"no shard of cluster": {"scan", "NONE", "--shards", shards},
		"no member":           {"scan", "IF2501", "--shards", shards, "--replica", "s9"},
		"known types are":     {"scan", "IF2501", "--shards", shards, "--type", "X"},
	} {
		if _, _, err := execute(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q", args, err, want)
		}
	}
}
