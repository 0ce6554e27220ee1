package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

const (
	release         = "countinghouse"
	exchangeName    = "countinghouse-exchange"
	instrumentsFile = "../exchange/order/instruments.yaml"
	chart           = "charts/countinghouse"
)

func quantity(s string) resource.Quantity { return resource.MustParse(s) }

// helm runs the pinned Helm in the repository's root.
func (s *suite) helm(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "..", []string{"KUBECONFIG=" + s.kubeconfig}, "go",
		append([]string{"tool", "-modfile=tools/helm/go.mod", "helm", "--namespace=" + namespace}, args...)...)
}

// values of the release; change edits them.
func (s *suite) values(t *testing.T, change func(map[string]any)) string {
	t.Helper()
	repository, tag, _ := strings.Cut(s.image, ":")
	v := map[string]any{
		"image": map[string]any{"repository": repository, "tag": tag},
		// The narrow form of the roles: it must be enough.
		"watchNamespaces": []string{namespace},
		"operator":        operatorValues(nil),
	}
	if change != nil {
		change(v)
	}
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// operatorValues are those of the operator, with some more. The kubelets of kind bring
// changes of a secret within a minute and a half.
func operatorValues(more map[string]any) map[string]any {
	v := map[string]any{"replicas": 2, "extraArgs": []string{"--secret-propagation=90s"}}
	maps.Copy(v, more)
	return v
}

func withExchange(t *testing.T, pause string) func(map[string]any) {
	text, err := os.ReadFile(instrumentsFile)
	if err != nil {
		t.Fatal(err)
	}
	// Orders come without end, at one price level for all.
	terms := regexp.MustCompile(`position_limit: \d+`).ReplaceAllString(string(text), "position_limit: 0")
	terms = regexp.MustCompile(`reference_price: "[^"]*"`).ReplaceAllString(terms, `reference_price: "3900.0"`)
	return func(v map[string]any) {
		v["exchange"] = map[string]any{
			"enabled": true, "init": true, "instruments": terms, "quota": "512MiB", "closeWait": pause,
			"storage":      map[string]any{"size": "1Gi"},
			"resources":    map[string]any{"requests": map[string]any{"cpu": "50m", "memory": "128Mi"}},
			"nodeSelector": map[string]any{controlPlane: ""},
			"tolerations":  []map[string]any{{"key": controlPlane, "operator": "Exists"}},
		}
	}
}

// install installs the chart, in a namespace that admits restricted pods only.
func (s *suite) install(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
	if err := s.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	s.helm(t, "install", release, chart, "--values="+s.values(t, nil), "--wait", "--timeout=3m")
	s.helm(t, "test", release)
}

// rotate has the authority of all certificates replaced, while orders are taken:
// nothing is restarted.
func (s *suite) rotate(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "countinghouse-reader-tls"}}
	read := func(ctx context.Context) error { return s.Get(ctx, client.ObjectKeyFromObject(secret), secret) }
	if err := read(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, pods := secret.DeepCopy(), s.podUIDs(t)
	s.change(t, namespace, "accounts", func(x *v1.InstrumentShard) {
		x.Annotations = map[string]string{"countinghouse.io/rotate-certificates": "e2e"}
	})
	await(t, 8*time.Minute, "the old authority is gone from the bundle", func(ctx context.Context) error {
		if err := read(ctx); err != nil {
			return err
		}
		bundle := string(secret.Data["ca.crt"])
		if strings.Contains(bundle, string(before.Data["ca.crt"])) || string(secret.Data["tls.crt"]) == string(before.Data["tls.crt"]) {
			return fmt.Errorf("step %s", secret.Annotations)
		}
		return nil
	})
	s.trader.trades(t)
	if after := s.podUIDs(t); fmt.Sprint(after) != fmt.Sprint(pods) {
		t.Errorf("pods %v, then %v", pods, after)
	}
}

// startExchange upgrades the release to one with an exchange, and starts the trader.
func (s *suite) startExchange(t *testing.T) {
	s.helm(t, "upgrade", release, chart, "--values="+s.values(t, withExchange(t, "10s")), "--wait", "--timeout=3m")
	s.helm(t, "test", release)
	s.trader.start(t, fmt.Sprintf("%s.%s.svc:7070", exchangeName, namespace), fmt.Sprintf("http://%s.%s.svc:7071/metrics", exchangeName, namespace))
}

// upgrade changes the release while everything runs: members must not be restarted
// by it, and the operator goes on with the roles of the whole cluster.
func (s *suite) upgrade(t *testing.T) {
	before := s.podUIDs(t)
	s.helm(t, "upgrade", release, chart, "--wait", "--timeout=3m", "--values="+s.values(t, func(v map[string]any) {
		withExchange(t, "10s")(v)
		v["watchNamespaces"] = []string{}
		v["operator"] = operatorValues(map[string]any{"logLevel": "debug", "storageImage": s.otherImage})
	}))
	s.change(t, namespace, "accounts", func(x *v1.InstrumentShard) { x.Annotations = map[string]string{"touched": "yes"} })
	s.healthy(t)
	if after := s.podUIDs(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("members were restarted: %v, then %v", before, after)
	}
}

// podUIDs returns the uids of all members' pods, by name.
func (s *suite) podUIDs(t *testing.T) map[string]string {
	t.Helper()
	uids := map[string]string{}
	for _, shard := range s.trader.shards {
		for _, p := range s.pods(t, namespace, shard) {
			uids[p.Name] = string(p.UID)
		}
	}
	return uids
}

// restartExchange ends the exchange in good order, and then without notice.
func (s *suite) restartExchange(t *testing.T) {
	for _, grace := range []int64{60, 0} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: exchangeName + "-0"}}
		if err := s.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), pod, client.GracePeriodSeconds(grace)); err != nil {
			t.Fatal(err)
		}
		s.replaced(t, pod)
		s.trader.trades(t)
	}
}

// uninstall removes the operator: what it made goes on, and is taken up again by
// the next one.
func (s *suite) uninstall(t *testing.T) {
	before := s.podUIDs(t)
	s.helm(t, "uninstall", release, "--wait", "--timeout=3m")
	await(t, settleWait, "the operator is gone", func(ctx context.Context) error {
		var d appsv1.DeploymentList
		if err := s.List(ctx, &d, client.InNamespace(namespace)); err != nil || len(d.Items) > 0 {
			return fmt.Errorf("%d deployments, %w", len(d.Items), err)
		}
		return nil
	})
	if after := s.podUIDs(t); len(after) == 0 || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("members %v before, %v after the operator was uninstalled", before, after)
	}
	crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "instrumentshards.countinghouse.io"}}
	if err := s.Get(t.Context(), client.ObjectKeyFromObject(crd), crd); err != nil {
		t.Errorf("the custom resource definition: %v", err)
	}
	s.helm(t, "install", release, chart, "--values="+s.values(t, nil), "--wait", "--timeout=3m")
	for _, name := range []string{"accounts", "futures"} {
		s.settled(t, namespace, name)
		shard := s.cluster.shard(t, namespace, name)
		if err := s.Delete(t.Context(), shard); err != nil {
			t.Fatal(err)
		}
		s.gone(t, shard)
	}
	s.helm(t, "uninstall", release, "--wait", "--timeout=3m")
	if left := s.podUIDs(t); len(left) > 0 {
		t.Errorf("pods %v are left", left)
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: exchangeName + "-outbox"}}
	if err := s.Get(t.Context(), client.ObjectKeyFromObject(claim), claim); err != nil {
		t.Errorf("the outbox's volume: %v", err)
	}
}
