//go:build !race

package controllers

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/retry"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	built "github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/internal/apiserver"
	storage "github.com/countinghouse/countinghouse/storagenode/client"
)

// fleet is an operator as it runs, with its caches, queue and workers, and many
// shards whose members are simulated, all in one namespace of a real API server.
type fleet struct {
	t         *testing.T
	admin     client.WithWatch
	namespace string
	requests  *requests
	looks     atomic.Int64 // reconciliations that were begun

	mu      sync.Mutex
	worlds  map[string]*fleetWorld
	done    map[string]convergedTo // shards that have converged
	changed chan struct{}          // closed and replaced when anything of the above changes
}

type convergedTo struct {
	generation int64
	nextMember int32
}

// fleetWorld is a world that is used by one at a time.
type fleetWorld struct {
	sync.Mutex
	*world
	pods   map[string]*corev1.Pod // that run
	passes int                    // reconciliations that asked the members and are over; of fleet.mu
}

// newFleet starts an operator, which ends with the test.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	operator := operatorConfig(t)
	f := &fleet{
		t: t, admin: clientOf(t, apiserver.Config(t)), requests: &requests{counts: make(map[string]int)},
		worlds: make(map[string]*fleetWorld), done: make(map[string]convergedTo), changed: make(chan struct{}),
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "fleet-"}}
	if err := f.admin.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	f.namespace = ns.Name
	operator.Wrap(f.requests.over)
	m, err := ctrl.NewManager(operator, ctrl.Options{
		Scheme: newScheme(t), Metrics: server.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		Cache:      cache.Options{DefaultNamespaces: map[string]cache.Config{f.namespace: {}}},
		Controller: config.Controller{SkipNameValidation: new(true)}, // one after another in this process
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &Reconciler{
		Client: &countedReads{m.GetClient(), &f.looks}, Defaults: built.Defaults{Image: "countinghouse:test"}, Namespace: "countinghouse-system",
		Dial: f.dial, Events: m.GetEventRecorder("countinghouse"),
	}
	if err := r.SetupWithManager(m); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Start(ctx); err != nil {
			t.Errorf("manager: %v", err)
		}
	})
	pods, shards := f.watch(ctx, &corev1.PodList{}), f.watch(ctx, &v1.InstrumentShardList{})
	work := make(chan *corev1.Pod, 10_000)
	running.Go(func() { f.followPods(ctx, pods, work) })
	running.Go(func() { f.followShards(ctx, shards) })
	for range 4 {
		running.Go(func() { f.kubelet(ctx, work) })
	}
	t.Cleanup(func() {
		cancel()
		pods.Stop()
		shards.Stop()
		running.Wait()
	})
	return f
}

func (f *fleet) watch(ctx context.Context, list client.ObjectList) watch.Interface {
	f.t.Helper()
	w, err := f.admin.Watch(ctx, list, client.InNamespace(f.namespace))
	if err != nil {
		f.t.Fatal(err)
	}
	return w
}

// countedReads counts the reads of single shards: a reconciliation begins with one.
type countedReads struct {
	client.Client
	n *atomic.Int64
}

func (c *countedReads) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if _, ok := o.(*v1.InstrumentShard); ok {
		c.n.Add(1)
	}
	return c.Client.Get(ctx, key, o, opts...)
}

// held is a shard's members, which one reconciliation has for itself until Close.
type held struct {
	*fleetWorld
	f *fleet
}

func (f *fleet) dial(m *storage.Map, _ *identity.Source) (Admin, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	w := f.worlds[m.Shards[0].Name]
	f.mu.Unlock()
	if w == nil {
		return nil, fmt.Errorf("no shard %s", m.Shards[0].Name)
	}
	w.Lock()
	return held{w, f}, nil
}

func (h held) Close() error {
	h.Unlock()
	h.f.note(func() { h.passes++ })
	return nil
}

// note changes what tests wait for.
func (f *fleet) note(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// await returns once something is the case.
func (f *fleet) await(what string, is func() bool) {
	f.t.Helper()
	timeout := time.After(2*time.Minute + time.Duration(len(f.worlds))*time.Second)
	for {
		f.mu.Lock()
		ok, changed := is(), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			f.t.Fatalf("minutes on it is still not so that %s: %d shards have converged", what, len(f.done))
		}
	}
}

// followPods hands pods that are to start to the kubelets, and ends those that are gone.
func (f *fleet) followPods(ctx context.Context, events watch.Interface, work chan<- *corev1.Pod) {
	defer close(work)
	for e := range events.ResultChan() {
		pod, ok := e.Object.(*corev1.Pod)
		switch {
		case ctx.Err() != nil:
		case !ok:
			f.t.Errorf("watch of pods: %+v", e.Object)
		case e.Type == watch.Added:
			work <- pod
		case e.Type == watch.Deleted:
			if w := f.world(pod.Labels[built.LabelShard]); w != nil {
				w.Lock()
				delete(w.pods, pod.Name)
				w.Unlock()
			}
		}
	}
}

func (f *fleet) world(shard string) *fleetWorld {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.worlds[shard]
}

// kubelet lets pods run.
func (f *fleet) kubelet(ctx context.Context, work <-chan *corev1.Pod) {
	for pod := range work {
		if err := f.run(ctx, pod); client.IgnoreNotFound(err) != nil && ctx.Err() == nil {
			f.t.Errorf("pod %s: %v", pod.Name, err)
		}
	}
}

func (f *fleet) run(ctx context.Context, pod *corev1.Pod) error {
	claim := new(corev1.PersistentVolumeClaim)
	if err := f.admin.Get(ctx, client.ObjectKeyFromObject(pod), claim); err != nil {
		return err
	}
	w := f.world(pod.Labels[built.LabelShard])
	w.Lock()
	defer w.Unlock()
	w.start(pod, claim)
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	// It runs before anybody is told so.
	w.pods[pod.Name] = &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	return f.admin.Status().Update(ctx, pod)
}

// followShards notes which shards have converged.
func (f *fleet) followShards(ctx context.Context, events watch.Interface) {
	for e := range events.ResultChan() {
		s, ok := e.Object.(*v1.InstrumentShard)
		switch {
		case ctx.Err() != nil:
			continue
		case !ok:
			f.t.Errorf("watch of shards: %+v", e.Object)
			continue
		}
		f.note(func() {
			delete(f.done, s.Name)
			if e.Type != watch.Deleted && hasConverged(s) {
				f.done[s.Name] = convergedTo{s.Generation, s.Status.NextMember}
			}
		})
	}
}

func hasConverged(s *v1.InstrumentShard) bool {
	voters := 0
	for _, m := range s.Status.Members {
		if m.Ready && (m.Role == v1.RoleLeader || m.Role == v1.RoleFollower) {
			voters++
		}
	}
	return s.Status.ObservedGeneration == s.Generation && voters == int(s.Spec.Replicas) && voters == len(s.Status.Members) &&
		meta.IsStatusConditionTrue(s.Status.Conditions, v1.ConditionAvailable) &&
		meta.IsStatusConditionFalse(s.Status.Conditions, v1.ConditionProgressing) &&
		meta.IsStatusConditionFalse(s.Status.Conditions, v1.ConditionDegraded)
}

// create makes shards until there are n, with several clients at work.
func (f *fleet) create(n int) {
	f.t.Helper()
	f.mu.Lock()
	from := len(f.worlds)
	for i := from; i < n; i++ {
		name := fmt.Sprintf("shard-%d", i)
		w := &fleetWorld{world: emptyWorld(f.t, f.namespace), pods: make(map[string]*corev1.Pod)}
		w.client, w.name = f.admin, types.NamespacedName{Namespace: f.namespace, Name: name}
		w.pod = func(id string) *corev1.Pod { return w.pods[id] }
		f.worlds[name] = w
	}
	f.mu.Unlock()
	var creating sync.WaitGroup
	for k := range 4 {
		creating.Go(func() {
			for i := from + k; i < n; i += 4 {
				s := &v1.InstrumentShard{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("shard-%d", i), Namespace: f.namespace}}
				for j := range 10 {
					s.Spec.Instruments = append(s.Spec.Instruments, fmt.Sprintf("I%d.%d", i, j))
				}
				if err := f.admin.Create(f.t.Context(), s); err != nil {
					f.t.Errorf("shard %d: %v", i, err)
				}
			}
		})
	}
	creating.Wait()
}

// change changes a shard's spec, and returns the generation that this makes.
func (f *fleet) change(name string, change func(*v1.InstrumentShardSpec)) (generation int64) {
	f.t.Helper()
	s := new(v1.InstrumentShard)
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if err := f.admin.Get(f.t.Context(), client.ObjectKey{Namespace: f.namespace, Name: name}, s); err != nil {
			return err
		}
		change(&s.Spec)
		return f.admin.Update(f.t.Context(), s)
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return s.Generation
}

// lose takes a member's pod and volume away.
func (f *fleet) lose(member string) {
	f.t.Helper()
	meta := metav1.ObjectMeta{Name: member, Namespace: f.namespace}
	free := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))
	if err := errors.Join(
		f.admin.Patch(f.t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: meta}, free),
		f.admin.Delete(f.t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: meta}),
		f.admin.Delete(f.t.Context(), &corev1.Pod{ObjectMeta: meta}),
	); err != nil {
		f.t.Fatal(err)
	}
}

// converge waits until every shard has converged.
func (f *fleet) converge() {
	f.t.Helper()
	f.await("all shards have converged", func() bool { return len(f.done) == len(f.worlds) })
}

// look makes the operator look at shards again, by a change that means nothing, and
// waits until it has.
func (f *fleet) look(names []string) {
	f.t.Helper()
	f.mu.Lock()
	before := make(map[string]int)
	for _, name := range names {
		before[name] = f.worlds[name].passes
	}
	f.mu.Unlock()
	for _, name := range names {
		pod := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name + "-0", Namespace: f.namespace}}
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"test/looks":"%d"}}}`, before[name])
		if err := f.admin.Patch(f.t.Context(), pod, client.RawPatch(types.MergePatchType, patch)); err != nil {
			f.t.Fatal(err)
		}
	}
	f.await("the operator has looked", func() bool {
		return !slices.ContainsFunc(names, func(name string) bool { return f.worlds[name].passes == before[name] })
	})
}

// expectQuiet checks that looking at converged shards changes nothing.
func (f *fleet) expectQuiet(names []string, rounds int) {
	f.t.Helper()
	f.look(names) // until the caches have what was written last
	looks, before := f.looks.Load(), f.requests.take()
	for range rounds {
		f.look(names)
	}
	looks = f.looks.Load() - looks
	after := f.requests.take()
	f.t.Logf("%d shards that have converged, %d more reconciliations: %s", len(names), looks, after.since(before))
	if looks < int64(rounds*len(names)) {
		f.t.Errorf("%d reconciliations only", looks)
	}
	if n := after.writes() - before.writes(); n != 0 {
		f.t.Errorf("%d writes for shards that had converged", n)
	}
}

func (f *fleet) expectUnbroken() {
	f.t.Helper()
	for name, w := range f.worlds {
		w.Lock()
		if err := errors.Join(errorsOf(w.broken)...); err != nil {
			f.t.Errorf("%s: %v", name, err)
		}
		w.Unlock()
	}
}

func errorsOf(texts []string) (errs []error) {
	for _, text := range texts {
		errs = append(errs, errors.New(text))
	}
	return errs
}

// requests counts what the operator asks of the API server, by verb and what became
// of it.
type requests struct {
	mu     sync.Mutex
	counts map[string]int
}

type transport func(*http.Request) (*http.Response, error)

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

func (q *requests) over(next http.RoundTripper) http.RoundTripper {
	return transport(func(r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		verb := r.Method
		switch {
		case strings.Contains(r.URL.Path, "/events"):
			verb = "event"
		case r.URL.Query().Get("watch") != "":
			verb = "watch"
		}
		if err != nil || resp.StatusCode >= 400 {
			verb += " refused"
		}
		q.mu.Lock()
		q.counts[verb]++
		q.mu.Unlock()
		return resp, err
	})
}

type tally map[string]int

func (q *requests) take() tally {
	q.mu.Lock()
	defer q.mu.Unlock()
	return maps.Clone(q.counts)
}

// writes returns how many requests were to change something.
func (a tally) writes() (n int) {
	for verb, count := range a {
		if !strings.HasPrefix(verb, http.MethodGet) && !strings.HasPrefix(verb, "watch") {
			n += count
		}
	}
	return n
}

func (a tally) since(b tally) string {
	var parts []string
	for _, verb := range slices.Sorted(maps.Keys(a)) {
		if n := a[verb] - b[verb]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, verb))
		}
	}
	if len(parts) == 0 {
		return "no requests"
	}
	return strings.Join(parts, ", ")
}

// heapMiB returns what is alive on the heap.
func heapMiB() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// An operator as it runs brings shards where they are to be, and is quiet then.
func TestAPIServerManager(t *testing.T) {
	f := newFleet(t)
	f.create(5)
	f.converge()
	names := slices.Sorted(maps.Keys(f.worlds))
	f.expectQuiet(names, 5)
	to := map[string]convergedTo{
		"shard-0": {f.change("shard-0", func(s *v1.InstrumentShardSpec) { s.Replicas = 5 }), 5},
		"shard-1": {f.change("shard-1", func(s *v1.InstrumentShardSpec) { s.Image = "countinghouse:next" }), 3},
		"shard-2": {f.change("shard-2", func(s *v1.InstrumentShardSpec) { s.Replicas = 1 }), 3},
		"shard-3": {f.change("shard-3", func(s *v1.InstrumentShardSpec) { s.Instruments = []string{"J"} }), 3},
		"shard-4": {1, 4},
	}
	f.lose("shard-4-1")
	f.await("all have what was asked for", func() bool { return maps.Equal(f.done, to) })
	f.expectQuiet(names, 5)
	f.expectUnbroken()
}

var shardsMost = flag.Int("shards", 100, "shards of TestAPIServerManyShards at the end, 100 or more")

// Many shards, of an operator as it runs: each of them takes the same writes, and
// none once it has converged. Times and sizes are told, and not judged: the operator,
// the simulated members and the API server share this machine.
func TestAPIServerManyShards(t *testing.T) {
	f := newFleet(t)
	t.Logf("before the first shard the heap is %.1f MiB", heapMiB())
	done, from := f.requests.take(), 0
	for _, n := range []int{1, 100, *shardsMost} {
		if n <= from {
			continue
		}
		looks, start := f.looks.Load(), time.Now()
		f.create(n)
		f.converge()
		took, now := time.Since(start), f.requests.take()
		made := n - from
		t.Logf("%d shards, %d of them made in %.1f s: %s; for each %.1f writes and %.1f reconciliations; the heap is %.1f MiB", n, made, took.Seconds(),
			now.since(done), float64(now.writes()-done.writes())/float64(made), float64(f.looks.Load()-looks)/float64(made), heapMiB())
		// Two Services, a budget, a policy, the members' certificate; a claim and a pod for
		// each of three members. The cluster has an authority and a certificate for each of
		// four roles, once.
		want := 11 * made
		if from == 0 {
			want += 5
		}
		if got := now[http.MethodPost] - done[http.MethodPost]; got != want {
			t.Errorf("%d objects were created for %d shards, want %d", got, made, want)
		}
		if got := now[http.MethodPatch] - done[http.MethodPatch]; got != made {
			t.Errorf("%d patches for %d shards, not one each for the finalizer", got, made)
		}
		if got := now[http.MethodPut] - done[http.MethodPut]; got > 10*made {
			t.Errorf("%d updates for %d shards, which are of the status", got, made)
		}
		if got := now[http.MethodDelete] - done[http.MethodDelete]; got != 0 {
			t.Errorf("%d objects were deleted", got)
		}
		done, from = now, n
	}
	f.expectQuiet(slices.Sorted(maps.Keys(f.worlds)), 2)
	f.expectUnbroken()
}
