// Package controllers reconciles InstrumentShards.
//
// A reconciliation looks at everything anew, walks through the phases of
// pass.run in their order, and makes at most one change to the membership. It
// may be cut short after any write: each phase decides by what it sees, and
// what it must remember is in the shard's status before it acts on it.
//
//   - A member is recorded, with a number that was never used, before its volume
//     claim is created, and the claim's uid before its pod is. A member whose claim
//     is gone, or is another one, has lost its data: it leaves, and a further number
//     joins in its place.
//   - The first members form the shard. They are recorded before the first of them
//     is created, so that all are given the same list, whatever the spec says by then.
//   - Certificates follow their authority by generations, and its next change waits
//     until all have followed; see certificates.
//   - Nothing is removed, restarted or promoted without a leader that says that it
//     is safe.
//
// +kubebuilder:rbac:groups=countinghouse.io,resources=instrumentshards,verbs=get;list;watch;update;patch
// +kubebuilder:rbac:groups=countinghouse.io,resources=instrumentshards/status,verbs=get;update;patch
// +kubebuilder:rbac:groups=countinghouse.io,resources=instrumentshards/finalizers,verbs=update
// +kubebuilder:rbac:groups="",resources=pods;persistentvolumeclaims;services,verbs=get;list;watch;create;update;patch;delete
// +kubebuilder:rbac:groups="";events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;watch;create;update;delete
// +kubebuilder:rbac:groups=policy,resources=poddisruptionbudgets,verbs=get;list;watch;create;update;patch;delete
// +kubebuilder:rbac:groups=networking.k8s.io,resources=networkpolicies,verbs=get;list;watch;create;update;patch;delete
// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,verbs=get;create;update;patch
package controllers
