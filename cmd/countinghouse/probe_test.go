package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

func TestProbe(t *testing.T) {
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/never" || asked.Add(1) == 1 {
			http.Error(w, "recovering", http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	out, _, err := execute(t, "probe", s.URL+"/readyz", s.URL+"/metrics")
	if err != nil || asked.Load() != 3 || strings.Count(out, "is well") != 2 {
		t.Errorf("%v after %d requests: %s", err, asked.Load(), out)
	}
	_, _, err = execute(t, "probe", "--timeout", "50ms", s.URL+"/never")
	if output.ExitCode(err) != output.ExitUnavailable || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "recovering") {
		t.Errorf("got %v", err)
	}
	for _, args := range [][]string{{}, {"localhost:80"}, {"ftp://x"}, {"http://x", "--timeout", "0s"}} {
		if _, _, err := execute(t, append([]string{"probe"}, args...)...); output.ExitCode(err) != output.ExitUsage {
			t.Errorf("%v: got %v", args, err)
		}
	}
}
