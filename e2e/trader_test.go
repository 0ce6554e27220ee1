package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	storage "github.com/countinghouse/countinghouse/storagenode/client"
)

// verdict, figures and state are those of the program in trader.
type verdict struct {
	OK       bool     `json:"ok"`
	Records  uint64   `json:"records"`
	Orders   int      `json:"orders"`
	Unknown  int      `json:"unknown"`
	Members  int      `json:"members"`
	Problems []string `json:"problems"`
}

type figures struct {
	Name      string            `json:"name"`
	Seconds   float64           `json:"seconds"`
	Answers   int64             `json:"answers"`
	P50Micros int64             `json:"p50_us"`
	P99Micros int64             `json:"p99_us"`
	MaxMicros int64             `json:"max_us"`
	Lost      uint64            `json:"lost_answers"`
	Skipped   uint64            `json:"not_made"`
	Rejected  map[string]uint64 `json:"rejected,omitempty"`
	// The longest waits for a commit, and the longest times in which a reader saw nothing.
	WaitMillis map[string]int64 `json:"commit_wait_max_ms,omitempty"`
	GapMillis  map[string]int64 `json:"reader_gap_max_ms,omitempty"`
}

type traderState struct {
	Accepted int            `json:"accepted"`
	Unknown  int            `json:"unknown"`
	Rejected int            `json:"rejected"`
	Reasons  map[string]int `json:"reject_reasons"`
}

// trader is the pod that trades.
type trader struct {
	c         *cluster
	namespace string
	shards    []string
}

func ptr[T any](v T) *T { return &v }

const traderName = "trader"

// start runs the trader beside the exchange, on the control plane's node, which no
// test takes away.
func (tr *trader) start(t *testing.T, exchange, metrics string) {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: tr.namespace, Name: traderName, Labels: map[string]string{"countinghouse.io/storage-access": "true"}},
		Spec: corev1.PodSpec{
			NodeSelector:    map[string]string{controlPlane: ""},
			Tolerations:     []corev1.Toleration{{Key: controlPlane, Operator: corev1.TolerationOpExists}},
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: ptr(true), RunAsUser: ptr(int64(65532)), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{
				SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
				Name:            traderName, Image: tr.c.traderImage, ImagePullPolicy: corev1.PullIfNotPresent,
				Args:         []string{"--exchange=" + exchange, "--exchange-metrics=" + metrics, "--rate=300", "--tls=/tls"},
				VolumeMounts: []corev1.VolumeMount{{Name: "tls", MountPath: "/tls", ReadOnly: true}},
			}},
			Volumes: []corev1.Volume{{Name: "tls", VolumeSource: corev1.VolumeSource{Projected: certificates()}}},
		},
	}
	if err := tr.c.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	await(t, readyWait, "the trader trades", func(ctx context.Context) error {
		var s traderState
		if err := tr.call(ctx, "GET", "state", nil, nil, &s); err != nil {
			return err
		}
		if s.Accepted == 0 {
			return fmt.Errorf("no order was accepted: %+v", s)
		}
		return nil
	})
}

// certificates of the roles that the trader has, each in a directory of its name.
func certificates() *corev1.ProjectedVolumeSource {
	out := new(corev1.ProjectedVolumeSource)
	for _, role := range []string{"trader", "operator", "reader"} {
		var items []corev1.KeyToPath
		for _, file := range []string{"tls.crt", "tls.key", "ca.crt"} {
			items = append(items, corev1.KeyToPath{Key: file, Path: role + "/" + file})
		}
		out.Sources = append(out.Sources, corev1.VolumeProjection{Secret: &corev1.SecretProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: "countinghouse-" + role + "-tls"}, Items: items,
		}})
	}
	return out
}

// call asks the trader, through the API server.
func (tr *trader) call(ctx context.Context, method, path string, query map[string]string, body []byte, into any) error {
	r := tr.c.set.CoreV1().RESTClient().Verb(method).Namespace(tr.namespace).Resource("pods").Name(traderName + ":8080").SubResource("proxy").Suffix(path)
	for k, v := range query {
		r = r.Param(k, v)
	}
	if body != nil {
		r = r.Body(body)
	}
	b, err := r.DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("%s /%s of the trader: %w: %s", method, path, err, b)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}

// step begins a step of the test in the trader's figures.
func (tr *trader) step(t *testing.T, name string) {
	t.Helper()
	if err := tr.call(t.Context(), "POST", "step", map[string]string{"name": name}, nil, nil); err != nil {
		t.Fatal(err)
	}
	tr.follow(t)
}

// follow tells the trader who the members are.
func (tr *trader) follow(t *testing.T) {
	t.Helper()
	if err := tr.call(t.Context(), "POST", "shards", nil, tr.shardMap(t), nil); err != nil {
		t.Fatal(err)
	}
}

// shardMap returns the members as the shards' status has them.
func (tr *trader) shardMap(t *testing.T) []byte {
	t.Helper()
	var m storage.Map
	for _, name := range tr.shards {
		s := tr.c.shard(t, tr.namespace, name)
		m.Cluster = s.Spec.Cluster
		shard := storage.Shard{Name: name, Instruments: s.Status.Instruments}
		for _, member := range s.Status.Members {
			if slices.Contains([]v1.MemberRole{v1.RoleLeader, v1.RoleFollower}, member.Role) {
				shard.Members = append(shard.Members, storage.Member{ID: member.ID,
					Address: fmt.Sprintf("%s.%s-peers.%s.svc:7100", member.ID, name, tr.namespace)})
			}
		}
		m.Shards = append(m.Shards, shard)
	}
	b, err := m.YAML()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// check stops trading, reads everything from every member, and goes on.
func (tr *trader) check(t *testing.T) {
	t.Helper()
	if err := tr.call(t.Context(), "POST", "pause", nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var v verdict
	if err := tr.call(ctx, "POST", "check", nil, tr.shardMap(t), &v); err != nil {
		t.Fatal(err)
	}
	for _, p := range v.Problems {
		t.Error(p)
	}
	if !v.OK || v.Orders == 0 {
		t.Fatalf("not everything is stored once: %+v", v)
	}
	t.Logf("nothing lost, nothing doubled: %d records, %d accepted orders, %d more without an answer; %d reads", v.Records, v.Orders, v.Unknown, v.Members)
	if err := tr.call(t.Context(), "POST", "resume", nil, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// trades waits until further orders were accepted.
func (tr *trader) trades(t *testing.T) {
	t.Helper()
	var before traderState
	if err := tr.call(t.Context(), "GET", "state", nil, nil, &before); err != nil {
		t.Fatal(err)
	}
	await(t, readyWait, "further orders are accepted", func(ctx context.Context) error {
		var s traderState
		if err := tr.call(ctx, "GET", "state", nil, nil, &s); err != nil {
			return err
		}
		if s.Accepted < before.Accepted+300 {
			return fmt.Errorf("%+v, %d accepted before", s, before.Accepted)
		}
		return nil
	})
}
