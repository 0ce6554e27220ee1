package kubeshards

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

var wanted = []string{"__ACCOUNT__", "IF2501", "IC2501"}

// bothKinds runs a test against API servers that can begin a watch with a list and
// such that can not.
func bothKinds(t *testing.T, test func(*testing.T, *api)) {
	for name, watchLists := range map[string]bool{"watch with a list": true, "list and watch": false} {
		t.Run(name, func(t *testing.T) { test(t, startAPI(t, watchLists)) })
	}
}

func TestAwaitSaysWhatIsMissing(t *testing.T) {
	bothKinds(t, func(t *testing.T, a *api) {
		w, log := a.run(t)
		type result struct {
			m   *client.Map
			err error
		}
		got := make(chan result, 1)
		go func() {
			m, err := w.Await(bounded(t), wanted)
			got <- result{m, err}
		}()
		log.await(t, "waiting for shards", "__ACCOUNT__, IF2501, IC2501: no InstrumentShard names it")
		s1 := shard("s1", []string{"IF2501", "__ACCOUNT__"}, "s1-0", "s1-1", "s1-2")
		asked := s1.DeepCopy()
		asked.Status = v1.InstrumentShardStatus{}
		a.apply(asked)
		log.await(t, "shard s1 asks for it, and the operator has not answered", "IC2501: no InstrumentShard")
		forming := s1.DeepCopy()
		forming.Status.Bootstrapped = false
		a.apply(forming)
		log.await(t, "shard s1 is being formed")
		without := s1.DeepCopy()
		without.Status.Members[0].Pod, without.Status.Members = "", without.Status.Members[:1]
		a.apply(without)
		log.await(t, "no member of shard s1 has a pod")
		a.apply(s1)
		other := shard("s2", []string{"IC2501"}, "s2-0")
		other.Spec.Cluster = "other"
		a.apply(other)
		a.apply(shard("s3", []string{"IC2501", "IF2501"}, "s3-0"))
		log.await(t, "shards s1 and s3 both have IF2501")
		unwanted := shard("s4", []string{"IH2501"})
		unwanted.Status.Bootstrapped = false
		a.apply(unwanted)
		a.apply(shard("s3", []string{"IC2501"}, "s3-0"))
		r := <-got
		if r.err != nil {
			t.Fatal(r.err)
		}
		want := &client.Map{Cluster: testCluster, Shards: []client.Shard{
			{Name: "s1", Instruments: []string{"IF2501", "__ACCOUNT__"}, Members: addresses("s1", "s1-0", "s1-1", "s1-2")},
			{Name: "s3", Instruments: []string{"IC2501"}, Members: addresses("s3", "s3-0")},
		}}
		if !reflect.DeepEqual(r.m, want) {
			t.Errorf("got %+v, want %+v", r.m, want)
		}
	})
}

func addresses(shard string, ids ...string) []client.Member {
	var out []client.Member
	for _, id := range ids {
		out = append(out, client.Member{ID: id, Address: fmt.Sprintf("%s.%s-peers.trading.svc:7100", id, shard)})
	}
	return out
}

// A wait that ends tells apart an API server that said nothing and shards that are
// not there.
func TestAwaitEnds(t *testing.T) {
	a := startAPI(t, true)
	a.setDown(true)
	w, log := a.run(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Await(ctx, wanted); !errors.Is(err, ErrAway) || errors.Is(err, ErrIncomplete) {
		t.Errorf("got %v", err)
	}
	a.awaitMore(t, &a.refused, 1) // the second: the error of the first has arrived
	if _, err := w.Await(ctx, wanted); !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "EOF") && !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "namespace trading") {
		t.Errorf("got %v", err)
	}
	a.setDown(false)
	waiting, stop := context.WithCancel(bounded(t))
	failed := make(chan error, 1)
	go func() {
		_, err := w.Await(waiting, wanted)
		failed <- err
	}()
	log.await(t, "waiting for shards")
	stop()
	if err := <-failed; !errors.Is(err, ErrIncomplete) || errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "IC2501") {
		t.Errorf("got %v", err)
	}
	// A shard that is formed may hold records that a rebuild needs, whether or not
	// its instruments are wanted.
	a.apply(shard("old", []string{"IF2412"}))
	a.apply(shard("s1", wanted, "s1-0"))
	waiting, stop = context.WithCancel(bounded(t))
	defer stop()
	go func() {
		_, err := w.Await(waiting, wanted)
		failed <- err
	}()
	log.await(t, "waiting for shards", "missing="+ErrIncomplete.Error()+" (namespace trading, cluster demo): no member of shard old has a pod")
	a.apply(shard("old", []string{"IF2412"}, "old-0"))
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

// following is a client whose members follow an API server.
type following struct {
	w      *Watcher
	log    *said
	client *client.Client
	told   chan *client.Map
}

func follow(t *testing.T, a *api) *following {
	t.Helper()
	f := &following{told: make(chan *client.Map, 1000)}
	f.w, f.log = a.run(t)
	m, err := f.w.Await(bounded(t), wanted)
	if err != nil {
		t.Fatal(err)
	}
	if f.client, err = client.New(m, client.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.client.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.w.Follow(ctx, f.client, func(m *client.Map) { f.told <- m })
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return f
}

// await waits until the map that was told last has the members.
func (f *following) await(t *testing.T, shardName string, ids ...string) {
	t.Helper()
	var last *client.Map
	for {
		select {
		case last = <-f.told:
		case <-bounded(t).Done():
			t.Fatalf("shard %s does not get the members %v; the map is %+v", shardName, ids, last)
		}
		if s := last.Shard(shardName); slices.Equal(s.Members, addresses(shardName, ids...)) {
			if got := f.client.Members(shardName); !slices.Equal(got, s.Members) && len(f.told) == 0 {
				t.Fatalf("the map says %v, the client %v", s.Members, got)
			}
			return
		}
	}
}

// metric returns the value of a metric without labels.
func (f *following) metric(t *testing.T, name string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(f.w)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "countinghouse_shards_"+name {
			m := family.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func twoShards(a *api) {
	a.apply(shard("s1", []string{"IF2501", "__ACCOUNT__"}, "s1-0", "s1-1", "s1-2"))
	a.apply(shard("s2", []string{"IC2501"}, "s2-0"))
}

func TestMembersAreFollowed(t *testing.T) {
	bothKinds(t, func(t *testing.T, a *api) {
		twoShards(a)
		f := follow(t, a)
		f.await(t, "s1", "s1-0", "s1-1", "s1-2")
		s1 := shard("s1", []string{"IF2501", "__ACCOUNT__"})
		s1.Status.Members = []v1.MemberStatus{
			{ID: "s1-0", Pod: "s1-0", Role: v1.RoleLost}, {ID: "s1-1", Pod: "s1-1", Role: v1.RoleLeader},
			{ID: "s1-2", Role: v1.RoleFollower}, {ID: "s1-3", Pod: "s1-3", Role: v1.RoleJoining},
			{ID: "s1-4", Pod: "s1-4", Role: v1.RoleLearner}, {ID: "s1-5", Pod: "s1-5", Role: v1.RoleLeaving},
		}
		a.apply(s1)
		f.await(t, "s1", "s1-1", "s1-3", "s1-4")
		if got := testutil.CollectAndCount(f.w, "countinghouse_shards_members"); got != 2 {
			t.Errorf("%d shards have a number of members", got)
		}

		a.apply(shard("s2", []string{"IC2501"}))
		f.log.await(t, "keeps the members", "shard=s2", "no member has a pod", "members=s2-0")
		a.apply(shard("s2", []string{"IC2501"}, "s2-1"))
		f.await(t, "s2", "s2-1")
		a.remove("s2")
		f.log.await(t, "keeps the members", "shard=s2", "no InstrumentShard of that name", "members=s2-1")
		a.apply(shard("s2", []string{"IC2501"}, "s2-7"))
		f.log.await(t, "keeps the members", "shard=s2", "created again", "members=s2-1")
		if got := f.client.Members("s2"); !slices.Equal(got, addresses("s2", "s2-1")) {
			t.Errorf("members of s2 are %v", got)
		}
	})
}

// What is not followed is told, in the log and as a number.
func TestIgnoredChangesAreTold(t *testing.T) {
	a := startAPI(t, true)
	twoShards(a)
	f := follow(t, a)
	f.await(t, "s1", "s1-0", "s1-1", "s1-2")
	if n := f.metric(t, "ignored_instruments"); n != 0 {
		t.Errorf("%v instruments are ignored", n)
	}
	a.apply(shard("s3", []string{"IH2501", "IM2501"}, "s3-0"))
	f.log.await(t, "WARN", "ignored until the next start", "IH2501, IM2501", "count=2")
	a.apply(shard("s2", []string{"IT2501"}, "s2-0"))
	f.log.await(t, "WARN", "ignored until the next start", "IC2501, IH2501, IM2501, IT2501", "count=4")
	if n := f.metric(t, "ignored_instruments"); n != 4 {
		t.Errorf("%v instruments are ignored", n)
	}
	if m := f.client.Map(); m.ShardOf("IC2501").Name != "s2" || m.ShardOf("IH2501") != nil {
		t.Errorf("the map has changed: %+v", m)
	}
	a.apply(shard("s2", []string{"IC2501"}, "s2-9"))
	a.remove("s3")
	f.await(t, "s2", "s2-9")
	for f.metric(t, "ignored_instruments") != 0 { // s3 goes with an event of its own
		time.Sleep(time.Millisecond)
	}
}

// Whatever happens to the watch, what changed meanwhile is seen afterwards, and the
// last known members stay until then.
func TestDisturbedWatch(t *testing.T) {
	bothKinds(t, func(t *testing.T, a *api) {
		twoShards(a)
		f := follow(t, a)
		f.await(t, "s1", "s1-0", "s1-1", "s1-2")
		n := 3
		next := func() string {
			n++
			return fmt.Sprintf("s1-%d", n)
		}
		change := func(id string) { a.apply(shard("s1", []string{"IF2501", "__ACCOUNT__"}, id)) }
		known := func() { // a list may bring the first; the watch behind it brings the second
			for range 2 {
				id := next()
				change(id)
				f.await(t, "s1", id)
			}
		}
		for name, disturb := range map[string]func(changed func()){
			"the watch ends":          func(changed func()) { a.end(nil); changed() },
			"the watch ends with 410": func(changed func()) { a.end(gone); changed() },
			"the watch ends with 500": func(changed func()) { a.end(internalError); changed() },
			"the version is too old": func(changed func()) {
				known()
				expired := a.count(&a.expired)
				a.compact()
				a.end(nil)
				a.awaitMore(t, &a.expired, expired)
				changed()
			},
			"the connection breaks":       func(changed func()) { a.server.CloseClientConnections(); changed() },
			"an event before the end":     func(changed func()) { changed(); a.end(nil) },
			"a bookmark before the end":   func(changed func()) { a.bookmark(); a.end(nil); changed() },
			"the server is away":          func(changed func()) { a.awayFor(t, 3, changed) },
			"away, and events are gone":   func(changed func()) { a.awayFor(t, 3, func() { changed(); a.compact() }) },
			"it forgets how watches list": func(changed func()) { a.mu.Lock(); a.watchLists = !a.watchLists; a.mu.Unlock(); a.end(gone); changed() },
		} {
			id := next()
			disturb(func() { change(id) })
			f.await(t, "s1", id)
			t.Logf("%s: %s has come", name, id)
		}
		if a.count(&a.expired) == 0 || a.count(&a.refused) == 0 {
			t.Errorf("%d watches were too old, %d requests refused: not every case was tried", a.expired, a.refused)
		}
		if f.metric(t, "sync_errors_total") == 0 {
			t.Error("no error was counted")
		}
		if age := f.metric(t, "sync_age_seconds"); age < 0 || age > 20 {
			t.Errorf("the last sync was %v s ago", age)
		}
	})
}

var internalError = &metav1.Status{
	TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
	Code: 500, Reason: metav1.StatusReasonInternalError, Message: "etcd has no leader",
}

// awayFor breaks all connections, calls changed, and comes back when so many
// requests were refused.
func (a *api) awayFor(t *testing.T, requests int, changed func()) {
	t.Helper()
	from := a.count(&a.refused)
	a.setDown(true)
	changed()
	a.awaitMore(t, &a.refused, from+requests) // one more: the errors of the others have arrived
	a.setDown(false)
}

// awaitMore waits until the server has counted more of something.
func (a *api) awaitMore(t *testing.T, n *int, than int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); a.count(n) <= than; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody asks the API server any more")
		}
	}
}

// Random changes and disturbances lead to the members that the API server has in
// the end.
func TestRandomChanges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	bothKinds(t, func(t *testing.T, a *api) {
		twoShards(a)
		f := follow(t, a)
		const steps = 150
		for i := range steps {
			watches, disturbed := a.count(&a.watches), true
			switch rng.IntN(10) {
			case 0:
				a.end(nil)
			case 1:
				a.end(gone)
			case 2:
				a.compact()
				a.end(nil)
			case 3:
				a.server.CloseClientConnections()
			case 4:
				a.bookmark()
				disturbed = false
			default:
				a.apply(shard("s1", []string{"IF2501", "__ACCOUNT__"}, fmt.Sprintf("s1-%d", 10+i), "s1-2"))
				disturbed = false
			}
			if disturbed && rng.IntN(2) == 0 { // else it has not come back when the next step is done
				a.awaitMore(t, &a.watches, watches)
			}
		}
		a.apply(shard("s1", []string{"IF2501", "__ACCOUNT__"}, "s1-9999"))
		f.await(t, "s1", "s1-9999")
		t.Logf("%d steps: %d lists, %d watches, %d of them too old", steps, a.count(&a.lists), a.count(&a.watches), a.count(&a.expired))
	})
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{REST: &rest.Config{Host: "http://127.0.0.1:1"}, Namespace: "n", Cluster: "c"}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"REST": func(c *Config) { c.REST = nil }, "Namespace": func(c *Config) { c.Namespace = "" }, "Cluster": func(c *Config) { c.Cluster = "" },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

func TestReach(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, _, err := Reach(""); err == nil || !strings.Contains(err.Error(), "kubeconfig") {
		t.Errorf("outside of a cluster: %v", err)
	}
	path := filepath.Join(t.TempDir(), "config")
	if _, _, err := Reach(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file that is missing: %v", err)
	}
	text := `{"apiVersion":"v1","kind":"Config","current-context":"x",
"clusters":[{"name":"k","cluster":{"server":"https://127.0.0.1:6443"}}],"users":[{"name":"u","user":{"token":"t"}}],
"contexts":[{"name":"x","context":{"cluster":"k","user":"u","namespace":"futures"}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, namespace, err := Reach(path)
	if err != nil || c.Host != "https://127.0.0.1:6443" || namespace != "futures" {
		t.Errorf("%v: %+v, namespace %q", err, c, namespace)
	}
	t.Setenv("POD_NAMESPACE", "from-env")
	if name := podNamespace(); name != "from-env" {
		t.Errorf("namespace %q", name)
	}
}
