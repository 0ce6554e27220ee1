package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/replica"
)

// lonelyMember makes the directory of a stopped member of three whose others are
// gone for good.
func lonelyMember(t *testing.T) string {
	t.Helper()
	cfg := replica.Config{
		Cluster: "demo", Shard: "s1", ID: "s1-0", Address: "127.0.0.1:1", DataDir: filepath.Join(t.TempDir(), "s1-0"),
		Peers:            []replica.Peer{{ID: "s1-0", Address: "127.0.0.1:1"}, {ID: "s1-1", Address: "127.0.0.1:2"}, {ID: "s1-2", Address: "127.0.0.1:3"}},
		Instruments:      []record.Symbol{record.MustSymbol("IF2501")},
		DiskReserveBytes: -1, BallastBytes: -1,
	}
	r, err := replica.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg.DataDir
}

// answering is execute with an answer to the question.
func answering(t *testing.T, answer string, args ...string) (string, error) {
	t.Helper()
	var out, progress strings.Builder
	root := newRoot()
	root.SetIn(strings.NewReader(answer))
	root.SetOut(&out)
	root.SetErr(&progress)
	root.SetArgs(args)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := run(ctx, root)
	return out.String(), err
}

func TestRecoverAStoppedMember(t *testing.T) {
	dir := lonelyMember(t)
	for what, c := range map[string]struct {
		answer string
		args   []string
		want   string
	}{
		"no member":          {"", []string{"recover", "--data-dir", dir}, "--member"},
		"another member":     {"s1-1\n", []string{"recover", "--data-dir", dir, "--member", "s1-1"}, "is the directory of member s1-0"},
		"another answer":     {"yes\n", []string{"recover", "--data-dir", dir, "--member", "s1-0"}, "nothing was done"},
		"no answer":          {"", []string{"recover", "--data-dir", dir, "--member", "s1-0"}, "nothing was done"},
		"JSON asks nobody":   {"", []string{"recover", "--data-dir", dir, "--member", "s1-0", "-o", "json"}, "--yes-i-accept-loss=s1-0"},
		"a token of no kind": {"", []string{"recover", "--data-dir", dir, "--member", "s1-0", "--token", "a b", "--yes-i-accept-loss=s1-0"}, "--token"},
	} {
		out, err := answering(t, c.answer, c.args...)
		if output.ExitCode(err) != output.ExitUsage || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
	}
	before, err := replica.SurveyDataDir(replica.Config{DataDir: dir})
	if err != nil || len(before.Members) != 3 || len(before.Recoveries) != 0 {
		t.Fatalf("something was done: %+v, %v", before, err)
	}

	out, err := answering(t, "s1-0\n", "recover", "--data-dir", dir, "--member", "s1-0", "--token", "tuesday")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"s1-1 at 127.0.0.1:2", "s1-2 at 127.0.0.1:3", "Type the member's id", "Done, as tuesday", "generation 1"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not said:\n%s", want, out)
		}
	}
	out, err = answering(t, "", "recover", "--data-dir", dir, "--member", "s1-0", "--token", "tuesday", "--yes-i-accept-loss=s1-0", "-o", "json")
	var r recoveryReport
	if err != nil || json.Unmarshal([]byte(out), &r) != nil || r.Generation != 1 || len(r.GivenUp) != 2 || r.Token != "tuesday" || r.Index != before.LastIndex+1 {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = answering(t, "", "recover", "--data-dir", dir, "--member", "s1-0", "--yes-i-accept-loss=s1-0")
	if err != nil || !strings.Contains(out, "Nothing was to be done") {
		t.Errorf("%v\n%s", err, out)
	}
}
