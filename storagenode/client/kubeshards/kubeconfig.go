package kubeshards

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// accountNamespace holds the namespace of the pod's service account.
const accountNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Reach returns how the API server is reached, and the namespace that is meant
// where none is given: with a kubeconfig file, its current context's; without one,
// the pod's service account, and $POD_NAMESPACE or the account's namespace.
func Reach(kubeconfig string) (*rest.Config, string, error) {
	if kubeconfig != "" {
		return reachFrom(kubeconfig)
	}
	c, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, "", errors.New("this is no pod of a Kubernetes cluster: give a kubeconfig file")
	}
	if err != nil {
		return nil, "", fmt.Errorf("service account: %w", err)
	}
	return c, podNamespace(), nil
}

func podNamespace() string {
	if name := os.Getenv("POD_NAMESPACE"); name != "" {
		return name
	}
	b, err := os.ReadFile(accountNamespace)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func reachFrom(path string) (*rest.Config, string, error) {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{ExplicitPath: path}, nil)
	c, err := loader.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return c, namespace, nil
}
