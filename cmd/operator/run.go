package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers"
	"github.com/countinghouse/countinghouse/controllers/resource"
)

// leaseName is the lease that the working operator holds.
const leaseName = "countinghouse-operator"

// The API client's rate: a thousand shards at once are worked off at it.
const (
	clientQPS   = 50
	clientBurst = 100
)

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, err
	}
	return scheme, v1.AddToScheme(scheme)
}

// run reconciles until ctx ends.
func (f *flags) run(ctx context.Context, log *slog.Logger) error {
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	rc, err := config.GetConfig()
	if err != nil {
		return fmt.Errorf("%w: no cluster: run in a pod, or set KUBECONFIG: %w", errUsage, err)
	}
	m, err := f.manager(rc)
	if err != nil {
		return err
	}
	return m.Start(ctx)
}

// manager returns a manager with everything registered.
func (f *flags) manager(rc *rest.Config) (ctrl.Manager, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	rc.QPS, rc.Burst = clientQPS, clientBurst
	m, err := ctrl.NewManager(rc, ctrl.Options{
		Scheme:                        scheme,
		Cache:                         f.cache(),
		Metrics:                       metricsserver.Options{BindAddress: f.metricsListen},
		HealthProbeBindAddress:        f.healthListen,
		LeaderElection:                f.leaderElect,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       f.namespace,
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       &f.stopGrace,
	})
	if err != nil {
		return nil, err
	}
	r := &controllers.Reconciler{
		Client: m.GetClient(), Defaults: resource.Defaults{Image: f.image}, Namespace: f.namespace,
		Dial: controllers.DialMembers, Events: m.GetEventRecorder("countinghouse-operator"), Workers: f.workers, Propagation: f.propagation,
	}
	if err := r.SetupWithManager(m); err != nil {
		return nil, err
	}
	if err := m.AddHealthzCheck("alive", healthz.Ping); err != nil {
		return nil, err
	}
	return m, m.AddReadyzCheck("alive", healthz.Ping)
}

// cache keeps what belongs to shards, and nothing of others: its size is that of the
// shards, however large the cluster is.
func (f *flags) cache() cache.Options {
	own := cache.ByObject{Label: labels.SelectorFromSet(resource.AllLabels())}
	o := cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: own, &corev1.PersistentVolumeClaim{}: own, &corev1.Service{}: own,
			&policyv1.PodDisruptionBudget{}: own, &networkingv1.NetworkPolicy{}: own,
			// No secret of others is ever held.
			&corev1.Secret{}: {Label: labels.SelectorFromSet(resource.CertificateLabels())},
		},
	}
	if len(f.namespaces) > 0 {
		o.DefaultNamespaces = make(map[string]cache.Config)
		for _, name := range f.namespaces {
			o.DefaultNamespaces[name] = cache.Config{}
		}
	}
	return o
}
