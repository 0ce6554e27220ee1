// Package refusal holds the typed reasons for which a storage node turns a
// request down, and the one table that maps them to gRPC codes.
package refusal

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Error is a refusal as a Go error. Which fields are set depends on Code; see
// the comments of storagepb.Refusal.
type Error struct {
	Code          storagepb.Code
	Message       string
	Instrument    string
	ExpectedSeq   uint64
	LastSeq       uint64
	Epoch         uint64
	LeaderID      string
	LeaderAddress string
	Term          uint64
}

// Error returns the message, which says what to do.
func (e *Error) Error() string { return e.Message }

// Is lets errors.Is match a refusal by its code alone: the target's other
// fields are not compared.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Targets for errors.Is, one for each code.
var (
	ErrNotLeader      = &Error{Code: storagepb.Code_CODE_NOT_LEADER, Message: "not leader"}
	ErrNotOwner       = &Error{Code: storagepb.Code_CODE_NOT_OWNER, Message: "not owner"}
	ErrDuplicate      = &Error{Code: storagepb.Code_CODE_DUPLICATE, Message: "duplicate"}
	ErrGap            = &Error{Code: storagepb.Code_CODE_GAP, Message: "gap"}
	ErrFenced         = &Error{Code: storagepb.Code_CODE_FENCED, Message: "fenced"}
	ErrDiskFull       = &Error{Code: storagepb.Code_CODE_DISK_FULL, Message: "disk full"}
	ErrCorrupt        = &Error{Code: storagepb.Code_CODE_CORRUPT, Message: "corrupt"}
	ErrUnknownVersion = &Error{Code: storagepb.Code_CODE_UNKNOWN_VERSION, Message: "unknown version"}
	ErrWrongCluster   = &Error{Code: storagepb.Code_CODE_WRONG_CLUSTER, Message: "wrong cluster"}
	ErrInvalid        = &Error{Code: storagepb.Code_CODE_INVALID, Message: "invalid"}
	ErrOverloaded     = &Error{Code: storagepb.Code_CODE_OVERLOADED, Message: "overloaded"}
	ErrUnavailable    = &Error{Code: storagepb.Code_CODE_UNAVAILABLE, Message: "unavailable"}
	ErrNotFound       = &Error{Code: storagepb.Code_CODE_NOT_FOUND, Message: "not found"}
	ErrGivenUp        = &Error{Code: storagepb.Code_CODE_GIVEN_UP, Message: "given up"}
)

// grpcCodes maps every refusal to the gRPC code a generic client understands.
var grpcCodes = map[storagepb.Code]codes.Code{
	storagepb.Code_CODE_NOT_LEADER:      codes.FailedPrecondition,
	storagepb.Code_CODE_NOT_OWNER:       codes.FailedPrecondition,
	storagepb.Code_CODE_DUPLICATE:       codes.AlreadyExists,
	storagepb.Code_CODE_GAP:             codes.OutOfRange,
	storagepb.Code_CODE_FENCED:          codes.Aborted,
	storagepb.Code_CODE_DISK_FULL:       codes.ResourceExhausted,
	storagepb.Code_CODE_CORRUPT:         codes.DataLoss,
	storagepb.Code_CODE_UNKNOWN_VERSION: codes.Unimplemented,
	storagepb.Code_CODE_WRONG_CLUSTER:   codes.PermissionDenied,
	storagepb.Code_CODE_INVALID:         codes.InvalidArgument,
	storagepb.Code_CODE_OVERLOADED:      codes.ResourceExhausted,
	storagepb.Code_CODE_UNAVAILABLE:     codes.Unavailable,
	storagepb.Code_CODE_NOT_FOUND:       codes.NotFound,
	storagepb.Code_CODE_GIVEN_UP:        codes.FailedPrecondition,
}

// retryable holds the codes after which the same bytes, sent again later or to
// another replica, can succeed.
var retryable = map[storagepb.Code]bool{
	storagepb.Code_CODE_NOT_LEADER:  true,
	storagepb.Code_CODE_DISK_FULL:   true,
	storagepb.Code_CODE_OVERLOADED:  true,
	storagepb.Code_CODE_UNAVAILABLE: true,
	storagepb.Code_CODE_GIVEN_UP:    true, // by another member
}

// Retryable reports whether the same request can succeed later or elsewhere.
func Retryable(code storagepb.Code) bool { return retryable[code] }

// New returns a refusal with the given code and message.
func New(code storagepb.Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Proto returns the wire form of e.
func (e *Error) Proto() *storagepb.Refusal {
	return &storagepb.Refusal{
		Code: e.Code, Message: e.Message, Instrument: e.Instrument,
		ExpectedSeq: e.ExpectedSeq, LastSeq: e.LastSeq, Epoch: e.Epoch,
		LeaderId: e.LeaderID, LeaderAddress: e.LeaderAddress, Term: e.Term,
	}
}

// FromProto returns the refusal that p states, or nil for a nil p.
func FromProto(p *storagepb.Refusal) *Error {
	if p == nil {
		return nil
	}
	return &Error{
		Code: p.Code, Message: p.Message, Instrument: p.Instrument,
		ExpectedSeq: p.ExpectedSeq, LastSeq: p.LastSeq, Epoch: p.Epoch,
		LeaderID: p.LeaderId, LeaderAddress: p.LeaderAddress, Term: p.Term,
	}
}

// GRPCStatus lets grpc-go send e as a status with the refusal as its detail.
func (e *Error) GRPCStatus() *status.Status {
	code, ok := grpcCodes[e.Code]
	if !ok {
		code = codes.Unknown
	}
	st := status.New(code, e.Message)
	if detailed, err := st.WithDetails(e.Proto()); err == nil {
		return detailed
	}
	return st
}

// FromError returns the refusal that err carries, as itself or as a detail of a
// gRPC status, or nil.
func FromError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	st, ok := status.FromError(err)
	if !ok || st == nil {
		return nil
	}
	for _, d := range st.Details() {
		if p, ok := d.(*storagepb.Refusal); ok {
			return FromProto(p)
		}
	}
	return nil
}
