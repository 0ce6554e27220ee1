package resource

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// Annotations of the secrets of certificates, and of shards.
const (
	// AnnotationRotate, on a shard, has the authority of its cluster replaced whenever
	// its value changes.
	AnnotationRotate = "countinghouse.io/rotate-certificates"
	// AnnotationStep is how far a change of the authority has come, on its secret.
	AnnotationStep = "countinghouse.io/rotation-step"
	// AnnotationToken is which shard's AnnotationRotate has asked for the last change,
	// on the authority's secret; on that of a shard's members, which value was dealt
	// with last.
	AnnotationToken = "countinghouse.io/rotation-token"
	// AnnotationGeneration counts the changes of the authority. On the other secrets it
	// is that of the authority which they were made by.
	AnnotationGeneration = "countinghouse.io/authority-generation"
	// AnnotationUpdated is when a certificate's secret was written, in RFC 3339.
	AnnotationUpdated = "countinghouse.io/updated"
	// AnnotationConfirmed, on the secret of a shard's members, is the generation that
	// all of them said they use.
	AnnotationConfirmed = "countinghouse.io/confirmed-generation"
)

// ComponentCertificates is the value of LabelComponent on secrets of certificates.
const ComponentCertificates = "certificates"

// AuthoritySecret names the secret of a cluster's authority.
func AuthoritySecret(cluster string) string { return cluster + "-ca" }

// RoleSecret names the secret of the certificate of a cluster's exchange, reader,
// operator or trader.
func RoleSecret(cluster, role string) string { return cluster + "-" + role + "-tls" }

// NodeSecret names the secret of the certificate of a shard's members; "" where they
// have none.
func NodeSecret(s *v1.InstrumentShard) string {
	switch s.Spec.TLS.Mode {
	case v1.TLSOff:
		return ""
	case v1.TLSProvided:
		return s.Spec.TLS.SecretName
	}
	return s.Name + "-node-tls"
}

// OperatorSecret names the secret of the certificate that the operator shows to a
// shard's members; "" where they want none.
func OperatorSecret(s *v1.InstrumentShard) string {
	switch s.Spec.TLS.Mode {
	case v1.TLSOff:
		return ""
	case v1.TLSProvided:
		return s.Spec.TLS.OperatorSecretName
	}
	return RoleSecret(s.Spec.Cluster, "operator")
}

// CertificateLabels select the secrets that the operator keeps of certificates.
func CertificateLabels() map[string]string {
	return map[string]string{LabelName: nameValue, LabelComponent: ComponentCertificates, LabelManagedBy: managedByValue}
}

// AuthorityObject returns the secret of a cluster's authority, without data.
func AuthorityObject(s *v1.InstrumentShard) *corev1.Secret {
	return secret(s, AuthoritySecret(s.Spec.Cluster), corev1.SecretTypeOpaque)
}

// CertificateObject returns a secret for a certificate, without data.
func CertificateObject(s *v1.InstrumentShard, name string) *corev1.Secret {
	out := secret(s, name, corev1.SecretTypeTLS)
	if name == NodeSecret(s) {
		out.Labels[LabelShard] = s.Name
		out.ObjectMeta = owned(s, out.ObjectMeta)
	}
	return out
}

func secret(s *v1.InstrumentShard, name string, kind corev1.SecretType) *corev1.Secret {
	out := &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.Namespace, Labels: CertificateLabels(), Annotations: map[string]string{}},
		Type:       kind,
	}
	out.Labels[LabelCluster] = s.Spec.Cluster
	return out
}
