package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	built "github.com/countinghouse/countinghouse/controllers/resource"
)

// lose deletes a member's volume and pod, as with a node that is gone for good.
func (w *world) lose(id string) {
	w.t.Helper()
	for _, o := range []client.Object{new(corev1.PersistentVolumeClaim), new(corev1.Pod)} {
		if err := w.client.Get(context.Background(), types.NamespacedName{Namespace: w.name.Namespace, Name: id}, o); err != nil {
			w.t.Fatal(err)
		}
		claim, isClaim := o.(*corev1.PersistentVolumeClaim)
		if isClaim {
			delete(w.disks, claim.UID)
		}
		if err := w.client.Delete(context.Background(), o, client.GracePeriodSeconds(0)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// runs creates a shard that runs before the scenario begins: that the operator may
// be stopped on the way there is another scenario.
func (w *world) runs(replicas int32) {
	w.t.Helper()
	at := w.stopAt
	w.stopAt = 0
	w.createShard(replicas)
	w.converge()
	w.stopAt, w.writes = at, 0
}

// scenarios are what happens to a shard. Each ends converged.
var scenarios = map[string]func(*world){
	"created": func(w *world) {
		w.createShard(3)
		w.converge()
	},
	"one member": func(w *world) {
		w.createShard(1)
		w.converge()
	},
	"scaled out and in": func(w *world) {
		w.runs(1)
		for _, n := range []int32{3, 5, 3} {
			w.spec(func(s *v1.InstrumentShardSpec) { s.Replicas = n })
			w.converge()
		}
	},
	"scaled in, volumes stay": func(w *world) {
		w.runs(5)
		w.spec(func(s *v1.InstrumentShardSpec) {
			s.Replicas, s.Storage.Retention.WhenScaled = 3, v1.RetentionRetain
		})
		w.converge()
	},
	"scaled before it is formed": func(w *world) {
		w.createShard(3)
		w.dead["futures-0"] = true
		w.converge()
		w.spec(func(s *v1.InstrumentShardSpec) { s.Replicas = 5 })
		w.dead = map[string]bool{}
		w.converge()
	},
	"a volume is lost": func(w *world) {
		w.runs(3)
		w.lose("futures-1")
		w.converge()
	},
	"the leader's volume is lost": func(w *world) {
		w.runs(3)
		w.lose(w.leader)
		w.converge()
	},
	"another image": func(w *world) {
		w.runs(3)
		w.spec(func(s *v1.InstrumentShardSpec) { s.Image = "countinghouse:next" })
		w.converge()
	},
	"an image that does not start": func(w *world) {
		w.runs(3)
		for _, image := range []string{brokenImage, "countinghouse:next"} {
			w.spec(func(s *v1.InstrumentShardSpec) { s.Image = image })
			w.converge()
		}
	},
	"a first image that does not start": func(w *world) {
		w.createShard(3)
		for _, image := range []string{brokenImage, "countinghouse:next"} {
			w.spec(func(s *v1.InstrumentShardSpec) { s.Image = image })
			w.converge()
		}
	},
	"larger volumes, other instruments": func(w *world) {
		w.runs(3)
		w.spec(func(s *v1.InstrumentShardSpec) {
			s.Storage.Size, s.Instruments = resource.MustParse("20Gi"), []string{"IH2501"}
		})
		w.converge()
	},
	"a quorum is lost, and recovered": func(w *world) {
		w.createShard(3)
		w.converge()
		w.lose("futures-0")
		w.lose("futures-1")
		w.converge()
		w.recoverFrom("futures-2")
		w.converge()
	},
	"rotated by hand": func(w *world) {
		w.runs(1)
		w.rotate("once")
	},
	"the authority's key is lost": func(w *world) {
		w.runs(1)
		w.loseSecret(built.AuthoritySecret("demo"))
		w.waits(3)
	},
	"rotated while a volume is lost": func(w *world) {
		w.runs(3)
		w.annotate(built.AnnotationRotate, "now")
		w.lose("futures-1")
		w.waits(3)
	},
	"all at once": func(w *world) {
		w.runs(3)
		w.lose("futures-2")
		w.spec(func(s *v1.InstrumentShardSpec) { s.Replicas, s.Image = 5, "countinghouse:next" })
		w.converge()
	},
}

// expect is what must be true of every shard that has converged.
func (w *world) expect() {
	w.t.Helper()
	for _, v := range w.broken {
		w.t.Error(v)
	}
	s := w.shard()
	if int32(w.voters()) != s.Spec.Replicas || len(w.members) != w.voters() || s.Status.ReadyReplicas != s.Spec.Replicas ||
		s.Status.Leader != w.leader || s.Status.ObservedGeneration != s.Generation {
		w.t.Errorf("not what the spec says:\n%s%+v", w.place(), s.Status)
	}
	for kind, want := range map[string]bool{
		v1.ConditionAvailable: true, v1.ConditionProgressing: false, v1.ConditionDegraded: false, v1.ConditionQuorumLost: false, v1.ConditionAccepted: true,
		v1.ConditionCertificatesReady: true,
	} {
		c := meta.FindStatusCondition(s.Status.Conditions, kind)
		if c == nil || (c.Status == "True") != want || c.ObservedGeneration != s.Generation {
			w.t.Errorf("condition %s: %+v", kind, c)
		}
	}
	w.expectCertificates()
	want := slices.Sorted(slices.Values(s.Spec.Instruments))
	if !slices.Equal(w.owned, want) {
		w.t.Errorf("the shard owns %v", w.owned)
	}
}

func TestShardsConverge(t *testing.T) { shardsConverge(t, newWorld) }

func shardsConverge(t *testing.T, newWorld func(*testing.T) *world) {
	for name, run := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			run(w)
			w.expect()
			before := w.writes
			for range 3 {
				w.converge()
			}
			if w.writes != before {
				t.Errorf("a converged shard caused %d writes", w.writes-before)
			}
		})
	}
}

// Two shards name one instrument: the older one has it, the younger says so.
func TestOlderShardOwnsTheInstrument(t *testing.T) {
	w := newWorld(t)
	w.createShard(1)
	other := w.shard().DeepCopy()
	other.Name, other.UID, other.ResourceVersion = "options", "uid-0", ""
	other.Spec.Instruments = []string{"IC2501", "IO2501"}
	if err := w.client.Create(context.Background(), other); err != nil {
		t.Fatal(err)
	}
	w.converge()
	s := w.shard()
	if got := fmt.Sprint(s.Status.RefusedInstruments, s.Status.Instruments, w.owned); got != "[{IC2501 options}] [IF2501] [IF2501]" {
		t.Error(got)
	}
	if c := meta.FindStatusCondition(s.Status.Conditions, v1.ConditionAccepted); c.Status != "False" || !strings.Contains(c.Message, "IC2501 to options") {
		t.Errorf("%+v", c)
	}
}

// An older shard that names an instrument of a younger one later does not get it: the
// younger one has its records.
func TestInstrumentStaysWhereItIs(t *testing.T) {
	w := newWorld(t)
	w.createShard(1)
	other := w.shard().DeepCopy()
	other.Name, other.UID, other.ResourceVersion = "options", "uid-0", "" // the older one
	other.Spec.Instruments = []string{"IO2501"}
	if err := w.client.Create(context.Background(), other); err != nil {
		t.Fatal(err)
	}
	w.converge()
	other.Spec.Instruments = []string{"IC2501", "IO2501"}
	if err := w.client.Update(context.Background(), other); err != nil {
		t.Fatal(err)
	}
	w.converge()
	w.expect()
	own, refused := instrumentsOf(other, []v1.InstrumentShard{*other, *w.shard()})
	if got := fmt.Sprint(own, refused); got != "[IO2501] [{IC2501 futures}]" {
		t.Error(got)
	}
	// Each took it at a time when it did not see the other: one lets go of it.
	other.Status.Instruments = other.Spec.Instruments
	own, refused = instrumentsOf(other, []v1.InstrumentShard{*other, *w.shard()})
	if got := fmt.Sprint(own, refused); got != "[IC2501 IO2501] []" {
		t.Error(got)
	}
	if _, refused = instrumentsOf(w.shard(), []v1.InstrumentShard{*other, *w.shard()}); len(refused) != 1 {
		t.Error(refused)
	}
}

// A majority of the volumes is gone: the operator says so and touches nothing.
func TestQuorumLossIsStatedNotGuessedAt(t *testing.T) { quorumLoss(t, newWorld) }

func quorumLoss(t *testing.T, newWorld func(*testing.T) *world) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	w.lose("futures-0")
	w.lose("futures-1")
	w.converge()
	s := w.shard()
	if c := meta.FindStatusCondition(s.Status.Conditions, v1.ConditionQuorumLost); c.Status != "True" || !strings.Contains(c.Message, "2 of 3") {
		t.Errorf("%+v", c)
	}
	if s.Status.NextMember != 3 || len(s.Status.Members) != 3 || len(w.members) != 3 || len(w.broken) > 0 {
		t.Errorf("%s%v", w.place(), w.broken)
	}
}

// loseThreeOfFive leaves two members with their volumes.
func (w *world) loseThreeOfFive() {
	w.t.Helper()
	w.createShard(5)
	w.converge()
	for _, id := range []string{"futures-0", "futures-2", "futures-4"} {
		w.lose(id)
	}
	w.converge()
}

// What a recovery leaves: the record, no annotation, and the volumes of members that
// were given up though they had them, which nothing takes for members' again.
func TestRecoveryKeepsVolumesOfThoseGivenUp(t *testing.T) {
	w := newWorld(t)
	w.loseThreeOfFive()
	w.recoverFrom("futures-3")
	w.converge()
	w.expect()
	s := w.shard()
	rec := s.Status.Recovery
	if rec == nil || rec.Phase != v1.RecoveryDone || rec.FinishedAt == nil || rec.Survivor != "futures-3" || fmt.Sprint(rec.GivenUp) != "[futures-0 futures-1 futures-2 futures-4]" {
		t.Errorf("%+v", rec)
	}
	if s.Annotations[v1.AnnotationRecoverFrom] != "" {
		t.Errorf("%v", s.Annotations)
	}
	c := meta.FindStatusCondition(s.Status.Conditions, v1.ConditionRecovery)
	if c == nil || c.Status != "False" || c.Reason != "Done" || !strings.Contains(c.Message, "kubectl delete pvc --namespace trading futures-1") {
		t.Errorf("%+v", c)
	}
	s.Status = v1.InstrumentShardStatus{} // lost, as with a restored backup
	if err := w.client.Status().Update(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	w.converge()
	w.expect()
	for _, m := range w.shard().Status.Members {
		if m.ID == "futures-1" {
			t.Error("a member that was given up is taken for one")
		}
	}
}

func TestRecoveriesThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		lose []string
		from string
		want string
	}{
		"there is a leader":        {nil, "futures-0", "leads the shard"},
		"one volume is lost":       {[]string{"futures-0"}, "futures-1", "leads the shard"},
		"no such member":           {[]string{"futures-0", "futures-1"}, "futures-7", "name one of futures-2"},
		"the survivor is lost too": {[]string{"futures-0", "futures-1"}, "futures-1", "name one of futures-2"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.createShard(3)
			w.converge()
			for _, id := range c.lose {
				w.lose(id)
			}
			before := w.place()
			w.recoverFrom(c.from)
			w.converge()
			s := w.shard()
			got := meta.FindStatusCondition(s.Status.Conditions, v1.ConditionRecovery)
			if got == nil || got.Status != "False" || got.Reason != "Refused" || !strings.Contains(got.Message, c.want) {
				t.Errorf("%+v", got)
			}
			if s.Status.Recovery != nil || len(w.broken) > 0 || w.token != "" {
				t.Errorf("%+v, %v\nbefore: %s", s.Status.Recovery, w.broken, before)
			}
			writes := w.writes
			if w.converge(); w.writes != writes {
				t.Errorf("%d writes for a recovery that stays refused", w.writes-writes)
			}
			delete(s.Annotations, v1.AnnotationRecoverFrom)
			if err := w.client.Update(context.Background(), s); err != nil {
				t.Fatal(err)
			}
			w.converge()
			if got := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionRecovery); got != nil {
				t.Errorf("nothing is asked for any more: %+v", got)
			}
		})
	}
}

// Enough volumes are there, and no pod runs: that may pass.
func TestNoRecoveryWhileTheOthersMayComeBack(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	for _, id := range []string{"futures-0", "futures-1"} {
		w.dead[id] = true
		if err := w.client.Delete(context.Background(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.name.Namespace, Name: id}}); err != nil {
			t.Fatal(err)
		}
	}
	w.recoverFrom("futures-2")
	w.converge()
	c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionRecovery)
	if c == nil || c.Reason != "Refused" || !strings.Contains(c.Message, "0 of 3 members have lost their volume") || !strings.Contains(c.Message, "delete the claim") {
		t.Errorf("%+v", c)
	}
}

func TestPausedShardIsLeftAlone(t *testing.T) { pausedShard(t, newWorld) }

func pausedShard(t *testing.T, newWorld func(*testing.T) *world) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	w.spec(func(s *v1.InstrumentShardSpec) { s.Paused, s.Replicas, s.Image = true, 5, "other" })
	before := len(w.members)
	w.converge()
	if s := w.shard(); len(s.Status.Members) != 3 || len(w.members) != before {
		t.Errorf("%s", w.place())
	}
	w.spec(func(s *v1.InstrumentShardSpec) { s.Paused = false })
	w.converge()
	w.expect()
}

// A status that was lost, as with a restored backup, does not lead to a second shard
// over the first one's data.
func TestLostStatusFormsNothingAnew(t *testing.T) { lostStatus(t, newWorld) }

func lostStatus(t *testing.T, newWorld func(*testing.T) *world) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	s := w.shard()
	s.Status = v1.InstrumentShardStatus{}
	if err := w.client.Status().Update(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	w.converge()
	w.expect()
	if s := w.shard(); s.Status.NextMember != 3 || !s.Status.Bootstrapped {
		t.Errorf("%+v", s.Status)
	}
}

// Members that leave keep their volumes or not, as the spec says, and those that come
// afterwards have numbers and volumes that nobody had.
func TestNumbersAndVolumesOfMembersThatLeft(t *testing.T) {
	for policy, want := range map[v1.RetentionPolicy]string{
		v1.RetentionDelete: "[futures-0 futures-3 futures-4]",
		v1.RetentionRetain: "[futures-0 futures-1 futures-2 futures-3 futures-4]",
	} {
		t.Run(string(policy), func(t *testing.T) {
			w := newWorld(t)
			w.createShard(3)
			w.spec(func(s *v1.InstrumentShardSpec) { s.Storage.Retention.WhenScaled = policy })
			for _, n := range []int32{3, 1, 3} {
				w.spec(func(s *v1.InstrumentShardSpec) { s.Replicas = n })
				w.converge()
				w.expect()
			}
			var claims corev1.PersistentVolumeClaimList
			if err := w.list(&claims); err != nil {
				t.Fatal(err)
			}
			var names, members []string
			for _, c := range claims.Items {
				names = append(names, c.Name)
			}
			for _, m := range w.shard().Status.Members {
				members = append(members, m.ID)
			}
			slices.Sort(names)
			if got := fmt.Sprint(members); got != "[futures-0 futures-3 futures-4]" {
				t.Errorf("members %s", got)
			}
			if got := fmt.Sprint(names); got != want {
				t.Errorf("volume claims %s, want %s", got, want)
			}
		})
	}
}

func TestDeletedShard(t *testing.T) { deletedShard(t, newWorld) }

func deletedShard(t *testing.T, newWorld func(*testing.T) *world) {
	for _, policy := range []v1.RetentionPolicy{v1.RetentionRetain, v1.RetentionDelete} {
		t.Run(string(policy), func(t *testing.T) {
			w := newWorld(t)
			w.createShard(3)
			w.spec(func(s *v1.InstrumentShardSpec) { s.Storage.Retention.WhenDeleted = policy })
			w.converge()
			if err := w.client.Delete(context.Background(), w.shard()); err != nil {
				t.Fatal(err)
			}
			w.converge()
			if s := w.shard(); s.Name != "" {
				t.Errorf("it is still there: %+v", s.ObjectMeta)
			}
			var claims corev1.PersistentVolumeClaimList
			var pods corev1.PodList
			if err := w.list(&claims); err != nil {
				t.Fatal(err)
			}
			if err := w.list(&pods); err != nil {
				t.Fatal(err)
			}
			if want := map[v1.RetentionPolicy]int{v1.RetentionRetain: 3, v1.RetentionDelete: 0}[policy]; len(claims.Items) != want || len(pods.Items) != 0 {
				t.Errorf("%d volumes, %d pods", len(claims.Items), len(pods.Items))
			}
			if len(w.broken) > 0 {
				t.Error(w.broken)
			}
		})
	}
}

// A removal that is not committed yet may be undone by the next leader: the member
// keeps pod and volume until it is.
func TestMemberWhoseRemovalIsNotCommittedKeepsItsVolume(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	id := "futures-2"
	if id == w.leader {
		id = "futures-1"
	}
	left := w.members[id]
	delete(w.members, id)
	w.pending = true
	for range 3 {
		if err := w.reconcile(); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []client.Object{&corev1.Pod{}, &corev1.PersistentVolumeClaim{}} {
		if err := w.client.Get(context.Background(), client.ObjectKey{Namespace: w.name.Namespace, Name: id}, o); err != nil || !o.GetDeletionTimestamp().IsZero() {
			t.Errorf("%T of %s: %v", o, id, err)
		}
	}
	w.members[id], w.pending = left, false
	w.converge()
	w.expect()
	if got := len(w.shard().Status.Members); got != 3 {
		t.Errorf("%d members", got)
	}
}
