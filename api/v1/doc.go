// Package v1 holds the Kubernetes API of Countinghouse: an InstrumentShard is a
// Raft group of storage nodes that owns instruments.
//
// +kubebuilder:object:generate=true
// +groupName=countinghouse.io
package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of this package's types.
var GroupVersion = schema.GroupVersion{Group: "countinghouse.io", Version: "v1"}

// AddToScheme adds this package's types to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &InstrumentShard{}, &InstrumentShardList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
