package storagenode

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

// transferTimeout bounds a transfer of leadership whose caller set no deadline.
const transferTimeout = 30 * time.Second

// admin serves storagepb.AdminServer.
type admin struct {
	storagepb.UnimplementedAdminServer
	server *Server
}

// Status serves storagepb.AdminServer.
func (a *admin) Status(context.Context, *storagepb.StatusRequest) (*storagepb.StatusResponse, error) {
	st := a.server.replica.Status()
	st.Version = a.server.opts.Version
	if tls := a.server.opts.TLS; tls != nil {
		st.TrustedAuthorities, st.CertificateIssuer = tls.Trusted(), tls.Issuer()
	}
	return st, nil
}

func membership(index uint64, err error) (*storagepb.MembershipResponse, error) {
	if err != nil {
		return nil, asStatus(err)
	}
	return &storagepb.MembershipResponse{MembershipIndex: index}, nil
}

// AddLearner serves storagepb.AdminServer.
func (a *admin) AddLearner(ctx context.Context, req *storagepb.AddLearnerRequest) (*storagepb.MembershipResponse, error) {
	return membership(a.server.replica.AddLearner(ctx, req.Id, req.Address, req.PrevIndex))
}

// Promote serves storagepb.AdminServer.
func (a *admin) Promote(ctx context.Context, req *storagepb.PromoteRequest) (*storagepb.MembershipResponse, error) {
	return membership(a.server.replica.Promote(ctx, req.Id, req.PrevIndex))
}

// Remove serves storagepb.AdminServer.
func (a *admin) Remove(ctx context.Context, req *storagepb.RemoveRequest) (*storagepb.MembershipResponse, error) {
	return membership(a.server.replica.Remove(ctx, req.Id, req.PrevIndex))
}

// TransferLeadership serves storagepb.AdminServer.
func (a *admin) TransferLeadership(ctx context.Context, req *storagepb.TransferLeadershipRequest) (*storagepb.TransferLeadershipResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	id, err := a.server.replica.TransferLeadership(ctx, req.Id)
	if err != nil {
		return nil, asStatus(err)
	}
	return &storagepb.TransferLeadershipResponse{LeaderId: id}, nil
}

// Snapshot serves storagepb.AdminServer.
func (a *admin) Snapshot(ctx context.Context, _ *storagepb.SnapshotRequest) (*storagepb.SnapshotResponse, error) {
	out, err := a.server.replica.Snapshot(ctx)
	return out, asStatus(err)
}

// SafeToRestart serves storagepb.AdminServer.
func (a *admin) SafeToRestart(ctx context.Context, _ *storagepb.SafeToRestartRequest) (*storagepb.SafeToRestartResponse, error) {
	safe, why := a.server.replica.SafeToRestart(ctx)
	return &storagepb.SafeToRestartResponse{Safe: safe, Reason: why}, nil
}

// AssignInstruments serves storagepb.AdminServer.
func (a *admin) AssignInstruments(ctx context.Context, req *storagepb.AssignInstrumentsRequest) (*storagepb.AssignInstrumentsResponse, error) {
	instruments := make([]record.Symbol, len(req.Instruments))
	for i, name := range req.Instruments {
		var err error
		if instruments[i], err = symbol(name); err != nil {
			return nil, err
		}
	}
	if err := a.server.replica.SetOwned(ctx, instruments); err != nil {
		return nil, asStatus(err)
	}
	names := slices.Sorted(slices.Values(req.Instruments))
	return &storagepb.AssignInstrumentsResponse{Instruments: slices.Compact(names)}, nil
}

// Verify serves storagepb.AdminServer.
func (a *admin) Verify(_ *storagepb.VerifyRequest, stream grpc.ServerStreamingServer[storagepb.VerifyResponse]) error {
	leave, err := a.server.enter("verify")
	if err != nil {
		return err
	}
	defer leave()
	view, err := a.server.replica.Read(stream.Context(), true)
	if err != nil {
		return asStatus(err)
	}
	defer view.Release()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	out := &verifySender{stream: stream, cancel: cancel}
	sum, err := view.Shard.Verify(ctx, out.finding, out.progress)
	if err != nil {
		return asStatus(err)
	}
	if out.err != nil {
		return out.err
	}
	return stream.Send(&storagepb.VerifyResponse{
		Files: sum.Files, Bytes: sum.Bytes, Records: sum.Records, Done: true, Ok: sum.Findings == 0,
	})
}

// verifySender sends findings and progress, and ends the check when it can not.
type verifySender struct {
	mu     sync.Mutex
	stream grpc.ServerStreamingServer[storagepb.VerifyResponse]
	cancel context.CancelFunc
	err    error
}

func (v *verifySender) send(m *storagepb.VerifyResponse) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return
	}
	if v.err = v.stream.Send(m); v.err != nil {
		v.cancel()
	}
}

func (v *verifySender) finding(f store.Finding) {
	v.send(&storagepb.VerifyResponse{Finding: f.What, File: f.File, Offset: f.Offset})
}

func (v *verifySender) progress(s store.Summary) {
	v.send(&storagepb.VerifyResponse{Files: s.Files, Bytes: s.Bytes, Records: s.Records})
}
