package controllers

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// situation is what the world looks like to somebody who makes a plan.
func (w *world) situation(change func(*v1.InstrumentShardSpec)) Situation {
	w.t.Helper()
	live := w.shard()
	in := Situation{Live: live, Wanted: live.DeepCopy(), Pods: map[string]*corev1.Pod{}, Claims: map[string]*corev1.PersistentVolumeClaim{}}
	change(&in.Wanted.Spec)
	var shards v1.InstrumentShardList
	var pods corev1.PodList
	var claims corev1.PersistentVolumeClaimList
	for _, err := range []error{w.client.List(context.Background(), &shards), w.client.List(context.Background(), &pods), w.client.List(context.Background(), &claims)} {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	in.Others = shards.Items
	for i := range pods.Items {
		in.Pods[pods.Items[i].Name] = &pods.Items[i]
	}
	for i := range claims.Items {
		in.Claims[claims.Items[i].Name] = &claims.Items[i]
	}
	if st, err := w.Leader(context.Background()); err == nil {
		in.Leader = st
	}
	return in
}

// changes are what a plan is made of, and what it must warn of.
var changes = map[string]struct {
	from   int32
	before func(*world)
	change func(*v1.InstrumentShardSpec)
	warns  string
}{
	"nothing":  {from: 3, change: func(*v1.InstrumentShardSpec) {}},
	"paused":   {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Paused = true }, warns: "spec.paused is set"},
	"one to 3": {from: 1, change: func(s *v1.InstrumentShardSpec) { s.Replicas = 3 }},
	"3 to 5":   {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Replicas = 5 }},
	"5 to 3":   {from: 5, change: func(s *v1.InstrumentShardSpec) { s.Replicas = 3 }, warns: "volumes of members that leave are deleted"},
	"3 to one": {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Replicas = 1 }, warns: "survives the loss of none"},
	"the youngest leads and leaves": {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Replicas = 1 }, before: func(w *world) {
		w.leader = "futures-2"
		w.converge()
	}},
	"image": {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Image = "next" }, warns: "3 pods are replaced"},
	"image, the last leads": {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Image = "next" }, before: func(w *world) {
		w.leader = "futures-2"
		w.converge()
	}},
	"image of one":     {from: 1, change: func(s *v1.InstrumentShardSpec) { s.Image = "next" }, warns: "writes wait"},
	"larger volumes":   {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Storage.Size = resource.MustParse("20Gi") }},
	"more instruments": {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Instruments = append(s.Instruments, "IH2501") }},
	"another instrument": {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Instruments = []string{"IH2501"} },
		warns: "while one of IC2501, IF2501 does"},
	"a lost volume":            {from: 3, change: func(*v1.InstrumentShardSpec) {}, before: func(w *world) { w.loseAndNotice("futures-1") }},
	"a lost volume, and more":  {from: 3, change: func(s *v1.InstrumentShardSpec) { s.Replicas = 5 }, before: func(w *world) { w.loseAndNotice("futures-1") }},
	"a lost volume, and fewer": {from: 5, change: func(s *v1.InstrumentShardSpec) { s.Replicas = 3 }, before: func(w *world) { w.loseAndNotice("futures-1") }},
	"all at once": {from: 3, change: func(s *v1.InstrumentShardSpec) {
		s.Replicas, s.Image, s.Instruments, s.Storage.Size = 5, "next", []string{"IH2501"}, resource.MustParse("20Gi")
	}},
}

// loseAndNotice has the operator see that a member lost its volume, and do no more.
func (w *world) loseAndNotice(id string) {
	w.t.Helper()
	w.lose(id)
	s := w.shard()
	for i := range s.Status.Members {
		if s.Status.Members[i].ID == id {
			s.Status.Members[i].Role = v1.RoleLost
		}
	}
	if err := w.client.Status().Update(context.Background(), s); err != nil {
		w.t.Fatal(err)
	}
}

// A plan is what the operator then does, in that order.
func TestAPlanIsWhatIsDone(t *testing.T) {
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.createShard(c.from)
			w.converge()
			if c.before != nil {
				c.before(w)
			}
			plan, err := MakePlan(w.situation(c.change))
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, s := range plan.Steps {
				want = append(want, strings.TrimSpace(string(s.Kind)+" "+s.Member))
				if s.What == "" {
					t.Errorf("%s is not explained", s.Kind)
				}
			}
			w.trace = nil
			w.spec(c.change)
			w.converge()
			if !slices.Equal(w.trace, want) {
				t.Errorf("done:    %s\nplanned: %s", strings.Join(w.trace, ", "), strings.Join(want, ", "))
			}
			if warned := strings.Join(plan.Warnings, "\n"); c.warns == "" && name == "nothing" && warned != "" || !strings.Contains(warned, c.warns) {
				t.Errorf("warnings: %s", warned)
			}
		})
	}
}

// A shard that is not there yet, and one of whose instruments an older one has.
func TestThePlanOfACreation(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	in := w.situation(func(*v1.InstrumentShardSpec) {})
	in.Live = nil
	in.Wanted.Name, in.Wanted.UID = "options", "other"
	in.Wanted.CreationTimestamp.Time = in.Others[0].CreationTimestamp.Add(1e9)
	in.Wanted.Spec.Instruments = []string{"IO2501", "IF2501"}
	plan, err := MakePlan(in)
	if err != nil || len(plan.Steps) != 4 || plan.Steps[0].Member != "options-0" || !strings.Contains(plan.Steps[3].What, "gains 1: IO2501") {
		t.Errorf("%+v, %v", plan, err)
	}
	if len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0], "IF2501 is refused: shard futures") {
		t.Errorf("%v", plan.Warnings)
	}
}

// Without a leader the status has to do, and the plan says so.
func TestThePlanWithoutALeader(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	in := w.situation(func(s *v1.InstrumentShardSpec) { s.Replicas = 5 })
	in.Leader = nil
	plan, err := MakePlan(in)
	if err != nil || len(plan.Steps) != 2 || !strings.Contains(strings.Join(plan.Warnings, ""), "no member answers as the leader") {
		t.Errorf("%+v, %v", plan, err)
	}
}
