// Package apiserver gives tests a Kubernetes API server and its etcd, as processes
// on loopback, with the CRDs of config/crd. Nothing else of a cluster runs: no
// controller, no scheduler, no kubelet. What those do, a test does itself.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/countinghouse/countinghouse/internal/apiserver/binaries"
)

// assetsVariable names a directory with other binaries than those that are built.
const assetsVariable = "KUBEBUILDER_ASSETS"

// startTimeout bounds how long etcd and the API server may take to be healthy, each.
const startTimeout = 2 * time.Minute

var shared struct {
	sync.Mutex
	env     *envtest.Environment
	release func() // of its guard
	err     error
}

// Main runs the tests of a package, and ends what Config started. For TestMain.
func Main(m *testing.M) int {
	logf.SetLogger(logf.Log.WithSink(logf.NullLogSink{})) // tests say what is wrong
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.env == nil {
		return code
	}
	err := shared.env.Stop()
	if shared.release != nil {
		shared.release()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "API server:", err)
		return max(code, 1)
	}
	return code
}

// Config returns how to reach the package's API server as one who may do anything.
// The first call starts it, and builds it where it is missing.
func Config(t *testing.T) *rest.Config {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.env == nil && shared.err == nil {
		if shared.env, shared.err = start(); shared.err == nil {
			shared.release, shared.err = guard()
		}
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return rest.CopyConfig(shared.env.Config)
}

// As returns how to reach the API server as a user that has no rights but those
// given to it by name.
func As(t *testing.T, user string) *rest.Config {
	t.Helper()
	base := Config(t)
	added, err := shared.env.AddUser(envtest.User{Name: user}, &rest.Config{QPS: base.QPS, Burst: base.Burst})
	if err != nil {
		t.Fatal(err)
	}
	return added.Config()
}

func start() (*envtest.Environment, error) {
	dir := os.Getenv(assetsVariable)
	if dir == "" {
		var err error
		if dir, err = binaries.Build(context.Background(), os.Stderr); err != nil {
			return nil, fmt.Errorf("no API server to test against (`make kube` builds it, and `make test` does so first): %w", err)
		}
	}
	crds, err := crdDirectory()
	if err != nil {
		return nil, err
	}
	said := new(lastWords)
	server := &envtest.APIServer{Path: filepath.Join(dir, binaries.APIServer), Err: said}
	// Room for a thousand shards' Services.
	server.Configure().Set("service-cluster-ip-range", "10.0.0.0/16")
	env := &envtest.Environment{
		ControlPlane:             envtest.ControlPlane{APIServer: server, Etcd: &envtest.Etcd{Path: filepath.Join(dir, binaries.Etcd)}},
		CRDDirectoryPaths:        []string{crds},
		ErrorIfCRDPathMissing:    true,
		UseExistingCluster:       new(bool), // never somebody's cluster
		ControlPlaneStartTimeout: startTimeout,
		ControlPlaneStopTimeout:  startTimeout,
	}
	if _, err := env.Start(); err != nil {
		return nil, fmt.Errorf("the API server of %s does not start (`make kube` builds the one that is tested with): %w\n%s",
			dir, errors.Join(err, env.Stop()), said)
	}
	return env, nil
}

func crdDirectory() (string, error) {
	root, err := binaries.Repository(context.Background())
	return filepath.Join(root, "config", "crd"), err
}

// lastWords keeps the end of what a process says.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

var _ io.Writer = (*lastWords)(nil)

func (l *lastWords) Write(b []byte) (int, error) {
	const most = 4 << 10
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	l.text = l.text[max(0, len(l.text)-most):]
	return len(b), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
