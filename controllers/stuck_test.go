package controllers

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	built "github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

const badImage = "countinghouse:typo"

// pullsNothingBad has pods with badImage never start, whichever member's they are.
func (w *world) pullsNothingBad() {
	w.cluster = func() {
		var pods corev1.PodList
		if err := w.list(&pods); err != nil {
			w.t.Fatal(err)
		}
		w.dead = map[string]bool{}
		for _, p := range pods.Items {
			if p.Spec.Containers[0].Image == badImage {
				w.dead[p.Name] = true
			}
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; w.dead[p.Name] && p.Status.Phase == "" {
				p.Status.Phase = corev1.PodPending
				if err := w.client.Status().Update(context.Background(), p); err != nil {
					w.t.Fatal(err)
				}
			}
		}
	}
}

// An image that there is not stops whatever was under way; the right one lets it go on,
// without anybody's help.
func TestImageIsCorrected(t *testing.T) {
	for name, begin := range map[string]func(*world){
		"from the beginning": func(w *world) { w.createShard(3) },
		"in a rollout":       func(w *world) { w.runs(3) },
		"as members join": func(w *world) {
			w.runs(3)
			w.spec(func(s *v1.InstrumentShardSpec) { s.Replicas = 5 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.pullsNothingBad()
			begin(w)
			w.spec(func(s *v1.InstrumentShardSpec) { s.Image = badImage })
			w.converge()
			if len(w.dead) == 0 {
				t.Fatal("every pod has started")
			}
			w.spec(func(s *v1.InstrumentShardSpec) { s.Image = "countinghouse:right" })
			w.converge()
			w.expect()
		})
	}
}

// A pod is replaced at once only if nothing of it runs.
func TestPodThatMayRunIsNotReplacedAtOnce(t *testing.T) {
	state := func(phase corev1.PodPhase, containers ...corev1.ContainerState) *corev1.Pod {
		pod := new(corev1.Pod)
		pod.Status.Phase = phase
		for _, c := range containers {
			pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{State: c})
		}
		return pod
	}
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	for what, c := range map[string]struct {
		pod  *corev1.Pod
		runs bool
	}{
		"not scheduled":      {state(corev1.PodPending), false},
		"pulls its image":    {state(corev1.PodPending, waiting), false},
		"crashes":            {state(corev1.PodRunning, waiting), false},
		"runs":               {state(corev1.PodRunning, running), true},
		"nobody has said":    {state(corev1.PodRunning), true},
		"seen by no kubelet": {state(corev1.PodUnknown), true},
	} {
		if got := runs(c.pod); got != c.runs {
			t.Errorf("%s: %t", what, got)
		}
	}
}

// A pod that is lost with its node ends when the node does, and is not deleted again
// at each look until then.
func TestPodThatDoesNotEndIsDeletedOnce(t *testing.T) {
	w := newWorld(t)
	w.runs(3)
	pod := w.pod("futures-1")
	pod.Finalizers = []string{"test/node"}
	if err := w.client.Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	claim := new(corev1.PersistentVolumeClaim)
	if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(pod), claim); err != nil {
		t.Fatal(err)
	}
	delete(w.disks, claim.UID)
	if err := w.client.Delete(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	w.converge()
	if pod = w.pod("futures-1"); pod == nil || pod.DeletionTimestamp.IsZero() {
		t.Fatalf("%+v", pod)
	}
	before := w.writes
	for range 3 {
		if err := w.reconcile(); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.writes - before; n > 0 {
		t.Errorf("%d writes while a pod does not end", n)
	}
	pod.Finalizers = nil
	if err := w.client.Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	w.converge()
	w.expect()
}

// deleteShard deletes the shard and waits until it is gone.
func (w *world) deleteShard() {
	w.t.Helper()
	if err := w.client.Delete(context.Background(), w.shard()); err != nil {
		w.t.Fatal(err)
	}
	w.converge()
	if w.shard().Name != "" {
		w.t.Fatal("it is still there")
	}
}

// A shard that was never formed leaves no volumes behind, on which none could be formed
// again; one that was leaves its data, as it is told to.
func TestShardIsCreatedOnceMore(t *testing.T) {
	for name, image := range map[string]string{"never formed": badImage, "with data": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.pullsNothingBad()
			w.createShard(3)
			w.spec(func(s *v1.InstrumentShardSpec) { s.Image = image })
			w.converge()
			if w.formed == (image == badImage) {
				t.Fatalf("formed: %t", w.formed)
			}
			w.deleteShard()
			w.createShard(3)
			w.converge()
			w.expect()
		})
	}
}

// What is left of a shard is the volume of a member that was given up: none is formed
// beside it, nothing is taken for a member, and nothing is written again and again.
func TestOnlyGivenUpVolumesAreLeft(t *testing.T) {
	w := newWorld(t)
	w.loseThreeOfFive()
	w.recoverFrom("futures-3")
	w.converge()
	w.deleteShard()
	var claims corev1.PersistentVolumeClaimList
	if err := w.list(&claims); err != nil {
		t.Fatal(err)
	}
	for i := range claims.Items {
		if c := &claims.Items[i]; c.Annotations[built.AnnotationRecovery] == "" {
			if err := w.client.Delete(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.createShard(3)
	w.converge()
	s := w.shard()
	if c := meta.FindStatusCondition(s.Status.Conditions, v1.ConditionProgressing); len(s.Status.Members) > 0 || s.Status.Bootstrapped || !strings.Contains(c.Message, "futures-1") {
		t.Errorf("%+v: %s", s.Status.Members, c.Message)
	}
}

// A shard is created over what is left of an earlier one, which is no quorum of it: that
// is stated, and it can go on from what there is.
func TestTooFewVolumesAreLeft(t *testing.T) {
	w := newWorld(t)
	w.runs(3)
	w.deleteShard()
	for _, id := range []string{"futures-0", "futures-2"} {
		if err := w.client.Delete(t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: w.name.Namespace, Name: id}}); err != nil {
			t.Fatal(err)
		}
	}
	w.createShard(3)
	w.converge()
	if c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionQuorumLost); c.Status != "True" || !strings.Contains(c.Message, "2 of 3") {
		t.Errorf("%+v", c)
	}
	w.recoverFrom("futures-1")
	w.converge()
	w.expect()
}

// A shard is created over what is left of an earlier one, which is a quorum: the member
// that has no volume is replaced, and its number is not used again.
func TestOneVolumeIsNotLeft(t *testing.T) {
	w := newWorld(t)
	w.runs(3)
	w.deleteShard()
	if err := w.client.Delete(t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: w.name.Namespace, Name: "futures-2"}}); err != nil {
		t.Fatal(err)
	}
	w.createShard(3)
	w.converge()
	w.expect()
	if w.members["futures-2"] != nil || w.members["futures-3"] == nil {
		t.Errorf("%s", w.place())
	}
}

// Volumes that can not grow are asked for once, and again after a while; the shard goes
// on, and says so.
func TestVolumesThatCanNotGrow(t *testing.T) {
	w := newWorld(t)
	refuse := true
	w.operator = interceptor.NewClient(w.client, interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if _, ok := o.(*corev1.PersistentVolumeClaim); ok && refuse {
				w.writes++
				return apierrors.NewForbidden(corev1.Resource("persistentvolumeclaims"), o.GetName(), errors.New("the class does not allow it"))
			}
			return c.Patch(ctx, o, p, opts...)
		},
	})
	w.runs(3)
	w.spec(func(s *v1.InstrumentShardSpec) { s.Storage.Size = resource.MustParse("20Gi") })
	w.converge() // which ends when nothing is written any more
	w.expect()
	c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionVolumesGrown)
	if c == nil || c.Status != "False" || !strings.Contains(c.Message, "futures-0 can not grow") || !strings.Contains(c.Message, "class") {
		t.Errorf("%+v", c)
	}
	refuse = false
	w.pass(growAgain)
	w.converge()
	w.expect()
	if c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionVolumesGrown); c != nil || !strings.Contains(w.place(), "claim futures-2 20Gi") {
		t.Errorf("%+v\n%s", c, w.place())
	}
}

// A pod that is being evicted, which the cache does not show yet, runs and takes part:
// none is restarted beside it.
func TestNoRestartBesideAnEviction(t *testing.T) {
	w := newWorld(t)
	w.runs(3)
	w.spec(func(s *v1.InstrumentShardSpec) { s.Image = "countinghouse:next" })
	var old corev1.PodList
	if err := w.list(&old); err != nil {
		t.Fatal(err)
	}
	evicted := w.pod("futures-2")
	evicted.Finalizers = []string{"test/stops"}
	if err := errors.Join(w.client.Update(t.Context(), evicted), w.client.Delete(t.Context(), evicted)); err != nil {
		t.Fatal(err)
	}
	w.cache = interceptor.NewClient(w.client, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			if pods, ok := l.(*corev1.PodList); ok {
				old.DeepCopyInto(pods)
				return nil
			}
			return c.List(ctx, l, opts...)
		},
	})
	for range 3 {
		if err := w.reconcile(); err != nil {
			t.Fatal(err)
		}
	}
	w.cache = nil
	if s := w.shard(); len(w.broken) > 0 || len(w.trace) > 0 && w.trace[len(w.trace)-1] == "restart futures-1" {
		t.Errorf("%v %v: %+v", w.broken, w.trace, s.Status.Conditions)
	}
	evicted = w.pod("futures-2")
	evicted.Finalizers = nil
	if err := w.client.Update(t.Context(), evicted); err != nil {
		t.Fatal(err)
	}
	w.converge()
	w.expect()
}

// keeper is a shard that gives up no instrument, since it holds more and more records.
type keeper struct {
	*world
	records int
}

func (k *keeper) AssignInstruments(context.Context, []string) error {
	k.records++
	return refusal.New(storagepb.Code_CODE_INVALID, "instrument IC2501 holds %d records and can not be taken off the shard's list", k.records)
}

// An instrument that the shard can not give up keeps its pods from nothing, and its
// records are not counted in the status.
func TestInstrumentWithRecordsStays(t *testing.T) {
	w := newWorld(t)
	w.runs(3)
	w.admin = &keeper{world: w}
	w.spec(func(s *v1.InstrumentShardSpec) {
		s.Instruments, s.Image = []string{"IF2501"}, "countinghouse:next"
	})
	w.converge()
	want, err := built.SpecHash(w.shard())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"futures-0", "futures-1", "futures-2"} {
		if got := w.pod(id).Annotations[built.AnnotationSpecHash]; got != want {
			t.Errorf("%s was not replaced", id)
		}
	}
	if c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionProgressing); c.Status != "True" || !strings.Contains(c.Message, "IC2501 holds") {
		t.Errorf("%+v", c)
	}
}

func TestWhoWaitsLongIsLookedAtLessOften(t *testing.T) {
	at := func(since time.Duration, paused bool, next string) time.Duration {
		s := &v1.InstrumentShard{Spec: v1.InstrumentShardSpec{Paused: paused}}
		p := &pass{shard: s, next: next, before: &v1.InstrumentShardStatus{Conditions: []metav1.Condition{
			{Type: v1.ConditionProgressing, Status: metav1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Now().Add(-since))},
		}}}
		return p.again()
	}
	for name, c := range map[string]struct{ got, least, most time.Duration }{
		"settled":     {at(0, false, ""), againLater, againLater},
		"paused":      {at(0, true, "the shard is paused"), againLater, againLater},
		"just begun":  {at(0, false, "something"), againSoon, againSoon},
		"for a while": {at(4*time.Minute, false, "something"), 15 * time.Second, 20 * time.Second},
		"for days":    {at(100*time.Hour, false, "something"), againLater, againLater},
	} {
		if c.got < c.least || c.got > c.most {
			t.Errorf("%s: %v", name, c.got)
		}
	}
	p := &pass{shard: new(v1.InstrumentShard), next: "something", before: new(v1.InstrumentShardStatus)}
	if got := p.again(); got != againSoon {
		t.Errorf("seen first: %v", got)
	}
}
