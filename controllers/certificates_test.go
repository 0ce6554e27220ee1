package controllers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/certificates"
	built "github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// certificateWorld is what processes have of the secrets, and when.
type certificateWorld struct {
	clock   time.Time
	mounted map[string]map[string][]byte // by pod, or by role; the operator reads its own
	moved   bool                         // the last look has changed something
	known   map[string]*x509.Certificate // by PEM
	signed  map[string][]*x509.Certificate
}

func newCertificateWorld() certificateWorld {
	return certificateWorld{
		clock: time.Date(2027, 3, 1, 9, 0, 0, 0, time.UTC), mounted: map[string]map[string][]byte{},
		known: map[string]*x509.Certificate{}, signed: map[string][]*x509.Certificate{},
	}
}

func (c *certificateWorld) now() time.Time { return c.clock }

// pass lets time pass.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	w.certs.clock = w.certs.clock.Add(d)
	w.converge()
}

// waits lets as much time pass as a number of changes of secrets may need.
func (w *world) waits(n int) {
	w.t.Helper()
	for range n {
		w.pass(DefaultPropagation)
	}
}

// rotate asks for another authority, and waits until it is the only one.
func (w *world) rotate(token string) {
	w.t.Helper()
	w.annotate(built.AnnotationRotate, token)
	w.waits(3)
}

func (w *world) annotate(key, value string) {
	w.t.Helper()
	s := w.shard()
	s.Annotations = map[string]string{key: value}
	if err := w.client.Update(context.Background(), s); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) secret(name string) *corev1.Secret {
	s := new(corev1.Secret)
	err := w.client.Get(context.Background(), types.NamespacedName{Namespace: w.name.Namespace, Name: name}, s)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) loseSecret(name string) {
	w.t.Helper()
	if err := w.client.Delete(context.Background(), w.secret(name)); err != nil {
		w.t.Fatal(err)
	}
}

// mount is the kubelet's: a pod has its secret when it starts. From then on one pod
// at a time gets what has changed, and processes elsewhere as late as may be.
func (w *world) mount() {
	c, had := &w.certs, w.certs.mounted
	c.mounted, c.moved = map[string]map[string][]byte{}, false
	var pods corev1.PodList
	if err := w.list(&pods); err != nil {
		w.t.Fatal(err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Status.Phase != corev1.PodRunning || len(pod.Spec.Volumes) < 2 {
			continue
		}
		now := w.secret(pod.Spec.Volumes[1].Secret.SecretName)
		if now == nil {
			w.violation("pod %s runs without its secret", pod.Name)
			continue
		}
		c.take(pod.Name, had[pod.Name], now, !c.moved)
	}
	for _, role := range []identity.Role{identity.Exchange, identity.Reader, identity.Trader} {
		if now := w.secret(built.RoleSecret("demo", string(role))); now != nil {
			updated, err := time.Parse(time.RFC3339, now.Annotations[built.AnnotationUpdated])
			if err != nil {
				w.t.Fatal(err)
			}
			c.take(string(role), had[string(role)], now, !c.clock.Before(updated.Add(DefaultPropagation-time.Second)))
		}
	}
}

// take gives a process what a secret holds, at its start or if it is time.
func (c *certificateWorld) take(process string, had map[string][]byte, now *corev1.Secret, due bool) {
	c.mounted[process] = had
	if had == nil || due && !maps.EqualFunc(had, now.Data, bytes.Equal) {
		c.mounted[process], c.moved = now.Data, true
	}
}

// everyoneTalks notices whoever would be refused by anyone.
func (w *world) everyoneTalks() {
	parties := maps.Clone(w.certs.mounted)
	if s := w.secret(built.RoleSecret("demo", "operator")); s != nil {
		parties["operator"] = s.Data
	}
	for _, a := range slices.Sorted(maps.Keys(parties)) {
		for _, b := range slices.Sorted(maps.Keys(parties)) {
			if why := w.certs.refuses(parties[a], parties[b]); why != "" {
				w.violation("%s is refused by %s: %s", a, b, why)
			}
		}
	}
}

// refuses says why who has b does not take who has a.
func (c *certificateWorld) refuses(a, b map[string][]byte) string {
	leaf := c.parse(a)
	if leaf == nil {
		return "no certificate"
	}
	if c.clock.Before(leaf.NotBefore) || c.clock.After(leaf.NotAfter) {
		return fmt.Sprintf("valid from %s to %s, it is %s", leaf.NotBefore, leaf.NotAfter, c.clock)
	}
	key := string(a[identity.CertFile]) + string(b[identity.TrustFile])
	by, ok := c.signed[key]
	if !ok {
		bundle, _ := certificates.ParseBundle(b[identity.TrustFile]) // none trusts nobody
		for _, ca := range bundle {
			if leaf.CheckSignatureFrom(ca) == nil {
				by = append(by, ca)
			}
		}
		c.signed[key] = by
	}
	if !slices.ContainsFunc(by, func(ca *x509.Certificate) bool { return !c.clock.After(ca.NotAfter) }) {
		return "its authority is not trusted"
	}
	return ""
}

func (c *certificateWorld) parse(data map[string][]byte) *x509.Certificate {
	key := string(data[identity.CertFile])
	if leaf, ok := c.known[key]; ok {
		return leaf
	}
	both, err := tls.X509KeyPair(data[identity.CertFile], data[identity.KeyFile])
	if err != nil {
		return nil
	}
	c.known[key] = both.Leaf
	return both.Leaf
}

// mayDial fails unless the operator comes with its certificate.
func (w *world) mayDial(source *identity.Source) error {
	if w.tls == v1.TLSOff {
		return nil
	}
	if want := (identity.Identity{Cluster: "demo", Role: identity.Operator}); source == nil || source.Self() != want {
		return refusal.ErrUnavailable
	}
	return nil
}

// Status implements Admin.
func (w *world) Status(_ context.Context, id string) (*storagepb.StatusResponse, error) {
	data := w.certs.mounted[id]
	if data == nil {
		return nil, refusal.ErrUnavailable
	}
	bundle, err := certificates.ParseBundle(data[identity.TrustFile])
	if err != nil {
		return nil, err
	}
	st := new(storagepb.StatusResponse)
	for _, ca := range bundle {
		st.TrustedAuthorities = append(st.TrustedAuthorities, identity.Fingerprint(ca))
		if w.certs.parse(data).CheckSignatureFrom(ca) == nil {
			st.CertificateIssuer = identity.Fingerprint(ca)
		}
	}
	slices.Sort(st.TrustedAuthorities)
	return st, nil
}

// secrets describes the secrets there are.
func (w *world) secrets() string {
	var all corev1.SecretList
	if err := w.list(&all); err != nil {
		w.t.Fatal(err)
	}
	var b strings.Builder
	for _, s := range all.Items {
		bundle, _ := certificates.ParseBundle(s.Data[identity.TrustFile])
		fmt.Fprintf(&b, "secret %s generation %s step %q trusts %d\n", s.Name, s.Annotations[built.AnnotationGeneration], s.Annotations[built.AnnotationStep], len(bundle))
	}
	return b.String()
}

// expectCertificates is what must be true of the secrets once all is quiet.
func (w *world) expectCertificates() {
	w.t.Helper()
	if w.tls == v1.TLSOff {
		return
	}
	ca := w.secret(built.AuthoritySecret("demo"))
	if ca == nil || ca.Annotations[built.AnnotationStep] != string(certificates.Steady) {
		w.t.Errorf("the authority is not steady:\n%s", w.secrets())
		return
	}
	for _, name := range []string{"demo-exchange-tls", "demo-reader-tls", "demo-operator-tls", "demo-trader-tls", "futures-node-tls"} {
		s := w.secret(name)
		if s == nil || s.Annotations[built.AnnotationGeneration] != ca.Annotations[built.AnnotationGeneration] || !bytes.Equal(s.Data[identity.TrustFile], ca.Data[identity.TrustFile]) {
			w.t.Errorf("secret %s has not followed:\n%s", name, w.secrets())
		}
	}
}

// The authority is replaced twice, step by step, with nobody refused on the way and
// no pod made anew.
func TestAuthorityIsReplacedWithoutRestarts(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	pods := w.podUIDs()
	before := w.secret(built.AuthoritySecret("demo"))
	var steps []string
	for range 2 {
		w.annotate(built.AnnotationRotate, fmt.Sprint("token-", len(steps)))
		for range 3 {
			w.pass(DefaultPropagation)
			steps = append(steps, w.secret(built.AuthoritySecret("demo")).Annotations[built.AnnotationStep])
		}
	}
	w.expect()
	after := w.secret(built.AuthoritySecret("demo"))
	if bytes.Equal(before.Data[identity.TrustFile], after.Data[identity.TrustFile]) || after.Annotations[built.AnnotationGeneration] != "7" {
		t.Errorf("steps %v:\n%s", steps, w.secrets())
	}
	if got := w.podUIDs(); !maps.Equal(got, pods) {
		t.Errorf("pods were %v and are %v", pods, got)
	}
	t.Logf("steps %v", steps)
}

func (w *world) podUIDs() map[string]types.UID {
	var pods corev1.PodList
	if err := w.list(&pods); err != nil {
		w.t.Fatal(err)
	}
	out := map[string]types.UID{}
	for _, p := range pods.Items {
		out[p.Name] = p.UID
	}
	return out
}

// Certificates are renewed, and their authority is replaced, as they grow old, with
// nobody refused in between.
func TestCertificatesGrowOld(t *testing.T) {
	w := newWorld(t)
	w.createShard(1)
	w.spec(func(s *v1.InstrumentShardSpec) {
		s.TLS.CertificateLifetime.Duration, s.TLS.AuthorityLifetime.Duration = time.Hour, 4*time.Hour
	})
	w.converge()
	seen := map[string]bool{}
	for range 36 {
		w.pass(10 * time.Minute)
		seen[string(w.secret("demo-reader-tls").Data[identity.CertFile])] = true
	}
	w.waits(3)
	w.expect()
	if s := w.secret("demo-ca"); s.Annotations[built.AnnotationGeneration] != "7" || len(seen) < 8 {
		t.Errorf("%d certificates in six hours:\n%s", len(seen), w.secrets())
	}
	t.Logf("%d certificates of a reader in six hours", len(seen))
}

// A pause does not let certificates expire.
func TestPausedShardKeepsItsCertificates(t *testing.T) {
	w := newWorld(t)
	w.createShard(1)
	w.converge()
	w.spec(func(s *v1.InstrumentShardSpec) { s.Paused = true })
	before := w.secret("futures-node-tls").Data[identity.CertFile]
	w.certs.clock = w.certs.clock.Add(defaultCertificateLifetime * 3 / 4)
	w.reconcileOnce()
	if bytes.Equal(w.secret("futures-node-tls").Data[identity.CertFile], before) {
		t.Error("the certificate was not renewed")
	}
}

// While a member has not taken what has changed, nothing goes on, however long that
// takes.
func TestRotationWaitsForEveryMember(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	lagging := w.certs.mounted["futures-2"]
	w.annotate(built.AnnotationRotate, "now")
	for range 5 {
		w.certs.clock = w.certs.clock.Add(time.Hour)
		w.reconcileOnce()
		w.kubelet()
		w.certs.mounted["futures-2"] = lagging
		w.everyoneTalks()
	}
	if s := w.secret(built.AuthoritySecret("demo")); s.Annotations[built.AnnotationStep] != string(certificates.Introducing) {
		t.Errorf("it went on to %s", s.Annotations[built.AnnotationStep])
	}
	if c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionCertificatesReady); c == nil || !strings.Contains(c.Message, "futures-2") {
		t.Errorf("the condition does not name the member: %+v", c)
	}
	w.waits(3)
	w.expect()
}

func (w *world) reconcileOnce() {
	w.t.Helper()
	if _, err := w.reconciler().Reconcile(context.Background(), ctrl.Request{NamespacedName: w.name}); err != nil {
		w.t.Fatal(err)
	}
}

// What is not the operator's is not written over, and named.
func TestForeignSecretsAreLeftAlone(t *testing.T) {
	for _, name := range []string{"demo-ca", "demo-exchange-tls", "futures-node-tls"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.name.Namespace}, Data: map[string][]byte{"password": []byte("x")}}
			if err := w.client.Create(context.Background(), foreign); err != nil {
				t.Fatal(err)
			}
			w.createShard(1)
			w.reconcileOnce()
			if s := w.secret(name); string(s.Data["password"]) != "x" || len(s.Data) != 1 {
				t.Errorf("it holds %v", slices.Sorted(maps.Keys(s.Data)))
			}
			c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionCertificatesReady)
			if name != "demo-exchange-tls" && (c == nil || c.Status != "False" || !strings.Contains(c.Message, name)) {
				t.Errorf("%+v", c)
			}
			if !strings.Contains(meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionProgressing).Message, name) {
				t.Error("what is waited for does not name the secret")
			}
			if err := w.client.Delete(context.Background(), foreign); err != nil {
				t.Fatal(err)
			}
			w.converge()
			w.expect()
		})
	}
}

// A secret of the authority that can not be read is nobody's to replace.
func TestDamagedAuthorityIsNamed(t *testing.T) {
	w := newWorld(t)
	w.createShard(3)
	w.converge()
	s := w.secret("demo-ca")
	s.Data[identity.KeyFile] = []byte("x")
	if err := w.client.Update(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	w.converge()
	c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionCertificatesReady)
	if c == nil || c.Status != "False" || c.Reason != "Unreadable" || !strings.Contains(c.Message, "demo-ca") {
		t.Errorf("%+v", c)
	}
	w.loseSecret("demo-ca")
	w.waits(3)
	w.expect()
}

// stale answers reads of secrets with what there was when it was made.
type stale struct {
	client.Client
	secrets map[string]*corev1.Secret
}

func (w *world) stale() *stale {
	var all corev1.SecretList
	if err := w.list(&all); err != nil {
		w.t.Fatal(err)
	}
	s := &stale{Client: w.client, secrets: map[string]*corev1.Secret{}}
	for i := range all.Items {
		s.secrets[all.Items[i].Name] = &all.Items[i]
	}
	return s
}

// Get implements client.Client.
func (s *stale) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	out, ok := o.(*corev1.Secret)
	if !ok {
		return s.Client.Get(ctx, key, o, opts...)
	}
	have := s.secrets[key.Name]
	if have == nil {
		return apierrors.NewNotFound(corev1.Resource("secrets"), key.Name)
	}
	have.DeepCopyInto(out)
	return nil
}

// A reconciliation that sees secrets as they were some changes ago changes none of
// them back.
func TestOldReadsChangeNothingBack(t *testing.T) {
	w := newWorld(t)
	empty := w.stale()
	w.createShard(3)
	w.converge()
	views := []*stale{empty, w.stale()}
	w.annotate(built.AnnotationRotate, "now")
	for range 3 {
		w.converge()
		for _, view := range views {
			before := w.secrets()
			r := w.reconciler()
			r.Client = view
			if _, err := r.Reconcile(context.Background(), ctrl.Request{NamespacedName: w.name}); err != nil && !apierrors.IsConflict(err) {
				t.Fatal(err)
			}
			if after := w.secrets(); after != before {
				t.Errorf("changed from\n%sto\n%s", before, after)
			}
			w.everyoneTalks()
		}
		views = append(views, w.stale())
		w.pass(DefaultPropagation)
	}
	w.expect()
	// Of the authority it has seen the latest, of the others what was before.
	mixed := views[1]
	mixed.secrets["demo-ca"] = w.secret("demo-ca")
	before := w.secrets()
	r := w.reconciler()
	r.Client = mixed
	if _, err := r.Reconcile(context.Background(), ctrl.Request{NamespacedName: w.name}); err != nil {
		t.Fatal(err)
	}
	if after := w.secrets(); after != before {
		t.Errorf("changed from\n%sto\n%s", before, after)
	}
	w.converge()
	w.expect()
}

// Two shards of a cluster have one authority; it is changed once all members of both
// have followed, and goes with the last of them.
func TestShardsOfOneClusterShareAnAuthority(t *testing.T) {
	w := newWorld(t)
	w.createShard(1)
	w.converge()
	other := w.shard()
	other.ObjectMeta = metav1.ObjectMeta{Name: "options", Namespace: w.name.Namespace, Generation: 1}
	other.Status, other.Spec.Instruments = v1.InstrumentShardStatus{}, []string{"IO2501"}
	if err := w.client.Create(context.Background(), other); err != nil {
		t.Fatal(err)
	}
	second := ctrl.Request{NamespacedName: client.ObjectKeyFromObject(other)}
	reconcileSecond := func() {
		t.Helper()
		if _, err := w.reconciler().Reconcile(context.Background(), second); err != nil {
			t.Fatal(err)
		}
	}
	w.annotate(built.AnnotationRotate, "now")
	w.waits(3)
	if s := w.secret("demo-ca"); s.Annotations[built.AnnotationStep] != string(certificates.Introducing) {
		t.Errorf("step %s, though the other shard has not followed", s.Annotations[built.AnnotationStep])
	}
	reconcileSecond()
	if !bytes.Equal(w.secret("options-node-tls").Data[identity.TrustFile], w.secret("demo-ca").Data[identity.TrustFile]) {
		t.Error("the other shard's members trust others")
	}
	for _, s := range []ctrl.Request{second, {NamespacedName: w.name}} {
		shard := new(v1.InstrumentShard)
		if err := w.client.Get(context.Background(), s.NamespacedName, shard); err != nil {
			t.Fatal(err)
		}
		if err := w.client.Delete(context.Background(), shard); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if _, err := w.reconciler().Reconcile(context.Background(), s); err != nil {
				t.Fatal(err)
			}
		}
		if left := w.secret("demo-ca") != nil; left != (s == second) {
			t.Errorf("after %s was deleted, the authority is there: %t", s.Name, left)
		}
	}
}

// Certificates that somebody else keeps are not touched, and without any there are
// no secrets.
func TestCertificatesOfOthers(t *testing.T) {
	for _, mode := range []v1.TLSMode{v1.TLSProvided, v1.TLSOff} {
		w := newWorld(t)
		w.createShard(1)
		w.spec(func(s *v1.InstrumentShardSpec) {
			if s.TLS.Mode = mode; mode == v1.TLSProvided {
				s.TLS.SecretName, s.TLS.OperatorSecretName = "mine", "operators"
			}
		})
		for range 3 {
			w.reconcileOnce()
		}
		if got := w.secrets(); got != "" {
			t.Errorf("%s: %s", mode, got)
		}
		c := meta.FindStatusCondition(w.shard().Status.Conditions, v1.ConditionCertificatesReady)
		if c == nil || c.Status != "True" || c.Reason != string(mode) {
			t.Errorf("%s: %+v", mode, c)
		}
	}
}

// What the operator shows to members that somebody else provides for comes from the
// secret that the spec names, read past the cache.
func TestOperatorsProvidedCertificate(t *testing.T) {
	w := newWorld(t)
	w.createShard(1)
	w.spec(func(s *v1.InstrumentShardSpec) {
		s.TLS = v1.TLSSpec{Mode: v1.TLSProvided, SecretName: "mine", OperatorSecretName: "operators"}
	})
	r := w.reconciler()
	r.Client, r.Uncached = w.stale(), w.client
	p := &pass{r: r, shard: w.shard()}
	if _, ok := p.credentials(t.Context()); ok || !strings.Contains(p.next, "operators") {
		t.Errorf("without the secret: %q", p.next)
	}
	state, err := certificates.First("demo", w.certs.clock, p.policy())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		role identity.Role
		ok   bool
	}{{identity.Reader, false}, {identity.Operator, true}} {
		id := identity.Identity{Cluster: "demo", Role: c.role}
		data, err := state.Leaf(id, nil, w.certs.clock, p.policy())
		if err != nil {
			t.Fatal(err)
		}
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "operators", Namespace: w.name.Namespace}, Data: data}
		if c.ok {
			s.ResourceVersion = w.secret("operators").ResourceVersion
			err = w.client.Update(t.Context(), s)
		} else {
			err = w.client.Create(t.Context(), s)
		}
		if err != nil {
			t.Fatal(err)
		}
		if source, ok := p.credentials(t.Context()); ok != c.ok || ok && source.Self() != id {
			t.Errorf("%s: %t", c.role, ok)
		}
	}
}
