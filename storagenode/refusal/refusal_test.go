package refusal

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func TestEveryCodeIsMapped(t *testing.T) {
	for n, name := range storagepb.Code_name {
		code := storagepb.Code(n)
		if code == storagepb.Code_CODE_UNSPECIFIED {
			continue
		}
		if _, ok := grpcCodes[code]; !ok {
			t.Errorf("%s has no gRPC code", name)
		}
	}
}

func TestRefusalCrossesTheWire(t *testing.T) {
	sent := &Error{
		Code: storagepb.Code_CODE_GAP, Message: "send from seq 7", Instrument: "IF2501",
		ExpectedSeq: 7, LastSeq: 6, Epoch: 3, LeaderID: "s1-0", LeaderAddress: "127.0.0.1:1", Term: 9,
	}
	wire := status.ErrorProto(status.Convert(sent).Proto())
	if got := status.Code(wire); got != codes.OutOfRange {
		t.Errorf("gRPC code %v, want OutOfRange", got)
	}
	got := FromError(wire)
	if got == nil || *got != *sent {
		t.Fatalf("got %+v, want %+v", got, sent)
	}
	if !errors.Is(fmt.Errorf("append: %w", got), ErrGap) || errors.Is(got, ErrFenced) {
		t.Error("errors.Is must match by code alone")
	}
	if FromError(errors.New("other")) != nil {
		t.Error("an error without a refusal has none")
	}
}
