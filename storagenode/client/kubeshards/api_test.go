package kubeshards

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

const (
	testNamespace = "trading"
	testCluster   = "demo"
)

// event is a line of a watch.
type event struct {
	Type   string `json:"type"`
	Object any    `json:"object"`

	version int
}

// api is an API server that has InstrumentShards of one namespace and nothing else.
// It lists and watches as a real one does, and can be disturbed.
type api struct {
	server *httptest.Server

	mu         sync.Mutex
	version    int
	uids       int
	shards     map[string]*v1.InstrumentShard
	events     []event
	changed    chan struct{} // closed and replaced at each event
	compacted  int           // events up to this version are forgotten
	watchLists bool          // a watch can begin with a list
	down       bool          // every connection breaks
	cut        chan struct{} // closed to end the watches that are open
	cutWith    *metav1.Status

	lists, watches, refused, expired int
}

func startAPI(t *testing.T, watchLists bool) *api {
	t.Helper()
	a := &api{shards: make(map[string]*v1.InstrumentShard), changed: make(chan struct{}), cut: make(chan struct{}), watchLists: watchLists, version: 1}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /apis/countinghouse.io/v1/namespaces/"+testNamespace+"/instrumentshards", a.serve)
	a.server = httptest.NewServer(mux)
	t.Cleanup(func() {
		a.end(nil)
		a.server.CloseClientConnections()
		a.server.Close()
	})
	return a
}

func (a *api) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	down, watchLists := a.down, a.watchLists
	if down {
		a.refused++
	}
	a.mu.Unlock()
	q := r.URL.Query()
	switch {
	case down:
		panic(http.ErrAbortHandler)
	case q.Get("watch") == "":
		a.list(w)
	case q.Get("sendInitialEvents") == "true" && !watchLists:
		answer(w, &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid, Message: "sendInitialEvents is forbidden"})
	default:
		a.watch(w, r)
	}
}

func answer(w http.ResponseWriter, s *metav1.Status) {
	s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(s.Code))
	_ = json.NewEncoder(w).Encode(s)
}

func (a *api) sorted() []*v1.InstrumentShard {
	var all []*v1.InstrumentShard
	for _, name := range slices.Sorted(maps.Keys(a.shards)) {
		all = append(all, a.shards[name])
	}
	return all
}

func (a *api) list(w http.ResponseWriter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lists++
	list := v1.InstrumentShardList{TypeMeta: metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "InstrumentShardList"}}
	list.ResourceVersion = strconv.Itoa(a.version)
	for _, s := range a.sorted() {
		list.Items = append(list.Items, *s)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(&list)
}

var gone = &metav1.Status{
	TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
	Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: "too old resource version",
}

func (a *api) watch(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	out := json.NewEncoder(w)
	a.mu.Lock()
	a.watches++
	initial := q.Get("sendInitialEvents") == "true"
	if !initial && from < a.compacted {
		a.expired++
		a.mu.Unlock()
		answer(w, gone)
		return
	}
	var lines []event
	if initial {
		from = a.version
		for _, s := range a.sorted() {
			lines = append(lines, event{Type: "ADDED", Object: s})
		}
		lines = append(lines, event{Type: "BOOKMARK", Object: bookmark(a.version, true)})
	}
	cut := a.cut
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	for {
		for _, e := range lines {
			if out.Encode(e) != nil {
				return
			}
		}
		w.(http.Flusher).Flush()
		a.mu.Lock()
		lines = nil
		for _, e := range a.events {
			if e.version > from {
				lines, from = append(lines, e), e.version
			}
		}
		changed := a.changed
		a.mu.Unlock()
		if len(lines) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-cut:
			a.mu.Lock()
			with := a.cutWith
			a.mu.Unlock()
			if with != nil {
				_ = out.Encode(event{Type: "ERROR", Object: with})
			}
			return
		case <-r.Context().Done():
			return
		}
	}
}

func bookmark(version int, initialEnd bool) *v1.InstrumentShard {
	s := &v1.InstrumentShard{TypeMeta: metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "InstrumentShard"}}
	s.ResourceVersion = strconv.Itoa(version)
	if initialEnd {
		s.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return s
}

// note adds an event. The caller holds mu.
func (a *api) note(kind string, s *v1.InstrumentShard) {
	a.events = append(a.events, event{Type: kind, Object: s, version: a.version})
	close(a.changed)
	a.changed = make(chan struct{})
}

// apply creates a shard or replaces it.
func (a *api) apply(s *v1.InstrumentShard) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	s = s.DeepCopy()
	s.TypeMeta = metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "InstrumentShard"}
	s.Namespace, s.ResourceVersion = testNamespace, strconv.Itoa(a.version)
	kind := "ADDED"
	if old := a.shards[s.Name]; old != nil {
		s.UID, kind = old.UID, "MODIFIED"
	} else {
		a.uids++
		s.UID = types.UID(fmt.Sprintf("uid-%d", a.uids))
	}
	a.shards[s.Name] = s
	a.note(kind, s)
}

func (a *api) remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.shards[name].DeepCopy()
	a.version++
	s.ResourceVersion = strconv.Itoa(a.version)
	delete(a.shards, name)
	a.note("DELETED", s)
}

// bookmark tells the watches of the present version.
func (a *api) bookmark() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	a.note("BOOKMARK", bookmark(a.version, false))
}

// end ends the watches that are open, with an error event if there is one.
func (a *api) end(with *metav1.Status) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cutWith = with
	close(a.cut)
	a.cut = make(chan struct{})
}

// compact forgets all events.
func (a *api) compact() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	a.compacted, a.events = a.version, nil
}

// setDown makes the server break every connection, or take them again.
func (a *api) setDown(down bool) {
	a.mu.Lock()
	a.down = down
	a.mu.Unlock()
	if down {
		a.server.CloseClientConnections()
	}
}

func (a *api) count(n *int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return *n
}

// shard returns a shard that is formed and has members.
func shard(name string, instruments []string, members ...string) *v1.InstrumentShard {
	s := &v1.InstrumentShard{}
	s.Name, s.Spec.Cluster, s.Spec.Instruments = name, testCluster, instruments
	s.Status.Instruments, s.Status.Bootstrapped = instruments, true
	s.Status.Members = memberStatus(members...)
	return s
}

func memberStatus(ids ...string) []v1.MemberStatus {
	var out []v1.MemberStatus
	for i, id := range ids {
		role := v1.RoleFollower
		if i == 0 {
			role = v1.RoleLeader
		}
		out = append(out, v1.MemberStatus{ID: id, Pod: id, Role: role, Ready: true})
	}
	return out
}

// said takes the messages of a log, each with its attributes.
type said struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func (l *said) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l *said) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *said) WithGroup(string) slog.Handler                    { return l }

func (l *said) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return nil
}

// has reports whether a line holds all the words.
func (l *said) has(words ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.lines, func(line string) bool {
		return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) })
	})
}

// await waits for a line that holds all the words.
func (l *said) await(t *testing.T, words ...string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for !l.has(words...) {
		select {
		case <-l.more:
		case <-timeout:
			l.mu.Lock()
			defer l.mu.Unlock()
			t.Fatalf("nothing was logged with %q:\n%s", words, strings.Join(l.lines, "\n"))
		}
	}
}

// run starts a Watcher of the API server.
func (a *api) run(t *testing.T) (*Watcher, *said) {
	t.Helper()
	log := &said{more: make(chan struct{}, 1)}
	w, err := New(Config{
		REST: &rest.Config{Host: a.server.URL, QPS: -1}, Namespace: testNamespace, Cluster: testCluster, Log: slog.New(log),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.pauses.Duration, w.pauses.Cap = time.Millisecond, 20*time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w, log
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
