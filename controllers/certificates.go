package controllers

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/certificates"
	"github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/identity"
)

// DefaultPropagation is how long a change of a secret may take until every process
// that has it mounted uses it: twice the kubelet's period and the age of its cache.
const DefaultPropagation = 4 * time.Minute

const (
	defaultCertificateLifetime = 720 * time.Hour
	defaultAuthorityLifetime   = 8760 * time.Hour
)

// roles are the identities, besides the members', for which each cluster has a
// secret.
var roles = []identity.Role{identity.Exchange, identity.Reader, identity.Operator, identity.Trader}

// SecretCache says which secrets a manager's cache needs to hold: those that the
// operator keeps, and no others.
func SecretCache() cache.ByObject {
	return cache.ByObject{Label: labels.SelectorFromSet(resource.CertificateLabels())}
}

// certificates keeps the secrets of a cluster's authority, of its roles and of the
// shard's members.
//
// Each change of the authority has a generation. The other secrets follow, each
// noting which generation it was made by, and none ever goes back to an earlier one,
// however old what a reconciliation has read may be. The next change is made when
// all have followed and their readers have had time to, or have said that they did.
func (p *pass) certificates(ctx context.Context) error {
	switch p.shard.Spec.TLS.Mode {
	case v1.TLSOff:
		p.condition(v1.ConditionCertificatesReady, true, "Off", "the members have no certificates: whoever reaches them may do anything")
		return nil
	case v1.TLSProvided:
		p.condition(v1.ConditionCertificatesReady, true, "Provided", "the members' certificates are kept by somebody else")
		return nil
	}
	state, err := p.authority(ctx)
	if err != nil || state == nil {
		return err
	}
	own, err := p.follow(ctx, state)
	if err != nil || own == nil {
		return err
	}
	return p.advance(ctx, state, own)
}

func (p *pass) policy() certificates.Policy {
	tls := &p.shard.Spec.TLS
	out := certificates.Policy{Authority: tls.AuthorityLifetime.Duration, Certificate: tls.CertificateLifetime.Duration}
	if out.Authority <= 0 {
		out.Authority = defaultAuthorityLifetime
	}
	if out.Certificate <= 0 {
		out.Certificate = defaultCertificateLifetime
	}
	return out
}

func (p *pass) now() time.Time {
	if p.r.Now == nil {
		return time.Now()
	}
	return p.r.Now()
}

func (p *pass) secret(ctx context.Context, name string) (*corev1.Secret, error) {
	out := new(corev1.Secret)
	err := p.r.Get(ctx, types.NamespacedName{Namespace: p.shard.Namespace, Name: name}, out)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return out, err
}

// foreign reports, and notes, that a secret is not one that the operator keeps, and
// must not be written over.
func (p *pass) foreign(s *corev1.Secret) bool {
	is := !labels.SelectorFromSet(resource.CertificateLabels()).Matches(labels.Set(s.Labels))
	if is {
		p.certificatesWait("Waiting", contested(s.Name))
	}
	return is
}

func contested(name string) string {
	return fmt.Sprintf("secret %s is there already and is looked at again; if it is not the operator's, delete it", name)
}

// authority returns the cluster's, which it makes if there is none; nil where that
// is for another reconciliation.
func (p *pass) authority(ctx context.Context) (*certificates.State, error) {
	have, err := p.secret(ctx, resource.AuthoritySecret(p.shard.Spec.Cluster))
	if err != nil {
		return nil, err
	}
	if have == nil {
		return p.found(ctx)
	}
	if p.foreign(have) {
		return nil, nil
	}
	generation, _ := strconv.ParseInt(have.Annotations[resource.AnnotationGeneration], 10, 64) // 0 is refused
	state, err := certificates.ParseState(have.Data, certificates.Step(have.Annotations[resource.AnnotationStep]), generation, have.Annotations[resource.AnnotationToken])
	if err != nil {
		p.certificatesWait("Unreadable", fmt.Sprintf("secret %s can not be read: %v: restore it, or delete it to have another authority introduced", have.Name, err))
		return nil, nil
	}
	p.authoritySecret = have
	return state, nil
}

// found makes a cluster's first authority, or the next one of a cluster that has
// lost the first: whoever trusts that one must not be cut off.
func (p *pass) found(ctx context.Context) (*certificates.State, error) {
	trusted, generation, err := p.orphans(ctx)
	if err != nil {
		return nil, err
	}
	var state *certificates.State
	if generation == 0 {
		state, err = certificates.First(p.shard.Spec.Cluster, p.now(), p.policy())
	} else {
		state, err = certificates.Resume(p.shard.Spec.Cluster, trusted, generation, p.now(), p.policy())
		p.event(corev1.EventTypeWarning, "AuthorityLost", "secret %s is gone: another authority is introduced", resource.AuthoritySecret(p.shard.Spec.Cluster))
	}
	if err != nil {
		return nil, err
	}
	secret := p.stateSecret(state)
	if err := p.r.Create(ctx, secret); apierrors.IsAlreadyExists(err) {
		p.certificatesWait("Waiting", contested(secret.Name))
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	p.authoritySecret = secret
	return state, nil
}

// orphans returns what the secrets of a cluster without an authority trust, and
// their latest generation; 0 if there are none.
func (p *pass) orphans(ctx context.Context) ([]*x509.Certificate, int64, error) {
	all, err := p.clusterSecrets(ctx)
	if err != nil {
		return nil, 0, err
	}
	var trusted []*x509.Certificate
	var latest int64
	for i := range all {
		latest = max(latest, generationOf(&all[i]))
		bundle, err := certificates.ParseBundle(all[i].Data[identity.TrustFile])
		if err != nil {
			continue // nobody can use it
		}
		for _, c := range bundle {
			if !slices.ContainsFunc(trusted, c.Equal) {
				trusted = append(trusted, c)
			}
		}
	}
	return trusted, latest, nil
}

func (p *pass) clusterSecrets(ctx context.Context) ([]corev1.Secret, error) {
	match := client.MatchingLabels(resource.CertificateLabels())
	match[resource.LabelCluster] = p.shard.Spec.Cluster
	var all corev1.SecretList
	err := p.r.List(ctx, &all, client.InNamespace(p.shard.Namespace), match)
	return all.Items, err
}

func generationOf(s *corev1.Secret) int64 {
	n, _ := strconv.ParseInt(s.Annotations[resource.AnnotationGeneration], 10, 64) // 0 is that of none
	return n
}

func (p *pass) stateSecret(state *certificates.State) *corev1.Secret {
	out := resource.AuthorityObject(p.shard)
	out.Annotations[resource.AnnotationStep] = string(state.Step)
	out.Annotations[resource.AnnotationGeneration] = strconv.FormatInt(state.Generation, 10)
	if state.Token != "" {
		out.Annotations[resource.AnnotationToken] = state.Token
	}
	out.Data = state.Data()
	return out
}

// follow gives each party its certificate and the bundle, and returns the secret of
// the shard's members; nil where that is for another reconciliation.
func (p *pass) follow(ctx context.Context, state *certificates.State) (*corev1.Secret, error) {
	cluster := p.shard.Spec.Cluster
	for _, role := range roles {
		name := resource.RoleSecret(cluster, string(role))
		if _, err := p.keep(ctx, state, name, identity.Identity{Cluster: cluster, Role: role}); err != nil {
			return nil, err
		}
	}
	return p.keep(ctx, state, resource.NodeSecret(p.shard), identity.Identity{Cluster: cluster, Role: identity.Node, Shard: p.shard.Name})
}

// keep makes a secret what its party needs now, and returns it.
func (p *pass) keep(ctx context.Context, state *certificates.State, name string, id identity.Identity) (*corev1.Secret, error) {
	have, err := p.secret(ctx, name)
	if err != nil {
		return nil, err
	}
	want := resource.CertificateObject(p.shard, name)
	fresh := have == nil
	if !fresh && p.foreign(have) {
		return nil, nil
	}
	if fresh {
		have = new(corev1.Secret)
		if token := p.token(); token != "" && name == resource.NodeSecret(p.shard) {
			want.Annotations[resource.AnnotationToken] = token // nothing was made before it
		}
	}
	if generationOf(have) > state.Generation {
		p.certificatesWait("Waiting", "the authority's secret is looked at again")
		return nil, nil
	}
	if want.Data, err = state.Leaf(id, have.Data, p.now(), p.policy()); err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", id, err)
	}
	if !fresh && generationOf(have) == state.Generation && maps.EqualFunc(have.Data, want.Data, bytes.Equal) {
		return have, nil
	}
	maps.Copy(want.Annotations, have.Annotations)
	want.Annotations[resource.AnnotationGeneration] = strconv.FormatInt(state.Generation, 10)
	want.Annotations[resource.AnnotationUpdated] = p.now().UTC().Format(time.RFC3339)
	if fresh {
		return p.unlessOthers(want, p.r.Create(ctx, want))
	}
	want.ResourceVersion = have.ResourceVersion
	return p.unlessOthers(want, p.r.Update(ctx, want))
}

// unlessOthers returns the secret that was written, or nil where somebody else has
// written it at the same time.
func (p *pass) unlessOthers(s *corev1.Secret, err error) (*corev1.Secret, error) {
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		p.certificatesWait("Waiting", contested(s.Name))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// token is what the shard's annotation asks for, marked with its name.
func (p *pass) token() string {
	if v := p.shard.Annotations[resource.AnnotationRotate]; v != "" {
		return p.shard.Name + "/" + v
	}
	return ""
}

// advance begins a change of the authority that is due, or takes its next step once
// everyone has followed the one before.
func (p *pass) advance(ctx context.Context, state *certificates.State, own *corev1.Secret) error {
	asked := p.token()
	if asked != "" && asked == state.Token && own.Annotations[resource.AnnotationToken] != asked {
		return p.annotate(ctx, own, resource.AnnotationToken, asked)
	}
	if state.Step == certificates.Steady {
		pending := asked != "" && own.Annotations[resource.AnnotationToken] != asked
		if !pending && !state.Due(p.now()) {
			p.condition(v1.ConditionCertificatesReady, true, "Issued", "the operator keeps the certificates")
			return nil
		}
		if !pending {
			asked = ""
		}
		next, err := state.Begin(p.shard.Spec.Cluster, asked, p.now(), p.policy())
		if err != nil {
			return err
		}
		return p.replace(ctx, next)
	}
	if confirmed, err := p.confirm(ctx, state, own); !confirmed || err != nil {
		return err
	}
	why, err := p.behind(ctx, state)
	if err != nil {
		return err
	}
	if why != "" {
		p.certificatesWait(string(state.Step), why)
		return nil
	}
	return p.replace(ctx, state.Proceed())
}

// replace stores the authority's next state.
func (p *pass) replace(ctx context.Context, next *certificates.State) error {
	want := p.stateSecret(next)
	want.ResourceVersion = p.authoritySecret.ResourceVersion
	p.certificatesWait(string(next.Step), "the authority has changed: the certificates follow")
	if written, err := p.unlessOthers(want, p.r.Update(ctx, want)); written == nil || err != nil {
		return err
	}
	p.event(corev1.EventTypeNormal, "Authority"+string(next.Step), "the authority of cluster %s: %s", p.shard.Spec.Cluster, next.Step)
	return nil
}

func (p *pass) annotate(ctx context.Context, s *corev1.Secret, key, value string) error {
	want := s.DeepCopy()
	want.Annotations[key] = value
	p.certificatesWait("Waiting", fmt.Sprintf("secret %s is looked at again", s.Name))
	_, err := p.unlessOthers(want, p.r.Update(ctx, want))
	return err
}

// confirm notes that all members of the shard use what the present generation has
// made, once they say so. It reports whether that was noted before.
func (p *pass) confirm(ctx context.Context, state *certificates.State, own *corev1.Secret) (bool, error) {
	generation := strconv.FormatInt(state.Generation, 10)
	if own.Annotations[resource.AnnotationConfirmed] == generation {
		return true, nil
	}
	if why := p.unconfirmed(ctx, state); why != "" {
		p.certificatesWait(string(state.Step), why)
		return false, nil
	}
	return false, p.annotate(ctx, own, resource.AnnotationConfirmed, generation)
}

// unconfirmed says which member does not use the present generation's certificates.
func (p *pass) unconfirmed(ctx context.Context, state *certificates.State) string {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	want := state.Fingerprints()
	for _, m := range p.status().Members {
		if m.Role == v1.RoleLost || m.Role == v1.RoleLeaving {
			continue
		}
		if pod := p.pods[m.ID]; p.admin == nil || pod == nil || pod.Status.Phase != corev1.PodRunning {
			return fmt.Sprintf("member %s has to run, to take the certificates of step %s", m.ID, state.Step)
		}
		st, err := p.admin.Status(ctx, m.ID)
		if err != nil {
			return fmt.Sprintf("member %s does not say which certificates it uses", m.ID)
		}
		if !slices.Equal(st.TrustedAuthorities, want) || state.Signing != nil && st.CertificateIssuer != state.Signing.Fingerprint() {
			return fmt.Sprintf("member %s takes the certificates of step %s", m.ID, state.Step)
		}
	}
	return ""
}

// behind says who may not have followed the present generation yet.
func (p *pass) behind(ctx context.Context, state *certificates.State) (string, error) {
	all, err := p.clusterSecrets(ctx)
	if err != nil {
		return "", err
	}
	byName := make(map[string]*corev1.Secret, len(all))
	for i := range all {
		byName[all[i].Name] = &all[i]
	}
	names := make([]string, 0, len(roles))
	for _, role := range roles {
		names = append(names, resource.RoleSecret(p.shard.Spec.Cluster, string(role)))
	}
	var shards v1.InstrumentShardList
	if err := p.r.List(ctx, &shards, client.InNamespace(p.shard.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return "", err
	}
	for i := range shards.Items {
		s := &shards.Items[i]
		if !inManaged(s, p.shard.Spec.Cluster) {
			continue
		}
		name := resource.NodeSecret(s)
		if names = append(names, name); byName[name] == nil || byName[name].Annotations[resource.AnnotationConfirmed] != strconv.FormatInt(state.Generation, 10) {
			return fmt.Sprintf("the members of shard %s take the certificates of step %s", s.Name, state.Step), nil
		}
	}
	for _, name := range names {
		if why := p.tooFresh(byName[name], name, state); why != "" {
			return why, nil
		}
	}
	return "", nil
}

// inManaged reports whether a shard has certificates of the cluster's authority.
func inManaged(s *v1.InstrumentShard, cluster string) bool {
	return s.Spec.Cluster == cluster && s.DeletionTimestamp.IsZero() && managed(s)
}

func managed(s *v1.InstrumentShard) bool {
	return s.Spec.TLS.Mode != v1.TLSOff && s.Spec.TLS.Mode != v1.TLSProvided
}

// tooFresh says why those who have a secret mounted may not use it yet.
func (p *pass) tooFresh(s *corev1.Secret, name string, state *certificates.State) string {
	if s == nil || generationOf(s) != state.Generation {
		return fmt.Sprintf("secret %s is written for step %s", name, state.Step)
	}
	wait := p.r.Propagation
	if wait <= 0 {
		wait = DefaultPropagation
	}
	updated, err := time.Parse(time.RFC3339, s.Annotations[resource.AnnotationUpdated])
	if err != nil || p.now().Before(updated.Add(wait)) {
		return fmt.Sprintf("whoever has a secret mounted takes the certificates of step %s", state.Step)
	}
	return ""
}

// certificatesWait notes what a change of certificates waits for. What was ready
// stays so while it waits for another reconciliation.
func (p *pass) certificatesWait(reason, message string) {
	p.later("certificates: %s", message)
	changing := reason == string(certificates.Introducing) || reason == string(certificates.Retiring)
	if reason != "Waiting" || !meta.IsStatusConditionTrue(p.status().Conditions, v1.ConditionCertificatesReady) {
		p.condition(v1.ConditionCertificatesReady, changing, reason, message)
	}
}

// credentials returns what the operator shows to the shard's members, nil where they
// want nothing, and false while it has nothing.
func (p *pass) credentials(ctx context.Context) (*identity.Source, bool) {
	name := resource.OperatorSecret(p.shard)
	if name == "" {
		return nil, true
	}
	reader := client.Reader(p.r.Client)
	if p.shard.Spec.TLS.Mode == v1.TLSProvided && p.r.Uncached != nil {
		reader = p.r.Uncached // the cache holds the operator's own only
	}
	s := new(corev1.Secret)
	if err := reader.Get(ctx, types.NamespacedName{Namespace: p.shard.Namespace, Name: name}, s); err != nil {
		p.later("the operator has no certificate: secret %s: %v", name, err)
		return nil, false
	}
	want := identity.Identity{Cluster: p.shard.Spec.Cluster, Role: identity.Operator}
	source, err := identity.FromPEM(s.Data[identity.CertFile], s.Data[identity.KeyFile], s.Data[identity.TrustFile],
		identity.Options{Accept: identity.Expect(want), Now: p.r.Now})
	if err != nil {
		p.later("the operator's certificate in secret %s can not be used: %v", name, err)
		return nil, false
	}
	return source, true
}

// dropCertificates removes a cluster's secrets with its last shard.
func (p *pass) dropCertificates(ctx context.Context) error {
	if !managed(p.shard) {
		return nil
	}
	var shards v1.InstrumentShardList
	if err := p.r.List(ctx, &shards, client.InNamespace(p.shard.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	for i := range shards.Items {
		if inManaged(&shards.Items[i], p.shard.Spec.Cluster) {
			return nil
		}
	}
	all, err := p.clusterSecrets(ctx)
	if err != nil {
		return err
	}
	for i := range all {
		if err := p.delete(ctx, &all[i]); err != nil {
			return err
		}
	}
	return nil
}
