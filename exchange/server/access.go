package server

import (
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/identity"
)

var (
	traders   = []identity.Role{identity.Trader}
	watchers  = []identity.Role{identity.Trader, identity.Reader, identity.Operator}
	operators = []identity.Role{identity.Operator}
	anyone    = []identity.Role{identity.Exchange, identity.Reader, identity.Operator, identity.Trader}
)

// Access says which role may call what of an exchange that has certificates. It
// names every method that a server serves.
var Access = identity.Access{
	pb.OrderEntry_Submit_FullMethodName:  traders,
	pb.OrderEntry_Cancel_FullMethodName:  traders,
	pb.OrderEntry_Amend_FullMethodName:   traders,
	pb.OrderEntry_Session_FullMethodName: traders,
	// After a break the operator looks at what rests, as its owner does.
	pb.OrderEntry_LiveOrders_FullMethodName: {identity.Trader, identity.Operator},

	pb.MarketData_Instruments_FullMethodName: watchers,
	pb.MarketData_Book_FullMethodName:        watchers,
	pb.MarketData_Books_FullMethodName:       watchers,
	pb.MarketData_Executions_FullMethodName:  watchers,

	// Money comes and goes by the operator's hand.
	pb.Accounts_OpenAccount_FullMethodName: operators,
	pb.Accounts_Deposit_FullMethodName:     operators,
	pb.Accounts_Withdraw_FullMethodName:    operators,
	pb.Accounts_Account_FullMethodName:     watchers,
	pb.Accounts_CloseOuts_FullMethodName:   {identity.Reader, identity.Operator},

	pb.Control_Halt_FullMethodName:   operators,
	pb.Control_Settle_FullMethodName: operators,
	pb.Control_State_FullMethodName:  {identity.Reader, identity.Operator},

	grpc_health_v1.Health_Check_FullMethodName: anyone,
	grpc_health_v1.Health_List_FullMethodName:  anyone,
	grpc_health_v1.Health_Watch_FullMethodName: anyone,

	grpc_reflection_v1.ServerReflection_ServerReflectionInfo_FullMethodName:      anyone,
	grpc_reflection_v1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: anyone,
}
