package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// settleWait is how long a shard may take to become what its spec says.
const settleWait = 4 * time.Minute

func (c *cluster) shard(t *testing.T, namespace, name string) *v1.InstrumentShard {
	t.Helper()
	s := new(v1.InstrumentShard)
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// change changes a shard's spec or metadata.
func (c *cluster) change(t *testing.T, namespace, name string, f func(*v1.InstrumentShard)) {
	t.Helper()
	s := c.shard(t, namespace, name)
	before := s.DeepCopy()
	f(s)
	if err := c.Patch(t.Context(), s, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// settled waits until a shard is what its spec says, and healthy.
func (c *cluster) settled(t *testing.T, namespace, name string) *v1.InstrumentShard {
	t.Helper()
	s := new(v1.InstrumentShard)
	await(t, settleWait, "shard "+name+" is what its spec says", func(ctx context.Context) error {
		if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, s); err != nil {
			return err
		}
		return unsettled(s)
	})
	return s
}

// unsettled says what a shard lacks, nil for nothing.
func unsettled(s *v1.InstrumentShard) error {
	if s.Status.ObservedGeneration != s.Generation {
		return fmt.Errorf("generation %d was not seen", s.Generation)
	}
	for kind, want := range map[string]metav1.ConditionStatus{
		v1.ConditionAvailable: metav1.ConditionTrue, v1.ConditionProgressing: metav1.ConditionFalse, v1.ConditionDegraded: metav1.ConditionFalse,
	} {
		got := meta.FindStatusCondition(s.Status.Conditions, kind)
		if got == nil || got.Status != want {
			return fmt.Errorf("%+v; members %+v", got, s.Status.Members)
		}
	}
	if s.Status.ReadyReplicas != s.Spec.Replicas {
		return fmt.Errorf("%d of %d members are ready", s.Status.ReadyReplicas, s.Spec.Replicas)
	}
	return nil
}

// leader waits for a leader and returns its pod.
func (c *cluster) leader(t *testing.T, namespace, name string) *corev1.Pod {
	t.Helper()
	pod := new(corev1.Pod)
	await(t, settleWait, "a leader of "+name, func(ctx context.Context) error {
		s := new(v1.InstrumentShard)
		if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, s); err != nil {
			return err
		}
		if s.Status.Leader == "" {
			return fmt.Errorf("members %+v", s.Status.Members)
		}
		return c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: s.Status.Leader}, pod)
	})
	return pod
}

// kill deletes a pod without any grace.
func (c *cluster) kill(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if err := client.IgnoreNotFound(c.Delete(t.Context(), pod, client.GracePeriodSeconds(0))); err != nil {
		t.Fatal(err)
	}
}

// killProcess ends a storage node's process on a kind node, without notice.
func (c *cluster) killProcess(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	ctr := func(args ...string) string {
		return run(t, ".", nil, "docker", append([]string{"exec", pod.Spec.NodeName, "ctr", "--namespace", "k8s.io"}, args...)...)
	}
	id := strings.TrimSpace(ctr("containers", "list", "--quiet",
		fmt.Sprintf("labels.\"io.kubernetes.pod.uid\"==%s,labels.\"io.kubernetes.container.name\"==storagenode", pod.UID)))
	for _, one := range strings.Fields(id) { // ended ones are listed as well
		if _, err := try(t.Context(), ".", nil, "docker", "exec", pod.Spec.NodeName, "ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", one); err == nil {
			return
		}
	}
	t.Fatalf("no process of pod %s to kill among %q", pod.Name, id)
}

// restarted waits until a pod's container has been started anew.
func (c *cluster) restarted(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	await(t, settleWait, "the container of pod "+pod.Name+" is started anew", func(ctx context.Context) error {
		var now corev1.Pod
		if err := c.Get(ctx, client.ObjectKeyFromObject(pod), &now); err != nil {
			return err
		}
		if len(now.Status.ContainerStatuses) == 0 || now.Status.ContainerStatuses[0].RestartCount == 0 {
			return fmt.Errorf("%+v", now.Status.ContainerStatuses)
		}
		return nil
	})
}

// replaced waits until another pod of the same name is ready.
func (c *cluster) replaced(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	await(t, settleWait, "another pod "+pod.Name+" is ready", func(ctx context.Context) error {
		var other corev1.Pod
		if err := c.Get(ctx, client.ObjectKeyFromObject(pod), &other); err != nil {
			return err
		}
		if other.UID == pod.UID || !podReady(&other) {
			return fmt.Errorf("pod %s, phase %s", other.UID, other.Status.Phase)
		}
		return nil
	})
}

// gone waits until an object of this uid is not there any more.
func (c *cluster) gone(t *testing.T, o client.Object) {
	t.Helper()
	uid := o.GetUID()
	await(t, settleWait, fmt.Sprintf("%T %s is gone", o, o.GetName()), func(ctx context.Context) error {
		err := c.Get(ctx, client.ObjectKeyFromObject(o), o)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if err == nil && o.GetUID() == uid {
			return fmt.Errorf("it is there")
		}
		return nil
	})
}

// pods returns the members' pods of a shard.
func (c *cluster) pods(t *testing.T, namespace, shard string) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	if err := c.List(t.Context(), &list, client.InNamespace(namespace), client.MatchingLabels{"countinghouse.io/shard": shard}); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// claims returns the names of a shard's volume claims.
func (c *cluster) claims(t *testing.T, namespace, shard string) []string {
	t.Helper()
	var list corev1.PersistentVolumeClaimList
	if err := c.List(t.Context(), &list, client.InNamespace(namespace), client.MatchingLabels{"countinghouse.io/shard": shard}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			names = append(names, list.Items[i].Name)
		}
	}
	slices.Sort(names)
	return names
}

// voters returns the ids of the members that vote.
func voters(s *v1.InstrumentShard) (ids []string) {
	for _, m := range s.Status.Members {
		if m.Role == v1.RoleLeader || m.Role == v1.RoleFollower {
			ids = append(ids, m.ID)
		}
	}
	return ids
}
