// Package resource builds the Kubernetes objects of an InstrumentShard. Every
// builder is a pure function of its arguments: the same shard gives the same
// object, byte for byte, so that the operator can tell whether anything is to be
// changed without a look at what the API server has filled in.
//
// A member is one pod and one volume claim of the same name, "<shard>-<n>". Its
// number is never used again, so that its Raft id stands for one data directory.
package resource

import (
	"fmt"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// Labels of everything that belongs to a shard.
const (
	LabelName      = "app.kubernetes.io/name"
	LabelComponent = "app.kubernetes.io/component"
	LabelManagedBy = "app.kubernetes.io/managed-by"
	LabelShard     = "countinghouse.io/shard"
	LabelMember    = "countinghouse.io/member"
	// LabelLeaving is on the pod of a member that has lost its volume or leaves.
	LabelLeaving = "countinghouse.io/leaving"
	// LabelCluster is on the secrets of a cluster's certificates.
	LabelCluster = "countinghouse.io/cluster"
	// LabelAccess is set to AccessAllowed on pods of others, such as the exchange,
	// that may connect to storage nodes.
	LabelAccess   = "countinghouse.io/storage-access"
	AccessAllowed = "true"
)

// AnnotationSpecHash holds the hash of the pod that the shard's spec asks for. A
// pod with another one is replaced by a rollout.
const AnnotationSpecHash = "countinghouse.io/spec-hash"

// AnnotationRecovery holds, on a pod, the token of the recovery from a lost quorum
// that it carries out, and on a volume claim the token of the one that gave its
// member up: such a claim is never used again.
const AnnotationRecovery = "countinghouse.io/recovery"

// Ports of a storage node.
const (
	PortGRPC    = 7100
	PortMetrics = 7101
)

const (
	nameValue      = "countinghouse"
	componentValue = "storage-node"
	managedByValue = "countinghouse-operator"
	userID         = 65532
	dataMount      = "/data"
	dataDir        = dataMount + "/member"
	tlsMount       = "/etc/countinghouse/tls"
	stopGrace      = 20 // seconds in which leadership is handed over
)

// MemberName returns the name of a shard's n-th member, which is its id.
func MemberName(shard string, n int32) string { return fmt.Sprintf("%s-%d", shard, n) }

// MemberNumber returns n of a member's name, and false for the name of anything else.
func MemberNumber(shard, name string) (int32, bool) {
	digits, ok := strings.CutPrefix(name, shard+"-")
	n, err := strconv.ParseInt(digits, 10, 32)
	if !ok || err != nil || n < 0 || MemberName(shard, int32(n)) != name {
		return 0, false
	}
	return int32(n), true
}

// PeersService returns the name of the headless service that gives members their
// addresses.
func PeersService(shard string) string { return shard + "-peers" }

// Address returns the host:port of a member, which stays the same wherever its pod
// runs.
func Address(s *v1.InstrumentShard, member string) string {
	return fmt.Sprintf("%s.%s.%s.svc:%d", member, PeersService(s.Name), s.Namespace, PortGRPC)
}

// ShardLabels select everything of a shard.
func ShardLabels(shard string) map[string]string {
	return map[string]string{LabelName: nameValue, LabelComponent: componentValue, LabelShard: shard}
}

// AllLabels select everything of all shards.
func AllLabels() map[string]string {
	return map[string]string{LabelName: nameValue, LabelComponent: componentValue}
}

// Selector returns ShardLabels as the scale subresource wants them.
func Selector(shard string) string {
	return metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: ShardLabels(shard)})
}

func meta(s *v1.InstrumentShard, name string) metav1.ObjectMeta {
	labels := ShardLabels(s.Name)
	labels[LabelManagedBy] = managedByValue
	return metav1.ObjectMeta{Name: name, Namespace: s.Namespace, Labels: labels}
}

// owned makes an object one that goes with the shard.
func owned(s *v1.InstrumentShard, m metav1.ObjectMeta) metav1.ObjectMeta {
	m.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(s, v1.GroupVersion.WithKind("InstrumentShard"))}
	return m
}
