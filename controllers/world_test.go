package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	built "github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/identity"
	storage "github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

var errStopped = errors.New("the operator is stopped")

// world is a cluster in miniature: an API server, a kubelet that runs pods, and a
// shard with the rules of Raft's membership, which notices what must never be done.
type world struct {
	t        *testing.T
	client   client.WithWatch // the test's
	operator client.WithWatch // the operator's
	cache    client.Reader    // what the operator reads, for one that lags; nil: operator
	name     types.NamespacedName
	pod      func(id string) *corev1.Pod // of a member; nil for none
	// cluster is what a cluster does before its kubelets do; nil for nothing.
	cluster func()

	admin Admin // what answers for the shard; nil: the world

	uids     int
	operates bool // the operator does, and not the test
	writes   int  // of the operator, to the API server and the shard
	stopAt   int  // the write after which the operator is stopped, once; 0 for none

	// The shard.
	formed  bool
	members map[string]*storagepb.Member
	leader  string
	index   uint64
	owned   []string
	disks   map[types.UID]string // claim → id of the member whose data it has
	patient map[string]int       // attempts until a learner has caught up
	dead    map[string]bool      // pods that do not come up
	broken  []string             // what must never be
	// token is that of the last recovery from a lost quorum, and givenUp are those that
	// it left out.
	token   string
	trace   []string // of what the operator did, as the steps of a plan
	givenUp map[string]bool
	certs   certificateWorld
	tls     v1.TLSMode // of the shard that createShard makes
	pending bool       // the membership of the leader is not committed
}

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	return scheme
}

// newWorld returns a world whose API server is a fake one.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := emptyWorld(t, "trading")
	scheme := newScheme(t)
	// A tracker without field managers, which nothing here looks at, is quicker.
	tracker := clienttesting.NewObjectTracker(scheme, serializer.NewCodecFactory(scheme).UniversalDecoder())
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjectTracker(tracker).WithStatusSubresource(&v1.InstrumentShard{}, &corev1.Pod{}).Build()
	w.client = w.watched(interceptor.NewClient(c, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			made := o.DeepCopyObject().(client.Object) // one that is refused gets no uid
			if made.GetUID() == "" {
				w.uids++
				made.SetUID(types.UID(fmt.Sprintf("uid-%d", w.uids)))
			}
			if err := c.Create(ctx, made, opts...); err != nil {
				return err
			}
			return c.Get(ctx, client.ObjectKeyFromObject(made), o)
		},
	}))
	w.operator = w.client
	return w
}

func emptyWorld(t *testing.T, namespace string) *world {
	w := &world{
		t: t, name: types.NamespacedName{Namespace: namespace, Name: "futures"},
		certs:   newCertificateWorld(),
		members: map[string]*storagepb.Member{}, disks: map[types.UID]string{}, patient: map[string]int{}, dead: map[string]bool{}, givenUp: map[string]bool{},
	}
	w.pod = func(id string) *corev1.Pod {
		pod := new(corev1.Pod)
		if w.client.Get(context.Background(), types.NamespacedName{Namespace: w.name.Namespace, Name: id}, pod) != nil {
			return nil
		}
		return pod
	}
	return w
}

// watched returns a client whose writes are counted and judged while the operator
// uses it.
func (w *world) watched(c client.WithWatch) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			w.mayCreate(o)
			return w.write(c.Create(ctx, o, opts...))
		},
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			return w.write(c.Update(ctx, o, opts...))
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if claim, ok := o.(*corev1.PersistentVolumeClaim); ok && w.operates {
				w.did(StepGrow, claim.Name)
			}
			return w.write(c.Patch(ctx, o, p, opts...))
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			w.mayDelete(o)
			return w.write(c.Delete(ctx, o, opts...))
		},
		SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, o client.Object, opts ...client.SubResourceUpdateOption) error {
			return w.write(c.SubResource(sub).Update(ctx, o, opts...))
		},
	})
}

// write counts a write of the operator's, and stops it after the chosen one.
func (w *world) write(err error) error {
	if !w.operates {
		return err
	}
	w.writes++
	if err == nil && w.writes == w.stopAt {
		return errStopped
	}
	return err
}

func (w *world) did(kind StepKind, member string) {
	w.trace = append(w.trace, strings.TrimSpace(string(kind)+" "+member))
}

// claim reports whether a member has its volume.
func (w *world) claim(id string) bool {
	return w.client.Get(context.Background(), types.NamespacedName{Namespace: w.name.Namespace, Name: id}, new(corev1.PersistentVolumeClaim)) == nil
}

func (w *world) violation(format string, args ...any) {
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
}

// mayCreate judges a pod that the operator creates: the scheduler must not count
// those of members that go.
func (w *world) mayCreate(o client.Object) {
	if _, ok := o.(*corev1.Pod); !ok || !w.operates {
		return
	}
	var pods corev1.PodList
	if err := w.list(&pods); err != nil {
		w.t.Fatal(err)
	}
	for _, m := range w.shard().Status.Members {
		i := slices.IndexFunc(pods.Items, func(p corev1.Pod) bool { return p.Name == m.ID })
		if i >= 0 && (m.Role == v1.RoleLost || m.Role == v1.RoleLeaving) && pods.Items[i].Labels[built.LabelLeaving] == "" {
			w.violation("pod %s is created, and that of %s, which is %s, is not marked", o.GetName(), m.ID, m.Role)
		}
	}
}

// mayDelete notices a deletion that would cost data or the quorum.
func (w *world) mayDelete(o client.Object) {
	if !w.operates {
		return
	}
	switch o := o.(type) {
	case *corev1.PersistentVolumeClaim:
		if id := w.disks[o.UID]; id != "" && w.members[id] != nil && w.shard().DeletionTimestamp.IsZero() {
			w.violation("the volume of member %s is deleted", id)
		}
	case *corev1.Pod:
		m := w.members[o.Name]
		if m != nil && w.claim(o.Name) {
			w.did(StepRestart, o.Name)
		}
		if w.recovering() {
			return // there is no quorum to lose
		}
		if m == nil || !m.Voter || !w.shard().DeletionTimestamp.IsZero() || len(w.members) == 1 {
			return
		}
		if staying := w.staying(); slices.Contains(staying, o.Name) && len(staying)-1 < w.quorum() {
			w.violation("the pod of %s is deleted: %d of %d voters run and are not ending", o.Name, len(staying), w.voters())
		}
		if o.Name == w.leader {
			w.violation("the leader's pod is deleted")
		}
	}
}

func (w *world) voters() (n int) {
	for _, m := range w.members {
		if m.Voter {
			n++
		}
	}
	return n
}

func (w *world) quorum() int { return w.voters()/2 + 1 }

// running returns the voters whose pod runs, which it does until it is gone.
func (w *world) running() []string { return w.votersThat(func(*corev1.Pod) bool { return true }) }

// staying returns those that are not about to end.
func (w *world) staying() []string {
	return w.votersThat(func(pod *corev1.Pod) bool { return pod.DeletionTimestamp.IsZero() })
}

func (w *world) votersThat(also func(*corev1.Pod) bool) (ids []string) {
	for id, m := range w.members {
		pod := w.pod(id)
		if m.Voter && pod != nil && pod.Status.Phase == corev1.PodRunning && also(pod) {
			ids = append(ids, id)
		}
	}
	sort.Strings(ids)
	return ids
}

func (w *world) shard() *v1.InstrumentShard {
	s := new(v1.InstrumentShard)
	if err := w.client.Get(context.Background(), w.name, s); client.IgnoreNotFound(err) != nil {
		w.t.Fatal(err)
	}
	return s
}

// brokenImage is one that does not start.
const brokenImage = "countinghouse:broken"

// kubelet lets pods run whose volume is there, and ends those without.
func (w *world) kubelet() {
	w.t.Helper()
	if w.cluster != nil {
		w.cluster()
	}
	var pods corev1.PodList
	if err := w.list(&pods); err != nil {
		w.t.Fatal(err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		claim := new(corev1.PersistentVolumeClaim)
		err := w.client.Get(context.Background(), client.ObjectKeyFromObject(pod), claim)
		if err != nil || !claim.DeletionTimestamp.IsZero() || w.dead[pod.Name] || pod.Spec.Containers[0].Image == brokenImage || pod.Status.Phase == corev1.PodRunning {
			continue
		}
		w.start(pod, claim)
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		if err := w.client.Status().Update(context.Background(), pod); err != nil {
			w.t.Fatal(err)
		}
	}
	w.mount()
}

// start is a storage node's: an empty volume is formatted, one of another member
// refused, and a member of the shard that comes with an empty one is a disaster.
func (w *world) start(pod *corev1.Pod, claim *corev1.PersistentVolumeClaim) {
	id, args := pod.Name, pod.Spec.Containers[0].Args
	switch owner := w.disks[claim.UID]; {
	case w.givenUp[id]:
		w.violation("%s starts although it was given up", id)
	case owner == id:
		w.obey(id, args)
	case owner != "":
		w.violation("%s starts on the volume of %s", id, owner)
	case w.members[id] != nil:
		w.violation("%s is a member and comes back with an empty volume", id)
	default:
		w.disks[claim.UID] = id
		peers := ""
		for _, a := range args {
			if p, ok := strings.CutPrefix(a, "--peers="); ok {
				peers = p
			}
		}
		if peers == "" {
			return
		}
		if w.formed && w.members[id] == nil {
			w.violation("%s forms the shard once more, with %s", id, peers)
			return
		}
		w.form(peers)
	}
}

// recovering reports whether the operator has recorded a recovery that is not over.
func (w *world) recovering() bool {
	rec := w.shard().Status.Recovery
	return rec != nil && rec.Phase != v1.RecoveryDone
}

// obey makes a member that is told to recover its shard's only voter, once for each
// token.
func (w *world) obey(id string, args []string) {
	i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "--recover=") })
	if i < 0 || w.token == strings.TrimPrefix(args[i], "--recover=") {
		return
	}
	w.token = strings.TrimPrefix(args[i], "--recover=")
	if rec := w.shard().Status.Recovery; rec == nil || rec.Token != w.token || rec.Survivor != id {
		w.violation("%s recovers, which is not recorded: %+v", id, rec)
	}
	if len(w.running()) >= w.quorum() {
		w.violation("%s recovers while there is a quorum", id)
	}
	for other, m := range w.members {
		if other == id {
			m.Voter = true
			continue
		}
		if w.client.Get(context.Background(), types.NamespacedName{Namespace: w.name.Namespace, Name: other}, new(corev1.Pod)) == nil {
			w.violation("%s recovers while %s has a pod", id, other)
		}
		w.givenUp[other] = true
		delete(w.members, other)
	}
	w.index++
}

func (w *world) form(peers string) {
	w.formed = true
	for _, p := range strings.Split(peers, ",") {
		id, address, _ := strings.Cut(p, "=")
		w.members[id] = &storagepb.Member{Id: id, Address: address, Voter: true}
		// Its own volume is not a foreign one, whenever it starts.
		claim := new(corev1.PersistentVolumeClaim)
		if w.client.Get(context.Background(), types.NamespacedName{Namespace: w.name.Namespace, Name: id}, claim) == nil {
			w.disks[claim.UID] = id
		} else {
			w.violation("%s has no volume when the shard is formed", id)
		}
	}
	w.index = 1
}

// The shard as an Admin.

func (w *world) Leader(context.Context) (*storagepb.StatusResponse, error) {
	running := w.running()
	if !w.formed || len(running) < w.quorum() {
		w.leader = ""
		return nil, refusal.ErrUnavailable
	}
	if !slices.Contains(running, w.leader) {
		w.leader = running[0]
	}
	st := &storagepb.StatusResponse{Id: w.leader, MembershipIndex: w.index, MembershipPending: w.pending, Instruments: slices.Clone(w.owned), Recovery: &storagepb.Recovery{Token: w.token}}
	for _, m := range w.members {
		st.Members = append(st.Members, m)
	}
	for id := range w.givenUp {
		st.Recovery.GivenUp = append(st.Recovery.GivenUp, &storagepb.Member{Id: id})
	}
	return st, nil
}

func (w *world) change(index uint64, do func()) error {
	if index != w.index {
		return refusal.ErrInvalid
	}
	do()
	w.index++
	return w.write(nil)
}

func (w *world) AddLearner(_ context.Context, id, address string, index uint64) error {
	return w.change(index, func() {
		w.did(StepJoin, id)
		w.members[id] = &storagepb.Member{Id: id, Address: address}
		w.patient[id] = 2
	})
}

func (w *world) Promote(_ context.Context, id string, index uint64) error {
	if w.patient[id]--; w.patient[id] > 0 {
		return refusal.ErrUnavailable
	}
	return w.change(index, func() { w.members[id].Voter = true })
}

func (w *world) Remove(_ context.Context, id string, index uint64) error {
	if id == w.leader {
		return refusal.ErrInvalid
	}
	running := w.running()
	left, voters := len(running), w.voters()
	if m := w.members[id]; m != nil && m.Voter {
		voters--
		if slices.Contains(running, id) {
			left--
		}
	}
	if left < voters/2+1 {
		return refusal.ErrInvalid
	}
	return w.change(index, func() {
		w.did(StepLeave, id)
		delete(w.members, id)
	})
}

func (w *world) TransferLeadership(context.Context, string) error {
	for _, id := range w.running() {
		if id != w.leader {
			w.did(StepTransfer, w.leader)
			w.leader = id
			return w.write(nil)
		}
	}
	return refusal.ErrUnavailable
}

func (w *world) SafeToRestart(_ context.Context, id string) (bool, string, error) {
	return len(w.running()) == w.voters(), "a voter is away", nil
}

func (w *world) AssignInstruments(_ context.Context, instruments []string) error {
	w.did(StepInstruments, "")
	w.owned = slices.Clone(instruments)
	return w.write(nil)
}

func (w *world) Close() error { return nil }

func (w *world) reconciler() *Reconciler {
	return &Reconciler{
		Client: w.lagging(), Uncached: w.operator, Defaults: built.Defaults{Image: "countinghouse:test"}, Namespace: "countinghouse-system",
		Dial: func(m *storage.Map, tls *identity.Source) (Admin, error) {
			if err := errors.Join(m.Check(), w.mayDial(tls)); err != nil || w.admin == nil {
				return w, err
			}
			return w.admin, nil
		},
		Now: w.certs.now,
	}
}

// lagging returns the operator's client, which reads from the cache.
func (w *world) lagging() client.Client {
	if w.cache == nil {
		return w.operator
	}
	return interceptor.NewClient(w.operator, interceptor.Funcs{
		Get: func(ctx context.Context, _ client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			return w.cache.Get(ctx, key, o, opts...)
		},
		List: func(ctx context.Context, _ client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			return w.cache.List(ctx, l, opts...)
		},
	})
}

// reconcile lets the operator have one look, and returns what it says.
func (w *world) reconcile() error {
	r := w.reconciler() // as if it was started anew
	w.operates = true
	defer func() { w.operates = false }()
	_, err := r.Reconcile(context.Background(), ctrl.Request{NamespacedName: w.name})
	w.mayEvict()
	return err
}

// mayEvict notices a budget that would let a drain take so many pods at once that
// those that stay are no quorum.
func (w *world) mayEvict() {
	budget := new(policyv1.PodDisruptionBudget)
	if w.client.Get(context.Background(), w.name, budget) != nil || w.recovering() {
		return
	}
	var pods corev1.PodList
	if err := w.list(&pods); err != nil {
		w.t.Fatal(err)
	}
	healthy := 0
	for i := range pods.Items {
		if pods.Items[i].DeletionTimestamp.IsZero() && ready(&pods.Items[i]) {
			healthy++
		}
	}
	desired := 0
	if least := budget.Spec.MinAvailable; least != nil {
		desired = least.IntValue()
	} else if most := budget.Spec.MaxUnavailable; most != nil { // of what the spec asks for
		desired = int(w.shard().Spec.Replicas) - most.IntValue()
	}
	if may, spare := healthy-desired, len(w.staying())-w.quorum(); may > 0 && may > spare {
		w.violation("a drain may take %d pods, and the shard can do without %d of %d voters", may, spare, w.voters())
	}
}

// converge reconciles and lets pods run until nothing changes any more.
func (w *world) converge() {
	w.t.Helper()
	quiet := 0
	for range 400 {
		before := w.writes
		if err := w.reconcile(); err != nil && !errors.Is(err, errStopped) {
			w.t.Fatal(err)
		}
		w.everyoneTalks()
		w.kubelet()
		w.everyoneTalks()
		if quiet++; w.writes != before || w.certs.moved {
			quiet = 0
		}
		if quiet == 4 { // a learner is refused twice before it has caught up
			return
		}
	}
	w.t.Fatalf("no end: %+v", w.shard().Status)
}

// spec changes the shard's spec as a user does.
func (w *world) spec(change func(*v1.InstrumentShardSpec)) {
	w.t.Helper()
	s := w.shard()
	change(&s.Spec)
	s.Generation++
	if err := w.client.Update(context.Background(), s); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) createShard(replicas int32) {
	w.t.Helper()
	s := &v1.InstrumentShard{ObjectMeta: metav1.ObjectMeta{Name: w.name.Name, Namespace: w.name.Namespace, Generation: 1}}
	s.Spec = v1.InstrumentShardSpec{
		Cluster: "demo", Instruments: []string{"IF2501", "IC2501"}, Replicas: replicas,
		Storage: v1.StorageSpec{Size: resource.MustParse("10Gi"), Retention: v1.RetentionSpec{WhenScaled: v1.RetentionDelete, WhenDeleted: v1.RetentionRetain}},
	}
	s.Spec.TLS.Mode = w.tls
	if err := w.client.Create(context.Background(), s); err != nil {
		w.t.Fatal(err)
	}
}

// list reads what there is in the shard's namespace.
func (w *world) list(into client.ObjectList) error {
	return w.client.List(context.Background(), into, client.InNamespace(w.name.Namespace))
}

// recoverFrom asks for a recovery as somebody does who has decided.
func (w *world) recoverFrom(id string) {
	w.t.Helper()
	s := w.shard()
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[v1.AnnotationRecoverFrom] = id
	if err := w.client.Update(context.Background(), s); err != nil {
		w.t.Fatal(err)
	}
}

// place describes where the shard has come to.
func (w *world) place() string {
	w.t.Helper()
	var b strings.Builder
	s := w.shard()
	for _, m := range s.Status.Members {
		fmt.Fprintf(&b, "%s ready=%t pod=%s\n", m.ID, m.Ready, m.Pod)
	}
	var ids []string
	for id, m := range w.members {
		ids = append(ids, fmt.Sprintf("%s voter=%t", id, m.Voter))
	}
	sort.Strings(ids)
	var claims corev1.PersistentVolumeClaimList
	var pods corev1.PodList
	if err := errors.Join(w.list(&claims), w.list(&pods)); err != nil {
		w.t.Fatal(err)
	}
	fmt.Fprintf(&b, "raft %v next %d owned %v\n", ids, s.Status.NextMember, w.owned)
	if rec := s.Status.Recovery; rec != nil {
		fmt.Fprintf(&b, "recovered from %s, without %v: %s, asked for %q\n", rec.Survivor, rec.GivenUp, rec.Phase, s.Annotations[v1.AnnotationRecoverFrom])
	}
	for _, c := range claims.Items {
		fmt.Fprintf(&b, "claim %s %s given up=%t\n", c.Name, c.Spec.Resources.Requests.Storage(), c.Annotations[built.AnnotationRecovery] != "")
	}
	for _, p := range pods.Items {
		fmt.Fprintf(&b, "pod %s %s %s\n", p.Name, p.Status.Phase, p.Annotations[built.AnnotationSpecHash])
	}
	return b.String() + w.secrets()
}
