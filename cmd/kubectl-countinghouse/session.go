package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	kube "sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

// reach opens a connection to the storage port of a pod.
type reach func(ctx context.Context, namespace, pod string) (net.Conn, error)

// session is what a command works with: the API server, and a way to members.
type session struct {
	kube      kube.Client
	namespace string
	reach     reach
	timeout   time.Duration
	poll      time.Duration // between two looks at a shard that is waited for
	now       func() time.Time
}

const pollDefault = time.Second

// connect is the session that a kubeconfig gives.
func connect(s *settings) (*session, error) {
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(s.rules, &s.overrides)
	namespace, _, err := config.Namespace()
	if err != nil {
		return nil, output.Exit(output.ExitUsage, err)
	}
	rest, err := config.ClientConfig()
	if err != nil {
		return nil, output.Exit(output.ExitUsage, err)
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	k, err := kube.New(rest, kube.Options{Scheme: scheme})
	if err != nil {
		return nil, apiError(err)
	}
	forward, err := forwarder(rest)
	if err != nil {
		return nil, err
	}
	return &session{kube: k, namespace: namespace, reach: forward, timeout: s.timeout, poll: pollDefault, now: time.Now}, nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(clientgoscheme.AddToScheme(scheme), v1.AddToScheme(scheme))
}

// apiError gives an error of the API server its exit code: what it has refused lies
// in the request, anything else in the way to it.
func apiError(err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return output.Exit(output.ExitFailed, err)
	case apierrors.IsNotFound(err) && strings.Contains(err.Error(), "the server could not find the requested resource"):
		return output.Exit(output.ExitFailed, fmt.Errorf("the cluster has no InstrumentShards: install the CRD (%w)", err))
	case apierrors.IsNotFound(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return output.Exit(output.ExitUsage, err)
	}
	return output.Exit(output.ExitUnavailable, err)
}

// shards returns the shards of the namespace by name, or the one that is named.
func (s *session) shards(ctx context.Context, name string) ([]v1.InstrumentShard, error) {
	var list v1.InstrumentShardList
	if err := s.kube.List(ctx, &list, kube.InNamespace(s.namespace)); err != nil {
		return nil, apiError(err)
	}
	slices.SortFunc(list.Items, func(a, b v1.InstrumentShard) int { return strings.Compare(a.Name, b.Name) })
	if name == "" {
		return list.Items, nil
	}
	var names []string
	for i := range list.Items {
		if list.Items[i].Name == name {
			return list.Items[i : i+1], nil
		}
		names = append(names, list.Items[i].Name)
	}
	there := "it has none"
	if len(names) > 0 {
		there = "it has " + strings.Join(names, ", ")
	}
	return nil, output.Exit(output.ExitUsage, fmt.Errorf("no shard %q in namespace %s: %s; name another, or give --namespace", name, s.namespace, there))
}

// shard returns one shard.
func (s *session) shard(ctx context.Context, name string) (*v1.InstrumentShard, error) {
	found, err := s.shards(ctx, name)
	if err != nil {
		return nil, err
	}
	return &found[0], nil
}

// since says how long ago something was, in one or two units.
func (s *session) since(t metav1.Time) string {
	if t.IsZero() {
		return "-"
	}
	switch d := s.now().Sub(t.Time); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func isRunning(pod *corev1.Pod) bool {
	return pod != nil && pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp.IsZero()
}
