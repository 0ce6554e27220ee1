package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

// screens are what people see in the situations that a shard can be in.
var screens = map[string]struct {
	before func(*world)
	input  string
	args   []string
	code   int
}{
	"status": {args: []string{"status"}},
	"status-scaling": {args: []string{"status", "futures"}, before: func(w *world) {
		w.change(func(s *v1.InstrumentShard) {
			s.Spec.Replicas = 5
			s.Status.Members = append(s.Status.Members, v1.MemberStatus{ID: "futures-3", Role: v1.RoleJoining})
			s.Status.RefusedInstruments = []v1.RefusedInstrument{{Name: "IO2501", Owner: "options"}}
			setCondition(s, v1.ConditionProgressing, "True", "Working", "learner futures-3 catches up: unavailable: learner futures-3 has not caught up: it lacks 51423 entries of the log")
			setCondition(s, v1.ConditionAccepted, "False", "OwnedByOthers", "1 instruments belong to other shards, such as IO2501 to options")
		})
	}},
	"status-degraded": {args: []string{"status", "futures"}, code: output.ExitFailed, before: func(w *world) {
		w.nodes["futures-0"].status.Damage = "store/IF2501/000003.sst: block at 4096: checksum differs"
		w.nodes["futures-1"].status.DiskFull = true
		delete(w.addrs, "futures-2")
	}},
	"status-quorum-lost": {args: []string{"status", "futures"}, code: output.ExitFailed, before: (*world).loseQuorum},
	"status-json":        {args: []string{"status", "-o", "json"}},
	"status-of-none":     {args: []string{"status", "options"}, code: output.ExitUsage},
	"status-unseen": {args: []string{"status"}, before: func(w *world) {
		w.change(func(s *v1.InstrumentShard) { s.Generation = 4 })
	}},

	"transfer":           {args: []string{"transfer-leader", "futures", "futures-2"}},
	"transfer-to-leader": {args: []string{"transfer-leader", "futures", "futures-1"}},
	"transfer-to-nobody": {args: []string{"transfer-leader", "futures", "futures-9"}, code: output.ExitUsage},
	"transfer-without-leader": {args: []string{"transfer-leader", "futures"}, code: output.ExitUnavailable, before: func(w *world) {
		w.nodes["futures-1"].status.State = "follower"
	}},

	"verify":     {args: []string{"verify", "futures"}},
	"verify-one": {args: []string{"verify", "futures", "futures-0"}},
	"verify-damaged": {args: []string{"verify", "futures"}, code: output.ExitFailed, before: func(w *world) {
		w.nodes["futures-0"].findings = []string{"checksum differs"}
		w.nodes["futures-2"].held[0].Chain = 8
	}},
	"verify-in-part": {args: []string{"verify", "futures"}, code: output.ExitUnavailable, before: func(w *world) { delete(w.addrs, "futures-2") }},

	"recover-healthy":      {args: []string{"recover", "futures", "--survivor", "futures-0"}, code: output.ExitFailed},
	"recover-unnamed":      {args: []string{"recover", "futures"}, code: output.ExitUsage, before: (*world).loseQuorum},
	"recover-lost-member":  {args: []string{"recover", "futures", "--survivor", "futures-0"}, code: output.ExitUsage, before: (*world).loseQuorum},
	"recover-not-answered": {args: []string{"recover", "futures", "--survivor", "futures-2"}, input: "yes\n", code: output.ExitUsage, before: (*world).loseQuorum},
	"recover-json-asks":    {args: []string{"recover", "futures", "--survivor", "futures-2", "-o", "json"}, code: output.ExitUsage, before: (*world).loseQuorum},
	"recover": {args: []string{"recover", "futures", "--survivor", "futures-2"}, input: "futures-2\n", before: func(w *world) {
		w.loseQuorum()
		w.operate("")
	}},
	"recover-refused": {args: []string{"recover", "futures", "--survivor", "futures-2", "--yes-i-accept-loss", "futures-2"}, code: output.ExitFailed, before: func(w *world) {
		w.loseQuorum()
		w.operate("member futures-0 leads the shard: there is a quorum, and nothing is to be recovered")
	}},
}

// operate has the operator do its part once the shard is asked for a recovery: one
// phase at each look.
func (w *world) operate(refuses string) {
	phases := []v1.RecoveryPhase{v1.RecoveryIsolating, v1.RecoveryRestarting, v1.RecoveryRefilling, v1.RecoveryDone}
	w.seen = func(s *v1.InstrumentShard) {
		if s.Annotations[v1.AnnotationRecoverFrom] == "" && s.Status.Recovery == nil {
			return
		}
		seen := w.seen
		w.seen = nil
		defer func() { w.seen = seen }()
		w.change(func(s *v1.InstrumentShard) {
			if refuses != "" {
				setCondition(s, v1.ConditionRecovery, "False", "Refused", refuses)
				return
			}
			if len(phases) == 0 {
				return
			}
			rec := &v1.RecoveryStatus{Survivor: s.Annotations[v1.AnnotationRecoverFrom], Token: "t1", GivenUp: []string{"futures-0", "futures-1"}, StartedAt: metav1.NewTime(noon), Phase: phases[0]}
			if s.Status.Recovery != nil {
				rec.Survivor = s.Status.Recovery.Survivor
			}
			if phases = phases[1:]; rec.Phase == v1.RecoveryRefilling {
				delete(s.Annotations, v1.AnnotationRecoverFrom)
			}
			s.Status.Recovery = rec
			setCondition(s, v1.ConditionRecovery, "False", string(rec.Phase), "the shard went on from member futures-2; no volume of a member that was given up is left")
		})
	}
}

func TestScreens(t *testing.T) {
	for name, c := range screens {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if c.before != nil {
				c.before(w)
			}
			got, err := w.execute(c.input, c.args...)
			if code := output.ExitCode(err); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			golden(t, name, got)
		})
	}
}

// Nothing is written before the survivor's name was typed, and then its annotation.
func TestRecoverWritesOnlyTheDecision(t *testing.T) {
	w := newWorld(t)
	w.loseQuorum()
	annotation := func() string {
		s := new(v1.InstrumentShard)
		if err := w.kube.Get(t.Context(), types.NamespacedName{Namespace: "trading", Name: "futures"}, s); err != nil {
			t.Fatal(err)
		}
		return s.Annotations[v1.AnnotationRecoverFrom]
	}
	for _, input := range []string{"", "\n", "futures-0\n", "y\n"} {
		if out, err := w.execute(input, "recover", "futures", "--survivor", "futures-2"); err == nil || annotation() != "" {
			t.Errorf("%q: %v, %s\n%s", input, err, annotation(), out)
		}
	}
	if out, err := w.execute("futures-2\n", "recover", "futures", "--survivor", "futures-2", "--wait", "0"); err != nil || annotation() != "futures-2" {
		t.Errorf("%v, %s\n%s", err, annotation(), out)
	}
}

func TestStatusAsJSON(t *testing.T) {
	w := newWorld(t)
	w.loseQuorum()
	out, err := w.execute("", "status", "-o", "json")
	var got struct {
		Healthy bool
		Shards  []report
	}
	line, _, _ := strings.Cut(out, "\n")
	if e := json.Unmarshal([]byte(line), &got); e != nil || err == nil || got.Healthy || len(got.Shards) != 1 || !got.Shards[0].Members[2].Answered || got.Shards[0].Members[0].Volume != "-" {
		t.Errorf("%v, %v\n%s", e, err, out)
	}
}

const manifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: other}
---
apiVersion: countinghouse.io/v1
kind: InstrumentShard
metadata: {name: futures}
spec:
  cluster: cffex
  instruments: [IF2501, IC2501]
  replicas: REPLICAS
  image: IMAGE
  storage: {size: 10Gi, retention: {whenScaled: Delete, whenDeleted: Retain}}
  tls: {mode: "Off"}
`

func TestPlans(t *testing.T) {
	for name, c := range map[string]struct{ replicas, image string }{
		"plan-nothing": {"3", "countinghouse:v1"}, "plan-scale-out": {"5", "countinghouse:v1"}, "plan-one": {"1", "countinghouse:v1"}, "plan-image": {"3", "countinghouse:v2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			file := filepath.Join(t.TempDir(), "shard.yaml")
			text := strings.NewReplacer("REPLICAS", c.replicas, "IMAGE", c.image).Replace(manifest)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := w.execute("", "plan", "-f", file)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, got)
			piped, err := w.execute(text, "plan", "-f", "-")
			if err != nil || piped != got {
				t.Errorf("%v\n%s", err, piped)
			}
			s := new(v1.InstrumentShard)
			if err := w.kube.Get(t.Context(), types.NamespacedName{Namespace: "trading", Name: "futures"}, s); err != nil || s.Spec.Replicas != 3 || s.Spec.Image != "countinghouse:v1" {
				t.Errorf("the plan has changed the shard: %+v, %v", s.Spec, err)
			}
			var pods corev1.PodList
			if err := w.kube.List(t.Context(), &pods); err != nil || len(pods.Items) != 3 {
				t.Errorf("%d pods, %v", len(pods.Items), err)
			}
		})
	}
}

// What the API server refuses is named by its field, and a shard that is not there
// yet is planned too.
func TestPlansOfOtherFiles(t *testing.T) {
	w := newWorld(t)
	file := strings.NewReplacer("REPLICAS", "4", "IMAGE", "x").Replace(manifest)
	out, err := w.execute(file, "plan", "-f", "-")
	if output.ExitCode(err) != output.ExitUsage || !strings.Contains(out, "spec.replicas") {
		t.Errorf("%v\n%s", err, out)
	}
	file = strings.NewReplacer("REPLICAS", "3", "IMAGE", "x", "name: futures", "name: options", "IF2501, IC2501", "IF2501, IO2501").Replace(manifest)
	got, err := w.execute(file, "plan", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "plan-create", got)
	out, err = w.execute(file, "plan", "-f", "-", "-o", "json")
	var plans struct{ Plans []shardPlan }
	if e := json.Unmarshal([]byte(out), &plans); e != nil || err != nil || len(plans.Plans) != 1 || !plans.Plans[0].New || len(plans.Plans[0].Steps) != 4 {
		t.Errorf("%v, %v\n%s", e, err, out)
	}
}

func TestBadWords(t *testing.T) {
	w := newWorld(t)
	for _, args := range [][]string{
		{"nonsense"}, {"--nonsense"}, {"status", "a", "b"}, {"plan"}, {"plan", "-f", "/nonexistent"}, {"plan", "-f", "-"}, {"recover"},
		{"recover", "futures", "--wait", "soon"}, {"transfer-leader"}, {"verify"}, {"status", "-o", "xml"},
	} {
		if out, err := w.execute("kind: Pod\n", args...); output.ExitCode(err) != output.ExitUsage {
			t.Errorf("%v: exit code %d\n%s", args, output.ExitCode(err), out)
		}
	}
}
