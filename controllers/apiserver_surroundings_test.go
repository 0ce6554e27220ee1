//go:build !race

package controllers

import (
	"context"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// around are the objects around the members, with what somebody else does to each.
var around = map[string]struct {
	name   string
	empty  func() client.Object
	change func(client.Object)
}{
	"service": {"futures", func() client.Object { return new(corev1.Service) }, func(o client.Object) {
		o.(*corev1.Service).Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}},
	"peers": {"futures-peers", func() client.Object { return new(corev1.Service) }, func(o client.Object) {
		o.(*corev1.Service).Spec.PublishNotReadyAddresses = false
	}},
	"budget": {"futures", func() client.Object { return new(policyv1.PodDisruptionBudget) }, func(o client.Object) {
		o.(*policyv1.PodDisruptionBudget).Spec.MinAvailable = &intstr.IntOrString{IntVal: 3}
	}},
	"policy": {"futures", func() client.Object { return new(networkingv1.NetworkPolicy) }, func(o client.Object) {
		o.(*networkingv1.NetworkPolicy).Spec.Ingress = nil
	}},
}

func (w *world) read(name string, into client.Object) client.Object {
	w.t.Helper()
	if err := w.client.Get(context.Background(), client.ObjectKey{Namespace: w.name.Namespace, Name: name}, into); err != nil {
		w.t.Fatal(err)
	}
	return into
}

// writesOf returns how many writes it takes the operator until nothing changes.
func (w *world) writesOf() int {
	w.t.Helper()
	before := w.writes
	w.converge()
	return w.writes - before
}

// contents is what an object is about.
func contents(o client.Object) any { return reflect.ValueOf(o).Elem().FieldByName("Spec").Interface() }

// An object that is deleted comes back. One that somebody changed is left alone, for
// as long as it says that it was built by the operator, and is put right where it
// does not. What the API server filled in stays, and nothing is written twice.
func TestAPIServerObjectsThatOthersChange(t *testing.T) {
	for name, a := range around {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newServedWorld(t)
			w.createShard(3)
			w.converge()
			made := w.read(a.name, a.empty())

			if err := w.client.Delete(t.Context(), made); err != nil {
				t.Fatal(err)
			}
			if n := w.writesOf(); n != 1 {
				t.Errorf("%d writes after it was deleted", n)
			}
			made = w.read(a.name, a.empty())

			changed := made.DeepCopyObject().(client.Object)
			a.change(changed)
			changed.SetLabels(map[string]string{"countinghouse.io/shard": "futures", "theirs": "true"})
			if err := w.client.Update(t.Context(), changed); err != nil {
				t.Fatal(err)
			}
			if n := w.writesOf(); n != 0 || reflect.DeepEqual(contents(w.read(a.name, a.empty())), contents(made)) {
				t.Errorf("%d writes after it was changed", n)
			}

			changed.SetAnnotations(nil)
			if err := w.client.Update(t.Context(), changed); err != nil {
				t.Fatal(err)
			}
			if n := w.writesOf(); n != 1 {
				t.Errorf("%d writes after it was replaced", n)
			}
			right := w.read(a.name, a.empty())
			if !reflect.DeepEqual(contents(right), contents(made)) || !reflect.DeepEqual(right.GetLabels(), made.GetLabels()) {
				t.Errorf("got  %+v\nwant %+v", right, made)
			}
		})
	}
}

// The budget follows the number of voters.
func TestAPIServerBudgetFollowsTheVoters(t *testing.T) {
	w := newServedWorld(t)
	w.createShard(1)
	for _, c := range []struct{ replicas, stay int32 }{{1, 1}, {3, 2}, {5, 3}, {3, 2}} {
		w.spec(func(s *v1.InstrumentShardSpec) { s.Replicas = c.replicas })
		w.converge()
		budget := w.read("futures", new(policyv1.PodDisruptionBudget)).(*policyv1.PodDisruptionBudget)
		if got := budget.Spec.MinAvailable.IntVal; got != c.stay {
			t.Errorf("%d of %d have to stay", got, c.replicas)
		}
	}
	w.expect()
}

// A Service of somebody else under the shard's name is not taken over.
func TestAPIServerServiceOfSomebodyElse(t *testing.T) {
	w := newServedWorld(t)
	theirs := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "futures", Namespace: w.name.Namespace}}
	theirs.Spec = corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}}
	if err := w.client.Create(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	w.createShard(3)
	w.converge()
	if got := w.read("futures", new(corev1.Service)); got.GetResourceVersion() != theirs.ResourceVersion {
		t.Errorf("changed: %+v", got)
	}
	c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionProgressing)
	if c == nil || c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, "Service futures is there already") {
		t.Errorf("%+v", c)
	}
	if err := w.client.Delete(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	w.converge()
	w.expect()
	if got := w.read("futures", new(corev1.Service)).(*corev1.Service); got.Spec.Ports[0].Name != "grpc" {
		t.Errorf("%+v", got.Spec)
	}
}
