package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// kubernetes is an API server with InstrumentShards that do not change but by
// apply. A watch ends at each change, so that there is another list.
type kubernetes struct {
	server *httptest.Server
	mu     sync.Mutex
	list   v1.InstrumentShardList
	change chan struct{}
}

func startKubernetes(t *testing.T) *kubernetes {
	t.Helper()
	k := &kubernetes{change: make(chan struct{})}
	k.list.TypeMeta = metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "InstrumentShardList"}
	k.list.ResourceVersion = "1"
	k.server = httptest.NewServer(http.HandlerFunc(k.serve))
	t.Cleanup(func() {
		k.server.CloseClientConnections()
		k.server.Close()
	})
	return k
}

func (k *kubernetes) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	q := r.URL.Query()
	if r.URL.Path != "/apis/countinghouse.io/v1/namespaces/trading/instrumentshards" || q.Get("sendInitialEvents") != "" {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"BadRequest","code":400}`)
		return
	}
	k.mu.Lock()
	change := k.change
	behind := q.Get("resourceVersion") != k.list.ResourceVersion
	if q.Get("watch") == "" {
		_ = json.NewEncoder(w).Encode(&k.list)
	}
	k.mu.Unlock()
	if q.Get("watch") != "" && !behind {
		w.(http.Flusher).Flush()
		select {
		case <-change:
		case <-r.Context().Done():
		}
	}
}

func (k *kubernetes) apply(name string, instruments ...string) {
	s := v1.InstrumentShard{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "trading"}}
	s.Spec.Cluster, s.Spec.Instruments = "test", instruments
	s.Status.Instruments, s.Status.Bootstrapped = instruments, true
	s.Status.Members = []v1.MemberStatus{{ID: name + "-0", Pod: name + "-0", Role: v1.RoleLeader}}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list.Items = append(k.list.Items, s)
	k.list.ResourceVersion = strconv.Itoa(len(k.list.Items) + 1)
	close(k.change)
	k.change = make(chan struct{})
}

// config writes a kubeconfig file of the server.
func (k *kubernetes) config(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"x","clusters":[{"name":"k","cluster":{"server":%q}}],
"contexts":[{"name":"x","context":{"cluster":"k","namespace":"trading"}}]}`, k.server.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// awaitLog waits until the program has logged a text.
func (p *program) awaitLog(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(p.log.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q is logged: %s", text, p.log)
		}
	}
}

// The program waits for the shards of its instruments, starts with their map, and
// starts again with the same when the API server is away.
func TestShardsFromKubernetes(t *testing.T) {
	k := startKubernetes(t)
	outbox := filepath.Join(t.TempDir(), "outbox")
	args := []string{
		"--shards-from", "kubernetes", "--kubeconfig", k.config(t), "--cluster", "test", "--outbox", outbox, "--init",
		"--drain-wait", "200ms", "--close-wait", "20ms", "--segment-records", "4096", "--metrics-listen", "127.0.0.1:0",
	}
	p, ready := begin(t, args...)
	p.awaitLog(t, "no InstrumentShard names it")
	k.apply("s1", "IF2501", "IC2501", "IH2501")
	p.awaitLog(t, "__ACCOUNT__: no InstrumentShard names it")
	k.apply("s2", "__ACCOUNT__")
	select {
	case line := <-ready:
		if !strings.HasPrefix(line, "exchange test takes orders") {
			t.Fatalf("printed %q: %s", line, p.log)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("not ready: %s", p.log)
	}
	metrics := metricsOf(t, p)
	for _, line := range []string{`countinghouse_shards_members{shard="s2"} 1`, "countinghouse_shards_ignored_instruments 0", "countinghouse_shards_sync_age_seconds"} {
		if !strings.Contains(metrics, line) {
			t.Errorf("the metrics lack %s", line)
		}
	}
	k.apply("s3", "IM2501")
	p.awaitLog(t, "ignored until the next start")
	if code := p.terminate(t); code != exitOK {
		t.Errorf("exit code %d: %s", code, p.log)
	}
	kept, err := client.LoadMap(outbox + ".shards")
	if err != nil || len(kept.Shards) != 2 || kept.ShardOf("__ACCOUNT__").Members[0].Address != "s2-0.s2-peers.trading.svc:7100" {
		t.Errorf("kept %+v, %v", kept, err)
	}

	k.server.CloseClientConnections()
	k.server.Close()
	again := mustStart(t, args...)
	if !strings.Contains(again.log.String(), "the shards of the last start") {
		t.Errorf("nothing is said of the shards that are used: %s", again.log)
	}
	if code := again.terminate(t); code != exitOK {
		t.Errorf("exit code %d: %s", code, again.log)
	}
}

// Without the shards, or a map of an earlier start, there is no start.
func TestShardsFromKubernetesAreMissing(t *testing.T) {
	k := startKubernetes(t)
	k.apply("s1", "IF2501", "__ACCOUNT__")
	damaged := filepath.Join(t.TempDir(), "outbox")
	other := filepath.Join(t.TempDir(), "outbox")
	for path, text := range map[string]string{damaged: "cluster: [", other: "cluster: prod\nshards: [{name: s1, members: [{id: a, address: 'a:1'}]}]\n"} {
		if err := os.WriteFile(path+".shards", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	config := k.config(t)
	run := func(outbox string, more ...string) string {
		var log bytes.Buffer
		args := []string{"--shards-from", "kubernetes", "--kubeconfig", config, "--cluster", "test", "--outbox", outbox, "--storage-wait", "500ms", "--drain-wait", "20ms"}
		if code := execute(t.Context(), append(args, more...), io.Discard, &log); code != exitFailed {
			t.Errorf("%v: exit code %d", more, code)
		}
		if _, err := os.Stat(outbox); err == nil {
			t.Errorf("%v: an outbox was made", more)
		}
		return log.String()
	}
	mustSay(t, run(filepath.Join(t.TempDir(), "outbox")), "not every instrument has a shard", "IC2501, IH2501: no InstrumentShard names it", "waited 500ms (--storage-wait)")
	mustSay(t, run(filepath.Join(t.TempDir(), "outbox"), "--namespace", "elsewhere"), "namespace elsewhere", "gave no list")
	k.server.CloseClientConnections()
	k.server.Close()
	mustSay(t, run(damaged), "the shards of the last start are not known", "gave no list", "refused")
	mustSay(t, run(other), "of another cluster", "cluster=prod", "gave no list")
}

func mustSay(t *testing.T, text string, words ...string) {
	t.Helper()
	if i := slices.IndexFunc(words, func(word string) bool { return !strings.Contains(text, word) }); i >= 0 {
		t.Errorf("no %q in %s", words[i], text)
	}
}
