//go:build !race

package v1

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/countinghouse/countinghouse/internal/apiserver"
)

func TestMain(m *testing.M) { os.Exit(apiserver.Main(m)) }

func newClient(t *testing.T) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(apiserver.Config(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newNamespace returns the name of a namespace that nothing is in.
func newNamespace(t *testing.T, c client.Client) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func parseInto(t *testing.T, namespace, spec string) *unstructured.Unstructured {
	t.Helper()
	obj := &unstructured.Unstructured{Object: parse(t, spec)}
	obj.SetNamespace(namespace)
	return obj
}

// A real API server takes and refuses what TestRules says, each object created, or
// updated over what it was before.
func TestAPIServerKeepsTheRules(t *testing.T) {
	c := newClient(t)
	cases := ruleCases()
	for i := range cases {
		t.Run(cases[i].name, func(t *testing.T) {
			tc, ns := &cases[i], newNamespace(t, c)
			obj := parseInto(t, ns, tc.spec)
			if !tc.updates() {
				tc.judge(t, c.Create(t.Context(), obj))
				return
			}
			old := parseInto(t, ns, tc.old)
			if err := c.Create(t.Context(), old); err != nil {
				t.Fatalf("before: %v", err)
			}
			obj.SetResourceVersion(old.GetResourceVersion())
			tc.judge(t, c.Update(t.Context(), obj))
		})
	}
	t.Logf("%d cases", len(cases))
}

func TestAPIServerFillsInDefaults(t *testing.T) {
	c := newClient(t)
	obj := parseInto(t, newNamespace(t, c), "")
	if err := c.Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(obj), obj); err != nil {
		t.Fatal(err)
	}
	expectDefaults(t, obj.Object)
}

// A field that is written wrong is refused where the client asks for it, as kubectl
// does, and dropped elsewhere.
func TestAPIServerKnowsTheFields(t *testing.T) {
	c := newClient(t)
	obj := parseInto(t, newNamespace(t, c), "spec: {replica: 5}")
	if err := client.WithFieldValidation(c, metav1.FieldValidationStrict).Create(t.Context(), obj.DeepCopy()); err == nil || !strings.Contains(err.Error(), "spec.replica") {
		t.Errorf("got %v", err)
	}
	if err := c.Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
	if _, there, err := unstructured.NestedFieldNoCopy(obj.Object, "spec", "replica"); there || err != nil {
		t.Errorf("%v %v", obj.Object["spec"], err)
	}
}

// Users write the spec, the operator writes the status, and neither the other's.
func TestAPIServerKeepsSpecAndStatusApart(t *testing.T) {
	c := newClient(t)
	shard := create(t, c)
	shard.Spec.Replicas, shard.Status.Leader = 5, "futures-1"
	if err := c.Update(t.Context(), shard.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	if got := get(t, c, shard); got.Spec.Replicas != 5 || got.Status.Leader != "" || got.Generation != 2 {
		t.Errorf("after an update: %+v", got)
	}
	shard = get(t, c, shard)
	shard.Spec.Replicas, shard.Status.Leader = 7, "futures-2"
	if err := c.Status().Update(t.Context(), shard.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	if got := get(t, c, shard); got.Spec.Replicas != 5 || got.Status.Leader != "futures-2" || got.Generation != 2 {
		t.Errorf("after an update of the status: %+v", got)
	}
	shard = get(t, c, shard)
	shard.Status.Members = []MemberStatus{{ID: "futures-0", Role: "King"}}
	if err := c.Status().Update(t.Context(), shard); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "status.members[0].role") {
		t.Errorf("got %v", err)
	}
}

func create(t *testing.T, c client.Client) *InstrumentShard {
	t.Helper()
	obj := parseInto(t, newNamespace(t, c), "")
	if err := c.Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
	return get(t, c, obj)
}

func get(t *testing.T, c client.Client, of client.Object) *InstrumentShard {
	t.Helper()
	shard := new(InstrumentShard)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(of), shard); err != nil {
		t.Fatal(err)
	}
	return shard
}

// What kubectl get shows, and with -o wide.
func TestAPIServerPrintsColumns(t *testing.T) {
	c := newClient(t)
	shard := create(t, c)
	shard.Status = InstrumentShardStatus{
		Leader: "futures-2", ReadyReplicas: 2, InstrumentSummary: "1: IF2501",
		Conditions: []metav1.Condition{{
			Type: ConditionAvailable, Status: metav1.ConditionTrue, Reason: "LeaderAndQuorum", Message: "a member leads", LastTransitionTime: metav1.Now(),
		}},
	}
	if err := c.Status().Update(t.Context(), shard); err != nil {
		t.Fatal(err)
	}
	table := readTable(t, "/apis/countinghouse.io/v1/namespaces/"+shard.Namespace+"/instrumentshards")
	var columns []string
	for _, d := range table.ColumnDefinitions {
		columns = append(columns, fmt.Sprintf("%s/%d", d.Name, d.Priority))
	}
	const wantColumns = "[Name/0 Healthy/0 Leader/0 Ready/0 Replicas/0 Instruments/0 Reason/1 Age/0]"
	if got := fmt.Sprint(columns); got != wantColumns {
		t.Errorf("columns %s, want %s", got, wantColumns)
	}
	if len(table.Rows) != 1 {
		t.Fatalf("%d rows", len(table.Rows))
	}
	cells := table.Rows[0].Cells
	if got := fmt.Sprint(cells[:len(cells)-1]); got != "[futures True futures-2 2 3 1: IF2501 LeaderAndQuorum]" {
		t.Errorf("row %s", got)
	}
	if age, err := time.ParseDuration(fmt.Sprint(cells[len(cells)-1])); err != nil || age < 0 {
		t.Errorf("age %v: %v", cells[len(cells)-1], err)
	}
}

func newDiscovery(t *testing.T) *discovery.DiscoveryClient {
	t.Helper()
	d, err := discovery.NewDiscoveryClientForConfig(apiserver.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// readTable asks for a list the way kubectl get does.
func readTable(t *testing.T, path string) *metav1.Table {
	t.Helper()
	raw, err := newDiscovery(t).RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	table := new(metav1.Table)
	if err := json.Unmarshal(raw, table); err != nil || table.Kind != "Table" {
		t.Fatalf("%v: %s", err, raw)
	}
	return table
}

// What kubectl scale and an autoscaler do.
func TestAPIServerScales(t *testing.T) {
	c := newClient(t)
	shard := create(t, c)
	shard.Status.Replicas, shard.Status.Selector = 2, "countinghouse.io/shard=futures"
	if err := c.Status().Update(t.Context(), shard); err != nil {
		t.Fatal(err)
	}
	scale := new(autoscalingv1.Scale)
	if err := c.SubResource("scale").Get(t.Context(), shard, scale); err != nil {
		t.Fatal(err)
	}
	if scale.Spec.Replicas != 3 || scale.Status.Replicas != 2 || scale.Status.Selector != "countinghouse.io/shard=futures" {
		t.Errorf("%+v %+v", scale.Spec, scale.Status)
	}
	scale.Spec.Replicas = 5
	if err := c.SubResource("scale").Update(t.Context(), shard, client.WithSubResourceBody(scale)); err != nil {
		t.Fatal(err)
	}
	if got := get(t, c, shard); got.Spec.Replicas != 5 || got.Status.Replicas != 2 {
		t.Errorf("%d replicas of %d", got.Status.Replicas, got.Spec.Replicas)
	}
	scale.Spec.Replicas, scale.ResourceVersion = 4, ""
	err := c.SubResource("scale").Update(t.Context(), shard, client.WithSubResourceBody(scale))
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.replicas") {
		t.Errorf("got %v", err)
	}
}

// Names under which kubectl finds shards.
func TestAPIServerServesTheNames(t *testing.T) {
	d := newDiscovery(t)
	list, err := d.ServerResourcesForGroupVersion(GroupVersion.String())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range list.APIResources {
		names = append(names, fmt.Sprint(r.Name, r.ShortNames, r.Categories, r.Namespaced))
	}
	const want = "[instrumentshards[ishard] [all] true instrumentshards/status[] [] true instrumentshards/scale[] [] true]"
	if got := fmt.Sprint(names); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	version, err := d.ServerVersion()
	if err != nil || version.Major != "1" || !strings.HasPrefix(version.GitVersion, "v1."+version.Minor+".") {
		t.Errorf("the API server does not say what it is: %+v %v", version, err)
	}
	t.Logf("Kubernetes %s", version)
}

// A program that leaves fields of the types as they are gets the same as one who
// leaves them out of a file.
func TestAPIServerFillsInDefaultsOfTypes(t *testing.T) {
	c := newClient(t)
	shard := &InstrumentShard{ObjectMeta: metav1.ObjectMeta{Name: "futures", Namespace: newNamespace(t, c)}}
	shard.Spec.Instruments = []string{"IF2501"}
	if err := c.Create(t.Context(), shard); err != nil {
		t.Fatal(err)
	}
	obj, err := runtime.DefaultUnstructuredConverter.ToUnstructured(get(t, c, shard))
	if err != nil {
		t.Fatal(err)
	}
	expectDefaults(t, obj)
}
