package main

import (
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

// execute runs the command line in this process and returns what it printed.
func execute(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, progress strings.Builder
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&progress)
	root.SetArgs(args)
	err = root.ExecuteContext(t.Context())
	return out.String(), progress.String(), err
}

func TestBadWordsAreUsageErrors(t *testing.T) {
	for _, args := range [][]string{{"--nonsense"}, {"-o", "xml"}} {
		_, _, err := execute(t, args...)
		if output.ExitCode(err) != output.ExitUsage {
			t.Errorf("%v: %v gives exit code %d, want %d", args, err, output.ExitCode(err), output.ExitUsage)
		}
	}
	if _, _, err := execute(t, "nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("an unknown command must be named: %v", err)
	}
}
