package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// InstrumentShardStatus is what the operator last saw of a shard. What moves all
// the time, such as log indexes, is in the members' metrics.
type InstrumentShardStatus struct {
	// ObservedGeneration is the generation of the spec that the status is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Conditions are Available, Progressing, Degraded, QuorumLost, Accepted and
	// CertificatesReady, Recovery where one was asked for, and VolumesGrown where a
	// volume can not grow.
	//
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// Leader is the id of the member that leads, empty for none.
	Leader string `json:"leader,omitempty"`

	// Replicas is the number of members that take part in the shard.
	Replicas int32 `json:"replicas,omitempty"`

	// ReadyReplicas is the number of members that are ready.
	ReadyReplicas int32 `json:"readyReplicas,omitempty"`

	// Selector selects the members' pods, for the scale subresource.
	Selector string `json:"selector,omitempty"`

	// Members of the shard and those that are joining or leaving it.
	//
	// +listType=map
	// +listMapKey=id
	Members []MemberStatus `json:"members,omitempty"`

	// NextMember is the number that the next member gets. Numbers are never used
	// again: a member's id stands for its data.
	NextMember int32 `json:"nextMember,omitempty"`

	// Bootstrapped is set once the first members have formed the shard. From then on
	// members only ever join.
	Bootstrapped bool `json:"bootstrapped,omitempty"`

	// Instruments that the shard owns.
	//
	// +listType=set
	Instruments []string `json:"instruments,omitempty"`

	// RefusedInstruments are those that the spec names and another shard owns.
	//
	// +listType=map
	// +listMapKey=name
	RefusedInstruments []RefusedInstrument `json:"refusedInstruments,omitempty"`

	// Recovery from a lost quorum that is under way, or the last one.
	Recovery *RecoveryStatus `json:"recovery,omitempty"`

	// InstrumentSummary is the instruments in short, for people.
	InstrumentSummary string `json:"instrumentSummary,omitempty"`
}

// MemberRole is the part that a member has in its shard.
//
// +kubebuilder:validation:Enum=Leader;Follower;Learner;Joining;Leaving;Lost
type MemberRole string

// The roles.
const (
	// RoleLeader takes the writes.
	RoleLeader MemberRole = "Leader"
	// RoleFollower votes.
	RoleFollower MemberRole = "Follower"
	// RoleLearner is sent the log and does not vote yet.
	RoleLearner MemberRole = "Learner"
	// RoleJoining has a pod and is not part of the shard yet.
	RoleJoining MemberRole = "Joining"
	// RoleLost has no disk any more, or another one; it is replaced.
	RoleLost MemberRole = "Lost"
	// RoleLeaving is not part of the shard any more, and still has a pod or a volume.
	RoleLeaving MemberRole = "Leaving"
)

// MemberStatus is one member.
type MemberStatus struct {
	// ID of the member, which is the name of its pod and of its volume claim.
	ID string `json:"id"`
	// Pod is the name of the member's pod, empty while there is none.
	Pod string `json:"pod,omitempty"`
	// Role of the member.
	Role MemberRole `json:"role,omitempty"`
	// Ready is set while the member knows a leader and has caught up.
	Ready bool `json:"ready,omitempty"`
	// ClaimUID is that of the volume claim whose data the id stands for. A claim with
	// another one is another disk, and the member is replaced.
	ClaimUID types.UID `json:"claimUID,omitempty"`
	// First is set for the members that form the shard.
	First bool `json:"first,omitempty"`
}

// AnnotationRecoverFrom names the member from which a shard that has lost its quorum
// for good shall go on. Whoever sets it gives the other members up, and what they
// acknowledged without this one.
const AnnotationRecoverFrom = "countinghouse.io/recover-from"

// RecoveryPhase is how far a recovery from a lost quorum has come.
//
// +kubebuilder:validation:Enum=Isolating;Restarting;Refilling;Done
type RecoveryPhase string

// The phases, in their order.
const (
	// RecoveryIsolating: the pods of the members that are given up end.
	RecoveryIsolating RecoveryPhase = "Isolating"
	// RecoveryRestarting: the survivor starts as the shard's only voter.
	RecoveryRestarting RecoveryPhase = "Restarting"
	// RecoveryRefilling: the survivor leads, and others join.
	RecoveryRefilling RecoveryPhase = "Refilling"
	// RecoveryDone: the shard has all its members again.
	RecoveryDone RecoveryPhase = "Done"
)

// RecoveryStatus records a recovery from a lost quorum.
type RecoveryStatus struct {
	// Survivor is the id of the member that the shard goes on from.
	Survivor string `json:"survivor"`
	// Token names the decision; the survivor carries it out once.
	Token string `json:"token"`
	// StartedAt is when the decision was recorded.
	StartedAt metav1.Time `json:"startedAt"`
	// FinishedAt is when the shard had all its members again.
	FinishedAt *metav1.Time `json:"finishedAt,omitempty"`
	// GivenUp are the ids of the members that never come back. Their volume claims
	// stay until somebody deletes them.
	//
	// +listType=set
	GivenUp []string `json:"givenUp,omitempty"`
	// Phase of the recovery.
	Phase RecoveryPhase `json:"phase"`
}

// RefusedInstrument is an instrument that another shard owns.
type RefusedInstrument struct {
	// Name of the instrument.
	Name string `json:"name"`
	// Owner is the shard that owns it.
	Owner string `json:"owner"`
}

// The condition types.
const (
	// ConditionAvailable: a leader is known, and a quorum of members is ready.
	ConditionAvailable = "Available"
	// ConditionProgressing: the operator is on the way to what the spec says.
	ConditionProgressing = "Progressing"
	// ConditionDegraded: a member is missing, not ready or damaged.
	ConditionDegraded = "Degraded"
	// ConditionQuorumLost: the members that are left can not elect a leader.
	ConditionQuorumLost = "QuorumLost"
	// ConditionRecovery: a recovery from a lost quorum is under way; when false, its
	// reason says that it was refused or is done.
	ConditionRecovery = "Recovery"
	// ConditionAccepted: the shard owns every instrument that the spec names.
	ConditionAccepted = "Accepted"
	// ConditionVolumesGrown is there, and false, while a volume is smaller than the spec
	// asks for and can not grow.
	ConditionVolumesGrown = "VolumesGrown"
	// ConditionCertificatesReady: the members' certificates are there, and no change of
	// the authority is under way that has come to a standstill.
	ConditionCertificatesReady = "CertificatesReady"
)
