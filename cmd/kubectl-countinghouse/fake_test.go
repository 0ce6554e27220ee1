package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kube "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	built "github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// noon is when everything happens.
var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// world is an API server and members that answer as they are told.
type world struct {
	t     *testing.T
	kube  kube.WithWatch
	nodes map[string]*fakeNode
	addrs map[string]string // by pod
	seen  func(*v1.InstrumentShard)
}

// fakeNode is a member's services.
type fakeNode struct {
	storagepb.UnimplementedAdminServer
	storagepb.UnimplementedQueryServer
	status   *storagepb.StatusResponse
	held     []*storagepb.InstrumentStats
	findings []string
	moved    string // where leadership was asked to go
}

func (n *fakeNode) Status(context.Context, *storagepb.StatusRequest) (*storagepb.StatusResponse, error) {
	return n.status, nil
}

func (n *fakeNode) Instruments(context.Context, *storagepb.InstrumentsRequest) (*storagepb.InstrumentsResponse, error) {
	return &storagepb.InstrumentsResponse{Instruments: n.held, AppliedIndex: n.status.AppliedIndex}, nil
}

func (n *fakeNode) TransferLeadership(_ context.Context, req *storagepb.TransferLeadershipRequest) (*storagepb.TransferLeadershipResponse, error) {
	if n.status.State != "leader" {
		return nil, refusal.ErrNotLeader
	}
	n.moved = req.Id
	return &storagepb.TransferLeadershipResponse{LeaderId: "futures-2"}, nil
}

func (n *fakeNode) Verify(_ *storagepb.VerifyRequest, out grpc.ServerStreamingServer[storagepb.VerifyResponse]) error {
	for _, f := range n.findings {
		if err := out.Send(&storagepb.VerifyResponse{Finding: f, File: "store/A/000001.sst", Offset: 4096}); err != nil {
			return err
		}
	}
	return out.Send(&storagepb.VerifyResponse{Files: 12, Bytes: 3 << 20, Records: 4000, Done: true, Ok: len(n.findings) == 0})
}

// newWorld is a healthy shard of three in namespace trading.
func newWorld(t *testing.T) *world {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, nodes: map[string]*fakeNode{}, addrs: map[string]string{}}
	c := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1.InstrumentShard{}).Build()
	w.kube = interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c kube.WithWatch, key kube.ObjectKey, o kube.Object, opts ...kube.GetOption) error {
			if _, ok := o.(*v1.InstrumentShard); ok && w.seen != nil {
				now := new(v1.InstrumentShard)
				if err := c.Get(ctx, key, now); err != nil {
					return err
				}
				w.seen(now) // the operator is at work between two looks
			}
			return c.Get(ctx, key, o, opts...)
		},
		Apply: func(ctx context.Context, c kube.WithWatch, o runtime.ApplyConfiguration, opts ...kube.ApplyOption) error {
			return w.dryRun(ctx, c, o, opts)
		},
	})
	w.create(w.healthy())
	for n := range int32(3) {
		id := built.MemberName("futures", n)
		labels := built.ShardLabels("futures")
		meta := metav1.ObjectMeta{Namespace: "trading", Name: id, Labels: labels, UID: types.UID("claim-" + id)}
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: meta}
		claim.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}
		w.create(claim)
		hash, err := built.SpecHash(w.healthy())
		if err != nil {
			t.Fatal(err)
		}
		meta.Annotations = map[string]string{built.AnnotationSpecHash: hash}
		pod := &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: fmt.Sprintf("worker-%d", n+1)}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		w.create(pod)
		st := &storagepb.StatusResponse{
			Cluster: "cffex", Shard: "futures", Id: id, State: "follower", Term: 7, LeaderId: "futures-1", LastIndex: 120_000 + uint64(n), AppliedIndex: 120_000,
			DiskFreeBytes: 8 << 30, Version: "test",
		}
		if n == 1 {
			st.State = "leader"
			for m := range int32(3) {
				peer := built.MemberName("futures", m)
				st.Members = append(st.Members, &storagepb.Member{Id: peer, Voter: true, Lag: uint64(2 * m % 4)})
			}
			st.Instruments = []string{"IC2501", "IF2501"}
		}
		w.serve(id, &fakeNode{status: st, held: []*storagepb.InstrumentStats{
			{Instrument: "IC2501", LastSeq: 1000, TableRecords: 1000, Epoch: 1, Chain: 7}, {Instrument: "IF2501", LastSeq: 3000, TableRecords: 3000, Epoch: 1, Chain: 9},
		}})
	}
	return w
}

// dryRun answers a server-side apply as an API server does: with what it would
// store, or why it would not. Nothing may be applied for good.
func (w *world) dryRun(ctx context.Context, c kube.Client, o runtime.ApplyConfiguration, opts []kube.ApplyOption) error {
	var options kube.ApplyOptions
	options.ApplyOptions(opts)
	if len(options.DryRun) != 1 || options.DryRun[0] != metav1.DryRunAll {
		w.t.Error("it was applied")
	}
	u := o.(interface {
		runtime.ApplyConfiguration
		UnstructuredContent() map[string]any
		SetUnstructuredContent(map[string]any)
	})
	content := u.UnstructuredContent()
	spec := content["spec"].(map[string]any)
	if fmt.Sprint(spec["replicas"]) == "4" {
		return apierrors.NewInvalid(v1.GroupVersion.WithKind("InstrumentShard").GroupKind(), "futures", field.ErrorList{
			field.NotSupported(field.NewPath("spec", "replicas"), "4", []string{"1", "3", "5", "7"}),
		})
	}
	live := new(v1.InstrumentShard)
	key := kube.ObjectKey{Namespace: "trading", Name: content["metadata"].(map[string]any)["name"].(string)}
	if err := kube.IgnoreNotFound(c.Get(ctx, key, live)); err != nil {
		return err
	}
	stored, err := runtime.DefaultUnstructuredConverter.ToUnstructured(live)
	if err != nil {
		return err
	}
	stored["spec"] = spec
	if live.Name == "" {
		stored["metadata"] = content["metadata"]
	}
	u.SetUnstructuredContent(stored)
	return nil
}

func (w *world) create(o kube.Object) {
	w.t.Helper()
	if err := w.kube.Create(context.Background(), o); err != nil {
		w.t.Fatal(err)
	}
}

// serve lets a member answer on a port of its own.
func (w *world) serve(id string, n *fakeNode) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	s := grpc.NewServer()
	storagepb.RegisterAdminServer(s, n)
	storagepb.RegisterQueryServer(s, n)
	go s.Serve(l)
	w.t.Cleanup(s.Stop)
	w.nodes[id], w.addrs[id] = n, l.Addr().String()
}

func (w *world) healthy() *v1.InstrumentShard {
	s := &v1.InstrumentShard{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "InstrumentShard"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "trading", Name: "futures", UID: "u1", Generation: 3, CreationTimestamp: metav1.NewTime(noon.Add(-5 * 24 * time.Hour))},
	}
	s.Spec = v1.InstrumentShardSpec{
		TLS:     v1.TLSSpec{Mode: v1.TLSOff},
		Cluster: "cffex", Instruments: []string{"IF2501", "IC2501"}, Replicas: 3, Image: "countinghouse:v1",
		Storage: v1.StorageSpec{Size: resource.MustParse("10Gi"), Retention: v1.RetentionSpec{WhenScaled: v1.RetentionDelete, WhenDeleted: v1.RetentionRetain}},
	}
	st := &s.Status
	st.ObservedGeneration, st.Leader, st.Replicas, st.ReadyReplicas, st.NextMember, st.Bootstrapped = 3, "futures-1", 3, 3, 3, true
	st.Instruments = []string{"IC2501", "IF2501"}
	for n := range int32(3) {
		id := built.MemberName("futures", n)
		m := v1.MemberStatus{ID: id, Pod: id, Role: v1.RoleFollower, Ready: true, ClaimUID: types.UID("claim-" + id), First: true}
		if n == 1 {
			m.Role = v1.RoleLeader
		}
		st.Members = append(st.Members, m)
	}
	for _, c := range []metav1.Condition{
		{Type: v1.ConditionAvailable, Status: "True", Reason: "LeaderAndQuorum", Message: "a member leads, and a quorum is ready"},
		{Type: v1.ConditionProgressing, Status: "False", Reason: "Done", Message: "the shard is what its spec says"},
		{Type: v1.ConditionDegraded, Status: "False", Reason: "AllReady", Message: "all members are ready"},
		{Type: v1.ConditionQuorumLost, Status: "False", Reason: "Quorum", Message: "enough members have their volume"},
		{Type: v1.ConditionAccepted, Status: "True", Reason: "Accepted", Message: "the shard has every instrument that it names"},
	} {
		c.LastTransitionTime = metav1.NewTime(noon.Add(-3 * time.Hour))
		st.Conditions = append(st.Conditions, c)
	}
	return s
}

// change changes the shard, status included.
func (w *world) change(do func(*v1.InstrumentShard)) {
	w.t.Helper()
	s := new(v1.InstrumentShard)
	if err := w.kube.Get(context.Background(), types.NamespacedName{Namespace: "trading", Name: "futures"}, s); err != nil {
		w.t.Fatal(err)
	}
	do(s)
	status := s.Status.DeepCopy()
	if err := w.kube.Update(context.Background(), s); err != nil {
		w.t.Fatal(err)
	}
	s.Status = *status
	if err := w.kube.Status().Update(context.Background(), s); err != nil {
		w.t.Fatal(err)
	}
}

func setCondition(s *v1.InstrumentShard, kind, status, reason, message string) {
	for i := range s.Status.Conditions {
		if c := &s.Status.Conditions[i]; c.Type == kind {
			c.Status, c.Reason, c.Message = metav1.ConditionStatus(status), reason, message
			return
		}
	}
	s.Status.Conditions = append(s.Status.Conditions, metav1.Condition{
		Type: kind, Status: metav1.ConditionStatus(status), Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(noon),
	})
}

// loseQuorum leaves futures-2 alone.
func (w *world) loseQuorum() {
	w.t.Helper()
	for _, id := range []string{"futures-0", "futures-1"} {
		meta := metav1.ObjectMeta{Namespace: "trading", Name: id}
		for _, o := range []kube.Object{&corev1.Pod{ObjectMeta: meta}, &corev1.PersistentVolumeClaim{ObjectMeta: meta}} {
			if err := w.kube.Delete(context.Background(), o); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.nodes["futures-2"].status.State, w.nodes["futures-2"].status.LeaderId = "candidate", ""
	w.change(func(s *v1.InstrumentShard) {
		s.Status.Leader, s.Status.ReadyReplicas = "", 0
		for i := range s.Status.Members {
			m := &s.Status.Members[i]
			m.Ready = false
			if m.ID != "futures-2" {
				m.Role, m.Pod = v1.RoleLost, ""
			}
		}
		setCondition(s, v1.ConditionAvailable, "False", "NoLeader", "no member leads the shard")
		setCondition(s, v1.ConditionProgressing, "True", "Working", "member futures-2 is not ready")
		setCondition(s, v1.ConditionDegraded, "True", "MembersMissing", "0 of 3 members are ready, 2 have lost their volume")
		setCondition(s, v1.ConditionQuorumLost, "True", "VolumesLost", "2 of 3 members have lost their volume: those that are left can elect no leader")
	})
}

// execute runs the command line against the world.
func (w *world) execute(input string, args ...string) (string, error) {
	w.t.Helper()
	var out, progress strings.Builder
	root := newRoot(func(s *settings) (*session, error) {
		return &session{
			kube: w.kube, namespace: "trading", timeout: s.timeout, poll: time.Millisecond, now: func() time.Time { return noon },
			reach: func(ctx context.Context, namespace, pod string) (net.Conn, error) {
				address, ok := w.addrs[pod]
				if !ok || namespace != "trading" {
					return nil, fmt.Errorf("pod %s/%s is not running", namespace, pod)
				}
				return new(net.Dialer).DialContext(ctx, "tcp", address)
			},
		}, nil
	})
	root.SetIn(strings.NewReader(input))
	root.SetOut(&out)
	root.SetErr(&progress)
	root.SetArgs(args)
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	err := run(ctx, root)
	text := out.String()
	if err != nil {
		text += "error: " + err.Error() + "\n"
	}
	return text, err
}

// golden compares a screen with the one that somebody has looked at.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%s is another screen (%v); after a look at it, rewrite with -rewrite:\n%s", path, err, got)
	}
	for _, line := range strings.Split(got, "\n") {
		if n := len([]rune(line)); n > screenWidth && !strings.HasPrefix(line, "error: ") && !strings.HasPrefix(line, "{") {
			t.Errorf("%d columns: %s", n, line)
		}
		if strings.ContainsRune(line, '\x1b') {
			t.Errorf("colours where nobody looks: %q", line)
		}
	}
}
