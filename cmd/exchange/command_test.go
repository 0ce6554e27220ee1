package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
)

// Whatever is wrong is named, with the flag, and nothing is created.
func TestBadCommandLines(t *testing.T) {
	shards := noStorage(t, "test")
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "file.yaml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct {
		args  []string // after --shards and --outbox; a later flag wins
		code  int
		words []string
	}{
		"no shards":           {[]string{"--shards", ""}, exitUsage, []string{"--shards", "required"}},
		"no outbox":           {[]string{"--outbox", ""}, exitUsage, []string{"--outbox", "required"}},
		"unknown flag":        {[]string{"--frobnicate"}, exitUsage, []string{"--frobnicate"}},
		"argument":            {[]string{"now"}, exitUsage, []string{`"now"`}},
		"missing file":        {[]string{"--shards", "/nonexistent.yaml"}, exitUsage, []string{"--shards", "/nonexistent.yaml"}},
		"malformed map":       {[]string{"--shards", file("shards: [")}, exitUsage, []string{"--shards", "yaml"}},
		"unknown field":       {[]string{"--shards", file("cluster: x\nshrads: []\n")}, exitUsage, []string{"shrads"}},
		"unowned stream":      {[]string{"--shards", file("cluster: test\nshards: [{name: s1, instruments: [IF2501], members: [{id: a, address: '127.0.0.1:1'}]}]\n")}, exitUsage, []string{"Shards", "no shard owns"}},
		"other cluster":       {[]string{"--cluster", "prod"}, exitUsage, []string{"--shards", `"test"`, `"prod"`}},
		"unknown source":      {[]string{"--shards-from", "etcd"}, exitUsage, []string{"--shards-from", "etcd", "kubernetes"}},
		"two sources":         {[]string{"--shards-from", "kubernetes"}, exitUsage, []string{"--shards-from", "--shards"}},
		"no cluster":          {[]string{"--shards-from", "kubernetes", "--shards", ""}, exitUsage, []string{"--shards-from", "--cluster"}},
		"namespace of a file": {[]string{"--namespace", "x"}, exitUsage, []string{"--namespace", "--shards-from=kubernetes"}},
		"no kubernetes":       {[]string{"--shards-from", "kubernetes", "--shards", "", "--cluster", "x"}, exitUsage, []string{"--shards-from", "kubeconfig"}},
		"bad kubeconfig":      {[]string{"--shards-from", "kubernetes", "--shards", "", "--cluster", "x", "--kubeconfig", "/nonexistent"}, exitUsage, []string{"kubeconfig", "/nonexistent"}},
		"malformed terms":     {[]string{"--instruments", file("currency: CNY\nminor_unit: 0.01\n")}, exitUsage, []string{"--instruments", "minor_unit", "quotes"}},
		"quota":               {[]string{"--quota", "lots"}, exitUsage, []string{"--quota", "lots", "GiB"}},
		"quota zero":          {[]string{"--quota", "0MiB"}, exitUsage, []string{"--quota"}},
		"quota overflow":      {[]string{"--quota", "99999999TiB"}, exitUsage, []string{"--quota"}},
		"quota too small":     {[]string{"--quota", "1KiB"}, exitUsage, []string{"QuotaBytes", "use at least"}},
		"segment records":     {[]string{"--segment-records", "31"}, exitUsage, []string{"SegmentRecords", "32"}},
		"stop grace":          {[]string{"--stop-grace=-1s"}, exitUsage, []string{"--stop-grace", "negative"}},
		"policy":              {[]string{"--policy", "pray"}, exitUsage, []string{"--policy", "reject", "drop"}},
		"subscriber":          {[]string{"--subscriber", "none"}, exitUsage, []string{"--subscriber", "internal", "external"}},
		"preset":              {[]string{"--preset", "fast"}, exitUsage, []string{"--preset", "production"}},
		"batch size":          {[]string{"--batch-size", "0"}, exitUsage, []string{"--batch-size"}},
		"batch size too big":  {[]string{"--batch-size", "100000"}, exitUsage, []string{"BatchRecords", "8192"}},
		"linger":              {[]string{"--linger", "0s"}, exitUsage, []string{"--linger"}},
		"linger no duration":  {[]string{"--linger", "soon"}, exitUsage, []string{"--linger", "soon"}},
		"window":              {[]string{"--window", "-1"}, exitUsage, []string{"--window"}},
		"wait":                {[]string{"--storage-wait", "-1s"}, exitUsage, []string{"StorageWait"}},
		"log level":           {[]string{"--log-level", "loud"}, exitUsage, []string{"--log-level", "warn"}},
		"log format":          {[]string{"--log-format", "xml"}, exitUsage, []string{"--log-format", "json"}},
		"listen":              {[]string{"--listen", "here"}, exitUsage, []string{"--listen", "here"}},
		"port in use":         {[]string{"--listen", taken.Addr().String()}, exitFailed, []string{"--listen", taken.Addr().String(), "in use"}},
		"metrics port in use": {[]string{"--metrics-listen", taken.Addr().String()}, exitFailed, []string{"--metrics-listen", "in use"}},
		"no storage":          {[]string{"--init=false", "--storage-wait", "50ms"}, exitFailed, []string{"--init", "shard s1"}},
	} {
		t.Run(name, func(t *testing.T) {
			outbox := filepath.Join(t.TempDir(), "outbox")
			var out, log bytes.Buffer
			args := append([]string{"--shards", shards, "--outbox", outbox, "--init", "--drain-wait", "10ms"}, c.args...)
			if code := execute(t.Context(), args, &out, &log); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, word := range c.words {
				if !strings.Contains(log.String(), word) {
					t.Errorf("%q does not mention %q", log.String(), word)
				}
			}
			if _, err := os.Stat(outbox); err == nil && c.code == exitUsage {
				t.Error("an outbox was created")
			}
			if out.Len() > 0 {
				t.Errorf("printed %q", out.String())
			}
		})
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"1": 1, "64KiB": 64 << 10, "3 MiB": 3 << 20, "2GiB": 2 << 30, "1TiB": 1 << 40} {
		if got, err := parseBytes(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-1", "1.5GiB", "GiB", "1GB", "1e6"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}

func TestHelpNamesTheFlags(t *testing.T) {
	var out bytes.Buffer
	if code := execute(t.Context(), []string{"--help"}, &out, io.Discard); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	for _, flag := range []string{"--shards", "--outbox", "--quota", "--policy", "--init", "--metrics-listen"} {
		if !strings.Contains(out.String(), flag) {
			t.Errorf("no %s in the help", flag)
		}
	}
}

// A started program says so in one line, serves its metrics, and ends in good
// order on SIGTERM; a second one on the same outbox is turned away meanwhile.
func TestProgram(t *testing.T) {
	outbox := filepath.Join(t.TempDir(), "outbox")
	shards := noStorage(t, "test")
	args := []string{"--shards", shards, "--outbox", outbox, "--init", "--drain-wait", "20ms", "--close-wait", "20ms", "--segment-records", "4096"}
	p := mustStart(t, append(args, "--metrics-listen", "127.0.0.1:0")...)
	if !regexp.MustCompile(`^exchange test takes orders on 127\.0\.0\.1:\d+; 3 records so far\n$`).MatchString(p.ready) {
		t.Errorf("printed %q", p.ready)
	}
	second := start(t, args...)
	<-second.exited
	if code := second.cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(second.log.String(), "another process writes here") || !strings.Contains(second.log.String(), outbox) {
		t.Errorf("a second exchange: exit code %d: %s", code, second.log)
	}
	if body := metricsOf(t, p); !strings.Contains(body, "countinghouse_exchange_published_records 3") {
		t.Errorf("metrics: %.200s", body)
	}
	before, err := pb.NewControlClient(p.dial(t)).State(t.Context(), &pb.StateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if code := p.terminate(t); code != exitOK {
		t.Errorf("exit code %d: %s", code, p.log)
	}
	var noted struct {
		Global uint64
		Hash   string
	}
	text, err := os.ReadFile(outbox + ".state")
	if err != nil || json.Unmarshal(text, &noted) != nil || noted.Hash != before.Hash || noted.Global != 3 {
		t.Errorf("state file %s, %v", text, err)
	}

	foreign := start(t, append(args, "--shards", noStorage(t, "prod"))...)
	<-foreign.exited
	if code := foreign.cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(foreign.log.String(), `"prod"`) {
		t.Errorf("an outbox of another cluster: exit code %d: %s", code, foreign.log)
	}
}

// While it recovers, here from shards that do not answer, the program says so on
// the port on which it will take orders, and shows its metrics.
func TestHealthDuringRecovery(t *testing.T) {
	p, _ := begin(t, "--shards", noStorage(t, "test"), "--outbox", filepath.Join(t.TempDir(), "outbox"), "--storage-wait", "1m",
		"--metrics-listen", "127.0.0.1:0")
	address := regexp.MustCompile(`recovering.*address=(127\.0\.0\.1:\d+)`)
	for deadline := time.Now().Add(20 * time.Second); p.address == ""; time.Sleep(10 * time.Millisecond) {
		if m := address.FindStringSubmatch(p.log.String()); m != nil {
			p.address = m[1]
		}
		if time.Now().After(deadline) {
			t.Fatalf("no address: %s", p.log)
		}
	}
	h, err := grpc_health_v1.NewHealthClient(p.dial(t)).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "countinghouse.exchange.v1.OrderEntry"})
	if err != nil || h.Status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health: %v, %v", h, err)
	}
	if body := metricsOf(t, p); !strings.Contains(body, "countinghouse_exchange_started 0") {
		t.Errorf("metrics: %.200s", body)
	}
	if code := p.terminate(t); code != exitFailed || !strings.Contains(p.log.String(), "context canceled") {
		t.Errorf("exit code %d: %s", code, p.log)
	}
}

// metricsOf reads the metrics where the program's log says that they are.
func metricsOf(t *testing.T, p *program) string {
	t.Helper()
	r, err := http.Get(regexp.MustCompile(`http://127\.0\.0\.1:\d+/metrics`).FindString(p.log.String()))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// A context that ends during the recovery ends the command.
func TestInterruptedStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var log bytes.Buffer
	code := execute(ctx, []string{"--shards", noStorage(t, "test"), "--outbox", filepath.Join(t.TempDir(), "outbox")}, io.Discard, &log)
	if code != exitFailed || !strings.Contains(log.String(), "context canceled") {
		t.Errorf("exit code %d: %s", code, log.String())
	}
}
