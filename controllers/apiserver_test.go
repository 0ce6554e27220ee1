//go:build !race

package controllers

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/internal/apiserver"
)

func TestMain(m *testing.M) { os.Exit(apiserver.Main(m)) }

// operatorName is a user with the rights that the operator asks for, and no others.
const operatorName = "countinghouse-operator"

var prepared sync.Once

// operatorConfig returns how the operator reaches the API server.
func operatorConfig(t *testing.T) *rest.Config {
	t.Helper()
	admin := clientOf(t, apiserver.Config(t))
	prepared.Do(func() { prepare(t, admin) })
	return apiserver.As(t, operatorName)
}

// prepare gives the operator its rights, and volume claims a class.
func prepare(t *testing.T, admin client.Client) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: operatorName}
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "standard", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}}}
	class.Provisioner, class.AllowVolumeExpansion = "test", new(true)
	fixed := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fixed"}, Provisioner: "test"}
	for _, o := range []client.Object{
		class, fixed,
		&rbacv1.ClusterRole{ObjectMeta: meta, Rules: askedRights(t)},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: operatorName},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: operatorName}},
		},
	} {
		if err := admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	operator := clientOf(t, apiserver.As(t, operatorName))
	await(t, "the operator has its rights", func() bool { return operator.List(t.Context(), new(v1.InstrumentShardList)) == nil })
}

// askedRights reads the rights that the package's markers ask for.
func askedRights(t *testing.T) (rules []rbacv1.PolicyRule) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if marker, ok := strings.CutPrefix(strings.TrimSpace(line), "// +kubebuilder:rbac:"); ok {
				rules = append(rules, ruleOf(t, marker))
			}
		}
	}
	if len(rules) < 5 {
		t.Fatalf("%d markers only", len(rules))
	}
	return rules
}

func ruleOf(t *testing.T, marker string) (rule rbacv1.PolicyRule) {
	t.Helper()
	for _, field := range strings.Split(marker, ",") {
		key, value, _ := strings.Cut(field, "=")
		values := strings.Split(strings.Trim(value, `"`), ";")
		switch key {
		case "groups":
			rule.APIGroups = values
		case "resources":
			rule.Resources = values
		case "resourceNames":
			rule.ResourceNames = values
		case "verbs":
			rule.Verbs = values
		default:
			t.Fatalf("marker %q", marker)
		}
	}
	return rule
}

func clientOf(t *testing.T, config *rest.Config) client.WithWatch {
	t.Helper()
	c, err := client.NewWithWatch(config, client.Options{Scheme: newScheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// await looks until something is the case.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(time.Minute); !is(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("a minute on it is still not so that %s", what)
		}
	}
}

// newServedWorld returns a world of its own namespace, whose API server is a real
// one. The operator has the rights that it asks for.
func newServedWorld(t *testing.T) *world {
	t.Helper()
	operator := clientOf(t, operatorConfig(t))
	admin := clientOf(t, apiserver.Config(t))
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "trading-"}}
	if err := admin.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	w := emptyWorld(t, ns.Name)
	w.client, w.operator = admin, w.watched(operator)
	c := &cluster{w: w, stopping: make(map[string]bool)}
	w.cluster = c.step
	return w
}

// cluster does for a world's namespace what controllers, scheduler and kubelets do:
// volumes are bound, and stay while a pod uses them; pods get a node, and take
// their time to end.
type cluster struct {
	w        *world
	stopping map[string]bool // pods that were told to end, by uid
}

func (c *cluster) step() {
	c.w.t.Helper()
	used := c.pods()
	var claims corev1.PersistentVolumeClaimList
	c.must(c.w.list(&claims))
	for i := range claims.Items {
		claim := &claims.Items[i]
		switch {
		case !claim.DeletionTimestamp.IsZero():
			if !used[claim.Name] {
				c.unprotect(claim)
			}
		case claim.Spec.VolumeName == "":
			c.bind(claim)
		}
	}
}

func (c *cluster) must(err error) {
	c.w.t.Helper()
	if err != nil {
		c.w.t.Fatal(err)
	}
}

// pods schedules pods and ends them, and returns the names of those there are.
func (c *cluster) pods() map[string]bool {
	c.w.t.Helper()
	var pods corev1.PodList
	c.must(c.w.list(&pods))
	there := make(map[string]bool)
	for i := range pods.Items {
		pod := &pods.Items[i]
		there[pod.Name] = true
		switch {
		case !pod.DeletionTimestamp.IsZero() && c.stopping[string(pod.UID)]:
			c.must(client.IgnoreNotFound(c.w.client.Delete(context.Background(), pod, client.GracePeriodSeconds(0))))
			delete(there, pod.Name)
		case !pod.DeletionTimestamp.IsZero():
			c.stopping[string(pod.UID)] = true // it goes on until it is looked at again
		case pod.Spec.NodeName == "":
			binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "node-1"}}
			c.must(c.w.client.SubResource("binding").Create(context.Background(), pod, binding))
		}
	}
	return there
}

func (c *cluster) bind(claim *corev1.PersistentVolumeClaim) {
	c.w.t.Helper()
	claim.Spec.VolumeName = "volume-" + string(claim.UID)
	c.must(c.w.client.Update(context.Background(), claim))
	claim.Status.Phase, claim.Status.Capacity = corev1.ClaimBound, claim.Spec.Resources.Requests
	c.must(c.w.client.Status().Update(context.Background(), claim))
}

// unprotect lets a claim go that nothing uses.
func (c *cluster) unprotect(claim *corev1.PersistentVolumeClaim) {
	c.w.t.Helper()
	before := claim.DeepCopy()
	claim.Finalizers = slices.DeleteFunc(claim.Finalizers, func(f string) bool { return f == "kubernetes.io/pvc-protection" })
	c.must(client.IgnoreNotFound(c.w.client.Patch(context.Background(), claim, client.MergeFrom(before))))
}

func TestAPIServerShardsConverge(t *testing.T) { shardsConverge(t, newServedWorld) }

func TestAPIServerQuorumLoss(t *testing.T) { quorumLoss(t, newServedWorld) }

func TestAPIServerPausedShard(t *testing.T) { pausedShard(t, newServedWorld) }

func TestAPIServerLostStatus(t *testing.T) { lostStatus(t, newServedWorld) }

func TestAPIServerDeletedShard(t *testing.T) { deletedShard(t, newServedWorld) }
