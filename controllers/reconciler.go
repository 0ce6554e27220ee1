package controllers

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
	storage "github.com/countinghouse/countinghouse/storagenode/client"
)

// Finalizer keeps a shard until its volume claims are dealt with.
const Finalizer = "countinghouse.io/volumes"

const (
	// askTimeout bounds what a reconciliation waits for a shard's members.
	askTimeout = 5 * time.Second
	// againAtOnce is when a shard is looked at again of which an old state was seen.
	againAtOnce = 50 * time.Millisecond
	// againSoon is when a shard that is not there yet is looked at again.
	againSoon = 2 * time.Second
	// againLater is when a shard is that needs nothing: what its members do is
	// seen by no watch.
	againLater = 30 * time.Second
	// againShare is the share of the time since when a shard has been waiting in which it
	// is looked at again.
	againShare = 16
	// growAgain is when a volume is asked for again that could not grow.
	growAgain = 10 * time.Minute
)

// Reconciler reconciles InstrumentShards. Its fields must be set before use.
type Reconciler struct {
	client.Client
	// Uncached reads past the Client's cache, which may lag behind what the operator
	// itself has just written, and behind for each kind of object by another time.
	// SetupWithManager fills it in.
	Uncached client.Reader
	// Defaults for specs that are silent.
	Defaults resource.Defaults
	// Namespace that the operator runs in, whose pods may reach storage nodes.
	Namespace string
	// Dial reaches the members of a shard; DialMembers.
	Dial Dial
	// Propagation is how long a change of a secret may take until every process that
	// has it mounted uses it; default DefaultPropagation.
	Propagation time.Duration
	// Now tells the time that certificates are issued and judged by; default time.Now.
	Now func() time.Time
	// Events takes what an operator should know of a shard.
	Events events.EventRecorder
	// Workers is the number of shards that are reconciled at a time, at least 1.
	Workers int

	indexed bool // the Client's cache has indexShard
}

// SetupWithManager registers the reconciler for shards and what belongs to them.
func (r *Reconciler) SetupWithManager(m ctrl.Manager) error {
	if r.Uncached == nil {
		r.Uncached = m.GetAPIReader()
	}
	for _, o := range []client.Object{&corev1.Pod{}, &corev1.PersistentVolumeClaim{}} {
		if err := m.GetFieldIndexer().IndexField(context.Background(), o, indexShard, shardOf); err != nil {
			return fmt.Errorf("index of %T: %w", o, err)
		}
	}
	r.indexed = true
	return ctrl.NewControllerManagedBy(m).
		// Its own status is no reason to look again.
		For(&v1.InstrumentShard{}, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		Owns(&corev1.Pod{}).Owns(&corev1.Service{}).Owns(&policyv1.PodDisruptionBudget{}).Owns(&networkingv1.NetworkPolicy{}).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(ofShard)).
		WithOptions(controller.Options{MaxConcurrentReconciles: r.Workers}).
		Complete(r)
}

// indexShard is the index of cached objects by the name of their shard: without it a
// look at one shard would go through the objects of all.
const indexShard = "shard"

func shardOf(o client.Object) []string {
	if name := o.GetLabels()[resource.LabelShard]; name != "" {
		return []string{name}
	}
	return nil
}

// ofShard names the shard that a volume claim belongs to, which does not own it.
func ofShard(_ context.Context, o client.Object) []ctrl.Request {
	var out []ctrl.Request
	for _, name := range shardOf(o) {
		out = append(out, ctrl.Request{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}})
	}
	return out
}

// Reconcile brings one shard nearer to its spec.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	shard := new(v1.InstrumentShard)
	if err := r.Get(ctx, req.NamespacedName, shard); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	p := &pass{r: r, shard: shard, before: shard.Status.DeepCopy()}
	err := p.run(ctx)
	if apierrors.IsConflict(err) { // it was seen before a write that has been made since
		return ctrl.Result{RequeueAfter: againAtOnce}, nil
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("shard %s: %w", req.NamespacedName, err)
	}
	return ctrl.Result{RequeueAfter: p.again()}, nil
}

// again returns when the shard is to be looked at next: less and less often while it
// waits for the same, which may be for days.
func (p *pass) again() time.Duration {
	c := meta.FindStatusCondition(p.before.Conditions, v1.ConditionProgressing)
	switch {
	case p.settled() || p.shard.Spec.Paused && p.shard.DeletionTimestamp.IsZero():
		return againLater
	case c == nil || c.Status != metav1.ConditionTrue || c.ObservedGeneration != p.shard.Generation:
		return againSoon
	}
	return min(max(time.Since(c.LastTransitionTime.Time)/againShare, againSoon), againLater)
}

// pass is one reconciliation of a shard.
type pass struct {
	r      *Reconciler
	shard  *v1.InstrumentShard
	before *v1.InstrumentShardStatus

	pods   map[string]*corev1.Pod                   // by member
	claims map[string]*corev1.PersistentVolumeClaim // by member
	admin  Admin
	raft   *raftView // nil while no leader answers
	// authoritySecret is what was read or written of the cluster's authority.
	authoritySecret *corev1.Secret
	// next says what is waited for or done next, for the status; "" for nothing.
	next string
	// aside says what can not be done at present and keeps nothing else from being done.
	aside string
	// refusal says why a recovery that is asked for is not begun; "" for none.
	refusal string
}

func (p *pass) status() *v1.InstrumentShardStatus { return &p.shard.Status }

// run is the list of phases.
func (p *pass) run(ctx context.Context) (err error) {
	defer func() {
		if p.admin != nil {
			_ = p.admin.Close() // its calls are over
		}
	}()
	if err := p.observe(ctx); err != nil {
		return err
	}
	if !p.shard.DeletionTimestamp.IsZero() {
		return p.remove(ctx)
	}
	if p.shard.Spec.Paused {
		if err := p.certificates(ctx); err != nil {
			return err
		}
		p.next = "the shard is paused"
		return p.report(ctx)
	}
	for _, phase := range []func(context.Context) error{
		p.hold, p.accept, p.surroundings, p.certificates, p.bootstrap, p.storage, p.recover, p.runPods, p.assign, p.membership, p.rollout,
	} {
		if err := phase(ctx); err != nil {
			return err
		}
	}
	if p.aside != "" {
		p.later("%s", p.aside)
	}
	return p.report(ctx)
}

// settled reports whether nothing is waited for.
func (p *pass) settled() bool { return p.next == "" }

// later notes what is waited for, the first one.
func (p *pass) later(format string, args ...any) {
	if p.next == "" {
		p.next = fmt.Sprintf(format, args...)
	}
}

// refused notes an error that is waited for to pass. Numbers in it, such as how much a
// member lacks, move all the time: the status keeps those that it has.
func (p *pass) refused(what string, err error) string {
	message := fmt.Sprintf("%s: %v", what, err)
	c := meta.FindStatusCondition(p.before.Conditions, v1.ConditionProgressing)
	if c != nil && strings.HasPrefix(c.Message, what+": ") && numbers.ReplaceAllString(c.Message, "") == numbers.ReplaceAllString(message, "") {
		return c.Message
	}
	return message
}

var numbers = regexp.MustCompile("[0-9]+")

// unready is 0 for a pod that is ready, and 1 for another one.
func unready(pod *corev1.Pod) int {
	if ready(pod) {
		return 0
	}
	return 1
}

// observe lists what there is, and asks the shard's leader for its members.
func (p *pass) observe(ctx context.Context) error {
	var pods corev1.PodList
	if err := p.r.List(ctx, &pods, p.ownCached()...); err != nil {
		return err
	}
	p.pods = make(map[string]*corev1.Pod)
	for i := range pods.Items {
		p.pods[pods.Items[i].Name] = &pods.Items[i]
	}
	if err := p.observeClaims(ctx, p.r, p.ownCached()...); err != nil {
		return err
	}
	return p.ask(ctx)
}

func (p *pass) observeClaims(ctx context.Context, from client.Reader, own ...client.ListOption) error {
	var claims corev1.PersistentVolumeClaimList
	if err := from.List(ctx, &claims, own...); err != nil {
		return err
	}
	p.claims = make(map[string]*corev1.PersistentVolumeClaim)
	for i := range claims.Items {
		p.claims[claims.Items[i].Name] = &claims.Items[i]
	}
	return nil
}

// own selects what belongs to the shard.
func (p *pass) own() []client.ListOption {
	return []client.ListOption{client.InNamespace(p.shard.Namespace), client.MatchingLabels(resource.ShardLabels(p.shard.Name))}
}

// ownCached is own for what the Client reads.
func (p *pass) ownCached() []client.ListOption {
	if !p.r.indexed {
		return p.own()
	}
	return append(p.own(), client.MatchingFields{indexShard: p.shard.Name})
}

// ask looks for the leader among the members that have a running pod.
func (p *pass) ask(ctx context.Context) error {
	m := &storage.Map{Cluster: p.shard.Spec.Cluster, Shards: []storage.Shard{{Name: p.shard.Name, Instruments: p.shard.Spec.Instruments}}}
	for _, member := range p.status().Members {
		if pod := p.pods[member.ID]; pod != nil && pod.Status.Phase == corev1.PodRunning {
			m.Shards[0].Members = append(m.Shards[0].Members, storage.Member{ID: member.ID, Address: resource.Address(p.shard, member.ID)})
		}
	}
	if len(m.Shards[0].Members) == 0 {
		return nil
	}
	// One that is not ready may be on a node that does not answer.
	slices.SortStableFunc(m.Shards[0].Members, func(a, b storage.Member) int {
		return cmp.Compare(unready(p.pods[a.ID]), unready(p.pods[b.ID]))
	})
	tls, ok := p.credentials(ctx)
	if !ok {
		return nil
	}
	admin, err := p.r.Dial(m, tls)
	if err != nil {
		return err
	}
	p.admin = admin
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	st, err := admin.Leader(ctx)
	if err != nil {
		return nil // without a leader nothing is done that needs one
	}
	p.raft = viewOf(st)
	return nil
}

// hold adds the finalizer, to the shard as it was read: the answer brings the version
// that a status is stored over, and an older status must not be.
func (p *pass) hold(ctx context.Context) error {
	if slices.Contains(p.shard.Finalizers, Finalizer) {
		return nil
	}
	before := p.shard.DeepCopy()
	p.shard.Finalizers = append(p.shard.Finalizers, Finalizer)
	return p.r.Patch(ctx, p.shard, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// remember stores the status now, because something is about to be done that must
// not be done again otherwise.
func (p *pass) remember(ctx context.Context) error {
	if err := p.r.Status().Update(ctx, p.shard); err != nil {
		return err
	}
	p.before = p.shard.Status.DeepCopy()
	return nil
}

// create creates an object that may be there already.
func (p *pass) create(ctx context.Context, o client.Object) error {
	if err := p.r.Create(ctx, o); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	return nil
}

// delete deletes an object that may be gone already. One of another uid under the
// same name stays.
func (p *pass) delete(ctx context.Context, o client.Object) error {
	uid := o.GetUID()
	return client.IgnoreNotFound(p.r.Delete(ctx, o, client.Preconditions{UID: &uid}))
}
