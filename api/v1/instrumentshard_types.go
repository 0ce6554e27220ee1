package v1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// InstrumentShard is a Raft group of storage nodes that keeps the records of the
// instruments it owns.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=ishard,categories=all
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.replicas,selectorpath=.status.selector
// +kubebuilder:printcolumn:name="Healthy",type=string,JSONPath=`.status.conditions[?(@.type=="Available")].status`
// +kubebuilder:printcolumn:name="Leader",type=string,JSONPath=`.status.leader`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.readyReplicas`
// +kubebuilder:printcolumn:name="Replicas",type=integer,JSONPath=`.spec.replicas`
// +kubebuilder:printcolumn:name="Instruments",type=string,JSONPath=`.status.instrumentSummary`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Available")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name: use up to 40 lower-case letters, digits and '-', beginning with a letter: members are named after it"
type InstrumentShard struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:validation:Required
	Spec   InstrumentShardSpec   `json:"spec"`
	Status InstrumentShardStatus `json:"status,omitempty"`
}

// InstrumentShardList is a list of InstrumentShards.
//
// +kubebuilder:object:root=true
type InstrumentShardList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []InstrumentShard `json:"items"`
}

// InstrumentShardSpec is what a shard shall be.
type InstrumentShardSpec struct {
	// Cluster names the exchange whose records the shard keeps. Shards, exchange and
	// readers of one cluster refuse those of another. It can not be changed.
	//
	// +kubebuilder:default=countinghouse
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the cluster can not be changed: the data belongs to it; create another shard"
	Cluster string `json:"cluster,omitempty"`

	// Instruments that the shard owns, such as IF2501; "__ACCOUNT__" is the stream of
	// the accounts. Where two shards of a cluster name the same one, the one that
	// has it keeps it; of two that have it not, the older gets it.
	//
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=10000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=16
	// +kubebuilder:validation:items:Pattern=`^[!-~]+$`
	Instruments []string `json:"instruments"`

	// Replicas is the number of members: 1, 3, 5 or 7. It is raised and lowered by one
	// member at a time.
	//
	// +kubebuilder:default=3
	// +kubebuilder:validation:Enum=1;3;5;7
	Replicas int32 `json:"replicas,omitempty"`

	// Image of the storage node; the operator's default when empty.
	//
	// +kubebuilder:validation:MaxLength=512
	Image string `json:"image,omitempty"`

	// ImagePullPolicy of the storage node.
	//
	// +kubebuilder:validation:Enum=Always;IfNotPresent;Never
	// +kubebuilder:default=IfNotPresent
	ImagePullPolicy corev1.PullPolicy `json:"imagePullPolicy,omitempty"`

	// ImagePullSecrets are given to the members' pods.
	//
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	ImagePullSecrets []corev1.LocalObjectReference `json:"imagePullSecrets,omitempty"`

	// Storage says where a member's data lies, and what becomes of it.
	//
	// +kubebuilder:default={}
	Storage StorageSpec `json:"storage,omitzero"`

	// Limits bound a member's log, memory and calls.
	//
	// +kubebuilder:default={}
	Limits LimitsSpec `json:"limits,omitzero"`

	// Timing of elections.
	//
	// +kubebuilder:default={}
	Timing TimingSpec `json:"timing,omitzero"`

	// Resources of a member's container. Without a memory limit the node takes what
	// it needs: caches and memtables, about 512 MiB with the default limits.
	//
	// +kubebuilder:default={requests: {cpu: "500m", memory: "512Mi"}}
	Resources corev1.ResourceRequirements `json:"resources,omitzero"`

	// Scheduling says where members may run.
	//
	// +kubebuilder:default={}
	Scheduling SchedulingSpec `json:"scheduling,omitzero"`

	// TLS says where the members' certificates come from.
	//
	// +kubebuilder:default={mode: "Managed", certificateLifetime: "720h", authorityLifetime: "8760h"}
	TLS TLSSpec `json:"tls,omitzero"`

	// Paused stops the operator from changing anything of the shard but its
	// certificates, without which the members would soon refuse each other. Members go
	// on.
	Paused bool `json:"paused,omitempty"`
}

// TLSMode says who keeps certificates.
//
// +kubebuilder:validation:Enum=Managed;Provided;Off
type TLSMode string

// The modes.
const (
	// TLSManaged: the operator issues certificates and renews them.
	TLSManaged TLSMode = "Managed"
	// TLSProvided: somebody else does, such as cert-manager.
	TLSProvided TLSMode = "Provided"
	// TLSOff: there are none; whoever reaches a member may do anything. In YAML it is
	// written in quotes.
	TLSOff TLSMode = "Off"
)

// TLSSpec says where the members' certificates come from.
//
// +kubebuilder:validation:XValidation:rule="(self.mode == 'Provided') == (has(self.secretName) && self.secretName.size() > 0)",message="secretName is for mode Provided, and required there"
// +kubebuilder:validation:XValidation:rule="(self.mode == 'Provided') == (has(self.operatorSecretName) && self.operatorSecretName.size() > 0)",message="operatorSecretName is for mode Provided, and required there"
// +kubebuilder:validation:XValidation:rule="duration(self.authorityLifetime) >= duration(self.certificateLifetime) + duration(self.certificateLifetime) + duration(self.certificateLifetime) + duration(self.certificateLifetime)",message="authorityLifetime: use at least four times certificateLifetime"
type TLSSpec struct {
	// Mode can not be changed: members with certificates do not talk to those without,
	// nor to those of another authority.
	//
	// +kubebuilder:default=Managed
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the mode can not be changed: members with certificates do not talk to those without; create another shard"
	Mode TLSMode `json:"mode,omitempty"`

	// SecretName, with mode Provided, names the secret with tls.crt, tls.key and ca.crt
	// of the members. The certificate's only URI is spiffe://<cluster>/node/<shard>. Its
	// contents may change at any time; a change of the name restarts the members.
	//
	// +kubebuilder:validation:MaxLength=253
	SecretName string `json:"secretName,omitempty"`

	// OperatorSecretName, with mode Provided, names the secret with the certificate that
	// the operator shows to the members. Its only URI is spiffe://<cluster>/operator.
	//
	// +kubebuilder:validation:MaxLength=253
	OperatorSecretName string `json:"operatorSecretName,omitempty"`

	// CertificateLifetime, with mode Managed, is how long a certificate is valid, 1h to
	// 8760h; it is renewed after two thirds of it. It applies to certificates issued
	// from then on.
	//
	// +kubebuilder:default="720h"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1h') && duration(self) <= duration('8760h')",message="use 1h to 8760h"
	CertificateLifetime metav1.Duration `json:"certificateLifetime,omitzero"`

	// AuthorityLifetime, with mode Managed, is how long an authority is valid, up to
	// 87600h; it is replaced after two thirds of it. It applies to the next one.
	//
	// +kubebuilder:default="8760h"
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('87600h')",message="use up to 87600h"
	AuthorityLifetime metav1.Duration `json:"authorityLifetime,omitzero"`
}

// StorageSpec says where a member's data lies.
type StorageSpec struct {
	// Size of a member's volume, at least 1Gi. It can be raised, where the storage
	// class allows it, and not lowered.
	//
	// +kubebuilder:default="10Gi"
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).compareTo(quantity('1Gi')) >= 0",message="use 1Gi or more: log and ballast take some hundred MiB"
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0",message="a volume can not be made smaller; replace the members one by one instead"
	Size resource.Quantity `json:"size,omitzero"`

	// ClassName is the storage class; the cluster's default when empty. It can not be
	// changed.
	//
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:default=""
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the storage class can not be changed: volumes stay where they are; create another shard"
	ClassName string `json:"className,omitempty"`

	// Retention says what becomes of volumes.
	//
	// +kubebuilder:default={}
	Retention RetentionSpec `json:"retention,omitzero"`
}

// RetentionPolicy says what becomes of a volume claim.
//
// +kubebuilder:validation:Enum=Delete;Retain
type RetentionPolicy string

// The retention policies.
const (
	RetentionDelete RetentionPolicy = "Delete"
	RetentionRetain RetentionPolicy = "Retain"
)

// RetentionSpec says what becomes of a member's volume claim when the member is not
// needed any more.
type RetentionSpec struct {
	// WhenScaled: the shard has fewer replicas, or the member was replaced.
	//
	// +kubebuilder:default=Delete
	WhenScaled RetentionPolicy `json:"whenScaled,omitempty"`
	// WhenDeleted: the shard is deleted.
	//
	// +kubebuilder:default=Retain
	WhenDeleted RetentionPolicy `json:"whenDeleted,omitempty"`
}

// LimitsSpec bounds what a member takes. Each is a flag of the storage node.
type LimitsSpec struct {
	// MemtableBytes is the size of an instrument's memtable at which it is flushed.
	//
	// +kubebuilder:default=67108864
	// +kubebuilder:validation:Minimum=65536
	// +kubebuilder:validation:Maximum=1073741824
	MemtableBytes int64 `json:"memtableBytes,omitempty"`
	// SegmentBytes is the size of a log segment, a multiple of 4096.
	//
	// +kubebuilder:default=67108864
	// +kubebuilder:validation:Minimum=2097152
	// +kubebuilder:validation:Maximum=1073741824
	// +kubebuilder:validation:MultipleOf=4096
	SegmentBytes int64 `json:"segmentBytes,omitempty"`
	// LogCacheBytes is the memory for recent log entries.
	//
	// +kubebuilder:default=67108864
	// +kubebuilder:validation:Minimum=1048576
	// +kubebuilder:validation:Maximum=17179869184
	LogCacheBytes int64 `json:"logCacheBytes,omitempty"`
	// InFlightBytes bounds batches that are proposed and not yet applied.
	//
	// +kubebuilder:default=67108864
	// +kubebuilder:validation:Minimum=1048576
	// +kubebuilder:validation:Maximum=4294967296
	InFlightBytes int64 `json:"inFlightBytes,omitempty"`
	// AppendWindow is the number of unanswered batches of one append stream.
	//
	// +kubebuilder:default=64
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	AppendWindow int32 `json:"appendWindow,omitempty"`
	// Queries is the number of queries at a time.
	//
	// +kubebuilder:default=256
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65536
	Queries int32 `json:"queries,omitempty"`
	// DiskReserveBytes is the free space below which appends are refused.
	//
	// +kubebuilder:default=268435456
	// +kubebuilder:validation:Minimum=16777216
	// +kubebuilder:validation:Maximum=1099511627776
	DiskReserveBytes int64 `json:"diskReserveBytes,omitempty"`
	// SnapshotSendBytesPerSecond bounds what is sent of snapshots.
	//
	// +kubebuilder:default=104857600
	// +kubebuilder:validation:Minimum=1048576
	SnapshotSendBytesPerSecond int64 `json:"snapshotSendBytesPerSecond,omitempty"`
}

// TimingSpec tunes elections.
type TimingSpec struct {
	// HeartbeatTimeout is how long a member waits for its leader before it starts an
	// election. It must be well above the slowest fsync of the volumes.
	//
	// +kubebuilder:default="1s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('50ms') && duration(self) <= duration('1m')",message="use 50ms to 1m"
	HeartbeatTimeout metav1.Duration `json:"heartbeatTimeout,omitzero"`
}

// SchedulingSpec says where members may run.
type SchedulingSpec struct {
	// NodeSelector restricts members to nodes with these labels.
	//
	// +kubebuilder:validation:MaxProperties=64
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// Affinity of the members' pods.
	Affinity *corev1.Affinity `json:"affinity,omitempty"`
	// Tolerations of the members' pods.
	//
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`
	// TopologySpreadConstraints of the members' pods. When empty, no two members share
	// a node, as far as there are nodes, and zones are filled evenly.
	//
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	TopologySpreadConstraints []corev1.TopologySpreadConstraint `json:"topologySpreadConstraints,omitempty"`
	// PriorityClassName of the members' pods.
	//
	// +kubebuilder:validation:MaxLength=253
	PriorityClassName string `json:"priorityClassName,omitempty"`
}
