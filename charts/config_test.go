package charts

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// kustomize returns the objects that a kustomization names, as plain resources; it
// uses no other of kustomize's means.
func kustomize(t *testing.T, dir string) []object {
	t.Helper()
	var k struct {
		APIVersion, Kind string
		Resources        []string
	}
	if err := yaml.UnmarshalStrict(read(t, filepath.Join(dir, "kustomization.yaml")), &k); err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	var out []object
	for _, name := range k.Resources {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			out = append(out, kustomize(t, path)...)
		} else {
			out = append(out, parse(t, string(read(t, path)))...)
		}
	}
	// Every manifest of the folder is named.
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() && e.Name() != "kustomization.yaml" && !slices.Contains(k.Resources, e.Name()) {
			t.Errorf("%s/%s is in no kustomization", dir, e.Name())
		}
	}
	return out
}

func TestKustomizations(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for dir, kinds := range map[string]string{
		"../config/default":      "ClusterRole ClusterRoleBinding CustomResourceDefinition Deployment Namespace ServiceAccount",
		"../config/samples":      "InstrumentShard InstrumentShard PersistentVolumeClaim Role RoleBinding Service ServiceAccount StatefulSet",
		"../config/samples/kind": "InstrumentShard InstrumentShard",
	} {
		var got []string
		for _, o := range kustomize(t, dir) {
			got = append(got, o.kind)
			spec, template := pod(o)
			if spec == nil {
				continue
			}
			for _, result := range evaluator.EvaluatePod(restricted, &template.ObjectMeta, spec) {
				if !result.Allowed {
					t.Errorf("%s %s: %s: %s", o.kind, o.name, result.ForbiddenReason, result.ForbiddenDetail)
				}
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != kinds {
			t.Errorf("%s has %v", dir, got)
		}
	}
}

// The samples give every instrument that an exchange knows by itself, and the
// accounts, exactly one shard, in the cluster that the sample exchange asks for.
func TestSamplesAreWhole(t *testing.T) {
	set, err := order.DefaultSet()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{record.AccountStream}
	for i := range set.Instruments {
		want = append(want, set.Instruments[i].Symbol.String())
	}
	slices.Sort(want)
	for _, dir := range []string{"../config/samples", "../config/samples/kind"} {
		var got []string
		for _, o := range kustomize(t, dir) {
			if s, ok := o.typed.(*v1.InstrumentShard); ok {
				got = append(got, s.Spec.Instruments...)
				if s.Spec.Cluster != "countinghouse" {
					t.Errorf("%s: shard %s is of cluster %s", dir, s.Name, s.Spec.Cluster)
				}
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: shards have %v, an exchange needs %v", dir, got, want)
		}
	}
	for _, o := range kustomize(t, "../config/samples") {
		if spec, _ := pod(o); spec != nil && !slices.Contains(spec.Containers[0].Args, "--cluster=countinghouse") {
			t.Errorf("the exchange has the arguments %v", spec.Containers[0].Args)
		}
		if c, ok := o.typed.(*corev1.PersistentVolumeClaim); ok && c.Spec.AccessModes[0] != corev1.ReadWriteOnce {
			t.Errorf("the outbox has the access modes %v", c.Spec.AccessModes)
		}
	}
}
