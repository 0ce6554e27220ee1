package main

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
)

func TestFlagsAreChecked(t *testing.T) {
	t.Setenv("POD_NAMESPACE", "")
	good := []string{"--image", "countinghouse:v1", "--namespace", "trading"}
	for want, args := range map[string][]string{
		"--image: is required":                {"--namespace", "trading"},
		"--namespace: is required":            {"--image", "countinghouse:v1"},
		"--namespaces: \"a b\" is no name":    append(good, "--namespaces", "a b"),
		"--namespace: \"c d\" is no name":     {"--image", "i", "--namespace", "c d"},
		"--metrics-listen: \"here\" is not":   append(good, "--metrics-listen", "here"),
		"--health-listen: \"here\" is not":    append(good, "--health-listen", "here"),
		"--workers: 0: use at least 1":        append(good, "--workers", "0"),
		"--secret-propagation: 0s: use at l":  append(good, "--secret-propagation", "0s"),
		"--stop-grace: -1s is negative":       append(good, "--stop-grace", "-1s"),
		"--log-level: \"loud\": use debug":    append(good, "--log-level", "loud"),
		"--log-format: \"xml\": use text":     append(good, "--log-format", "xml"),
		"unknown flag: --imgae":               {"--imgae", "x"},
		"\"now\": the command takes flags on": append(good, "now"),
	} {
		var stderr bytes.Buffer
		if code := execute(t.Context(), args, new(bytes.Buffer), &stderr); code != exitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%v: exit code %d, %q; want %d and %q", args, code, stderr.String(), exitUsage, want)
		}
	}
}

func TestWithoutAClusterItSaysWhatToSet(t *testing.T) {
	t.Setenv("KUBECONFIG", t.TempDir()+"/none")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("HOME", t.TempDir())
	var stderr bytes.Buffer
	code := execute(t.Context(), []string{"--image", "i", "--namespace", "n"}, new(bytes.Buffer), &stderr)
	if code != exitUsage || !strings.Contains(stderr.String(), "set KUBECONFIG") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
}

// The cache selects by labels: an object of a shard that has other labels would not
// be seen, and be created again and again.
func TestCacheSeesWhatShardsAreMadeOf(t *testing.T) {
	s := &v1.InstrumentShard{ObjectMeta: metav1.ObjectMeta{Name: "futures", Namespace: "trading"}}
	pod, err := resource.Pod(s, "futures-0", resource.Formation{}, resource.Defaults{Image: "i"})
	if err != nil {
		t.Fatal(err)
	}
	made := []interface{ GetLabels() map[string]string }{
		pod, resource.Claim(s, "futures-0"), resource.Peers(s), resource.Service(s),
		resource.DisruptionBudget(s, 3, 0), resource.NetworkPolicy(s, "system"),
	}
	selectors := 0
	for kind, by := range (&flags{}).cache().ByObject {
		selectors++
		if by.Label.Matches(labels.Set{"app": "other"}) {
			t.Errorf("the cache of %T takes everything", kind)
		}
		if _, ok := kind.(*corev1.Secret); ok {
			for _, o := range []*corev1.Secret{resource.AuthorityObject(s), resource.CertificateObject(s, resource.NodeSecret(s))} {
				if !by.Label.Matches(labels.Set(o.Labels)) {
					t.Errorf("the cache does not see secret %s", o.Name)
				}
			}
			continue
		}
		for _, o := range made {
			if !by.Label.Matches(labels.Set(o.GetLabels())) {
				t.Errorf("the cache of %T does not see %T", kind, o)
			}
		}
	}
	if selectors != 6 {
		t.Errorf("%d kinds are selected", selectors)
	}
}

func TestNamespacesNarrowTheCache(t *testing.T) {
	if o := (&flags{}).cache(); o.DefaultNamespaces != nil {
		t.Errorf("%v", o.DefaultNamespaces)
	}
	o := (&flags{namespaces: []string{"a", "b"}}).cache()
	if _, ok := o.DefaultNamespaces["b"]; len(o.DefaultNamespaces) != 2 || !ok {
		t.Errorf("%v", o.DefaultNamespaces)
	}
}
