package storagenode

import (
	"slices"

	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

var (
	writers        = []identity.Role{identity.Exchange}
	readers        = []identity.Role{identity.Exchange, identity.Reader, identity.Operator}
	administrators = []identity.Role{identity.Operator}
	members        = []identity.Role{identity.Node}
)

// Access says which role may call what of a node that has certificates. It names
// every method that a node serves; of the role node it means the node's own shard.
var Access = identity.Access{
	storagepb.Ingest_OpenStream_FullMethodName: writers,
	storagepb.Ingest_Append_FullMethodName:     writers,

	storagepb.Query_Get_FullMethodName:         readers,
	storagepb.Query_Scan_FullMethodName:        readers,
	storagepb.Query_Tail_FullMethodName:        readers,
	storagepb.Query_Instruments_FullMethodName: readers,

	// A leader asks who can take over from it.
	storagepb.Admin_Status_FullMethodName:             slices.Concat(members, readers),
	storagepb.Admin_AddLearner_FullMethodName:         administrators,
	storagepb.Admin_Promote_FullMethodName:            administrators,
	storagepb.Admin_Remove_FullMethodName:             administrators,
	storagepb.Admin_TransferLeadership_FullMethodName: administrators,
	storagepb.Admin_Snapshot_FullMethodName:           administrators,
	storagepb.Admin_SafeToRestart_FullMethodName:      administrators,
	storagepb.Admin_AssignInstruments_FullMethodName:  administrators,
	storagepb.Admin_Verify_FullMethodName:             administrators,

	storagepb.RaftTransport_AppendEntries_FullMethodName:   members,
	storagepb.RaftTransport_RequestVote_FullMethodName:     members,
	storagepb.RaftTransport_RequestPreVote_FullMethodName:  members,
	storagepb.RaftTransport_TimeoutNow_FullMethodName:      members,
	storagepb.RaftTransport_InstallSnapshot_FullMethodName: members,

	grpc_health_v1.Health_Check_FullMethodName: identity.Roles,
	grpc_health_v1.Health_List_FullMethodName:  identity.Roles,
	grpc_health_v1.Health_Watch_FullMethodName: identity.Roles,
}
