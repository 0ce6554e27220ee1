package resource

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// Peers returns the headless service that gives every member its address, also
// while it is not ready: a member must be reached to become ready.
func Peers(s *v1.InstrumentShard) *corev1.Service {
	svc := service(s, PeersService(s.Name))
	svc.Spec.ClusterIP = corev1.ClusterIPNone
	svc.Spec.PublishNotReadyAddresses = true
	return svc
}

// Service returns the service under which clients find members that are ready.
// Each names the leader to a client that it can not serve itself.
func Service(s *v1.InstrumentShard) *corev1.Service { return service(s, s.Name) }

func service(s *v1.InstrumentShard, name string) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: owned(s, meta(s, name)),
		Spec: corev1.ServiceSpec{
			Type:     corev1.ServiceTypeClusterIP,
			Selector: ShardLabels(s.Name),
			Ports: []corev1.ServicePort{
				{Name: "grpc", Port: PortGRPC, TargetPort: intstr.FromString("grpc"), Protocol: corev1.ProtocolTCP},
				{Name: "metrics", Port: PortMetrics, TargetPort: intstr.FromString("metrics"), Protocol: corev1.ProtocolTCP},
			},
		},
	}
}

// DisruptionBudget keeps drains from taking more members away than the shard can
// do without: of the pods, a quorum of the voters has to stay, and as many as there are
// others beside the voters, for a budget can not tell which pod has a vote. It states
// how many stay, and not how many may go: the latter would be taken from the replicas
// that the spec asks for, of which there may be more or fewer.
func DisruptionBudget(s *v1.InstrumentShard, voters, others int32) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
		ObjectMeta: owned(s, meta(s, s.Name)),
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: port(Quorum(voters) + others),
			Selector:     &metav1.LabelSelector{MatchLabels: ShardLabels(s.Name)},
			// A member that is not ready may go while enough others are; not when none is ready, as in an election.
			UnhealthyPodEvictionPolicy: ptr(policyv1.IfHealthyBudget),
		},
	}
}

// NetworkPolicy lets members reach each other, and lets pods with LabelAccess of
// the same namespace, and the operator, reach them. Metrics may be read from anywhere.
func NetworkPolicy(s *v1.InstrumentShard, operatorNamespace string) *networkingv1.NetworkPolicy {
	tcp := corev1.ProtocolTCP
	from := func(labels map[string]string) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: labels}}
	}
	operator := from(map[string]string{LabelName: nameValue, LabelComponent: "operator"})
	operator.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: operatorNamespace}}
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: owned(s, meta(s, s.Name)),
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: ShardLabels(s.Name)},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{
				{
					From:  []networkingv1.NetworkPolicyPeer{from(ShardLabels(s.Name)), from(map[string]string{LabelAccess: AccessAllowed}), operator},
					Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: port(PortGRPC)}},
				},
				{Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: port(PortMetrics)}}},
			},
		},
	}
}
