//go:build !race

package controllers

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	built "github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// apply creates the shard from text, as kubectl does.
func (w *world) apply(spec string) {
	w.t.Helper()
	obj := &unstructured.Unstructured{}
	spec = strings.Replace(spec, "{", "{cluster: demo, ", 1)
	text := fmt.Sprintf("apiVersion: countinghouse.io/v1\nkind: InstrumentShard\nmetadata: {name: %s, namespace: %s}\nspec: %s\n", w.name.Name, w.name.Namespace, spec)
	if err := yaml.Unmarshal([]byte(text), &obj.Object); err != nil {
		w.t.Fatal(err)
	}
	if err := w.client.Create(context.Background(), obj); err != nil {
		w.t.Fatal(err)
	}
}

// However a spec is written, and whatever the API server fills in: pods are what it
// asks for once they were created, and are not replaced.
func TestAPIServerPodsAreWhatTheSpecAsksFor(t *testing.T) {
	for name, spec := range map[string]string{
		"least":      `{instruments: [IF2501]}`,
		"quantities": `{instruments: [IF2501], resources: {requests: {cpu: "0.5", memory: 0.5Gi}, limits: {cpu: "1000m", memory: 1073741824}}}`,
		"limits":     `{instruments: [IF2501], resources: {limits: {memory: 1024Mi}}}`,
		"no request": `{instruments: [IF2501], resources: {}}`,
		"heartbeat":  `{instruments: [IF2501], timing: {heartbeatTimeout: 1500ms}, limits: {queries: 7}}`,
		"scheduling": `{instruments: [IF2501], imagePullSecrets: [{name: a}], scheduling: {nodeSelector: {disk: fast},
			tolerations: [{key: a}, {operator: Exists}],
			affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: a, operator: Exists}]}}]}},
			topologySpreadConstraints: [{maxSkew: 2, topologyKey: rack, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {a: b}}}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newServedWorld(t)
			w.apply(spec)
			w.converge()
			w.expect()
			hash, err := built.SpecHash(w.shard())
			if err != nil {
				t.Fatal(err)
			}
			var pods corev1.PodList
			if err := w.list(&pods); err != nil || len(pods.Items) != 3 {
				t.Fatalf("%d pods, %v", len(pods.Items), err)
			}
			for _, p := range pods.Items {
				if p.Annotations[built.AnnotationSpecHash] != hash {
					t.Errorf("pod %s of %s, want %s", p.Name, p.Annotations[built.AnnotationSpecHash], hash)
				}
			}
			if n := w.writesOf(); n != 0 {
				t.Errorf("a converged shard caused %d writes", n)
			}
		})
	}
}

// Somebody deletes the claim of a member that runs: the volume stays while the pod
// uses it, and the member is replaced.
func TestAPIServerClaimDeletedInUse(t *testing.T) {
	w := newServedWorld(t)
	w.createShard(3)
	w.converge()
	id := "futures-1"
	if id == w.leader {
		id = "futures-2"
	}
	if err := w.client.Delete(t.Context(), w.read(id, new(corev1.PersistentVolumeClaim))); err != nil {
		t.Fatal(err)
	}
	w.converge()
	w.expect()
	if w.members["futures-3"] == nil || w.members[id] != nil {
		t.Errorf("%s", w.place())
	}
}

// A shard is deleted with its volumes, and made anew while these have not gone yet.
func TestAPIServerShardComesBackAtOnce(t *testing.T) {
	w := newServedWorld(t)
	w.tls = v1.TLSOff // with its last shard a cluster's authority goes: clients are refused for a while
	w.createShard(3)
	w.spec(func(s *v1.InstrumentShardSpec) { s.Storage.Retention.WhenDeleted = v1.RetentionDelete })
	w.converge()
	if err := w.client.Delete(t.Context(), w.shard()); err != nil {
		t.Fatal(err)
	}
	for range 10 { // until the operator has let go of it, and nothing more
		if err := w.reconcile(); err != nil {
			t.Fatal(err)
		}
		if w.shard().Name == "" {
			break
		}
		(&cluster{w: w, stopping: stoppingAll(w)}).pods()
	}
	var claims corev1.PersistentVolumeClaimList
	if err := w.list(&claims); err != nil || len(claims.Items) != 3 || claims.Items[0].DeletionTimestamp.IsZero() {
		t.Fatalf("%d claims, %v", len(claims.Items), err)
	}
	w.formed, w.members = false, map[string]*storagepb.Member{}
	w.createShard(3)
	if err := w.reconcile(); err != nil {
		t.Fatal(err)
	}
	if s := w.shard().Status; len(s.Members) > 0 || s.NextMember > 0 {
		t.Errorf("members on volumes that end: %+v", s.Members)
	}
	w.converge()
	w.expect()
}

// stoppingAll says of every pod that it had its time.
func stoppingAll(w *world) map[string]bool {
	w.t.Helper()
	var pods corev1.PodList
	if err := w.list(&pods); err != nil {
		w.t.Fatal(err)
	}
	out := make(map[string]bool)
	for _, p := range pods.Items {
		out[string(p.UID)] = true
	}
	return out
}

// Where the class of the volumes lets none grow, they stay, and the shard goes on.
func TestAPIServerVolumesThatCanNotGrow(t *testing.T) {
	w := newServedWorld(t)
	w.apply(`{instruments: [IF2501], storage: {className: fixed}}`)
	w.converge()
	w.spec(func(s *v1.InstrumentShardSpec) { s.Storage.Size = resource.MustParse("20Gi") })
	for range 3 {
		if err := w.reconcile(); err != nil {
			t.Fatal(err)
		}
	}
	w.expect()
	claim := w.read("futures-0", new(corev1.PersistentVolumeClaim)).(*corev1.PersistentVolumeClaim)
	if got := claim.Spec.Resources.Requests.Storage().String(); got != "10Gi" {
		t.Errorf("the claim asks for %s", got)
	}
}

// Two shards name one instrument: the one that was created before has it.
func TestAPIServerOlderShardOwnsTheInstrument(t *testing.T) {
	w := newServedWorld(t)
	older := &v1.InstrumentShard{}
	older.Name, older.Namespace, older.Spec.Cluster = "options", w.name.Namespace, "demo"
	older.Spec.Instruments = []string{"IC2501", "IO2501"}
	if err := w.client.Create(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	// Creation has a resolution of a second.
	await(t, "a shard is younger", func() bool {
		probe := &corev1.ConfigMap{}
		probe.GenerateName, probe.Namespace = "probe-", w.name.Namespace
		if err := w.client.Create(t.Context(), probe, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		return probe.CreationTimestamp.After(older.CreationTimestamp.Time)
	})
	w.createShard(1)
	w.converge()
	s := w.shard()
	if got := fmt.Sprint(s.Status.RefusedInstruments, s.Status.Instruments, w.owned); got != "[{IC2501 options}] [IF2501] [IF2501]" {
		t.Error(got)
	}
	younger := w.name
	w.name = types.NamespacedName{Namespace: younger.Namespace, Name: older.Name}
	if err := w.reconcile(); err != nil {
		t.Fatal(err)
	}
	if s := w.shard(); len(s.Status.Instruments) != 2 || meta.IsStatusConditionFalse(s.Status.Conditions, v1.ConditionAccepted) {
		t.Errorf("%+v", s.Status)
	}
}

// The operator is stopped after every write, as in TestOperatorStoppedAfterEveryWrite.
func TestAPIServerOperatorStopped(t *testing.T) {
	for _, name := range []string{"one member", "a volume is lost"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			stopAfterEveryWrite(t, newServedWorld, scenarios[name])
			t.Logf("in %s", time.Since(start).Round(time.Second))
		})
	}
}
