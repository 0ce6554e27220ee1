package server

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/exchange/risk"
)

// grpcCodes maps the reasons to the codes that a generic client understands.
// Those that are not here are InvalidArgument.
var grpcCodes = map[risk.Reason]codes.Code{
	risk.UnknownInstrument: codes.NotFound,
	risk.UnknownAccount:    codes.NotFound,
	risk.AccountExists:     codes.AlreadyExists,
	risk.InsufficientFunds: codes.FailedPrecondition,
	risk.BookFull:          codes.ResourceExhausted,
	risk.BacklogFull:       codes.ResourceExhausted,
	risk.Overloaded:        codes.ResourceExhausted,
	risk.Unavailable:       codes.Unavailable,
}

// refusal returns the status of a refused request, nil for risk.OK.
func refusal(why risk.Reason, detail string) error {
	if why == risk.OK {
		return nil
	}
	code, ok := grpcCodes[why]
	if !ok {
		code = codes.InvalidArgument
	}
	message := why.Message()
	if detail != "" {
		message = detail + ": " + message
	}
	return statusOf(code, why.String(), message)
}

// invalid refuses a request because of one of its fields.
func invalid(field, format string, args ...any) error {
	return statusOf(codes.InvalidArgument, risk.Malformed.String(), field+": "+fmt.Sprintf(format, args...))
}

func statusOf(code codes.Code, reason, message string) error {
	st := status.New(code, reason+": "+message)
	if detailed, err := st.WithDetails(&pb.Refusal{Reason: reason, Message: message}); err == nil {
		st = detailed
	}
	return st.Err()
}
