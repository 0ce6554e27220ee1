package charts

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	extensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

const (
	chart     = "countinghouse"
	release   = "x"
	namespace = "system"
	// kubeVersion is the oldest that the chart takes; a helm that is built as a tool
	// assumes an older one.
	kubeVersion = "v1.30.0"
)

// helm is the pinned program's path.
var helm = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "-modfile=../tools/helm/go.mod", "helm").Output()
	path := strings.TrimSpace(string(out))
	if err == nil {
		return path, nil
	}
	return path, err
})

// run runs helm and returns what it prints.
func run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	path, err := helm()
	if err != nil {
		t.Fatalf("go tool helm: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err = cmd.Run()
	return out.String(), log.String(), err
}

// rendered is what template returned for values.
type rendered struct {
	text, stderr string
	err          error
}

// renderings are kept, by values: a run of helm takes some tenths of a second.
var renderings = map[string]rendered{}

// template renders the chart with values in YAML.
func template(t *testing.T, values string) (text, stderr string, err error) {
	t.Helper()
	r, ok := renderings[values]
	if !ok {
		path := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(path, []byte(values), 0o600); err != nil {
			t.Fatal(err)
		}
		r.text, r.stderr, r.err = run(t, "template", release, chart, "--namespace", namespace, "--values", path,
			"--kube-version", kubeVersion, "--api-versions", "countinghouse.io/v1/InstrumentShard")
		renderings[values] = r
	}
	return r.text, r.stderr, r.err
}

// object is a rendered object: of its type where that is known, else a map.
type object struct {
	kind, name, namespace string
	text                  string
	typed                 any
}

// types are the kinds that are decoded strictly: a field that is not one is an error.
var types = map[string]func() any{
	"Deployment":               func() any { return new(appsv1.Deployment) },
	"StatefulSet":              func() any { return new(appsv1.StatefulSet) },
	"Pod":                      func() any { return new(corev1.Pod) },
	"Service":                  func() any { return new(corev1.Service) },
	"ServiceAccount":           func() any { return new(corev1.ServiceAccount) },
	"ConfigMap":                func() any { return new(corev1.ConfigMap) },
	"Namespace":                func() any { return new(corev1.Namespace) },
	"PersistentVolumeClaim":    func() any { return new(corev1.PersistentVolumeClaim) },
	"NetworkPolicy":            func() any { return new(networkingv1.NetworkPolicy) },
	"PodDisruptionBudget":      func() any { return new(policyv1.PodDisruptionBudget) },
	"ClusterRole":              func() any { return new(rbacv1.ClusterRole) },
	"ClusterRoleBinding":       func() any { return new(rbacv1.ClusterRoleBinding) },
	"Role":                     func() any { return new(rbacv1.Role) },
	"RoleBinding":              func() any { return new(rbacv1.RoleBinding) },
	"CustomResourceDefinition": func() any { return new(extensionsv1.CustomResourceDefinition) },
	"InstrumentShard":          func() any { return new(v1.InstrumentShard) },
	"ServiceMonitor":           func() any { return new(map[string]any) },
	"PodMonitor":               func() any { return new(map[string]any) },
	"PrometheusRule":           func() any { return new(map[string]any) },
	"Kustomization":            func() any { return new(map[string]any) },
}

// parse reads the objects of a stream of YAML documents.
func parse(t *testing.T, text string) []object {
	t.Helper()
	var out []object
	for _, doc := range strings.Split("\n"+text, "\n---") {
		var head struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if head.Kind == "" {
			continue
		}
		kind, ok := types[head.Kind]
		if !ok {
			t.Fatalf("kind %q is not known to the test", head.Kind)
		}
		o := object{kind: head.Kind, name: head.Metadata.Name, namespace: head.Metadata.Namespace, text: doc, typed: kind()}
		if err := yaml.UnmarshalStrict([]byte(doc), o.typed); err != nil {
			t.Fatalf("%s %s: %v\n%s", o.kind, o.name, err, doc)
		}
		out = append(out, o)
	}
	return out
}

func render(t *testing.T, values string) []object {
	t.Helper()
	text, stderr, err := template(t, values)
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	return parse(t, text)
}

// find returns the only object of a kind and a name.
func find[T any](t *testing.T, objects []object, kind, name string) *T {
	t.Helper()
	var found *T
	for _, o := range objects {
		if o.kind == kind && o.name == name {
			if found != nil {
				t.Fatalf("%s %s is there twice", kind, name)
			}
			found = o.typed.(*T)
		}
	}
	if found == nil {
		t.Fatalf("no %s %s", kind, name)
	}
	return found
}

// pod returns the pod that an object is or makes, nil for none.
func pod(o object) (*corev1.PodSpec, *corev1.PodTemplateSpec) {
	switch v := o.typed.(type) {
	case *appsv1.Deployment:
		return &v.Spec.Template.Spec, &v.Spec.Template
	case *appsv1.StatefulSet:
		return &v.Spec.Template.Spec, &v.Spec.Template
	case *corev1.Pod:
		return &v.Spec, &corev1.PodTemplateSpec{ObjectMeta: v.ObjectMeta, Spec: v.Spec}
	}
	return nil, nil
}
