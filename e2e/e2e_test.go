package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// suite is one run of all steps, in order, on one cluster.
type suite struct {
	*cluster
	trader *trader
	out    map[string]any // figures for out/figures.json
}

const (
	namespace    = "trading"
	controlPlane = "node-role.kubernetes.io/control-plane"
)

// TestEverything runs the steps one after another: each begins with what the one
// before has left, and the first that fails is the last.
func TestEverything(t *testing.T) {
	s := &suite{cluster: newCluster(t), out: map[string]any{}}
	s.trader = &trader{c: s.cluster, namespace: namespace, shards: []string{"accounts", "futures", "index"}}
	t.Cleanup(func() {
		if t.Failed() {
			s.collect()
		}
	})
	for _, step := range []struct {
		name string
		run  func(*testing.T)
		// quiet steps are before or after trading.
		quiet bool
	}{
		{"install", s.install, true},
		{"shards", s.createShards, true},
		{"exchange", s.startExchange, true},
		{"calm", s.trader.trades, false},
		{"invalid", s.invalid, false},
		{"plugin", s.looks, false},
		{"leader-killed", s.killLeaders, false},
		{"scale", s.scale, false},
		{"operator-killed", s.killOperator, false},
		{"image", s.rolloutImage, false},
		{"upgrade", s.upgrade, false},
		{"claim-deleted", s.deleteClaim, false},
		{"rotate", s.rotate, false},
		{"quorum-lost", s.loseQuorum, false},
		{"node-drained", s.drainNode, false},
		{"node-paused", s.pauseNode, false},
		{"node-stopped", s.stopNode, false},
		{"exchange-restarted", s.restartExchange, false},
		{"shards-deleted", s.deleteShards, true},
		{"uninstall", s.uninstall, true},
	} {
		began := time.Now()
		ok := t.Run(step.name, func(t *testing.T) {
			if !step.quiet {
				s.trader.step(t, step.name)
			}
			step.run(t)
			if !step.quiet {
				s.healthy(t)
				s.trader.check(t)
			}
		})
		t.Logf("%-20s %6.1f s", step.name, time.Since(began).Seconds())
		if !ok {
			return
		}
	}
}

// healthy waits until all shards are what their specs say, and orders are accepted.
func (s *suite) healthy(t *testing.T) {
	t.Helper()
	for _, name := range s.trader.shards {
		s.settled(t, namespace, name)
	}
	s.trader.follow(t)
	s.trader.trades(t)
}

// collect writes what may tell why a step failed.
func (s *suite) collect() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	kubectl := func(file string, args ...string) {
		text, err := try(ctx, ".", []string{"KUBECONFIG=" + s.kubeconfig}, "kubectl", args...)
		if err != nil {
			text += "\n" + err.Error()
		}
		_ = os.WriteFile(filepath.Join(s.cluster.out, file), []byte(text), 0o644)
	}
	kubectl("resources.yaml", "get", "ishard,pods,pvc,pdb,services,networkpolicies", "--all-namespaces", "--output=yaml")
	kubectl("events.txt", "get", "events", "--all-namespaces", "--sort-by=.lastTimestamp")
	var pods corev1.PodList
	if err := s.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
		return
	}
	for _, p := range pods.Items {
		kubectl(p.Name+".log", "logs", "--namespace="+namespace, p.Name, "--tail=5000")
		kubectl(p.Name+".previous.log", "logs", "--namespace="+namespace, p.Name, "--tail=5000", "--previous")
	}
}

// createShards makes three shards; one of them begins with a single member.
func (s *suite) createShards(t *testing.T) {
	for name, instruments := range map[string][]string{"futures": {"IF2501"}, "index": {"IC2501", "IH2501"}, "accounts": {"__ACCOUNT__"}} {
		shard := newShard(name, instruments...)
		if name == "index" {
			shard.Spec.Replicas = 1
		}
		if err := s.Create(t.Context(), shard); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range s.trader.shards {
		s.settled(t, namespace, name)
	}
}

func newShard(name string, instruments ...string) *v1.InstrumentShard {
	shard := &v1.InstrumentShard{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	shard.Spec.Instruments = instruments
	shard.Spec.Storage.Size = quantity("1Gi")
	shard.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: quantity("20m"), corev1.ResourceMemory: quantity("64Mi")}
	shard.Spec.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: quantity("512Mi")}
	return shard
}

// invalid tries what the API server must refuse, with a message that names the field.
func (s *suite) invalid(t *testing.T) {
	for want, f := range map[string]func(*v1.InstrumentShard){
		"spec.replicas":         func(x *v1.InstrumentShard) { x.Spec.Replicas = 2 },
		"spec.instruments":      func(x *v1.InstrumentShard) { x.Spec.Instruments = nil },
		"spec.storage.size":     func(x *v1.InstrumentShard) { x.Spec.Storage.Size = quantity("1Mi") },
		"the cluster can not":   nil,
		"can not be made small": nil,
	} {
		shard := newShard("invalid", "X1")
		if f != nil {
			f(shard)
			if err := s.Create(t.Context(), shard); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", want, err)
			}
			continue
		}
		have := s.cluster.shard(t, namespace, "futures")
		if want == "the cluster can not" {
			have.Spec.Cluster = "other"
		} else {
			have.Spec.Storage.Size = quantity("512Mi")
		}
		if err := s.Update(t.Context(), have); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// One that claims an instrument of an older shard is told so, and gets nothing of it.
	twice := newShard("twice", "IF2501", "X1")
	twice.Spec.Replicas = 1
	twice.Spec.Storage.Retention.WhenDeleted = v1.RetentionDelete
	if err := s.Create(t.Context(), twice); err != nil {
		t.Fatal(err)
	}
	await(t, settleWait, "the claim is refused", func(ctx context.Context) error {
		if err := s.Get(ctx, client.ObjectKeyFromObject(twice), twice); err != nil {
			return err
		}
		if !slices.Equal(twice.Status.Instruments, []string{"X1"}) || len(twice.Status.RefusedInstruments) != 1 || twice.Status.RefusedInstruments[0].Owner != "futures" {
			return fmt.Errorf("%+v", twice.Status)
		}
		return nil
	})
	if err := s.Delete(t.Context(), twice); err != nil {
		t.Fatal(err)
	}
	s.gone(t, twice)
}

// killLeaders kills the leader of a shard again and again: its process, as kill -9
// does, and its pod with all that is in it. Each time the trader sees how long a
// record waits for its commit.
func (s *suite) killLeaders(t *testing.T) {
	leaderKills, err := strconv.Atoi(cmp.Or(os.Getenv("E2E_KILLS"), "20"))
	if err != nil || leaderKills < 2 {
		t.Fatalf("E2E_KILLS=%q: use a number, 2 or more", os.Getenv("E2E_KILLS"))
	}
	kinds := map[string]func(*testing.T, *corev1.Pod){"pod": func(t *testing.T, victim *corev1.Pod) {
		s.kill(t, victim)
		s.replaced(t, victim)
	}}
	if s.kind != nil {
		kinds["process"] = func(t *testing.T, victim *corev1.Pod) {
			s.killProcess(t, victim)
			s.restarted(t, victim)
			s.kill(t, victim) // for the next time, the kubelet would wait before it restarts it
			s.replaced(t, victim)
		}
	}
	for kind, kill := range kinds {
		prefix := "leader-" + kind + "-killed-"
		for i := range leaderKills / len(kinds) {
			s.trader.step(t, fmt.Sprintf("%s%02d", prefix, i+1))
			kill(t, s.leader(t, namespace, "futures"))
			s.settled(t, namespace, "futures")
		}
		var waits []int64
		for _, f := range s.figures(t) {
			if strings.HasPrefix(f.Name, prefix) {
				waits = append(waits, f.WaitMillis["futures"])
			}
		}
		slices.Sort(waits)
		if len(waits) != leaderKills/len(kinds) {
			t.Fatalf("%d figures", len(waits))
		}
		t.Logf("leader's %s killed, longest wait for a commit: p50 %d ms, max %d ms, %d kills", kind, waits[len(waits)/2], waits[len(waits)-1], len(waits))
	}
}

func (s *suite) figures(t *testing.T) []figures {
	t.Helper()
	var all []figures
	if err := s.trader.call(t.Context(), "GET", "steps", nil, nil, &all); err != nil {
		t.Fatal(err)
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.cluster.out, "figures.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return all
}

// scale goes from one member to five and back to three.
func (s *suite) scale(t *testing.T) {
	for _, n := range []int32{3, 5, 3} {
		s.change(t, namespace, "index", func(x *v1.InstrumentShard) { x.Spec.Replicas = n })
		shard := s.settled(t, namespace, "index")
		if got := voters(shard); len(got) != int(n) {
			t.Fatalf("%d members vote, want %d", len(got), n)
		}
		s.trader.follow(t)
	}
	if got, want := s.claims(t, namespace, "index"), voters(s.cluster.shard(t, namespace, "index")); !slices.Equal(got, want) {
		t.Errorf("volume claims %v, members %v", got, want)
	}
}

// killOperator kills the operator again and again while it has something to do.
func (s *suite) killOperator(t *testing.T) {
	s.change(t, namespace, "index", func(x *v1.InstrumentShard) { x.Spec.Replicas = 5 })
	for range 3 {
		var pods corev1.PodList
		if err := s.List(t.Context(), &pods, client.InNamespace(namespace), client.MatchingLabels{"app.kubernetes.io/component": "operator"}); err != nil {
			t.Fatal(err)
		}
		if len(pods.Items) == 0 {
			t.Fatal("there is no operator")
		}
		before := s.cluster.shard(t, namespace, "index").ResourceVersion
		await(t, settleWait, "the operator writes something", func(context.Context) error {
			if s.cluster.shard(t, namespace, "index").ResourceVersion == before {
				return fmt.Errorf("resource version %s", before)
			}
			return nil
		})
		for i := range pods.Items {
			s.kill(t, &pods.Items[i])
		}
	}
	s.settled(t, namespace, "index")
	s.change(t, namespace, "index", func(x *v1.InstrumentShard) { x.Spec.Replicas = 3 })
	s.settled(t, namespace, "index")
}

// rolloutImage gives a shard another image: every pod is replaced, one at a time.
func (s *suite) rolloutImage(t *testing.T) {
	if s.otherImage == "" {
		t.Log("a cluster that was given has one image only: resources are changed in its place")
	}
	s.change(t, namespace, "futures", func(x *v1.InstrumentShard) {
		if x.Spec.Image = s.otherImage; s.otherImage == "" {
			x.Spec.Limits.Queries++
		}
	})
	s.settled(t, namespace, "futures")
	for _, p := range s.pods(t, namespace, "futures") {
		if s.otherImage != "" && p.Spec.Containers[0].Image != s.otherImage {
			t.Errorf("pod %s has image %s", p.Name, p.Spec.Containers[0].Image)
		}
	}
}

// deleteClaim takes a member's volume away: another member takes its place.
func (s *suite) deleteClaim(t *testing.T) {
	before := voters(s.cluster.shard(t, namespace, "futures"))
	victim := s.leader(t, namespace, "futures")
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: victim.Name}}
	if err := s.Delete(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	s.gone(t, victim)
	shard := s.settled(t, namespace, "futures")
	after := voters(shard)
	if len(after) != 3 || slices.Contains(after, victim.Name) {
		t.Errorf("members %v before, %v after %s lost its volume", before, after, victim.Name)
	}
}

// loseQuorum takes the volumes of two of three members away, and has the shard go on
// from the third, which led and so has all that was acknowledged.
func (s *suite) loseQuorum(t *testing.T) {
	survivor := s.leader(t, namespace, "index").Name
	var victims []*corev1.Pod
	for _, p := range s.pods(t, namespace, "index") {
		if p.Name != survivor {
			victims = append(victims, &p)
		}
	}
	for _, v := range victims {
		if err := s.Delete(t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: v.Namespace, Name: v.Name}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range victims {
		s.kill(t, v)
	}
	await(t, settleWait, "the shard says that it has lost its quorum", func(context.Context) error {
		shard := s.cluster.shard(t, namespace, "index")
		if !meta.IsStatusConditionTrue(shard.Status.Conditions, v1.ConditionQuorumLost) {
			return fmt.Errorf("%+v", shard.Status)
		}
		return nil
	})
	s.trader.trades(t) // into the outbox
	screen, err := s.plugin(t, "status", "index")
	if err == nil || !strings.Contains(screen, "QuorumLost") {
		t.Errorf("kubectl countinghouse status: %v\n%s", err, screen)
	}
	if out, err := s.plugin(t, "recover", "index", "--survivor="+survivor, "--yes-i-accept-loss="+survivor, "--wait=4m"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	shard := s.settled(t, namespace, "index")
	r := shard.Status.Recovery
	if r == nil || r.Survivor != survivor {
		t.Fatalf("the record of the recovery: %+v", r)
	}
	for _, v := range victims {
		if !slices.Contains(r.GivenUp, v.Name) { // among them may be one that was to take a place
			t.Errorf("%s is not among those given up: %v", v.Name, r.GivenUp)
		}
	}
}

// looks shows a shard with the plugin, and has it verified.
func (s *suite) looks(t *testing.T) {
	screen, err := s.plugin(t, "status")
	if err != nil {
		t.Fatalf("%v\n%s", err, screen)
	}
	t.Logf("kubectl countinghouse status\n%s", screen)
	if out, err := s.plugin(t, "verify", "futures"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	before := s.leader(t, namespace, "futures").Name
	if out, err := s.plugin(t, "transfer-leader", "futures"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	s.otherLeader(t, before)
}

// plugin runs the kubectl plugin.
func (s *suite) plugin(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return try(t.Context(), "..", []string{"KUBECONFIG=" + s.kubeconfig}, "bin/kubectl-countinghouse", append([]string{"--namespace=" + namespace}, args...)...)
}

// drainNode evicts the pods of a node, as kubectl drain does.
func (s *suite) drainNode(t *testing.T) {
	node := s.leader(t, namespace, "futures").Spec.NodeName
	s.cordon(t, node, true)
	var pods corev1.PodList
	if err := s.List(t.Context(), &pods, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if p.Spec.NodeName != node {
			continue
		}
		await(t, settleWait, "pod "+p.Name+" may be evicted", func(ctx context.Context) error {
			err := s.set.PolicyV1().Evictions(namespace).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: p.Name}})
			return client.IgnoreNotFound(err)
		})
		s.gone(t, &p)
	}
	s.trader.trades(t) // while the node is empty
	s.cordon(t, node, false)
}

func (s *suite) cordon(t *testing.T, name string, yes bool) {
	t.Helper()
	node := new(corev1.Node)
	if err := s.Get(t.Context(), client.ObjectKey{Name: name}, node); err != nil {
		t.Fatal(err)
	}
	before := node.DeepCopy()
	node.Spec.Unschedulable = yes
	if err := s.Patch(t.Context(), node, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// pauseNode freezes the node of a leader for a while.
func (s *suite) pauseNode(t *testing.T) {
	s.ownNodes(t)
	victim := s.leader(t, namespace, "futures")
	s.node(t, "pause", victim.Spec.NodeName)
	defer s.node(t, "unpause", victim.Spec.NodeName)
	s.otherLeader(t, victim.Name)
	s.trader.trades(t)
}

// stopNode cuts the power of a leader's node, and switches it on again.
func (s *suite) stopNode(t *testing.T) {
	s.ownNodes(t)
	victim := s.leader(t, namespace, "futures")
	s.node(t, "stop --time=0", victim.Spec.NodeName)
	s.otherLeader(t, victim.Name)
	s.trader.trades(t)
	s.node(t, "start", victim.Spec.NodeName)
}

func (s *suite) ownNodes(t *testing.T) {
	t.Helper()
	if s.kind == nil {
		t.Skip("nodes of a cluster that was given are not touched")
	}
}

func (s *suite) otherLeader(t *testing.T, than string) {
	t.Helper()
	await(t, settleWait, "another leader than "+than, func(context.Context) error {
		if leader := s.cluster.shard(t, namespace, "futures").Status.Leader; leader == "" || leader == than {
			return fmt.Errorf("leader %q", leader)
		}
		return nil
	})
}

// deleteShards deletes shards under both retention policies.
func (s *suite) deleteShards(t *testing.T) {
	if err := s.trader.call(t.Context(), "POST", "pause", nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	s.figures(t)
	s.change(t, namespace, "index", func(x *v1.InstrumentShard) { x.Spec.Storage.Retention.WhenDeleted = v1.RetentionDelete })
	kept := s.claims(t, namespace, "futures")
	for _, name := range []string{"index", "futures"} {
		shard := s.cluster.shard(t, namespace, name)
		if err := s.Delete(t.Context(), shard); err != nil {
			t.Fatal(err)
		}
		s.gone(t, shard)
	}
	if left := s.claims(t, namespace, "index"); len(left) > 0 {
		t.Errorf("volume claims %v are left of a shard whose policy is Delete", left)
	}
	if left := s.claims(t, namespace, "futures"); len(left) != 3 || !slices.Equal(left, kept) {
		t.Errorf("volume claims %v are left of a shard whose policy is Retain, of %v", left, kept)
	}
	// What was kept is taken up again by a shard of the same name.
	if err := s.Create(t.Context(), newShard("futures", "IF2501")); err != nil {
		t.Fatal(err)
	}
	shard := s.settled(t, namespace, "futures")
	if got := voters(shard); !slices.Equal(got, kept) {
		t.Errorf("members %v of volumes %v", got, kept)
	}
}
