package docs

import (
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/client-go/rest"

	"github.com/countinghouse/countinghouse/exchange"
	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/server"
	"github.com/countinghouse/countinghouse/exchange/subscriber"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/identity/identitytest"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/client/kubeshards"
	"github.com/countinghouse/countinghouse/storagenode/replica"
)

// Every metric of the two servers has a row among the metrics, and no other
// metric is named anywhere.
func TestMetricsAreDocumented(t *testing.T) {
	real := realMetrics(t)
	listed := map[string]bool{}
	for _, page := range pages {
		for _, l := range readPage(t, page) {
			names := namePattern.FindAllStringSubmatch(l.text, -1)
			for i, m := range names {
				if !metricName.MatchString(m[1]) {
					continue
				}
				if !real[m[1]] {
					t.Errorf("%s:%d: no server has the metric %s", l.page, l.number, m[1])
				}
				if i == 0 && strings.HasPrefix(l.text, "| `") {
					listed[m[1]] = true
				}
			}
		}
	}
	for name := range real {
		if !listed[name] {
			t.Errorf("%s: the list of metrics lacks %s", bounds, name)
		}
	}
}

// realMetrics returns the names of all metrics that the servers have.
func realMetrics(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	nodeMetrics(t, all)
	exchangeMetrics(t, all)
	shardsMetrics(t, all)
	carrierMetrics(t, all)
	if len(all) < 80 {
		t.Fatalf("the servers have %d metrics only", len(all))
	}
	return all
}

var (
	ourMetric  = regexp.MustCompile(`\b(?:countinghouse|storagenode)_[a-z_]+\b`)
	partOfHist = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// The chart's alerts and its dashboard ask for metrics that there are.
func TestChartAsksForRealMetrics(t *testing.T) {
	real, asked := realMetrics(t), map[string]bool{}
	for _, file := range []string{"alerts.yaml", "dashboard.json"} {
		text, err := os.ReadFile(filepath.Join(root, "charts/countinghouse/files", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range ourMetric.FindAllString(string(text), -1) {
			asked[name] = true
			if label := name == "countinghouse_io_shard"; !label && !real[name] && !real[partOfHist.ReplaceAllString(name, "")] {
				t.Errorf("%s: no server has the metric %s", file, name)
			}
		}
	}
	if len(asked) < 25 {
		t.Errorf("only %d metrics are asked for", len(asked))
	}
}

// oneNode opens the only member of a shard in dir.
func oneNode(t *testing.T, dir string) (*replica.Replica, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const id = "s1-0"
	r, err := replica.Open(replica.Config{
		Cluster: "demo", Shard: "s1", ID: id, Address: l.Addr().String(), DataDir: dir,
		Peers:       []replica.Peer{{ID: id, Address: l.Addr().String()}},
		Instruments: []record.Symbol{record.MustSymbol("IF2501")}, HeartbeatTimeout: 50 * time.Millisecond,
		DiskReserveBytes: -1, BallastBytes: -1, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		l.Close()
		return nil, err
	}
	s := grpc.NewServer()
	r.Transport().Register(s)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		_ = r.Close()
	})
	return r, nil
}

var fqName = regexp.MustCompile(`fqName: "([^"]+)"`)

func nodeMetrics(t *testing.T, into map[string]bool) {
	t.Helper()
	r, err := oneNode(t, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	describe(storagenode.New(r, storagenode.Options{}), into)
}

// shardsMetrics describes those of an exchange that takes its shards from Kubernetes.
func shardsMetrics(t *testing.T, into map[string]bool) {
	t.Helper()
	w, err := kubeshards.New(kubeshards.Config{REST: &rest.Config{Host: "127.0.0.1:1"}, Namespace: "trading", Cluster: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	describe(w, into)
}

// describe notes the names of a collector's metrics.
func describe(c prometheus.Collector, into map[string]bool) {
	descriptions := make(chan *prometheus.Desc)
	go func() {
		c.Describe(descriptions)
		close(descriptions)
	}()
	for d := range descriptions {
		into[fqName.FindStringSubmatch(d.String())[1]] = true
	}
}

var typeLine = regexp.MustCompile(`(?m)^# TYPE (countinghouse_\w+) `)

// exchangeMetrics reads what an exchange without storage shows after an order,
// without which the metrics with labels show nothing.
func exchangeMetrics(t *testing.T, into map[string]bool) {
	t.Helper()
	x := openExchange(t)
	ca := identitytest.Authority(t, "demo")
	self := identity.Identity{Cluster: "demo", Role: identity.Exchange}
	s, err := server.New(server.Options{TLS: identitytest.Source(t, ca, self)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(x); err != nil {
		t.Fatal(err)
	}
	submitOne(t, s, identitytest.Source(t, ca, identity.Identity{Cluster: "demo", Role: identity.Trader}).Client(self))
	answer := httptest.NewRecorder()
	s.Metrics().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range typeLine.FindAllStringSubmatch(string(text), -1) {
		into[m[1]] = true
	}
}

// carrierMetrics describes those of a subscriber in a process of its own.
func carrierMetrics(t *testing.T, into map[string]bool) {
	t.Helper()
	m := exchangeConfig(t, "").Shards
	c, err := client.New(m, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := subscriber.NewProcess(subscriber.ProcessConfig{Shards: m, Storage: subscriber.FromClient(c)})
	if err != nil {
		t.Fatal(err)
	}
	describe(p.Collector(), into)
}

func exchangeConfig(t *testing.T, outboxDir string) exchange.Config {
	t.Helper()
	set, err := order.DefaultSet()
	if err != nil {
		t.Fatal(err)
	}
	return exchange.Config{
		Shards: &client.Map{Cluster: "demo", Shards: []client.Shard{{
			Name: "s1", Instruments: []string{"IF2501", "IC2501", "IH2501", record.AccountStream},
			Members: []client.Member{{ID: "s1-0", Address: "127.0.0.1:1"}},
		}}},
		Instruments: set, OutboxDir: outboxDir, SegmentRecords: 8192,
		Init: true, DrainWait: 20 * time.Millisecond, CloseWait: time.Millisecond,
	}
}

func openExchange(t *testing.T) *exchange.Exchange {
	t.Helper()
	x, err := exchange.Open(t.Context(), exchangeConfig(t, filepath.Join(t.TempDir(), "outbox")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = x.Close() })
	return x
}

// submitOne sends an order, and makes a call that a trader may not.
func submitOne(t *testing.T, s *server.Server, as credentials.TransportCredentials) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(0) })
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(as))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := pb.NewOrderEntryClient(conn).Submit(t.Context(), &pb.SubmitRequest{Instrument: "IF2501"}); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewControlClient(conn).State(t.Context(), &pb.StateRequest{}); err == nil {
		t.Fatal("a trader may ask for the state")
	}
}
