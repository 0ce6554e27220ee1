package client

import (
	"context"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// group is a shard of fake nodes that share one stream of records, as replicas
// that are never behind.
type group struct {
	mu      sync.Mutex
	leader  *fake
	records []record.Record
	epoch   uint64
	grown   chan struct{} // closed and replaced when records or the leader change
	lost    int           // OpenStream answers to lose after carrying them out

	transfers int   // calls to TransferLeadership; the first one's answer is lost
	stall     *fake // hangs in the middle of its scans
	stalls    int   // how often it did
}

// fake is one node.
type fake struct {
	storagepb.UnimplementedIngestServer
	storagepb.UnimplementedQueryServer
	storagepb.UnimplementedAdminServer
	g       *group
	id      string
	address string
	server  *grpc.Server

	hang    chan struct{} // not nil: calls wait until it is closed
	hint    string        // not empty: names this address as the leader's
	calls   int
	cluster []string
	shard   []string
}

var testSymbol = record.MustSymbol("IF2501")

// startGroup starts nodes on loopback ports; the first one leads.
func startGroup(t *testing.T, n int) (*group, []*fake, *Client) {
	t.Helper()
	g := &group{grown: make(chan struct{})}
	fakes := make([]*fake, n)
	for i := range fakes {
		fakes[i] = g.start(t, string(rune('a'+i)), "127.0.0.1:0")
	}
	g.leader = fakes[0]
	return g, fakes, dialGroup(t, members(fakes...))
}

// start starts a node that listens on an address.
func (g *group) start(t *testing.T, id, address string) *fake {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{g: g, id: id, address: l.Addr().String(), server: grpc.NewServer()}
	storagepb.RegisterIngestServer(f.server, f)
	storagepb.RegisterQueryServer(f.server, f)
	storagepb.RegisterAdminServer(f.server, f)
	go f.server.Serve(l)
	t.Cleanup(f.server.Stop)
	return f
}

func members(fakes ...*fake) []Member {
	out := make([]Member, len(fakes))
	for i, f := range fakes {
		out[i] = Member{ID: f.id, Address: f.address}
	}
	return out
}

// dialGroup returns a client of the shard s1, which has IF2501.
func dialGroup(t *testing.T, members []Member) *Client {
	t.Helper()
	def := Shard{Name: "s1", Instruments: []string{"IF2501"}, Members: members}
	c, err := New(&Map{Cluster: "test", Shards: []Shard{def}}, Options{AttemptTimeout: testAttempt, RetryPauseMin: 1, RetryPauseMax: testAttempt / 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (g *group) lead(f *fake) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leader = f
	close(g.grown)
	g.grown = make(chan struct{})
}

func (g *group) add(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range n {
		seq := uint64(len(g.records) + 1)
		g.records = append(g.records, record.Record{Header: record.Header{
			Version: record.Version, Type: record.TypeDeposit, Seq: seq, Global: seq, Time: int64(seq), Instrument: testSymbol,
		}})
	}
	close(g.grown)
	g.grown = make(chan struct{})
}

// admit notes the call and refuses it unless this node leads or stale is set.
func (f *fake) admit(ctx context.Context, stale bool) error {
	f.g.mu.Lock()
	md, _ := metadata.FromIncomingContext(ctx)
	f.calls++
	f.cluster, f.shard = md.Get(ClusterKey), md.Get(ShardKey)
	hang, leader := f.hang, f.g.leader
	f.g.mu.Unlock()
	if hang != nil {
		<-hang
		return ctx.Err()
	}
	if stale || leader == f {
		return nil
	}
	return f.notLeader()
}

func (f *fake) notLeader() error {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	r := refusal.New(storagepb.Code_CODE_NOT_LEADER, "%s is a follower", f.id)
	switch {
	case f.hint != "":
		r.LeaderAddress = f.hint
	case f.g.leader != nil:
		r.LeaderAddress = f.g.leader.address
	}
	return r
}

func (f *fake) callCount() int {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	return f.calls
}

func (f *fake) OpenStream(ctx context.Context, req *storagepb.OpenStreamRequest) (*storagepb.OpenStreamResponse, error) {
	if err := f.admit(ctx, false); err != nil {
		return nil, err
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	if req.Epoch <= f.g.epoch {
		r := refusal.New(storagepb.Code_CODE_FENCED, "epoch %d is not above %d", req.Epoch, f.g.epoch)
		r.Epoch = f.g.epoch
		return nil, r
	}
	f.g.epoch = req.Epoch
	if f.g.lost > 0 {
		f.g.lost--
		return nil, refusal.New(storagepb.Code_CODE_UNAVAILABLE, "lost the leadership")
	}
	answer := &storagepb.OpenStreamResponse{Epoch: req.Epoch, LastSeq: uint64(len(f.g.records))}
	if n := len(f.g.records); n > 0 {
		answer.LastRecord = f.g.records[n-1].Bytes()
	}
	return answer, nil
}

func (f *fake) Append(stream grpc.BidiStreamingServer[storagepb.AppendRequest, storagepb.AppendResponse]) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		answer := &storagepb.AppendResponse{Instrument: "IF2501"}
		batch, err := record.ParseBatch(req.Batch)
		if err == nil {
			err = f.admit(stream.Context(), false)
		} else {
			answer.Instrument = ""
			err = refusal.New(storagepb.Code_CODE_CORRUPT, "%v", err)
		}
		if err != nil {
			answer.Refusal = refusal.FromError(err).Proto()
		} else {
			answer.Epoch, answer.FirstSeq, answer.LastSeq = batch.Epoch, batch.FirstSeq, batch.LastSeq()
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

func (f *fake) Status(ctx context.Context, _ *storagepb.StatusRequest) (*storagepb.StatusResponse, error) {
	if err := f.admit(ctx, true); err != nil {
		return nil, err
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	st := &storagepb.StatusResponse{Id: f.id, State: "follower"}
	if f.g.leader != nil {
		st.LeaderId, st.LeaderAddress = f.g.leader.id, f.g.leader.address
	}
	if f.g.leader == f {
		st.State = StateLeader
	}
	return st, nil
}

func (f *fake) Instruments(ctx context.Context, req *storagepb.InstrumentsRequest) (*storagepb.InstrumentsResponse, error) {
	if err := f.admit(ctx, req.Stale); err != nil {
		return nil, err
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	return &storagepb.InstrumentsResponse{Instruments: []*storagepb.InstrumentStats{{Instrument: "IF2501", LastSeq: uint64(len(f.g.records))}}}, nil
}

func (f *fake) Scan(req *storagepb.ScanRequest, stream grpc.ServerStreamingServer[storagepb.Records]) error {
	if err := f.admit(stream.Context(), req.Stale); err != nil {
		return err
	}
	if f.stallIf(stream, max(req.FromSeq, 1)) {
		return stream.Context().Err()
	}
	_, err := f.send(stream, max(req.FromSeq, 1), req.ToSeq, req.Limit)
	return err
}

// send sends what there is from seq on, two records a message, and returns the
// seq after the last one.
func (f *fake) send(stream grpc.ServerStreamingServer[storagepb.Records], seq, to, limit uint64) (uint64, error) {
	f.g.mu.Lock()
	all := f.g.records
	f.g.mu.Unlock()
	for sent := uint64(0); seq <= uint64(len(all)) && (to == 0 || seq <= to) && (limit == 0 || sent < limit); {
		end := min(seq+1, uint64(len(all)))
		if to != 0 {
			end = min(end, to)
		}
		if limit != 0 {
			end = min(end, seq+limit-sent-1)
		}
		if err := stream.Send(&storagepb.Records{Data: record.SliceBytes(all[seq-1 : end])}); err != nil {
			return seq, err
		}
		sent, seq = sent+end-seq+1, end+1
	}
	return seq, nil
}

// Tail ends with a refusal when the node is no longer the leader.
func (f *fake) Tail(req *storagepb.TailRequest, stream grpc.ServerStreamingServer[storagepb.Records]) error {
	seq := req.FromSeq
	for {
		if err := f.admit(stream.Context(), req.Stale); err != nil {
			return err
		}
		f.g.mu.Lock()
		grown := f.g.grown
		f.g.mu.Unlock()
		var err error
		if seq, err = f.send(stream, seq, 0, 0); err != nil {
			return err
		}
		select {
		case <-grown:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (f *fake) Get(req *storagepb.GetRequest, stream grpc.ServerStreamingServer[storagepb.Records]) error {
	if err := f.admit(stream.Context(), req.Stale); err != nil {
		return err
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	for i := range f.g.records {
		if f.g.records[i].Seq%req.OrderId == 0 {
			if err := stream.Send(&storagepb.Records{Data: f.g.records[i].Bytes()}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fake) Verify(_ *storagepb.VerifyRequest, stream grpc.ServerStreamingServer[storagepb.VerifyResponse]) error {
	if f.hint == "silent" {
		return nil
	}
	if err := stream.Send(&storagepb.VerifyResponse{Records: 5}); err != nil {
		return err
	}
	return stream.Send(&storagepb.VerifyResponse{Records: 9, Done: true, Ok: true})
}

func (f *fake) Promote(ctx context.Context, req *storagepb.PromoteRequest) (*storagepb.MembershipResponse, error) {
	if err := f.admit(ctx, false); err != nil {
		return nil, err
	}
	if req.Id == "late" {
		return nil, refusal.New(storagepb.Code_CODE_INVALID, "late has not caught up")
	}
	return &storagepb.MembershipResponse{MembershipIndex: req.PrevIndex + 1}, nil
}
