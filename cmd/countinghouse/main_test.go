package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

// execute runs the command line in this process and returns what it printed.
func execute(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return executeIn(t.Context(), args...)
}

// executeIn is execute with a context that ends when the caller says so.
func executeIn(ctx context.Context, args ...string) (stdout, stderr string, err error) {
	var out, progress strings.Builder
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&progress)
	root.SetArgs(args)
	err = run(ctx, root)
	return out.String(), progress.String(), err
}

func TestBadWordsAreUsageErrors(t *testing.T) {
	for _, args := range [][]string{{"--nonsense"}, {"-o", "xml"}, {"nonsense"}, {"scan", "IF2501"}, {"scan", "--shards", "x"},
		{"get", "IF2501", "--shards", "x"}, {"get", "IF2501", "--shards", "x", "--order", "1", "--trade", "2"},
		{"scan", "IF2501", "--shards", "x", "--timeout", "-3s"}, {"scan", "IF2501", "--shards", "x", "--since", "noon"},
		{"scan", "IF2501", "--shards", "x", "--type", "Nonsense"}, {"scan", "bad name", "--shards", "x"},
		{"stats", "--shards", "/nonexistent/shards.yaml"}, {"cluster", "up"}, {"cluster", "bogus"},
		{"scan", "IF2501", "--shards", "x", "--from", "10", "--to", "5"},
		{"scan", "IF2501", "--shards", "x", "--since", "20", "--until", "10"},
		{"cluster", "up", "--data-dir", "x", "--replicas", "2"}, {"cluster", "up", "--data-dir", "x", "extra"},
		{"cluster", "up", "--data-dir", "x", "--shards-count", "0"}, {"torture", "--seconds", "0"}, {"torture", "--replicas", "2"},
		{"torture", "--data-dir", "."}, {"torture", "--rate", "-1"}} {
		_, _, err := execute(t, args...)
		if output.ExitCode(err) != output.ExitUsage {
			t.Errorf("%v: %v gives exit code %d, want %d", args, err, output.ExitCode(err), output.ExitUsage)
		}
	}
	if out, _, _ := execute(t, "cluster", "bogus"); out != "" {
		t.Errorf("a wrong word is answered on stdout: %s", out)
	}
	if _, _, err := execute(t, "nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("an unknown command must be named: %v", err)
	}
}

func TestAnInterruptHasItsOwnExitCode(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(1500*time.Millisecond, cancel)
	_, _, err := executeIn(ctx, "demo", "--seconds", "30", "--accounts", "20", "--rate", "500")
	if output.ExitCode(err) != output.ExitInterrupted || err.Error() != "interrupted" {
		t.Errorf("got %v, exit code %d", err, output.ExitCode(err))
	}
}
