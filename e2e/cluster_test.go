package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	kind "sigs.k8s.io/kind/pkg/cluster"
	"sigs.k8s.io/kind/pkg/cluster/nodeutils"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

const readyWait = 3 * time.Minute

// clusterName is the name of the kind cluster.
var clusterName = cmp.Or(os.Getenv("E2E_CLUSTER"), "countinghouse-e2e")

// nodes of the kind cluster: one for the control plane, where the exchange and the
// trader run as well, and three for members.
const kindConfig = `
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
- role: control-plane
- role: worker
- role: worker
- role: worker
`

// cluster is the cluster under test.
type cluster struct {
	kubeconfig string
	rest       *rest.Config
	set        kubernetes.Interface
	client.Client

	kind        *kind.Provider // nil for a cluster that was given
	image       string
	otherImage  string // the same under another name, to roll out; "" for none
	traderImage string
	out         string
}

// newCluster creates a kind cluster with the images on its nodes, or takes the one
// that is given.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{kubeconfig: os.Getenv("E2E_KUBECONFIG"), out: os.Getenv("E2E_OUT")}
	if c.out == "" {
		c.out = "out"
	}
	run(t, "..", nil, "make", "build")
	var err error
	if c.out, err = filepath.Abs(c.out); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(c.out, 0o755); err != nil {
		t.Fatal(err)
	}
	if c.kubeconfig == "" {
		c.createKind(t)
	} else {
		c.image, c.traderImage = required(t, "E2E_IMAGE"), required(t, "E2E_TRADER_IMAGE")
	}
	if c.rest, err = clientcmd.BuildConfigFromFlags("", c.kubeconfig); err != nil {
		t.Fatal(err)
	}
	ctrllog.SetLogger(logr.Discard())
	c.rest.QPS, c.rest.Burst = 100, 200
	c.set = kubernetes.NewForConfigOrDie(c.rest)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, v1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	if c.Client, err = client.New(c.rest, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	return c
}

func required(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: a cluster that is given needs images that it can pull", name)
	}
	return value
}

func (c *cluster) createKind(t *testing.T) {
	t.Helper()
	c.image, c.otherImage, c.traderImage = "countinghouse:e2e", "countinghouse:e2e-other", "countinghouse-trader:e2e"
	c.buildImages(t)
	c.kind = kind.NewProvider(kind.ProviderWithDocker())
	c.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	options := []kind.CreateOption{
		kind.CreateWithRawConfig([]byte(kindConfig)), kind.CreateWithKubeconfigPath(c.kubeconfig),
		kind.CreateWithWaitForReady(readyWait), kind.CreateWithDisplayUsage(false), kind.CreateWithDisplaySalutation(false),
	}
	if image := os.Getenv("KIND_NODE_IMAGE"); image != "" {
		options = append(options, kind.CreateWithNodeImage(image))
	}
	if names, err := c.kind.List(); err != nil {
		t.Fatal(err)
	} else if slices.Contains(names, clusterName) {
		t.Logf("kind cluster %s is there: it is used and stays", clusterName)
		if err := c.kind.ExportKubeConfig(clusterName, c.kubeconfig, false); err != nil {
			t.Fatal(err)
		}
		c.loadImages(t)
		return
	}
	t.Log("creating the kind cluster ", clusterName)
	t.Cleanup(func() {
		if os.Getenv("E2E_KEEP") != "" {
			t.Logf("the cluster stays: kind export kubeconfig --name %s; kind delete cluster --name %s", clusterName, clusterName)
			return
		}
		if err := c.kind.Delete(clusterName, c.kubeconfig); err != nil {
			t.Errorf("delete the kind cluster: %v", err)
		}
	})
	if err := c.kind.Create(clusterName, options...); err != nil {
		t.Fatalf("create the kind cluster: %v", err)
	}
	c.loadImages(t)
}

// buildImages builds what runs in the cluster: the project's image, under two names
// with two build stamps, and the trader's.
func (c *cluster) buildImages(t *testing.T) {
	t.Helper()
	run(t, "..", nil, "make", "images", "IMAGE="+c.image)
	run(t, "..", nil, "make", "images", "IMAGE="+c.otherImage, "GIT_DESC=other")
	dir := t.TempDir()
	run(t, ".", []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "trader"), "./trader")
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY trader /\nUSER 65532:65532\nENTRYPOINT [\"/trader\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, ".", []string{"DOCKER_BUILDKIT=0"}, "docker", "build", "--quiet", "--tag", c.traderImage, dir)
}

func (c *cluster) loadImages(t *testing.T) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "images.tar")
	run(t, ".", nil, "docker", "save", "--output", archive, c.image, c.otherImage, c.traderImage)
	nodes, err := c.kind.ListInternalNodes(clusterName)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		f, err := os.Open(archive)
		if err != nil {
			t.Fatal(err)
		}
		err = nodeutils.LoadImageArchive(n, f)
		f.Close()
		if err != nil {
			t.Fatalf("load images on %s: %v", n, err)
		}
	}
}

// run runs a program and returns what it printed.
func run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	out, err := try(t.Context(), dir, env, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func try(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// await waits until a condition holds, which says what it waits for otherwise.
func await(t *testing.T, wait time.Duration, what string, condition func(context.Context) error) {
	t.Helper()
	began := time.Now()
	var last error
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		last = condition(ctx)
		cancel()
		if last == nil {
			return
		}
		if time.Since(began) > wait {
			t.Fatalf("not within %v: %s: %v", wait, what, last)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatalf("%s: %v; %v", what, last, t.Context().Err())
		}
	}
}

// node runs docker on a node's container.
func (c *cluster) node(t *testing.T, verb string, args ...string) {
	t.Helper()
	run(t, ".", nil, "docker", append(strings.Fields(verb), args...)...)
}

// podReady reports whether a pod is ready.
func podReady(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}
