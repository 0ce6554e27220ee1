package resource

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// shard is one as the API server has filled it in.
func shard() *v1.InstrumentShard {
	s := &v1.InstrumentShard{ObjectMeta: metav1.ObjectMeta{Name: "futures", Namespace: "trading", UID: "0f9a", Generation: 3}}
	s.Spec = v1.InstrumentShardSpec{
		Cluster: "cffex", Instruments: []string{"IF2501", "IC2501"}, Replicas: 3, ImagePullPolicy: corev1.PullIfNotPresent,
		Storage: v1.StorageSpec{Size: resource.MustParse("20Gi"), ClassName: "fast", Retention: v1.RetentionSpec{WhenScaled: v1.RetentionDelete, WhenDeleted: v1.RetentionRetain}},
		Limits: v1.LimitsSpec{
			MemtableBytes: 64 << 20, SegmentBytes: 64 << 20, LogCacheBytes: 64 << 20, InFlightBytes: 64 << 20,
			AppendWindow: 64, Queries: 256, DiskReserveBytes: 256 << 20, SnapshotSendBytesPerSecond: 100 << 20,
		},
		Timing: v1.TimingSpec{HeartbeatTimeout: metav1.Duration{Duration: 1e9}},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("512Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("2Gi")},
		},
	}
	return s
}

var defaults = Defaults{Image: "countinghouse:v1"}

func pod(t *testing.T, s *v1.InstrumentShard, member string, f Formation, d Defaults) *corev1.Pod {
	t.Helper()
	p, err := Pod(s, member, f, d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func specHash(t *testing.T, s *v1.InstrumentShard) string {
	t.Helper()
	hash, err := SpecHash(s)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// objects are all that a shard of three members is made of.
func objects(t *testing.T, s *v1.InstrumentShard) map[string]any {
	t.Helper()
	peers := []string{"futures-0", "futures-1", "futures-2"}
	without := s.DeepCopy()
	without.Spec.TLS.Mode = v1.TLSOff
	return map[string]any{
		"pod-first": pod(t, s, "futures-1", Formation{Peers: peers}, defaults), "pod-joining": pod(t, s, "futures-3", Formation{}, defaults),
		"pod-without-tls": pod(t, without, "futures-3", Formation{}, defaults), "certificate": CertificateObject(s, NodeSecret(s)),
		"authority": AuthorityObject(s), "claim": Claim(s, "futures-1"), "peers": Peers(s), "service": Service(s), "budget": DisruptionBudget(s, 3, 0),
		"policy": NetworkPolicy(s, "countinghouse-system"),
	}
}

func TestObjectsAreGolden(t *testing.T) {
	for name, obj := range objects(t, shard()) {
		got, err := yaml.Marshal(obj)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".yaml")
		if *rewrite {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || string(got) != string(want) {
			t.Errorf("%s is not what is built (%v); after a look at it, rewrite with -rewrite:\n%s", path, err, got)
		}
	}
}

// The same shard gives the same objects, and building them changes nothing of it.
func TestBuildersArePure(t *testing.T) {
	s := shard()
	s.Spec.Scheduling.NodeSelector = map[string]string{"a": "1", "b": "2", "c": "3"}
	before := s.DeepCopy()
	first := objects(t, s)
	for range 20 {
		if !reflect.DeepEqual(first, objects(t, s)) {
			t.Fatal("another object")
		}
	}
	if !reflect.DeepEqual(before, s) {
		t.Error("the shard was changed")
	}
}

func TestPodsAreRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := pod(t, shard(), "futures-0", Formation{}, defaults)
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, r := range evaluator.EvaluatePod(level, &p.ObjectMeta, &p.Spec) {
		if !r.Allowed {
			t.Errorf("%s: %s", r.ForbiddenReason, r.ForbiddenDetail)
		}
	}
	p.Spec.Containers[0].SecurityContext.Capabilities = nil
	if r := policy.AggregateCheckResults(evaluator.EvaluatePod(level, &p.ObjectMeta, &p.Spec)); r.Allowed {
		t.Error("the check lets everything through")
	}
}

// What makes a member's pod another one, and what does not: neither how it began,
// nor where its data lies, nor an operator with another default image.
func TestSpecHash(t *testing.T) {
	hash := specHash(t, shard())
	for name, change := range map[string]func(*v1.InstrumentShardSpec){
		"image":     func(s *v1.InstrumentShardSpec) { s.Image = "other" },
		"limits":    func(s *v1.InstrumentShardSpec) { s.Limits.Queries++ },
		"timing":    func(s *v1.InstrumentShardSpec) { s.Timing.HeartbeatTimeout.Duration++ },
		"resources": func(s *v1.InstrumentShardSpec) { s.Resources.Limits = nil },
		"tls":       func(s *v1.InstrumentShardSpec) { s.TLS.Mode = v1.TLSOff },
		"another secret": func(s *v1.InstrumentShardSpec) {
			s.TLS = v1.TLSSpec{Mode: v1.TLSProvided, SecretName: "other", OperatorSecretName: "operator"}
		},
		"scheduling": func(s *v1.InstrumentShardSpec) {
			s.Scheduling.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		},
	} {
		s := shard()
		if change(&s.Spec); specHash(t, s) == hash {
			t.Errorf("%s makes no difference", name)
		}
	}
	for name, change := range map[string]func(*v1.InstrumentShardSpec){
		"replicas":    func(s *v1.InstrumentShardSpec) { s.Replicas = 5 },
		"instruments": func(s *v1.InstrumentShardSpec) { s.Instruments = nil },
		"size":        func(s *v1.InstrumentShardSpec) { s.Storage.Size = resource.MustParse("1Ti") },
		"retention":   func(s *v1.InstrumentShardSpec) { s.Storage.Retention.WhenDeleted = v1.RetentionDelete },
		"lifetimes": func(s *v1.InstrumentShardSpec) {
			s.TLS.CertificateLifetime.Duration, s.TLS.AuthorityLifetime.Duration = 1, 2
		},
		"paused": func(s *v1.InstrumentShardSpec) { s.Paused = true },
		"the same quantity, written otherwise": func(s *v1.InstrumentShardSpec) {
			s.Resources.Limits[corev1.ResourceMemory] = resource.MustParse("2048Mi")
		},
	} {
		s := shard()
		if change(&s.Spec); specHash(t, s) != hash {
			t.Errorf("%s makes a difference", name)
		}
	}
	s := shard()
	a := pod(t, s, "futures-0", Formation{Peers: []string{"futures-0"}}, defaults)
	b := pod(t, s, "futures-0", Formation{}, Defaults{Image: "countinghouse:v2"})
	if a.Annotations[AnnotationSpecHash] != b.Annotations[AnnotationSpecHash] {
		t.Error("an upgrade of the operator would restart members")
	}
	c := pod(t, s, "futures-0", Formation{Recover: "t1"}, defaults)
	if c.Annotations[AnnotationSpecHash] != hash || c.Annotations[AnnotationRecovery] != "t1" || !slices.Contains(c.Spec.Containers[0].Args, "--recover=t1") {
		t.Errorf("a recovery: %v", c.Annotations)
	}
}

func TestMemberNames(t *testing.T) {
	for name, want := range map[string]int32{
		"futures-0": 0, "futures-17": 17, "futures-": -1, "futures-01": -1, "futures--1": -1, "futures-x": -1,
		"futures-peers": -1, "options-1": -1, "futures-1-2": -1, "futures-99999999999": -1, "futures": -1,
	} {
		n, ok := MemberNumber("futures", name)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%s: %d, %t", name, n, ok)
		}
	}
}

func TestMemoryLimitReachesTheRuntime(t *testing.T) {
	s := shard()
	find := func() string {
		for _, e := range pod(t, s, "futures-0", Formation{}, defaults).Spec.Containers[0].Env {
			if e.Name == "GOMEMLIMIT" {
				return e.Value
			}
		}
		return ""
	}
	if got := find(); got != "1825361060B" { // 85 % of 2 GiB
		t.Errorf("GOMEMLIMIT=%s", got)
	}
	s.Spec.Resources.Limits = nil
	if got := find(); got != "" {
		t.Errorf("GOMEMLIMIT=%s without a limit", got)
	}
}

func TestBudgetKeepsAQuorum(t *testing.T) {
	for voters, stay := range map[int32]int32{1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 7: 4} {
		for others := range int32(3) {
			got := DisruptionBudget(shard(), voters, others).Spec
			if got.MaxUnavailable != nil || got.MinAvailable.IntVal != stay+others {
				t.Errorf("%d voters and %d others: %+v, want %d to stay", voters, others, got, stay+others)
			}
		}
	}
}

func TestSpreadIsTheSpecsIfItHasOne(t *testing.T) {
	s := shard()
	s.Spec.Scheduling.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{TopologyKey: "rack"}}
	got := pod(t, s, "futures-0", Formation{}, defaults).Spec.TopologySpreadConstraints
	if len(got) != 1 || got[0].TopologyKey != "rack" {
		t.Errorf("%v", got)
	}
}

// Claims outlive the shard unless its retention policy says otherwise, so nothing
// but the operator may remove them.
func TestClaimsHaveNoOwner(t *testing.T) {
	if c := Claim(shard(), "futures-0"); len(c.OwnerReferences) != 0 || *c.Spec.StorageClassName != "fast" {
		t.Errorf("%+v", c)
	}
	s := shard()
	s.Spec.Storage.ClassName = ""
	c := Claim(s, "futures-0")
	if c.Spec.StorageClassName != nil {
		t.Error("an empty class is no class, not the default one")
	}
	if ClaimGrows(s, c) {
		t.Error("it grows")
	}
	s.Spec.Storage.Size = resource.MustParse("21Gi")
	if !ClaimGrows(s, c) {
		t.Error("it does not grow")
	}
}

func TestPeersAreNamedWithTheirAddresses(t *testing.T) {
	args := pod(t, shard(), "futures-1", Formation{Peers: []string{"futures-0", "futures-1"}}, defaults).Spec.Containers[0].Args
	want := "--peers=futures-0=futures-0.futures-peers.trading.svc:7100,futures-1=futures-1.futures-peers.trading.svc:7100"
	if !slices.Contains(args, want) || slices.Contains(args, "--join") {
		t.Errorf("%s", strings.Join(args, "\n"))
	}
}
